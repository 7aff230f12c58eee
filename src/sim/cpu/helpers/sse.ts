/** MMX and SSE to SSE4.2, but for AES, PCLMULQDQ and what works on general registers. */
import type { Helpers } from './helper.ts';
import { mmx } from './mmx.ts';
import { sseConvert } from './sse-convert.ts';
import { sseFloat } from './sse-float.ts';
import { sseInteger } from './sse-integer.ts';
import { sseMove } from './sse-move.ts';
import { sseString } from './sse-string.ts';

/** `movsd` and `cmpsd` are also string instructions' names: those have no vector operand. */
export const sse: Helpers = {
  ...mmx,
  ...sseInteger,
  ...sseMove,
  ...sseFloat,
  ...sseConvert,
  ...sseString,
};

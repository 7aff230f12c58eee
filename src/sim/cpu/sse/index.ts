/** MMX and SSE to SSE4.2, but for AES, PCLMULQDQ and what works on general registers. */
import type { Helpers } from '../processor/helper.ts';
import { sseConvert } from './convert.ts';
import { sseFloat } from './float.ts';
import { sseInteger } from './integer.ts';
import { mmx } from './mmx.ts';
import { sseMove } from './move.ts';
import { sseString } from './string.ts';

/** `movsd` and `cmpsd` are also string instructions' names: those have no vector operand. */
export const sse: Helpers = {
  ...mmx,
  ...sseInteger,
  ...sseMove,
  ...sseFloat,
  ...sseConvert,
  ...sseString,
};

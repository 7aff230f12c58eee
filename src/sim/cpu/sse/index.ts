/** MMX, SSE to SSE4.2, SSE4a, AES, PCLMULQDQ and SHA, but for what works on general registers. */
import type { Answers, Helpers } from '../processor/helper.ts';
import { aes } from './aes.ts';
import { sseConvert, sseIntegers } from './convert.ts';
import { sseComparisons, sseFloat } from './float.ts';
import { sseInteger } from './integer.ts';
import { mmx } from './mmx.ts';
import { sseMove } from './move.ts';
import { sha } from './sha.ts';
import { sse4a } from './sse4a.ts';
import { sseString } from './string.ts';

/** `movsd` and `cmpsd` are also string instructions' names: those have no vector operand. */
export const sse: Helpers = {
  ...mmx,
  ...sseInteger,
  ...sseMove,
  ...sseFloat,
  ...sseConvert,
  ...sseString,
  ...aes,
  ...sha,
  ...sse4a,
};

/** The same instructions as in `sse`, for callers that put the result in its place. */
export const sseAnswers: Answers = { ...sseComparisons, ...sseIntegers };

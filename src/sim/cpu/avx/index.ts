/** AVX, AVX2, FMA and F16C, and XSAVE, which saves their registers. */
import type { Answers, Helpers } from '../processor/helper.ts';
import { avxFma } from './fma.ts';
import { avxGather } from './gather.ts';
import { avxHalfFloats } from './half-floats.ts';
import { avxMove, avxMoveAnswers } from './move.ts';
import { avxPermute } from './permute.ts';
import { avxPromoted, avxPromotedAnswers } from './promoted.ts';
import { xsave } from './xsave.ts';

export { misaligned } from './move.ts';

/** The same instructions as in `avx`, for callers that put the result in its place. */
export const avxAnswers: Answers = { ...avxPromotedAnswers, ...avxMoveAnswers };

export const avx: Helpers = {
  ...avxPromoted,
  ...avxMove,
  ...avxPermute,
  ...avxGather,
  ...avxFma,
  ...avxHalfFloats,
  ...xsave,
};

/** AVX, AVX2, FMA and F16C, and XSAVE, which saves their registers. */
import type { Helpers } from '../processor/helper.ts';
import { avxFma } from './fma.ts';
import { avxGather } from './gather.ts';
import { avxHalfFloats } from './half-floats.ts';
import { avxMove } from './move.ts';
import { avxPermute } from './permute.ts';
import { avxPromoted } from './promoted.ts';
import { xsave } from './xsave.ts';

export const avx: Helpers = {
  ...avxPromoted,
  ...avxMove,
  ...avxPermute,
  ...avxGather,
  ...avxFma,
  ...avxHalfFloats,
  ...xsave,
};

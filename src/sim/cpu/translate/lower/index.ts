/** The integer instructions that are micro-ops, joined. */
import type { Lowerings } from '../lowering.ts';
import { arithmetic } from './arithmetic.ts';
import { atomic } from './atomic.ts';
import { bits } from './bits.ts';
import { control } from './control.ts';
import { flags } from './flags.ts';
import { move } from './move.ts';
import { multiply } from './multiply.ts';
import { shifts } from './shift.ts';
import { stack } from './stack.ts';

export const integer: Lowerings = {
  ...move,
  ...arithmetic,
  ...shifts,
  ...multiply,
  ...bits,
  ...stack,
  ...control,
  ...flags,
  ...atomic,
};

/** The integer instructions, joined. */
import { bcd } from '../../integer/bcd.ts';
import { io, stringIo } from '../../integer/ports.ts';
import { strings } from '../../integer/strings.ts';
import type { Helper, Helpers } from '../../processor/helper.ts';
import { arithmetic } from './arithmetic.ts';
import { atomic } from './atomic.ts';
import { bits } from './bits.ts';
import { control } from './control.ts';
import { flags } from './flags.ts';
import type { Lower, Lowerings } from './lowering.ts';
import { move } from './move.ts';
import { multiply } from './multiply.ts';
import { shifts } from './shift.ts';
import { stack } from './stack.ts';

const each = (helpers: Helpers, lower: (helper: Helper) => Lower): Lowerings =>
  Object.fromEntries(Object.entries(helpers).map(([mnemonic, helper]) => [mnemonic, lower(helper)]));
const calls =
  (helper: Helper): Lower =>
  (b) =>
    b.call(helper);
/** A string instruction may have to be executed again, for the elements that are left. */
const repeats =
  (helper: Helper): Lower =>
  (b, insn) => {
    b.call(helper);
    if (insn.rep !== undefined) b.leave();
  };

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
  ...each(bcd, calls),
  ...each(io, calls),
  ...each(strings, repeats),
  ...each(stringIo, repeats),
};

/** What of MMX is not shared with SSE's registers: leaving it. */

import type { Helper, Helpers } from '../processor/helper.ts';
import { State } from '../processor/state.ts';
import { checkMmx, enterMmx } from './operands.ts';

/** All x87 registers are empty again. */
const leave: Helper = (cpu) => {
  checkMmx(cpu);
  enterMmx(cpu);
  cpu.state.setU16(State.ftw, 0xffff);
};

export const mmx: Helpers = { emms: leave };

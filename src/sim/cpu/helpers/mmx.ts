/** What of MMX is not shared with SSE's registers: leaving it. */
import { State } from '../state.ts';
import type { Helper, Helpers } from './helper.ts';
import { checkMmx, enterMmx } from './sse-operands.ts';

/** All x87 registers are empty again. */
const leave: Helper = (cpu) => {
  checkMmx(cpu);
  enterMmx(cpu);
  cpu.state.setU16(State.ftw, 0xffff);
};

export const mmx: Helpers = { emms: leave };

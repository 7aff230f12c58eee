/** RDRAND and RDSEED (SDM volume 2): there is always a number, which the source of the host's gives. */
import { gprAt, writeGpr } from '../address/operands.ts';
import type { Helper, Helpers } from '../processor/helper.ts';
import { ARITHMETIC, Flag } from '../processor/state.ts';

const draw: Helper = (cpu, insn) => {
  const { index, size } = gprAt(insn, 0);
  const low = cpu.random() >>> 0;
  const high = size === 8 ? cpu.random() >>> 0 : 0;
  writeGpr(cpu, index, size, (BigInt(high) << 32n) | BigInt(low));
  cpu.state.flags = (cpu.state.flags & ~ARITHMETIC) | Flag.CF;
};

export const randomNumbers: Helpers = { rdrand: draw, rdseed: draw };

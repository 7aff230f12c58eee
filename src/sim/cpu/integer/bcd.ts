/** Decimal numbers in AL and AX, for the legacy modes (SDM volume 1, 5.1.2). Undefined flags are as of the result. */
import { raise, Vector } from '../processor/fault.ts';
import type { Helper, Helpers } from '../processor/helper.ts';
import { ARITHMETIC, type CpuState, Flag, resultFlags } from '../processor/state.ts';

const RAX = 0;

function setAx(state: CpuState, value: number): void {
  state.setGpr(RAX, (state.gpr(RAX) & ~0xffffn) | BigInt(value & 0xffff));
}
/** SF, ZF and PF of AL, with CF and AF as given. */
function setFlags(state: CpuState, al: number, carries: number): void {
  const all = resultFlags((al << 24) >> 24, (al << 24) >> 31) | carries;
  state.flags = (state.flags & ~ARITHMETIC) | all;
}

/** Into unpacked digits after an addition or a subtraction. */
const adjust =
  (by: 0x106 | -0x106): Helper =>
  ({ state }) => {
    const ax = Number(state.gpr(RAX) & 0xffffn);
    const over = (ax & 15) > 9 || (state.flags & Flag.AF) !== 0;
    const result = (over ? ax + by : ax) & 0xff0f;
    setAx(state, result);
    setFlags(state, result & 0xff, over ? Flag.CF | Flag.AF : 0);
  };

/** Into packed digits after an addition (1) or a subtraction (-1). */
const adjustPacked =
  (sign: 1 | -1): Helper =>
  ({ state }) => {
    const ax = Number(state.gpr(RAX) & 0xffffn);
    const before = ax & 0xff;
    const carry = (state.flags & Flag.CF) !== 0;
    const low = (before & 15) > 9 || (state.flags & Flag.AF) !== 0;
    const high = before > 0x99 || carry;
    const al = before + sign * ((low ? 6 : 0) + (high ? 0x60 : 0));
    const borrow = sign < 0 && low && before < 6;
    setAx(state, (ax & 0xff00) | (al & 0xff));
    setFlags(state, al & 0xff, (high || borrow ? Flag.CF : 0) | (low ? Flag.AF : 0));
  };

const base = (operands: Parameters<Helper>[1]['operands']) =>
  operands[0]?.kind === 'imm' ? Number(operands[0].value) & 0xff : 10;

const aam: Helper = ({ state }, { operands }) => {
  const divisor = base(operands);
  if (divisor === 0) raise(Vector.DE);
  const al = Number(state.gpr(RAX) & 0xffn);
  setAx(state, (Math.trunc(al / divisor) << 8) | (al % divisor));
  setFlags(state, al % divisor, 0);
};
const aad: Helper = ({ state }, { operands }) => {
  const ax = Number(state.gpr(RAX) & 0xffffn);
  const al = (ax + (ax >> 8) * base(operands)) & 0xff;
  setAx(state, al);
  setFlags(state, al, 0);
};

export const bcd: Helpers = {
  aaa: adjust(0x106),
  aas: adjust(-0x106),
  daa: adjustPacked(1),
  das: adjustPacked(-1),
  aam,
  aad,
};

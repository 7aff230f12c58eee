/** Data that is moved, converted and exchanged (SDM volume 1, 5.1.1). */

import type { Memory, Size } from '../../processor/insn.ts';
import { State } from '../../processor/state.ts';
import type { Builder } from '../builder.ts';
import type { Condition } from '../flag-values.ts';
import type { Node } from '../ir.ts';
import type { Lower, Lowerings } from '../lowering.ts';

const RAX = 0;
const RDX = 2;
const RBX = 3;

const mov: Lower = (b) => b.write(0, b.read(1, b.sizeOf(0)));
const movzx: Lower = (b) => b.write(0, b.zeroExtend(b.sizeOf(1), b.sizeOf(0), b.read(1)));
const movsx: Lower = (b) => b.write(0, b.signExtend(b.sizeOf(1), b.sizeOf(0), b.read(1)));

const lea: Lower = (b) => b.write(0, b.truncate(b.sizeOf(0), b.effective(b.operand(1) as Memory)));

const xchg: Lower = (b) => {
  const other = b.read(1);
  b.modify(
    0,
    () => other,
    (before) => b.write(1, before),
  );
};

/** The accumulator sign-extended from half its size, in itself. */
const extendRax =
  (size: Size): Lower =>
  (b) => {
    const half = (size / 2) as Size;
    b.setGpr(RAX, size, b.signExtend(half, size, b.gpr(RAX, half)));
  };
/** The accumulator's sign in all bits of RDX. */
const signToRdx =
  (size: Size): Lower =>
  (b) =>
    b.setGpr(RDX, size, b.sar(size, b.gpr(RAX, size), b.constant(size, size * 8 - 1)));

/** The bytes of a value in the opposite order. */
function swap(b: Builder, size: Size, value: Node): Node {
  const bytes = (of: Node, count: number, mask: number) =>
    b.op('and32', [b.op('rol32', [of, b.const32(count)]), b.const32(mask)]);
  const swap32 = (of: Node) => b.op('or32', [bytes(of, 8, 0x00ff_00ff), bytes(of, 24, 0xff00_ff00)]);
  if (size === 4) return swap32(value);
  if (size === 2) return b.op('shr32', [swap32(value), b.const32(16)]);
  const low = b.op('zext', [swap32(b.op('wrap', [value]))]);
  const high = b.op('zext', [swap32(b.op('wrap', [b.op('shr64', [value, b.const64(32n)])]))]);
  return b.op('or64', [b.op('shl64', [low, b.const64(32n)]), high]);
}
/** Of 16 bits is undefined, and gives 0. */
const bswap: Lower = (b) => {
  const size = b.sizeOf(0);
  b.write(0, size === 2 ? b.const32(0) : swap(b, size, b.read(0)));
};
const movbe: Lower = (b) => b.write(0, swap(b, b.sizeOf(0), b.read(1)));

const xlat: Lower = (b, insn) => {
  const sum = b.op('add64', [b.gpr(RBX, 8), b.zeroExtend(1, 8, b.gpr(RAX, 1))]);
  const mask = insn.addressSize === 8 ? -1n : insn.addressSize === 4 ? 0xffff_ffffn : 0xffffn;
  const linear = b.linear(insn.segment, b.op('and64', [sum, b.const64(mask)]), 1, false);
  b.setGpr(RAX, 1, b.load({ linear, stack: false }, 1));
};

const set =
  (condition: Condition): Lower =>
  (b) =>
    b.write(0, b.condition(condition));
/** The source is read, and 4 bytes clear the upper half, whatever the condition says. */
const cmov =
  (condition: Condition): Lower =>
  (b) => {
    const size = b.sizeOf(0);
    const source = b.read(1);
    b.write(0, b.select(size, b.condition(condition), source, b.read(0)));
  };

export const conditions = [
  'o',
  'no',
  'b',
  'ae',
  'e',
  'ne',
  'be',
  'a',
  's',
  'ns',
  'p',
  'np',
  'l',
  'ge',
  'le',
  'g',
] as const satisfies readonly Condition[];
const each = (prefix: string, lower: (condition: Condition) => Lower): Lowerings =>
  Object.fromEntries(conditions.map((condition) => [prefix + condition, lower(condition)]));

/** A register of 4 or 8 bytes gets zeroes above the selector; memory 2 bytes whatever the operand's size. */
const movFromSegment: Lower = (b) => {
  const selector = b.get(State.selectors + 2 * (b.operand(1) as { index: number }).index, 2);
  const size = b.sizeOf(0);
  b.write(0, b.zeroExtend(2, size, selector), size);
};

export const move: Lowerings = {
  mov,
  movnti: mov,
  'mov from sreg': movFromSegment,
  movzx,
  movsx,
  movsxd: movsx,
  lea,
  xchg,
  cbw: extendRax(2),
  cwde: extendRax(4),
  cdqe: extendRax(8),
  cwd: signToRdx(2),
  cdq: signToRdx(4),
  cqo: signToRdx(8),
  bswap,
  movbe,
  xlatb: xlat,
  ...each('set', set),
  ...each('cmov', cmov),
};

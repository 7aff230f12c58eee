/** Bit tests, bit counts and the bit fields of BMI1 and BMI2 (SDM volume 1, 5.1.6 and 5.1.13). */

import { crc32, deposit, extract } from '../../integer/arithmetic.ts';
import type { Memory, Size } from '../../processor/insn.ts';
import type { Builder, Place } from '../builder.ts';
import type { Node } from '../ir.ts';
import type { Lower, Lowerings } from '../lowering.ts';

/** Where the bit lies that a register counts from the start of memory: the operand itself, or one far from it. */
function bitString(b: Builder, memory: Memory, size: Size, index: Node, write: boolean): Place {
  const wide = b.signExtend(size, 8, index);
  const units = b.op('sar64', [wide, b.const64(BigInt(Math.log2(size * 8)))]);
  const sum = b.op('add64', [
    b.effective(memory),
    b.op('shl64', [units, b.const64(BigInt(Math.log2(size)))]),
  ]);
  const { addressSize } = b.insn;
  const mask = addressSize === 8 ? -1n : addressSize === 4 ? 0xffff_ffffn : 0xffffn;
  const offset = mask === -1n ? sum : b.op('and64', [sum, b.const64(mask)]);
  return { linear: b.linear(memory.segment, offset, size, write), stack: memory.segment === 2 };
}

type Change = (b: Builder, size: Size, value: Node, bit: Node) => Node;

/** CF is the bit; the other flags stay, as AMD and Intel have it for all of them. */
const bitTest =
  (change?: Change): Lower =>
  (b) => {
    const target = b.operand(0);
    const size = b.sizeOf(0);
    const index = b.read(1, size);
    const count = b.and(size, index, b.constant(size, size * 8 - 1));
    const bit = b.op(size === 8 ? 'shl64' : 'shl32', [b.constant(size, 1), count]);
    const setCarry = (value: Node) => {
      const low = b.and(size, b.shr(size, value, count), b.constant(size, 1));
      b.setCarries({ CF: b.truncate(4, low) });
    };
    if (target.kind !== 'mem') {
      const value = b.read(0);
      if (change !== undefined) b.write(0, change(b, size, value, bit));
      return setCarry(value);
    }
    const far = b.operand(1).kind === 'gpr';
    const write = change !== undefined;
    const place = far ? bitString(b, target, size, index, write) : b.place(target, size, write);
    const value = b.load(place, size, write);
    if (change !== undefined) b.store(place, size, change(b, size, value, bit));
    setCarry(value);
  };

const count = (b: Builder, size: Size, how: 'clz' | 'ctz' | 'popcnt', value: Node) =>
  b.op(size === 8 ? `${how}64` : `${how}32`, [value]);
/** The zeroes above a value of its size; all of its bits where it is 0. */
const leading = (b: Builder, size: Size, value: Node) =>
  size < 4
    ? b.sub(size, count(b, size, 'clz', value), b.constant(size, 32 - size * 8))
    : count(b, size, 'clz', value);
/** The zeroes below it, which for 2 bytes a bit above them ends. */
const trailing = (b: Builder, size: Size, value: Node) =>
  count(b, size, 'ctz', size < 4 ? b.or(size, value, b.const32(1 << (size * 8))) : value);

/** BSF and BSR: ZF says that the source is 0, and then the destination stays, as both vendors have it. */
const scan =
  (find: (b: Builder, size: Size, value: Node) => Node): Lower =>
  (b) => {
    const size = b.sizeOf(0);
    const source = b.read(1);
    const zero = b.isZero(size, source);
    // A 4-byte destination that stays keeps its upper half.
    if (size === 4) {
      const found = b.op('zext', [find(b, size, source)]);
      b.write(0, b.select(8, zero, b.read(0, 8), found), 8);
    } else b.write(0, b.select(size, zero, b.read(0), find(b, size, source)));
    b.flagsOf(size, source);
  };
const lastBit = (b: Builder, size: Size, value: Node) =>
  b.sub(size, b.constant(size, size * 8 - 1), leading(b, size, value));

/** LZCNT and TZCNT: CF says that the source is 0, ZF that the result is. */
const zeroes =
  (find: (b: Builder, size: Size, value: Node) => Node): Lower =>
  (b) => {
    const size = b.sizeOf(0);
    const source = b.read(1);
    const result = find(b, size, source);
    b.write(0, result);
    b.flagsOf(size, result, b.isZero(size, source));
  };
/** ZF says that the source is 0; the other flags are cleared. */
const popcnt: Lower = (b) => {
  const size = b.sizeOf(0);
  const source = b.read(1);
  b.write(0, count(b, size, 'popcnt', source));
  const zf = b.op('shl32', [b.isZero(size, source), b.const32(6)]);
  b.setArithmeticFlags(zf);
};

/** BLSI, BLSMSK and BLSR: of a source and the number below it. CF tells whether the source is 0, or is not. */
const lowestBit =
  (combine: Change, carryIfZero: boolean): Lower =>
  (b) => {
    const size = b.sizeOf(0);
    const source = b.read(1);
    const result = combine(b, size, source, b.sub(size, source, b.constant(size, 1)));
    b.write(0, result);
    const zero = b.isZero(size, source);
    b.flagsOf(size, result, carryIfZero ? zero : b.op('eqz32', [zero]));
  };

/** The mask of the lowest `n` bits, of which there are `size * 8` if `n` is more. */
function ones(b: Builder, size: 4 | 8, n: Node): Node {
  const bits = b.constant(size, size * 8);
  const shift = size === 8 ? 'shl64' : 'shl32';
  const some = b.sub(size, b.op(shift, [b.constant(size, 1), n]), b.constant(size, 1));
  return b.select(size, b.ltu(size, n, bits), some, b.constant(size, -1));
}
const byteOf = (b: Builder, size: Size, value: Node, shift: number) =>
  b.and(size, b.shr(size, value, b.constant(size, shift)), b.constant(size, 0xff));

const bextr: Lower = (b) => {
  const size = b.sizeOf(0) as 4 | 8;
  const control = b.read(2);
  const start = byteOf(b, size, control, 0);
  const inside = b.ltu(size, start, b.constant(size, size * 8));
  const shifted = b.select(size, inside, b.shr(size, b.read(1), start), b.constant(size, 0));
  const result = b.and(size, shifted, ones(b, size, byteOf(b, size, control, 8)));
  b.write(0, result);
  b.flagsOf(size, result);
};
/** CF says that there were no bits to clear. */
const bzhi: Lower = (b) => {
  const size = b.sizeOf(0) as 4 | 8;
  const n = byteOf(b, size, b.read(2), 0);
  const result = b.and(size, b.read(1), ones(b, size, n));
  b.write(0, result);
  b.flagsOf(size, result, b.op('eqz32', [b.ltu(size, n, b.constant(size, size * 8))]));
};

const scatter =
  (helper: typeof deposit): Lower =>
  (b) => {
    const size = b.sizeOf(0);
    const [source, mask] = [b.zeroExtend(size, 8, b.read(1)), b.zeroExtend(size, 8, b.read(2))];
    b.write(0, b.truncate(size, b.ask('l', helper, source, mask)));
  };
/** The result has 4 bytes; a destination of 8 is cleared above them. */
const checksum: Lower = (b) => {
  const size = b.sizeOf(1);
  const source = b.zeroExtend(size, 8, b.read(1));
  const sum = b.ask('i', crc32, b.read(0, 4), source, b.const32(size));
  b.write(0, sum, 4);
};

export const bits: Lowerings = {
  bt: bitTest(),
  bts: bitTest((b, size, value, bit) => b.or(size, value, bit)),
  btr: bitTest((b, size, value, bit) => b.and(size, value, b.not(size, bit))),
  btc: bitTest((b, size, value, bit) => b.xor(size, value, bit)),
  bsf: scan(trailing),
  bsr: scan(lastBit),
  lzcnt: zeroes(leading),
  tzcnt: zeroes(trailing),
  popcnt,
  blsi: lowestBit((b, size, value, below) => b.and(size, value, b.not(size, below)), false),
  blsmsk: lowestBit((b, size, value, below) => b.xor(size, value, below), true),
  blsr: lowestBit((b, size, value, below) => b.and(size, value, below), true),
  bextr,
  bzhi,
  pdep: scatter(deposit),
  pext: scatter(extract),
  crc32: checksum,
};

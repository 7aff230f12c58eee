/** Instructions that read, decide and write at once, and bounds checks: locked or not, they are the same here. */
import { boundRangeExceeded, generalProtection } from '../../integer/arithmetic.ts';
import type { Memory } from '../../processor/insn.ts';
import type { Node } from '../ir.ts';
import type { Lower, Lowerings } from '../lowering.ts';

const RAX = 0;
const RCX = 1;
const RDX = 2;
const RBX = 3;

const xadd: Lower = (b) => {
  const size = b.sizeOf(0);
  const source = b.read(1);
  if (b.operand(0).kind === 'mem') {
    b.modify(
      0,
      (value) => b.add(size, value, source),
      (before, sum) => {
        b.write(1, before);
        b.flags('ADD', size, before, source, sum);
      },
    );
    return;
  }
  // The sum is written last: both may be the same register.
  const before = b.read(0);
  const sum = b.add(size, before, source);
  b.write(1, before);
  b.write(0, sum);
  b.flags('ADD', size, before, source, sum);
};

/** Only one of the two is written, though memory always is: what is not keeps its upper half. */
const cmpxchg: Lower = (b) => {
  const target = b.operand(0);
  const size = b.sizeOf(0);
  const source = b.read(1);
  const accumulator = b.gpr(RAX, size);
  const place = target.kind === 'mem' ? b.place(target, size, true) : undefined;
  const before = place === undefined ? b.read(0) : b.load(place, size, true);
  const equal = b.eq(size, accumulator, before);
  const setIf = (index: number, high: boolean, condition: Node, yes: Node) => {
    if (size === 4) b.setGpr(index, 8, b.select(8, condition, b.op('zext', [yes]), b.gpr(index, 8)));
    else b.setGpr(index, size, b.select(size, condition, yes, b.gpr(index, size, high)), high);
  };
  if (place !== undefined) b.store(place, size, b.select(size, equal, source, before));
  setIf(RAX, false, b.op('eqz32', [equal]), before);
  if (target.kind === 'gpr') setIf(target.index, target.high, equal, source);
  b.flags('SUB', size, accumulator, before, b.sub(size, accumulator, before));
};

/** ZF alone. */
const cmpxchg8b: Lower = (b) => {
  const place = b.place(b.operand(0) as Memory, 8, true);
  const value = b.load(place, 8, true);
  const join = (high: number, low: number) =>
    b.op('or64', [b.op('shl64', [b.gpr(high, 8), b.const64(32n)]), b.op('zext', [b.gpr(low, 4)])]);
  const equal = b.eq(8, value, join(RDX, RAX));
  const low = b.op('wrap', [value]);
  const high = b.op('wrap', [b.op('shr64', [value, b.const64(32n)])]);
  b.store(place, 8, b.select(8, equal, join(RCX, RBX), value));
  b.setGpr(RAX, 8, b.select(8, equal, b.gpr(RAX, 8), b.op('zext', [low])));
  b.setGpr(RDX, 8, b.select(8, equal, b.gpr(RDX, 8), b.op('zext', [high])));
  const others = b.op('and32', [b.arithmeticFlags(), b.const32(~0x40)]);
  b.setArithmeticFlags(b.op('or32', [others, b.op('shl32', [equal, b.const32(6)])]));
};
const cmpxchg16b: Lower = (b) => {
  const { linear, stack } = b.place(b.operand(0) as Memory, 16, true);
  const misaligned = b.op('and32', [b.op('wrap', [linear]), b.const32(15)]);
  b.callIf(misaligned, generalProtection);
  const places = [linear, b.op('add64', [linear, b.const64(8n)])].map((at) => ({ linear: at, stack }));
  const [low, high] = [b.load(places[0]!, 8, true), b.load(places[1]!, 8, true)];
  const equal = b.op('and32', [b.eq(8, low, b.gpr(RAX, 8)), b.eq(8, high, b.gpr(RDX, 8))]);
  b.store(places[0]!, 8, b.select(8, equal, b.gpr(RBX, 8), low));
  b.store(places[1]!, 8, b.select(8, equal, b.gpr(RCX, 8), high));
  b.setGpr(RAX, 8, b.select(8, equal, b.gpr(RAX, 8), low));
  b.setGpr(RDX, 8, b.select(8, equal, b.gpr(RDX, 8), high));
  const others = b.op('and32', [b.arithmeticFlags(), b.const32(~0x40)]);
  b.setArithmeticFlags(b.op('or32', [others, b.op('shl32', [equal, b.const32(6)])]));
};

/** Two bounds lie in memory, the lower first; all three numbers are signed. */
const bound: Lower = (b) => {
  const size = b.sizeOf(0);
  const { linear, stack } = b.place(b.operand(1) as Memory, size * 2, false);
  const above = b.op('add64', [linear, b.const64(BigInt(size))]);
  const [index, low, high] = [
    b.read(0),
    b.load({ linear, stack }, size),
    b.load({ linear: above, stack }, size),
  ].map((value) => b.signExtend(size, 8, value)) as [typeof linear, typeof linear, typeof linear];
  const outside = b.op('or32', [b.op('lts64', [index, low]), b.op('lts64', [high, index])]);
  b.callIf(outside, boundRangeExceeded);
};

export const atomic: Lowerings = { xadd, cmpxchg, cmpxchg8b, cmpxchg16b, bound };

/** Binary arithmetic, logic and comparison (SDM volume 1, 5.1.2 and 5.1.4). */

import type { Size } from '../../processor/insn.ts';
import type { Builder } from '../builder.ts';
import type { Node } from '../ir.ts';
import type { Lower, Lowerings } from '../lowering.ts';

/** The top bit of a value: an `i`, 1 or 0. */
export function top(b: Builder, size: Size, value: Node): Node {
  if (size === 8) return b.op('lts64', [value, b.const64(0n)]);
  const shifted = b.op('shr32', [value, b.const32(size * 8 - 1)]);
  return size === 4 ? shifted : b.op('and32', [shifted, b.const32(1)]);
}
/** Flags at their places; `af` is at its place already. */
export function pack(b: Builder, cf: Node, of: Node, af?: Node): Node {
  const both = b.op('or32', [cf, b.op('shl32', [of, b.const32(11)])]);
  return af === undefined ? both : b.op('or32', [both, af]);
}
/** AF of a sum or difference: the carry out of bit 3, at its place. */
function auxiliary(b: Builder, size: Size, x: Node, y: Node, result: Node): Node {
  const differing = b.xor(size, b.xor(size, x, y), result);
  return b.op('and32', [size === 8 ? b.op('wrap', [differing]) : differing, b.const32(0x10)]);
}

const add: Lower = (b) => {
  const size = b.sizeOf(0);
  const source = b.read(1, size);
  b.modify(
    0,
    (value) => b.add(size, value, source),
    (before, after) => b.flags('ADD', size, before, source, after),
  );
};
/** XOR and SUB of a register with itself: the ways to say 0. */
const clears = (b: Builder): boolean => b.isSame(0, 1);
const clear: Lower = (b) => {
  const size = b.sizeOf(0);
  const zero = b.constant(size, 0);
  b.write(0, zero);
  b.flagsOf(size, zero);
};

const sub: Lower = (b, insn) => {
  if (clears(b)) return clear(b, insn);
  const size = b.sizeOf(0);
  const source = b.read(1, size);
  b.modify(
    0,
    (value) => b.sub(size, value, source),
    (before, after) => b.flags('SUB', size, before, source, after),
  );
};
const cmp: Lower = (b) => {
  const size = b.sizeOf(0);
  const left = b.read(0);
  const right = b.read(1, size);
  b.flags('SUB', size, left, right, b.sub(size, left, right));
};
const neg: Lower = (b) => {
  const size = b.sizeOf(0);
  const zero = b.constant(size, 0);
  b.modify(
    0,
    (value) => b.sub(size, zero, value),
    (before, after) => b.flags('SUB', size, zero, before, after),
  );
};

/** The carries of sums with a carry in: where two of the three agree (Hacker's Delight, 2-13). */
const adc: Lower = (b) => {
  const size = b.sizeOf(0);
  const y = b.read(1, size);
  const carry = b.zeroExtend(4, size, b.flag('CF'));
  b.modify(
    0,
    (x) => b.add(size, b.add(size, x, y), carry),
    (x, sum) => {
      const out = b.or(size, b.and(size, x, y), b.and(size, b.or(size, x, y), b.not(size, sum)));
      const overflow = b.and(size, b.xor(size, x, sum), b.xor(size, y, sum));
      b.flagsOf(size, sum, pack(b, top(b, size, out), top(b, size, overflow), auxiliary(b, size, x, y, sum)));
    },
  );
};
const sbb: Lower = (b) => {
  const size = b.sizeOf(0);
  const y = b.read(1, size);
  const carry = b.zeroExtend(4, size, b.flag('CF'));
  b.modify(
    0,
    (x) => b.sub(size, b.sub(size, x, y), carry),
    (x, difference) => {
      const not = b.not(size, x);
      const out = b.or(size, b.and(size, not, y), b.and(size, b.or(size, not, y), difference));
      const overflow = b.and(size, b.xor(size, x, y), b.xor(size, x, difference));
      const af = auxiliary(b, size, x, y, difference);
      b.flagsOf(size, difference, pack(b, top(b, size, out), top(b, size, overflow), af));
    },
  );
};

/** ADCX and ADOX: a chain of sums with CF or OF for its carry, and no other flag. */
const addWith =
  (name: 'CF' | 'OF'): Lower =>
  (b) => {
    const size = b.sizeOf(0);
    const x = b.read(0);
    const y = b.read(1);
    const sum = b.add(size, b.add(size, x, y), b.zeroExtend(4, size, b.flag(name)));
    const out = b.or(size, b.and(size, x, y), b.and(size, b.or(size, x, y), b.not(size, sum)));
    b.write(0, sum);
    b.setCarries({ [name]: top(b, size, out) });
  };

/** INC and DEC leave CF: it and the overflow are told by themselves. */
const step =
  (by: 1 | -1): Lower =>
  (b) => {
    const size = b.sizeOf(0);
    const one = b.constant(size, 1);
    b.modify(
      0,
      (value) => (by === 1 ? b.add(size, value, one) : b.sub(size, value, one)),
      (before, after) => {
        // Only the step between the largest and the smallest number changes the sign so.
        const smallest = b.constant(size, 1n << BigInt(size * 8 - 1));
        const overflow = b.eq(size, by === 1 ? after : before, smallest);
        b.flagsOf(size, after, pack(b, b.flag('CF'), overflow, auxiliary(b, size, before, one, after)));
      },
    );
  };

type Combine = (b: Builder, size: Size, left: Node, right: Node) => Node;
const logic =
  (combine: Combine): Lower =>
  (b) => {
    const size = b.sizeOf(0);
    const source = b.read(1, size);
    b.modify(
      0,
      (value) => combine(b, size, value, source),
      (_, after) => b.flagsOf(size, after),
    );
  };
const xor = logic((b, size, x, y) => b.xor(size, x, y));
const test: Lower = (b) => {
  const size = b.sizeOf(0);
  b.flagsOf(size, b.and(size, b.read(0), b.read(1, size)));
};
const not: Lower = (b) => b.modify(0, (value, size) => b.not(size, value));

const andn: Lower = (b) => {
  const size = b.sizeOf(0);
  const result = b.and(size, b.not(size, b.read(1)), b.read(2));
  b.write(0, result);
  b.flagsOf(size, result);
};

export const arithmetic: Lowerings = {
  add,
  adc,
  sub,
  sbb,
  cmp,
  neg,
  inc: step(1),
  dec: step(-1),
  adcx: addWith('CF'),
  adox: addWith('OF'),
  and: logic((b, size, x, y) => b.and(size, x, y)),
  or: logic((b, size, x, y) => b.or(size, x, y)),
  xor: (b, insn) => (clears(b) ? clear : xor)(b, insn),
  not,
  test,
  andn,
};

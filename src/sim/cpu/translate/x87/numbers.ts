/**
 * The x87's arithmetic on ordinary numbers: normal ones and zeroes, rounded to nearest with FCW's precision. Each
 * function stores its result at a register's place in the state page, and gives 0 where an operand or the result is
 * something else: x87/arithmetic.ts does that.
 *
 * A number is its significand (an `l`, whose highest bit is set, or 0) and its head (an `i`): the exponent, with the sign
 * above it, as they stand in a register.
 */
import { Exception } from '../../fp/float.ts';
import { State } from '../../processor/state.ts';
import { Fsw } from '../../x87/stack.ts';
import {
  type Body,
  type Definition,
  i,
  type Local,
  l,
  select,
  statePage,
  type Value,
} from '../functions/code.ts';

export const BIAS = 16_383;
/** The exponents of normal numbers are below this, when 1 is subtracted. */
export const EXPONENTS = 0x7ffe;
export const SIGN = 0x8000;
export const TOP = 1n << 63n;
const LOW_32 = 0xffff_ffffn;

export interface Number80 {
  readonly significand: Local;
  readonly head: Local;
}
export const exponentOf = (head: Value) => i.and(head, 0x7fff);

/** What a function gives beside 0: this, and PE and C1 as FSW has them. */
export const DONE = 1;
/** PE and C1 of FSW, by whether a number was rounded, and its magnitude up. */
export const roundingFlags = ({ inexact, up }: { readonly inexact: Value; readonly up: Value }) =>
  i.or(i.mul(inexact, Exception.PE), i.mul(up, Fsw.C1));

const isNormal = ({ significand, head }: Number80) =>
  i.and(l.lts(significand, 0n), i.ltu(i.sub(exponentOf(head), 1), EXPONENTS));
const isZero = ({ significand, head }: Number80) => i.and(l.isZero(significand), i.isZero(exponentOf(head)));
export const isOrdinary = (of: Number80) => i.or(isNormal(of), isZero(of));
const areNormal = (x: Number80, y: Number80) =>
  i.and(
    l.lts(l.and(x.significand, y.significand), 0n),
    i.and(i.ltu(i.sub(exponentOf(x.head), 1), EXPONENTS), i.ltu(i.sub(exponentOf(y.head), 1), EXPONENTS)),
  );

/** At an address, to which State.x87 is added. */
export function put(f: Body, place: Local, significand: Value, head: Value): void {
  f.store64(place, State.x87, significand);
  f.store16(place, State.x87 + 8, head);
}
function exactly(f: Body, place: Local, significand: Value, head: Value): void {
  put(f, place, significand, head);
  f.return(DONE);
}

/** Whether a whole is rounded up, to nearest, by what is below it, whose highest bit is half of one. */
export const isUp = (whole: Value, below: Value) =>
  i.and(l.lts(below, 0n), i.or(l.ne(l.shl(below, 1n), 0n), i.wrap(whole)));

/** FCW's precision control: the lower bit is that of all 64 bits; the upper one of 53, or else it is 24. */
const Precision = { FULL: 0x100, DOUBLE: 0x200 } as const;

/** Rounds a significand by the 64 bits below it; tininess is found after rounding, as here (SDM volume 1, 4.9.1.5). */
function finish(f: Body, place: Local, sign: Value, exponent: Local, significand: Local, below: Local): void {
  const fcw = f.i(i.load16(statePage, State.fcw));
  const up = f.i(0);
  f.if(
    i.and(fcw, Precision.FULL),
    () => {
      f.set(up, isUp(significand, below));
      f.set(significand, l.add(significand, l.extendU(up)));
    },
    () => {
      const dropped = f.l(select(i.and(fcw, Precision.DOUBLE), 11n, 40n));
      const isMore = l.extendU(l.ne(below, 0n));
      f.set(below, l.or(l.shl(significand, l.sub(64n, dropped)), isMore));
      f.set(significand, l.shr(significand, dropped));
      f.set(up, isUp(significand, below));
      f.set(significand, l.shl(l.add(significand, l.extendU(up)), dropped));
    },
  );
  f.if(l.isZero(significand), () => {
    f.set(significand, TOP);
    f.set(exponent, i.add(exponent, 1));
  });
  f.giveUpIf(i.geu(i.sub(exponent, 1), EXPONENTS));
  put(f, place, significand, i.or(sign, exponent));
  f.return(i.or(roundingFlags({ inexact: l.ne(below, 0n), up }), DONE));
}
/** A number as it is, but for the precision. */
const rounded: Definition = {
  params: 'ili',
  body: (f, place, significand, head) => {
    const exponent = f.i(exponentOf(head!));
    const below = f.l(0n);
    finish(f, place!, i.and(head!, SIGN), exponent, significand!, below);
  },
};

const low32 = (value: Value) => l.and(value, LOW_32);
const high32 = (value: Value) => l.shr(value, 32n);
/** The 128 bits of a product, from those of halves (Hacker's Delight, 8-2). */
function product(f: Body, x: Local, y: Local): { readonly high: Local; readonly low: Local } {
  const xLow = f.l(low32(x));
  const xHigh = f.l(high32(x));
  const yLow = f.l(low32(y));
  const yHigh = f.l(high32(y));
  const first = f.l(l.mul(xLow, yLow));
  const second = f.l(l.add(l.mul(xHigh, yLow), high32(first)));
  const third = f.l(l.add(l.mul(xLow, yHigh), low32(second)));
  return {
    high: f.l(l.add(l.add(l.mul(xHigh, yHigh), high32(second)), high32(third))),
    low: f.l(l.or(l.shl(third, 32n), low32(first))),
  };
}

/** The place of the result, and two numbers. */
const binary = (body: (f: Body, place: Local, x: Number80, y: Number80) => void): Definition => ({
  params: 'ilili',
  body: (f, place, xSignificand, xHead, ySignificand, yHead) =>
    body(
      f,
      place!,
      { significand: xSignificand!, head: xHead! },
      { significand: ySignificand!, head: yHead! },
    ),
});

/** Moves a number's lesser bits right: what stays, and 64 bits below, the last of which stands for all that is lost. */
function moved(f: Body, significand: Local, by: Local): { readonly kept: Local; readonly below: Local } {
  const kept = f.l(0n);
  const below = f.l(1n);
  const count = f.l(l.extendU(by));
  f.if(
    i.ltu(by, 64),
    () => {
      f.set(kept, l.shr(significand, count));
      // By 64 less the count, in two steps: 64 itself would be nothing.
      f.set(below, l.shl(l.shl(significand, 1n), l.sub(63n, count)));
    },
    () =>
      f.if(i.ltu(by, 128), () =>
        f.set(
          below,
          l.or(
            l.shr(significand, count),
            l.extendU(l.ne(l.shl(l.shl(significand, 1n), l.sub(63n, count)), 0n)),
          ),
        ),
      ),
  );
  return { kept, below };
}

export const add = binary((f, place, x, y) => {
  f.if(i.isZero(areNormal(x, y)), () => {
    f.giveUpIf(i.isZero(i.and(isOrdinary(x), isOrdinary(y))));
    f.if(isZero(x), () => {
      // Zeroes of both signs are a positive one.
      f.if(isZero(y), () => exactly(f, place, 0n, i.and(x.head, y.head)));
      f.return(f.call(rounded, place, y.significand, y.head));
    });
    f.return(f.call(rounded, place, x.significand, x.head));
  });
  const otherSign = f.i(i.and(i.xor(x.head, y.head), SIGN));
  const sign = f.i(i.and(x.head, SIGN));
  const great = f.l(x.significand);
  const less = f.l(y.significand);
  const exponent = f.i(exponentOf(x.head));
  const distance = f.i(i.sub(exponent, exponentOf(y.head)));
  f.if(i.or(i.lts(distance, 0), i.and(i.isZero(distance), l.ltu(great, less))), () => {
    f.set(great, y.significand);
    f.set(less, x.significand);
    f.set(sign, i.and(y.head, SIGN));
    f.set(exponent, exponentOf(y.head));
    f.set(distance, i.sub(0, distance));
  });
  const { kept, below } = moved(f, less, distance);
  f.if(
    otherSign,
    () => {
      f.set(great, l.sub(l.sub(great, kept), l.extendU(l.ne(below, 0n))));
      f.set(below, l.sub(0n, below));
      f.if(i.isZero(l.lts(great, 0n)), () => {
        f.if(l.isZero(great), () => {
          f.if(l.isZero(below), () => exactly(f, place, 0n, 0));
          f.set(great, below);
          f.set(below, 0n);
          f.set(exponent, i.sub(exponent, 64));
        });
        const shift = f.l(l.clz(great));
        f.set(great, l.or(l.shl(great, shift), l.shr(l.shr(below, 1n), l.sub(63n, shift))));
        f.set(below, l.shl(below, shift));
        f.set(exponent, i.sub(exponent, i.wrap(shift)));
      });
    },
    () => {
      f.set(great, l.add(great, kept));
      f.if(l.ltu(great, kept), () => {
        f.set(below, l.or(l.or(l.shl(great, 63n), l.shr(below, 1n)), l.and(below, 1n)));
        f.set(great, l.or(l.shr(great, 1n), TOP));
        f.set(exponent, i.add(exponent, 1));
      });
    },
  );
  finish(f, place, sign, exponent, great, below);
});

/** The sign of a product or quotient. */
const signOf = (x: Number80, y: Number80) => i.and(i.xor(x.head, y.head), SIGN);

export const multiply = binary((f, place, x, y) => {
  f.if(i.isZero(areNormal(x, y)), () => {
    f.giveUpIf(i.isZero(i.and(isOrdinary(x), isOrdinary(y))));
    exactly(f, place, 0n, signOf(x, y));
  });
  const exponent = f.i(i.sub(i.add(exponentOf(x.head), exponentOf(y.head)), BIAS - 1));
  const { high, low } = product(f, x.significand, y.significand);
  f.if(i.isZero(l.lts(high, 0n)), () => {
    f.set(high, l.or(l.shl(high, 1n), l.shr(low, 63n)));
    f.set(low, l.shl(low, 1n));
    f.set(exponent, i.sub(exponent, 1));
  });
  finish(f, place, signOf(x, y), exponent, high, low);
});

export const divide = binary((f, place, x, y) => {
  f.if(i.isZero(areNormal(x, y)), () => {
    f.giveUpIf(i.isZero(i.and(isZero(x), isNormal(y))));
    exactly(f, place, 0n, signOf(x, y));
  });
  const divisor = y.significand;
  const exponent = f.i(i.add(i.sub(exponentOf(x.head), exponentOf(y.head)), BIAS - 1));
  // 128 bits, the upper half less than the divisor, so that the quotient has just 64.
  const rest = f.l(x.significand);
  const lower = f.l(0n);
  f.if(i.isZero(l.ltu(rest, divisor)), () => {
    f.set(lower, l.shl(rest, 63n));
    f.set(rest, l.shr(rest, 1n));
    f.set(exponent, i.add(exponent, 1));
  });
  const upperDivisor = f.l(high32(divisor));
  const lowerDivisor = f.l(low32(divisor));
  const quotient = f.l(0n);
  // Two digits of 32 bits (Hacker's Delight, 9-4): an estimate is too great by two at most.
  for (const last of [false, true]) {
    const next = f.l(last ? low32(lower) : high32(lower));
    const digit = f.l(l.divu(rest, upperDivisor));
    const left = f.l(l.sub(rest, l.mul(digit, upperDivisor)));
    const tooGreat = i.or(
      l.ne(high32(digit), 0n),
      l.gtu(l.mul(digit, lowerDivisor), l.or(l.shl(left, 32n), next)),
    );
    f.if(tooGreat, () => {
      f.set(digit, l.sub(digit, 1n));
      f.set(left, l.add(left, upperDivisor));
      f.if(i.and(l.isZero(high32(left)), tooGreat), () => f.set(digit, l.sub(digit, 1n)));
    });
    f.set(rest, l.sub(l.or(l.shl(rest, 32n), next), l.mul(digit, divisor)));
    f.set(quotient, l.or(l.shl(quotient, 32n), digit));
  }
  // What is left is never just half of the divisor.
  const below = f.l(select(l.gtu(rest, l.sub(divisor, rest)), -1n, l.extendU(l.ne(rest, 0n))));
  finish(f, place, signOf(x, y), exponent, quotient, below);
});

/** The place of the result, and a number. */
export const root: Definition = {
  params: 'ili',
  body: (f, place, significand, head) => {
    const x = { significand: significand!, head: head! };
    f.if(isZero(x), () => exactly(f, place!, 0n, head!));
    f.giveUpIf(i.or(i.isZero(isNormal(x)), i.and(head!, SIGN)));
    // An integer of 127 or 128 bits: so its root has 64.
    const power = f.i(i.sub(head!, BIAS));
    const isOdd = f.i(i.and(power, 1));
    const high = f.l(select(isOdd, significand!, l.shr(significand!, 1n)));
    const low = f.l(select(isOdd, 0n, l.shl(significand!, 63n)));
    // The root of the upper half, which a double has but for one, and what that leaves.
    const first = f.l(l.root(high));
    f.if(l.ne(high32(first), 0n), () => f.set(first, LOW_32));
    f.if(l.gtu(l.mul(first, first), high), () => f.set(first, l.sub(first, 1n)));
    const left = f.l(l.sub(high, l.mul(first, first)));
    f.if(l.gtu(left, l.shl(first, 1n)), () => {
      f.set(left, l.sub(left, l.add(l.shl(first, 1n), 1n)));
      f.set(first, l.add(first, 1n));
    });
    // The lower 32 bits by a division (Zimmermann, "Karatsuba Square Root"): too great by one at most.
    const second = f.l(l.divu(l.or(l.shl(left, 31n), l.shr(low, 33n)), first));
    f.if(l.ne(high32(second), 0n), () => f.set(second, LOW_32));
    const result = f.l(l.or(l.shl(first, 32n), second));
    const square = product(f, result, result);
    // The number less the root's square: 65 bits, or less than 0.
    const rest = f.l(l.sub(low, square.low));
    const above = f.l(l.sub(l.sub(high, square.high), l.extendU(l.ltu(low, square.low))));
    f.if(l.lts(above, 0n), () => {
      f.set(result, l.sub(result, 1n));
      // Twice the root and one more are 65 bits.
      const before = f.l(rest);
      f.set(rest, l.add(rest, l.or(l.shl(result, 1n), 1n)));
      f.set(above, l.add(l.add(above, l.shr(result, 63n)), l.extendU(l.ltu(rest, before))));
    });
    const below = f.l(select(i.or(l.ne(above, 0n), l.gtu(rest, result)), -1n, l.extendU(l.ne(rest, 0n))));
    const exponent = f.i(i.add(i.sar(power, 1), BIAS));
    finish(f, place!, 0, exponent, result, below);
  },
};

/** ZF and CF of a comparison of two ordinary numbers, as RFLAGS has them. */
export function comparison(x: Number80, y: Number80): Value {
  const isBelow = (a: Number80, b: Number80) =>
    i.or(
      i.ltu(exponentOf(a.head), exponentOf(b.head)),
      i.and(i.eq(exponentOf(a.head), exponentOf(b.head)), l.ltu(a.significand, b.significand)),
    );
  const areZero = l.isZero(l.or(x.significand, y.significand));
  const areEqual = i.or(areZero, i.and(i.eq(x.head, y.head), l.eq(x.significand, y.significand)));
  const isNegative = i.and(i.shr(x.head, 15), 1);
  const differ = i.and(i.xor(x.head, y.head), SIGN);
  return select(areEqual, 0x40, select(differ, isNegative, select(isNegative, isBelow(y, x), isBelow(x, y))));
}

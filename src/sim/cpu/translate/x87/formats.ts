/** Numbers of other formats as ordinary ones of 80 bits, and back (SDM volume 1, 4.2 and 8.2). */
import { Rounding } from '../../fp/float.ts';
import { type Body, i, type Local, l, select, type Value } from '../functions/code.ts';
import { BIAS, exponentOf, isUp, type Number80, SIGN, TOP } from './numbers.ts';

/** Operands in memory by what they are: the type of the parameter that has one, and the number. */
export interface Source {
  readonly type: 'i' | 'l';
  /** Gives up where it is not ordinary. */
  readonly number: (f: Body, bits: Local) => Number80;
}

const zero = (f: Body, head: Value): Number80 => ({ significand: f.l(0n), head: f.i(head) });

/** A number whose upper bits, with sign and exponent, are in an `i`; its significand if it is normal, and 0 if it has no fraction. */
function widened(
  f: Body,
  upper: Local,
  { shift, mask, bias }: { readonly shift: number; readonly mask: number; readonly bias: number },
  significand: Value,
  fraction: Value,
): Number80 {
  const x = zero(f, i.and(i.shr(upper, 16), SIGN));
  const exponent = f.i(i.and(i.shr(upper, shift), mask));
  f.giveUpIf(i.eq(exponent, mask));
  f.if(
    exponent,
    () => {
      f.set(x.significand, l.or(significand, TOP));
      f.set(x.head, i.or(x.head, i.add(exponent, BIAS - bias)));
    },
    () => f.giveUpIf(fraction),
  );
  return x;
}
const fromSingle = (f: Body, bits: Local): Number80 =>
  widened(f, bits, { shift: 23, mask: 0xff, bias: 127 }, l.shl(l.extendU(bits), 40n), i.shl(bits, 1));
const fromDouble = (f: Body, bits: Local): Number80 => {
  const upper = f.i(i.wrap(l.shr(bits, 32n)));
  const format = { shift: 20, mask: 0x7ff, bias: 1023 };
  return widened(f, upper, format, l.shl(bits, 11n), l.ne(l.shl(bits, 1n), 0n));
};
const fromInteger = (f: Body, bits: Local): Number80 => {
  const x = zero(f, 0);
  f.if(l.ne(bits, 0n), () => {
    const sign = f.l(l.sar(bits, 63n));
    const magnitude = f.l(l.sub(l.xor(bits, sign), sign));
    const shift = f.l(l.clz(magnitude));
    f.set(x.significand, l.shl(magnitude, shift));
    f.set(x.head, i.or(i.and(i.wrap(sign), SIGN), i.sub(BIAS + 63, i.wrap(shift))));
  });
  return x;
};
export const sources = {
  single: { type: 'i', number: fromSingle },
  double: { type: 'l', number: fromDouble },
  integer: { type: 'l', number: fromInteger },
} as const satisfies { [name: string]: Source };

/** What is to be stored, and whether it was rounded, and its magnitude up. */
export interface Stored {
  readonly bits: Local;
  readonly inexact: Value;
  readonly up: Value;
}

/** A number with a fraction of so many bits, if it is an ordinary one; its sign is put above it by whoever knows where. */
function narrowed(f: Body, { significand, head }: Number80, fraction: number, bias: number): Stored {
  const bits = f.l(0n);
  const up = f.i(0);
  const below = f.l(0n);
  f.if(l.ne(significand, 0n), () => {
    const exponent = f.i(i.sub(exponentOf(head), BIAS - bias));
    // What is rounded up to the least or the greatest exponent is left to others too.
    f.giveUpIf(i.geu(i.sub(exponent, 2), 2 * bias - 2));
    const dropped = BigInt(63 - fraction);
    f.set(bits, l.shr(significand, dropped));
    f.set(below, l.shl(significand, 64n - dropped));
    f.set(up, isUp(bits, below));
    // The highest bit, and what is carried out of the fraction, add one to the exponent.
    const exponentBits = l.shl(l.extendU(i.sub(exponent, 1)), BigInt(fraction));
    f.set(bits, l.add(l.add(bits, exponentBits), l.extendU(up)));
  });
  const sign = l.shl(l.extendU(i.shr(head, 15)), BigInt(fraction === 52 ? 63 : 31));
  f.set(bits, l.or(bits, sign));
  return { bits, inexact: l.ne(below, 0n), up };
}
export const toSingle = (f: Body, x: Number80): Stored => narrowed(f, x, 23, 127);
export const toDouble = (f: Body, x: Number80): Stored => narrowed(f, x, 52, 1023);

/** A magnitude without its fraction, by a rounding control; of 62 bits at most, where it is rounded up. */
function integral(f: Body, { significand, head }: Number80, rounding: Value): Stored {
  const bits = f.l(0n);
  const below = f.l(0n);
  // Bits behind the point; where they are more than all, it is less than one half.
  const behind = f.i(i.sub(BIAS + 63, exponentOf(head)));
  f.giveUpIf(i.lts(behind, 2));
  f.if(
    i.gtu(behind, 64),
    () => f.set(below, l.extendU(l.ne(significand, 0n))),
    () => {
      const count = f.l(l.extendU(behind));
      f.set(bits, l.shr(l.shr(significand, 1n), l.sub(count, 1n)));
      f.set(below, l.shl(significand, l.sub(64n, count)));
    },
  );
  // Down is away from zero where it is negative, and up where it is not.
  const isAway = i.eq(rounding, select(i.and(head, SIGN), Rounding.DOWN, Rounding.UP));
  const inexact = l.ne(below, 0n);
  const up = f.i(select(i.eq(rounding, Rounding.NEAREST), isUp(bits, below), i.and(isAway, inexact)));
  f.set(bits, l.add(bits, l.extendU(up)));
  return { bits, inexact, up };
}
/** To an integer, if it is below 2 ** 62 in magnitude. */
export function toInteger(f: Body, x: Number80, rounding: Value): Stored {
  const stored = integral(f, x, rounding);
  const { bits } = stored;
  f.if(i.and(x.head, SIGN), () => f.set(bits, l.sub(0n, bits)));
  return stored;
}
/** The same as a number again, with its sign even where it is zero. */
export function toWhole(f: Body, x: Number80, rounding: Value): { readonly number: Number80 } & Stored {
  const stored = integral(f, x, rounding);
  const sign = i.and(x.head, SIGN);
  const number = { significand: f.l(0n), head: f.i(sign) };
  f.if(l.ne(stored.bits, 0n), () => {
    const shift = f.l(l.clz(stored.bits));
    f.set(number.significand, l.shl(stored.bits, shift));
    f.set(number.head, i.or(sign, i.sub(BIAS + 63, i.wrap(shift))));
  });
  return { ...stored, number };
}

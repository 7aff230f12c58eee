/**
 * The functions that the x87 approximates, in fixed point with far more bits than it has. Results are within a unit
 * in the last place of the true value, as the processors' are; their last bits differ between processors, and so may
 * these (SDM volume 1, 8.3.10).
 */
import { bitLength } from './float.ts';

/** Fixed point: bits behind the point. */
const BITS = 192;
const ONE = 1n << BigInt(BITS);
export interface Fixed {
  /** The value is significand * 2 ** exponent. */
  readonly significand: bigint;
  readonly exponent: number;
}
/** Below this the first term of a series is all there is. */
const TINY = -80;

export const fixed = (significand: bigint, exponent: number): Fixed => ({ significand, exponent });
const scaled = ({ significand, exponent }: Fixed): bigint => {
  const shift = exponent + BITS;
  return shift >= 0 ? significand << BigInt(shift) : significand >> BigInt(-shift);
};
const unscaled = (value: bigint): Fixed => fixed(value, -BITS);
const magnitude = (value: bigint): bigint => (value < 0n ? -value : value);
/** The exponent of the leading bit. */
const topOf = ({ significand, exponent }: Fixed): number => bitLength(magnitude(significand)) + exponent - 1;

const product = (a: bigint, b: bigint): bigint => (a * b) >> BigInt(BITS);
const quotient = (a: bigint, b: bigint): bigint => (a << BigInt(BITS)) / b;

function root(value: bigint): bigint {
  const square = value << BigInt(BITS);
  let x = 1n << BigInt((bitLength(square) + 1) >> 1);
  for (;;) {
    const next = (x + square / x) >> 1n;
    if (next >= x) return x;
    x = next;
  }
}

/** x + x**3/3 + x**5/5 ..., or with alternating signs: the area hyperbolic tangent and the arc tangent. */
function oddSeries(x: bigint, alternating: boolean): bigint {
  const square = alternating ? -product(x, x) : product(x, x);
  let [power, total] = [x, x];
  for (let n = 3n; power !== 0n && power !== -1n; n += 2n) {
    power = product(power, square);
    total += power / n;
  }
  return total;
}

/** From a term x**n / n! on, every `step`th: their sum, with factor = x**step, negated where signs alternate. */
function exponentialSeries(first: bigint, factor: bigint, n: number, step: 1 | 2): bigint {
  let [term, total] = [first, 0n];
  for (let i = n; term !== 0n; i += step) {
    total += term;
    const divisor = step === 1 ? i + 1 : (i + 1) * (i + 2);
    term = product(term, factor) / BigInt(divisor);
  }
  return total;
}

const LN2 = 2n * oddSeries(ONE / 3n, false);
/** Machin's formula. */
const PI = 16n * oddSeries(ONE / 5n, true) - 4n * oddSeries(ONE / 239n, true);

/** 2 ** x - 1 for |x| <= 1. */
export function powerMinusOne(x: Fixed): Fixed {
  if (topOf(x) < TINY) return fixed(x.significand * LN2, x.exponent - BITS);
  const power = product(scaled(x), LN2);
  return unscaled(exponentialSeries(power, power, 1, 1));
}

/** log2(x) for x > 0. */
export function logarithm(x: Fixed): Fixed {
  let power = topOf(x);
  let mantissa = scaled(fixed(x.significand, x.exponent - power));
  if (mantissa >= (ONE * 3n) / 2n) {
    mantissa >>= 1n;
    power++;
  }
  const natural = 2n * oddSeries(quotient(mantissa - ONE, mantissa + ONE), false);
  return unscaled(BigInt(power) * ONE + quotient(natural, LN2));
}

/** log2(1 + x) for x > -1. */
export function logarithmOfOnePlus(x: Fixed): Fixed {
  if (topOf(x) < TINY) return fixed(quotient(x.significand << 64n, LN2), x.exponent - 64);
  if (topOf(x) > BITS) return logarithm(x);
  const value = scaled(x);
  if (topOf(x) >= -1) return logarithm(unscaled(ONE + value));
  return unscaled(quotient(2n * oddSeries(quotient(value, 2n * ONE + value), false), LN2));
}

/** The arc tangent of a fraction between 0 and 1. */
function arcTangentOfFraction(x: bigint): bigint {
  let value = x;
  const halvings = 4;
  for (let i = 0; i < halvings; i++) value = quotient(value, ONE + root(ONE + product(value, value)));
  return oddSeries(value, true) << BigInt(halvings);
}

/** a / b in fixed point, when that is moderate. */
function ratio(a: Fixed, b: Fixed): bigint {
  const shift = a.exponent - b.exponent + BITS;
  return shift >= 0
    ? (a.significand << BigInt(shift)) / b.significand
    : a.significand / (b.significand << BigInt(-shift));
}

/** The angle of the point (x, y), both positive, in the first quadrant, or of (-x, y) in the second. */
export function angle(y: Fixed, x: Fixed, second: boolean): Fixed {
  const distance = topOf(y) - topOf(x);
  if (distance < TINY && !second) return divideFixed(y, x);
  let first = 0n;
  if (distance > -TINY) first = PI / 2n;
  else if (distance >= 0) first = PI / 2n - arcTangentOfFraction(ratio(x, y));
  else if (distance >= TINY) first = arcTangentOfFraction(ratio(y, x));
  return unscaled(second ? PI - first : first);
}

/** Pi as the processors' reduction of arguments has it: 66 bits of significand (SDM volume 1, 8.3.8). */
const REDUCTION_BITS = 66;
const REDUCTION_HALF_PI =
  ((PI >> BigInt(BITS - REDUCTION_BITS + 2)) << BigInt(BITS - REDUCTION_BITS + 2)) >> 1n;

/** The sine and cosine of an angle below 2 ** 63. */
export function sineAndCosine(x: Fixed): { sine: Fixed; cosine: Fixed } {
  if (topOf(x) < TINY) {
    const { significand, exponent } = x;
    // Both are a little nearer to zero than the first term of their series.
    const below = (significand << 128n) - (significand < 0n ? -1n : 1n);
    return { sine: fixed(below, exponent - 128), cosine: fixed((1n << 128n) - 1n, -128) };
  }
  const value = scaled(x);
  const nearest = (value + REDUCTION_HALF_PI / 2n) / REDUCTION_HALF_PI;
  const whole =
    value < 0n && nearest * REDUCTION_HALF_PI > value + REDUCTION_HALF_PI / 2n ? nearest - 1n : nearest;
  const rest = value - whole * REDUCTION_HALF_PI;
  const square = -product(rest, rest);
  const sine = unscaled(exponentialSeries(rest, square, 1, 2));
  const cosine = unscaled(exponentialSeries(ONE, square, 0, 2));
  const minus = ({ significand, exponent }: Fixed) => fixed(-significand, exponent);
  switch (BigInt.asUintN(2, whole)) {
    case 0n:
      return { sine, cosine };
    case 1n:
      return { sine: cosine, cosine: minus(sine) };
    case 2n:
      return { sine: minus(sine), cosine: minus(cosine) };
    default:
      return { sine: minus(cosine), cosine: sine };
  }
}

export const divideFixed = (a: Fixed, b: Fixed): Fixed =>
  fixed((a.significand << BigInt(BITS)) / b.significand, a.exponent - b.exponent - BITS);
export const multiplyFixed = (a: Fixed, b: Fixed): Fixed =>
  fixed(a.significand * b.significand, a.exponent + b.exponent);
export const PI_FIXED = unscaled(PI);

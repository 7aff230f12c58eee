/**
 * The operations: of numbers taken apart, correctly rounded into a format. Exceptions go into env.flags in the order
 * of their priority (SDM volume 1, 4.9.2): NaNs, other invalid operands, division by zero, denormal operands, results.
 */
import {
  bitLength,
  type Environment,
  Exception,
  type Float,
  type Format,
  infinity,
  invalid,
  isNan,
  Kind,
  nan,
  quiet,
  Rounding,
  round,
  shiftRight,
  wasInexact,
  wasRoundedUp,
  zero,
} from './float.ts';

/** Which of two NaNs is the answer: SSE's rule or the x87's. */
export type ChooseNan = (a: Float, b: Float) => Float;

/** SSE: the first operand, if it is one (SDM volume 1, table 4-7). */
export const firstNan: ChooseNan = (a, b) => (isNan(a) ? a : b);

/** x87: a QNaN before an SNaN, then the larger significand, then the positive one. */
export const largerNan: ChooseNan = (a, b) => {
  if (!isNan(b)) return a;
  if (!isNan(a)) return b;
  if (a.kind !== b.kind) return a.kind === Kind.QNAN ? a : b;
  if (a.significand !== b.significand) return a.significand > b.significand ? a : b;
  return a.negative ? b : a;
};

/** The answer when an operand is a NaN, or no number at all. */
export function nanOf(
  env: Environment,
  format: Format,
  a: Float,
  b: Float,
  choose: ChooseNan,
): bigint | undefined {
  if (a.kind < Kind.QNAN && b.kind < Kind.QNAN) return undefined;
  if (a.kind === Kind.UNSUPPORTED || b.kind === Kind.UNSUPPORTED) return invalid(env, format);
  if (a.kind === Kind.SNAN || b.kind === Kind.SNAN) env.flags |= Exception.IE;
  return nan(format, quiet(choose(a, b)));
}

/** Notes that an operand is denormal. */
export function denormals(env: Environment, a: Float, b: Float = a): void {
  if (a.denormal || b.denormal) env.flags |= Exception.DE;
}

export type Binary = (env: Environment, format: Format, a: Float, b: Float, choose: ChooseNan) => bigint;

/** Further apart than this many bits, the lesser operand is no more than a hint for rounding. */
const FAR = 140;

/** The sum of two signed integers times powers of two, for round(). */
function sum(env: Environment, format: Format, a: Float, b: Float): bigint {
  const [high, low] = a.exponent >= b.exponent ? [a, b] : [b, a];
  const signed = ({ negative, significand }: Float) => (negative ? -significand : significand);
  const distance = high.exponent - low.exponent;
  const near = distance <= FAR;
  const shift = near ? distance : FAR;
  const hint = low.negative ? -1n : 1n;
  const total = (signed(high) << BigInt(shift)) + (near ? signed(low) : hint);
  if (total === 0n) return zero(format, env.rounding === Rounding.DOWN);
  const magnitude = total < 0n ? -total : total;
  return round(env, format, total < 0n, magnitude, high.exponent - shift);
}

const negated = (a: Float): Float => ({ ...a, negative: !a.negative });

function addition(env: Environment, format: Format, a: Float, b: Float): bigint {
  if (a.kind === Kind.INFINITE && b.kind === Kind.INFINITE && a.negative !== b.negative) {
    return invalid(env, format);
  }
  denormals(env, a, b);
  if (a.kind === Kind.INFINITE) return infinity(format, a.negative);
  if (b.kind === Kind.INFINITE) return infinity(format, b.negative);
  if (a.kind === Kind.ZERO && b.kind === Kind.ZERO) {
    return zero(format, a.negative === b.negative ? a.negative : env.rounding === Rounding.DOWN);
  }
  if (a.kind === Kind.ZERO) return round(env, format, b.negative, b.significand, b.exponent);
  if (b.kind === Kind.ZERO) return round(env, format, a.negative, a.significand, a.exponent);
  return sum(env, format, a, b);
}

export const add: Binary = (env, format, a, b, choose) =>
  nanOf(env, format, a, b, choose) ?? addition(env, format, a, b);

export const subtract: Binary = (env, format, a, b, choose) =>
  nanOf(env, format, a, b, choose) ?? addition(env, format, a, negated(b));

export const multiply: Binary = (env, format, a, b, choose) => {
  const answer = nanOf(env, format, a, b, choose);
  if (answer !== undefined) return answer;
  const negative = a.negative !== b.negative;
  const infinite = a.kind === Kind.INFINITE || b.kind === Kind.INFINITE;
  const none = a.kind === Kind.ZERO || b.kind === Kind.ZERO;
  if (infinite && none) return invalid(env, format);
  denormals(env, a, b);
  if (infinite) return infinity(format, negative);
  if (none) return zero(format, negative);
  return round(env, format, negative, a.significand * b.significand, a.exponent + b.exponent);
};

/** Bits by which a dividend is shifted: the quotient then has more than any precision needs. */
const QUOTIENT = 140;

export const divide: Binary = (env, format, a, b, choose) => {
  const answer = nanOf(env, format, a, b, choose);
  if (answer !== undefined) return answer;
  const negative = a.negative !== b.negative;
  if (a.kind === b.kind && a.kind !== Kind.FINITE) return invalid(env, format);
  if (b.kind === Kind.ZERO && a.kind !== Kind.INFINITE) {
    env.flags |= Exception.ZE;
    return infinity(format, negative);
  }
  denormals(env, a, b);
  if (a.kind === Kind.INFINITE) return infinity(format, negative);
  if (a.kind === Kind.ZERO || b.kind === Kind.INFINITE) return zero(format, negative);
  const dividend = a.significand << BigInt(QUOTIENT);
  const quotient = dividend / b.significand;
  // A remainder is summed up in one more bit.
  const rest = dividend % b.significand === 0n ? 0n : 1n;
  return round(env, format, negative, (quotient << 1n) | rest, a.exponent - b.exponent - QUOTIENT - 1);
};

/** The integer square root, by Newton's method from above. */
function integerRoot(value: bigint): bigint {
  let root = 1n << BigInt((bitLength(value) + 1) >> 1);
  for (;;) {
    const next = (root + value / root) >> 1n;
    if (next >= root) return root;
    root = next;
  }
}

export function squareRoot(env: Environment, format: Format, a: Float): bigint {
  const answer = nanOf(env, format, a, a, firstNan);
  if (answer !== undefined) return answer;
  if (a.kind === Kind.ZERO) return zero(format, a.negative);
  if (a.negative) return invalid(env, format);
  denormals(env, a);
  if (a.kind === Kind.INFINITE) return infinity(format, false);
  const shift = 140 + (a.exponent & 1);
  const square = a.significand << BigInt(shift);
  const root = integerRoot(square);
  const rest = root * root === square ? 0n : 1n;
  return round(env, format, false, (root << 1n) | rest, (a.exponent - shift) / 2 - 1);
}

/** Into another format; what FLD and CVTSD2SS do. */
export function convert(env: Environment, format: Format, a: Float, noteDenormal = true): bigint {
  const answer = nanOf(env, format, a, a, firstNan);
  if (answer !== undefined) return answer;
  if (noteDenormal) denormals(env, a);
  return encode(env, format, a);
}

/** A float that is no NaN, rounded to the format. */
export function encode(env: Environment, format: Format, a: Float): bigint {
  if (a.kind === Kind.INFINITE) return infinity(format, a.negative);
  if (a.kind === Kind.ZERO) return zero(format, a.negative);
  return round(env, format, a.negative, a.significand, a.exponent);
}

export function fromInteger(env: Environment, format: Format, value: bigint): bigint {
  if (value === 0n) return zero(format, false);
  return round(env, format, value < 0n, value < 0n ? -value : value, 0);
}

/** An integer of a magnitude that no register holds: invalid already. */
const TOO_LARGE = 1n << 70n;

/** The magnitude of a finite number rounded to an integer. */
function integerOf(rounding: number, { negative, significand, exponent }: Float): bigint {
  if (exponent > 70) return shiftRight(rounding, negative, TOO_LARGE, 0);
  return shiftRight(rounding, negative, significand, -exponent);
}

/**
 * To a signed integer of so many bits, given as unsigned. What does not fit is invalid, and becomes the integer
 * indefinite: the most negative one.
 */
export function toInteger(env: Environment, bits: number, a: Float, rounding = env.rounding): bigint {
  const least = 1n << BigInt(bits - 1);
  env.roundedUp = false;
  if (a.kind === Kind.ZERO) return 0n;
  if (a.kind === Kind.FINITE) {
    const magnitude = integerOf(rounding, a);
    if (magnitude < least || (a.negative && magnitude === least)) {
      if (wasInexact()) env.flags |= Exception.PE;
      env.roundedUp = wasRoundedUp();
      return BigInt.asUintN(bits, a.negative ? -magnitude : magnitude);
    }
  }
  env.flags |= Exception.IE;
  return least;
}

/** FRNDINT and ROUNDxx: to an integer of the same format. */
export function toIntegral(env: Environment, format: Format, a: Float, rounding = env.rounding): bigint {
  const answer = nanOf(env, format, a, a, firstNan);
  if (answer !== undefined) return answer;
  env.roundedUp = false;
  if (a.kind !== Kind.FINITE || a.exponent >= 0) return encode(env, format, a);
  const magnitude = integerOf(rounding, a);
  const inexact = wasInexact();
  const roundedUp = wasRoundedUp();
  // The integer has no more bits than the format: precision control does not touch it.
  const result =
    magnitude === 0n
      ? zero(format, a.negative)
      : round({ ...env, precision: 64 }, format, a.negative, magnitude, 0);
  if (inexact) env.flags |= Exception.PE;
  env.roundedUp = roundedUp;
  return result;
}

export const Relation = { LESS: -1, EQUAL: 0, GREATER: 1, UNORDERED: 2 } as const;

function order(a: Float, b: Float): number {
  const sign = ({ kind, negative }: Float) => (kind === Kind.ZERO ? 0 : negative ? -1 : 1);
  const [x, y] = [sign(a), sign(b)];
  if (x !== y || x === 0) return Math.sign(x - y);
  if (a.kind === Kind.INFINITE || b.kind === Kind.INFINITE) {
    return x * (Number(a.kind === Kind.INFINITE) - Number(b.kind === Kind.INFINITE));
  }
  const distance = bitLength(a.significand) + a.exponent - bitLength(b.significand) - b.exponent;
  if (distance !== 0) return x * Math.sign(distance);
  const [left, right] =
    a.exponent >= b.exponent
      ? [a.significand << BigInt(a.exponent - b.exponent), b.significand]
      : [a.significand, b.significand << BigInt(b.exponent - a.exponent)];
  return left === right ? 0 : left > right ? x : -x;
}

/** Compares; a quiet comparison takes QNaNs without a word. */
export function compare(env: Environment, a: Float, b: Float, quietly: boolean): number {
  if (isNan(a) || isNan(b)) {
    const quietNans = a.kind <= Kind.QNAN && b.kind <= Kind.QNAN;
    if (!quietly || !quietNans) env.flags |= Exception.IE;
    return Relation.UNORDERED;
  }
  denormals(env, a, b);
  return order(a, b);
}

/** FSCALE: a * 2 ** trunc(b). */
export const scale: Binary = (env, format, a, b, choose) => {
  const answer = nanOf(env, format, a, b, choose);
  if (answer !== undefined) return answer;
  if (b.kind === Kind.INFINITE) {
    if (b.negative ? a.kind === Kind.INFINITE : a.kind === Kind.ZERO) return invalid(env, format);
    denormals(env, a, b);
    return b.negative ? zero(format, a.negative) : infinity(format, a.negative);
  }
  denormals(env, a, b);
  if (a.kind !== Kind.FINITE || b.kind === Kind.ZERO) return encode(env, format, a);
  const by = Number(integerOf(Rounding.ZERO, b)) * (b.negative ? -1 : 1);
  // Beyond twice the range of exponents everything overflows or underflows alike.
  return round(env, format, a.negative, a.significand, a.exponent + Math.max(-70_000, Math.min(70_000, by)));
};

export interface Remainder {
  readonly result: bigint;
  /** The low three bits of the quotient, or undefined when the reduction is not complete (C2). */
  readonly quotient: number | undefined;
}

/** FPREM (truncating) and FPREM1 (to nearest): exact, but in steps when the exponents are 64 or more apart. */
export function remainder(env: Environment, format: Format, a: Float, b: Float, rounding: number): Remainder {
  const answer = nanOf(env, format, a, b, largerNan);
  if (answer !== undefined) return { result: answer, quotient: 0 };
  if (a.kind === Kind.INFINITE || b.kind === Kind.ZERO) return { result: invalid(env, format), quotient: 0 };
  denormals(env, a, b);
  if (a.kind === Kind.ZERO || b.kind === Kind.INFINITE)
    return { result: encode(env, format, a), quotient: 0 };
  const distance = bitLength(a.significand) + a.exponent - bitLength(b.significand) - b.exponent;
  if (distance < -1) return { result: encode(env, format, a), quotient: 0 };
  const base = Math.min(a.exponent, b.exponent);
  const divisor = b.significand << BigInt(b.exponent - base);
  let dividend = a.significand << BigInt(a.exponent - base);
  if (distance >= 64) {
    // A step takes 32 to 63 bits off the exponent (SDM volume 2, FPREM).
    const step = divisor << BigInt(distance - ((distance & 31) | 32));
    dividend %= step;
    return { result: small(env, format, a.negative, dividend, base), quotient: undefined };
  }
  let quotient = dividend / divisor;
  let rest = dividend % divisor;
  let negative = a.negative;
  if (rounding === Rounding.NEAREST) {
    const twice = rest << 1n;
    if (twice > divisor || (twice === divisor && (quotient & 1n) === 1n)) {
      quotient++;
      rest = divisor - rest;
      negative = !negative;
    }
  }
  const result = rest === 0n ? zero(format, a.negative) : small(env, format, negative, rest, base);
  return { result, quotient: Number(quotient & 7n) };
}

/** A remainder: exact whatever the precision control says. */
function small(
  env: Environment,
  format: Format,
  negative: boolean,
  significand: bigint,
  exponent: number,
): bigint {
  if (significand === 0n) return zero(format, negative);
  const exact = { ...env, precision: 64, flags: 0 };
  const result = round(exact, format, negative, significand, exponent);
  env.flags |= exact.flags;
  return result;
}

/** FXTRACT: the exponent as a number, and the significand with the exponent 0. */
export function extract(
  env: Environment,
  format: Format,
  a: Float,
): { exponent: bigint; significand: bigint } {
  const answer = nanOf(env, format, a, a, firstNan);
  if (answer !== undefined) return { exponent: answer, significand: answer };
  if (a.kind === Kind.INFINITE) {
    return { exponent: infinity(format, false), significand: infinity(format, a.negative) };
  }
  if (a.kind === Kind.ZERO) {
    env.flags |= Exception.ZE;
    return { exponent: infinity(format, true), significand: zero(format, a.negative) };
  }
  denormals(env, a);
  const length = bitLength(a.significand);
  const exact = { ...env, precision: 64 };
  return {
    exponent: fromInteger(exact, format, BigInt(a.exponent + length - 1)),
    significand: round(exact, format, a.negative, a.significand, 1 - length),
  };
}

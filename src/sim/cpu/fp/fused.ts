/** Multiplication and addition with a single rounding (IEEE 754, 5.4.1), and numbers of 16 bits. */
import { denormals } from './arithmetic.ts';
import {
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
  zero,
} from './float.ts';

/** Further apart than this many bits, the lesser addend is no more than a hint for rounding. */
const FAR = 400;

/** The sum of two signed integers times powers of two, of which neither is zero. */
function sum(
  env: Environment,
  format: Format,
  a: bigint,
  aExponent: number,
  b: bigint,
  bExponent: number,
): bigint {
  const swap = aExponent < bExponent;
  const [high, low] = swap ? [b, a] : [a, b];
  const [highExponent, lowExponent] = swap ? [bExponent, aExponent] : [aExponent, bExponent];
  const distance = highExponent - lowExponent;
  const near = distance <= FAR;
  const shift = near ? distance : FAR;
  const total = (high << BigInt(shift)) + (near ? low : low < 0n ? -1n : 1n);
  if (total === 0n) return zero(format, env.rounding === Rounding.DOWN);
  return round(env, format, total < 0n, total < 0n ? -total : total, highExponent - shift);
}

/** a * b + c. Of several NaNs the first is the answer; a NaN for c hides that infinity times zero is invalid. */
export function fused(env: Environment, format: Format, a: Float, b: Float, c: Float): bigint {
  const operands = [a, b, c];
  if (operands.some(({ kind }) => kind === Kind.SNAN)) env.flags |= Exception.IE;
  const first = operands.find(isNan);
  if (first !== undefined) return nan(format, quiet(first));
  const infinite = a.kind === Kind.INFINITE || b.kind === Kind.INFINITE;
  const none = a.kind === Kind.ZERO || b.kind === Kind.ZERO;
  const negative = a.negative !== b.negative;
  if (infinite && none) return invalid(env, format);
  if (infinite && c.kind === Kind.INFINITE && c.negative !== negative) return invalid(env, format);
  denormals(env, a, b);
  denormals(env, c);
  if (infinite) return infinity(format, negative);
  if (c.kind === Kind.INFINITE) return infinity(format, c.negative);
  if (none && c.kind === Kind.ZERO)
    return zero(format, negative === c.negative ? negative : env.rounding === Rounding.DOWN);
  if (none) return round(env, format, c.negative, c.significand, c.exponent);
  const product = a.significand * b.significand;
  const exponent = a.exponent + b.exponent;
  if (c.kind === Kind.ZERO) return round(env, format, negative, product, exponent);
  const signed = negative ? -product : product;
  return sum(env, format, signed, exponent, c.negative ? -c.significand : c.significand, c.exponent);
}

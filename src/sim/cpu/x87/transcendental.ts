/** The x87's transcendental functions: what they do with zeroes, infinities and NaNs is exact, their values are not. */
import { denormals, encode, largerNan, nanOf } from '../fp/arithmetic.ts';
import {
  bitLength,
  Exception,
  F80,
  type Float,
  float,
  indefinite,
  infinity,
  invalid,
  Kind,
  unpack,
  zero,
} from '../fp/float.ts';
import {
  angle,
  divideFixed,
  type Fixed,
  fixed,
  logarithm,
  logarithmOfOnePlus,
  multiplyFixed,
  PI_FIXED,
  powerMinusOne,
  sineAndCosine,
} from '../fp/transcendental.ts';
import type { Helper, Helpers } from '../processor/helper.ts';
import {
  env,
  Fsw,
  isEmpty,
  overflow,
  pop,
  pushValue,
  setConditions,
  setSt,
  settle,
  st,
  underflow,
  x87,
} from './stack.ts';

const fixedOf = ({ negative, significand, exponent }: Float): Fixed =>
  fixed(negative ? -significand : significand, exponent);

/** An approximation is never exact: a bit far below says so to the rounding. */
function inexact({ significand, exponent }: Fixed): bigint {
  const negative = significand < 0n;
  const magnitude = negative ? -significand : significand;
  return encode(env, F80, float(Kind.FINITE, negative, (magnitude << 200n) | 1n, exponent - 200));
}
const ONE = encode({ ...env }, F80, float(Kind.FINITE, false, 1n));

/** ST(0) = f(ST(0)). */
const unary = (of: (a: Float) => bigint): Helper =>
  x87((cpu) => {
    let result = indefinite(F80);
    if (isEmpty(cpu, 0)) underflow();
    else {
      const a = st(cpu, 0);
      result = nanOf(env, F80, a, a, largerNan) ?? of(a);
    }
    if (settle(cpu)) setSt(cpu, 0, result);
  });

/** ST(1) = f(ST(1), ST(0)), and pops. */
const binary = (of: (y: Float, x: Float) => bigint): Helper =>
  x87((cpu) => {
    let result = indefinite(F80);
    if (isEmpty(cpu, 0) || isEmpty(cpu, 1)) underflow();
    else {
      const [y, x] = [st(cpu, 1), st(cpu, 0)];
      result = nanOf(env, F80, y, x, largerNan) ?? of(y, x);
    }
    if (!settle(cpu)) return;
    setSt(cpu, 1, result);
    pop(cpu);
  });

/** F2XM1 promises nothing beyond [-1, 1]. */
function powerOf(x: Float): bigint {
  if (x.kind === Kind.INFINITE) return x.negative ? ONE | F80.sign : infinity(F80, false);
  if (x.kind === Kind.ZERO) return zero(F80, x.negative);
  denormals(env, x);
  if (bitLength(x.significand) + x.exponent > 0 && !isOne(x)) {
    env.flags |= Exception.PE;
    return encode(env, F80, x);
  }
  if (isOne(x) && x.negative) {
    env.flags |= Exception.PE; // though it is exact
    return encode(env, F80, float(Kind.FINITE, true, 1n, -1));
  }
  return inexact(powerMinusOne(fixedOf(x)));
}

const isOne = (x: Float): boolean => x.exponent <= 0 && x.significand === 1n << BigInt(-x.exponent);

/** y * log2(x). */
function yLogX(y: Float, x: Float): bigint {
  if (x.kind !== Kind.ZERO && x.negative) return invalid(env, F80);
  if (x.kind === Kind.ZERO) {
    if (y.kind === Kind.ZERO) return invalid(env, F80);
    if (y.kind === Kind.FINITE) env.flags |= Exception.ZE;
    return infinity(F80, !y.negative);
  }
  const unity = x.kind === Kind.FINITE && isOne(x);
  const below = x.kind === Kind.FINITE && x.exponent + bitLength(x.significand) - 1 < 0;
  if (y.kind === Kind.INFINITE) {
    if (unity) return invalid(env, F80);
    denormals(env, y, x);
    return infinity(F80, y.negative !== below);
  }
  if (x.kind === Kind.INFINITE) {
    if (y.kind === Kind.ZERO) return invalid(env, F80);
    denormals(env, y, x);
    return infinity(F80, y.negative);
  }
  denormals(env, y, x);
  if (unity || y.kind === Kind.ZERO) return zero(F80, y.negative !== below);
  env.flags |= Exception.PE;
  const power = powerOfTwo(x);
  if (power !== undefined) return times(y, power);
  return inexact(multiplyFixed(fixedOf(y), logarithm(fixedOf(x))));
}
/** The product with a logarithm that is exact. */
function times(y: Float, power: number): bigint {
  const significand = y.significand * BigInt(Math.abs(power));
  const result = encode(env, F80, float(Kind.FINITE, y.negative !== power < 0, significand, y.exponent));
  // A tiny one counts as inexact, too.
  if (unpack(F80, result).denormal) env.flags |= Exception.UE;
  return result;
}
/** The logarithm of a power of two is exact, though PE is set all the same. */
function powerOfTwo(x: Pick<Float, 'significand' | 'exponent'>): number | undefined {
  if ((x.significand & (x.significand - 1n)) !== 0n) return undefined;
  return x.exponent + bitLength(x.significand) - 1;
}

/** 1 + x, where that may be a power of two. */
function onePlus(x: Float): Pick<Float, 'significand' | 'exponent'> | undefined {
  const { exponent } = x;
  if (exponent > 0 || exponent < -64) return undefined;
  return { significand: (1n << BigInt(-exponent)) + fixedOf(x).significand, exponent };
}

/** y * log2(x + 1); nothing is promised for |x| > 1 - sqrt(1/2). */
function yLogOnePlusX(y: Float, x: Float): bigint {
  if (x.kind === Kind.INFINITE && (x.negative || y.kind === Kind.ZERO)) return invalid(env, F80);
  if (y.kind === Kind.INFINITE && x.kind === Kind.ZERO) return invalid(env, F80);
  denormals(env, y, x);
  const negative = y.negative !== x.negative;
  if (y.kind === Kind.INFINITE || x.kind === Kind.INFINITE) return infinity(F80, negative);
  if (y.kind === Kind.ZERO || x.kind === Kind.ZERO) return zero(F80, negative);
  // 1 + x is not positive: no logarithm, and no promise either.
  env.flags |= Exception.PE;
  if (x.negative && x.exponent + bitLength(x.significand) - 1 >= 0) return encode(env, F80, x);
  const sum = onePlus(x);
  const power = sum && powerOfTwo(sum);
  if (power !== undefined) return times(y, power);
  return inexact(multiplyFixed(fixedOf(y), logarithmOfOnePlus(fixedOf(x))));
}

/** The angle of (x, y). */
function arcTangent(y: Float, x: Float): bigint {
  denormals(env, y, x);
  const absolute = (a: Float) => fixed(a.significand, a.exponent);
  /** A multiple of pi / 4. */
  const quarters = (count: bigint): bigint => {
    const { significand, exponent } = PI_FIXED;
    return inexact(fixed((y.negative ? -count : count) * significand, exponent - 2));
  };
  if (y.kind === Kind.INFINITE) return quarters(x.kind !== Kind.INFINITE ? 2n : x.negative ? 3n : 1n);
  if (y.kind === Kind.ZERO || x.kind === Kind.INFINITE) {
    return x.negative ? quarters(4n) : zero(F80, y.negative);
  }
  if (x.kind === Kind.ZERO) return quarters(2n);
  const { significand, exponent } = angle(absolute(y), absolute(x), x.negative);
  return inexact(fixed(y.negative ? -significand : significand, exponent));
}

/**
 * The functions of an angle: those of 2 ** 63 and beyond are left alone with C2 set, for the program to reduce.
 * `of` gives what replaces ST(0), and what is pushed, if anything.
 */
const ofAngle = (
  zeroes: (a: Float) => readonly bigint[],
  of: (sine: Fixed, cosine: Fixed) => readonly Fixed[],
  constant?: bigint,
): Helper =>
  x87((cpu) => {
    const pushes = zeroes(float(Kind.ZERO, false)).length > 1;
    let results: readonly bigint[] = pushes ? [indefinite(F80), indefinite(F80)] : [indefinite(F80)];
    let outOfRange = false;
    if (isEmpty(cpu, 0)) underflow();
    else if (pushes && !isEmpty(cpu, 7)) overflow();
    else {
      const a = st(cpu, 0);
      const answer = nanOf(env, F80, a, a, largerNan);
      if (answer !== undefined) results = pushes ? [answer, answer] : [answer];
      else if (a.kind === Kind.INFINITE) invalid(env, F80);
      else if (a.kind === Kind.ZERO) results = zeroes(a);
      else if (a.exponent + bitLength(a.significand) - 1 >= 63) outOfRange = true;
      else {
        denormals(env, a);
        const { sine, cosine } = sineAndCosine(fixedOf(a));
        results = of(sine, cosine).map(inexact);
        if (constant !== undefined) results = [results[0]!, constant];
      }
    }
    const stored = settle(cpu);
    setConditions(cpu, Fsw.C2, outOfRange ? Fsw.C2 : 0);
    if (!stored || outOfRange) return;
    setSt(cpu, 0, results[0]!);
    if (pushes) pushValue(cpu, results[1]!);
  });

export const x87Transcendental: Helpers = {
  f2xm1: unary(powerOf),
  fyl2x: binary(yLogX),
  fyl2xp1: binary(yLogOnePlusX),
  fpatan: binary(arcTangent),
  fsin: ofAngle(
    (a) => [zero(F80, a.negative)],
    (sine) => [sine],
  ),
  fcos: ofAngle(
    () => [ONE],
    (_, cosine) => [cosine],
  ),
  fsincos: ofAngle(
    (a) => [zero(F80, a.negative), ONE],
    (sine, cosine) => [sine, cosine],
  ),
  fptan: ofAngle(
    (a) => [zero(F80, a.negative), ONE],
    (sine, cosine) => [divideFixed(sine, cosine)],
    ONE,
  ),
};

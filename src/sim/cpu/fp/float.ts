/**
 * Binary floating point as x86 has it (SDM volume 1, chapter 4): formats, the rounding of exact results into them,
 * and the exceptions that this raises. Numbers are encoded as unsigned bigints, of 80 bits for the x87's own format.
 */

/** Exception flags, at their places in MXCSR, FSW and (as masks) in FCW. */
export const Exception = { IE: 0x01, DE: 0x02, ZE: 0x04, OE: 0x08, UE: 0x10, PE: 0x20 } as const;
/** Found in the operands, before anything is computed: unmasked, they leave the rest undone. */
export const BEFORE = Exception.IE | Exception.DE | Exception.ZE;

/** The rounding control's values, in FCW and MXCSR alike. */
export const Rounding = { NEAREST: 0, DOWN: 1, UP: 2, ZERO: 3 } as const;

export interface Format {
  /** Bits of the significand, the integer bit included. */
  readonly precision: number;
  /** Of the least and the greatest normal number, unbiased; the bias is the greatest. */
  readonly minExponent: number;
  readonly maxExponent: number;
  /** Bits that hold the significand: one less than the precision where the integer bit is implied. */
  readonly stored: number;
  readonly sign: bigint;
  readonly storedMask: bigint;
  readonly biasedMask: number;
}

function format(precision: number, exponentBits: number, explicit: boolean): Format {
  const maxExponent = 2 ** (exponentBits - 1) - 1;
  const stored = explicit ? precision : precision - 1;
  return {
    precision,
    minExponent: 1 - maxExponent,
    maxExponent,
    stored,
    sign: 1n << BigInt(stored + exponentBits),
    storedMask: (1n << BigInt(stored)) - 1n,
    biasedMask: 2 ** exponentBits - 1,
  };
}

export const F16 = format(11, 5, false);
export const F32 = format(24, 8, false);
export const F64 = format(53, 11, false);
export const F80 = format(64, 15, true);

export const Kind = { ZERO: 0, FINITE: 1, INFINITE: 2, QNAN: 3, SNAN: 4, UNSUPPORTED: 5 } as const;

/** A number taken apart, of no particular format. */
export interface Float {
  readonly kind: number;
  readonly negative: boolean;
  /** The value is significand * 2 ** exponent; a NaN's is that of the 80-bit format, to which the others' extend. */
  readonly significand: bigint;
  readonly exponent: number;
  readonly denormal: boolean;
}

/** What an instruction computes under, and what it finds on the way. */
export interface Environment {
  rounding: number;
  /** Exceptions that are masked. */
  masks: number;
  /** Exceptions that happened. */
  flags: number;
  /** Denormal operands count as zeroes; results that would be denormal become zeroes. SSE only. */
  denormalsAreZero: boolean;
  flushToZero: boolean;
  /** The x87's precision control, for F80 results: 24, 53 or 64 bits. */
  precision: number;
  /** The result's magnitude was rounded up: C1 of the x87. */
  roundedUp: boolean;
}

const INTEGER_BIT = 1n << 63n;
const QUIET = 1n << 62n;

export const float = (
  kind: number,
  negative: boolean,
  significand = 0n,
  exponent = 0,
  denormal = false,
): Float => ({ kind, negative, significand, exponent, denormal });
/** The QNaN floating-point indefinite: the answer to what has none. */
export const INDEFINITE = float(Kind.QNAN, true, INTEGER_BIT | QUIET);

export const isNan = ({ kind }: Float): boolean => kind >= Kind.QNAN;
export const quiet = (nan: Float): Float => float(Kind.QNAN, nan.negative, nan.significand | QUIET);

export function unpack(format: Format, bits: bigint): Float {
  const negative = (bits & format.sign) !== 0n;
  const biased = Number(bits >> BigInt(format.stored)) & format.biasedMask;
  const fraction = bits & format.storedMask;
  const explicit = format.stored === format.precision;
  if (biased === format.biasedMask) {
    const significand = (fraction << BigInt(64 - format.precision)) | (explicit ? 0n : INTEGER_BIT);
    if ((significand & INTEGER_BIT) === 0n) return float(Kind.UNSUPPORTED, negative, significand);
    if (significand === INTEGER_BIT) return float(Kind.INFINITE, negative);
    return float((significand & QUIET) === 0n ? Kind.SNAN : Kind.QNAN, negative, significand);
  }
  const exponent = Math.max(biased, 1) - format.maxExponent - (format.precision - 1);
  if (biased === 0) {
    return fraction === 0n
      ? float(Kind.ZERO, negative)
      : float(Kind.FINITE, negative, fraction, exponent, true);
  }
  if (!explicit) return float(Kind.FINITE, negative, fraction | (format.storedMask + 1n), exponent);
  if ((fraction & INTEGER_BIT) === 0n) return float(Kind.UNSUPPORTED, negative, fraction);
  return float(Kind.FINITE, negative, fraction, exponent);
}

/** An operand as the instruction sees it: denormals may count as zeroes. */
export function read(env: Environment, format: Format, bits: bigint): Float {
  const value = unpack(format, bits);
  return value.denormal && env.denormalsAreZero ? float(Kind.ZERO, value.negative) : value;
}

const compose = (format: Format, negative: boolean, biased: number, stored: bigint): bigint =>
  (negative ? format.sign : 0n) | (BigInt(biased) << BigInt(format.stored)) | (stored & format.storedMask);

export const zero = (format: Format, negative: boolean): bigint => (negative ? format.sign : 0n);
export const infinity = (format: Format, negative: boolean): bigint =>
  compose(format, negative, format.biasedMask, INTEGER_BIT >> BigInt(64 - format.precision));
/** A NaN in the format: the low bits of its payload are lost in the shorter ones. */
export const nan = (format: Format, value: Float): bigint =>
  compose(format, value.negative, format.biasedMask, value.significand >> BigInt(64 - format.precision));
export const indefinite = (format: Format): bigint => nan(format, INDEFINITE);

/** Invalid operation: its flag and its masked answer. */
export function invalid(env: Environment, format: Format): bigint {
  env.flags |= Exception.IE;
  return indefinite(format);
}

const scratch = new DataView(new ArrayBuffer(8));
/** How many bits a positive number has. */
export function bitLength(value: bigint): number {
  const rounded = Number(value);
  if (rounded === Number.POSITIVE_INFINITY) return 1000 + bitLength(value >> 1000n);
  scratch.setFloat64(0, rounded);
  const exponent = (scratch.getUint16(0) >> 4) - 1023;
  // The conversion rounds, perhaps up to the next power of two.
  return value >> BigInt(exponent) === 0n ? exponent : exponent + 1;
}

/** Whether the last shift lost bits, and whether it rounded the magnitude up. */
let lost = false;
let up = false;

/** significand / 2 ** bits, rounded to an integer. */
export function shiftRight(rounding: number, negative: boolean, significand: bigint, bits: number): bigint {
  lost = false;
  up = false;
  if (bits <= 0) return significand << BigInt(-bits);
  // What is far below one half rounds like anything else that is.
  const shift = BigInt(bits);
  const whole = significand >> shift;
  const rest = significand & ((1n << shift) - 1n);
  if (rest === 0n) return whole;
  lost = true;
  const half = 1n << (shift - 1n);
  if (rounding === Rounding.NEAREST) up = rest > half || (rest === half && (whole & 1n) === 1n);
  else up = rounding === (negative ? Rounding.DOWN : Rounding.UP);
  return up ? whole + 1n : whole;
}
export const wasInexact = (): boolean => lost;
export const wasRoundedUp = (): boolean => up;

/** What unmasked overflow and underflow add to, or take from, the exponent of an 80-bit result (SDM 1, 8.5.4). */
const BIAS_ADJUSTMENT = 24_576;

/**
 * Rounds an exact result (of which bits below twice the precision may be summed up as one) to the format. Tininess
 * is found after rounding.
 */
export function round(
  env: Environment,
  format: Format,
  negative: boolean,
  significand: bigint,
  exponent: number,
): bigint {
  const precision = Math.min(format.precision, env.precision);
  const { OE, UE, PE } = Exception;
  const drop = bitLength(significand) - precision;
  let rounded = shiftRight(env.rounding, negative, significand, drop);
  let top = exponent + drop + precision - 1;
  if (rounded >> BigInt(precision) !== 0n) {
    rounded >>= 1n;
    top++;
  }
  const pack = (biased: number) =>
    compose(format, negative, biased, rounded << BigInt(format.precision - precision));

  if (top < format.minExponent) {
    if ((env.masks & UE) === 0) {
      const biased = top + format.maxExponent + BIAS_ADJUSTMENT;
      const beyond = biased <= 0;
      env.flags |= lost || beyond ? UE | PE : UE;
      env.roundedUp = up;
      return beyond ? zero(format, negative) : pack(biased);
    }
    if (env.flushToZero) {
      env.flags |= UE | PE;
      return zero(format, negative);
    }
    rounded = shiftRight(env.rounding, negative, significand, format.minExponent - precision + 1 - exponent);
    if (lost) env.flags |= UE | PE;
    env.roundedUp = up;
    return pack(rounded >> BigInt(precision - 1) === 0n ? 0 : 1);
  }
  if (top > format.maxExponent) {
    if ((env.masks & OE) === 0) {
      const biased = top + format.maxExponent - BIAS_ADJUSTMENT;
      const beyond = biased >= format.biasedMask;
      env.flags |= lost || beyond ? OE | PE : OE;
      env.roundedUp = up || beyond;
      return beyond ? infinity(format, negative) : pack(biased);
    }
    env.flags |= OE | PE;
    env.roundedUp =
      env.rounding === Rounding.NEAREST || env.rounding === (negative ? Rounding.DOWN : Rounding.UP);
    if (env.roundedUp) return infinity(format, negative);
    rounded = (1n << BigInt(precision)) - 1n;
    return pack(format.biasedMask - 1);
  }
  if (lost) env.flags |= PE;
  env.roundedUp = up;
  return pack(top + format.maxExponent);
}

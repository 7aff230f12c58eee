/**
 * The common case without bigints: JavaScript's own arithmetic is binary64 to nearest. It serves when operands and
 * result are normal numbers (or zeroes that are exact), and tells whether the result is inexact.
 */

/** Twice the least normal number: what rounds to the least itself may have been tiny before. */
const LEAST_64 = 2 ** -1021;
const LEAST_32 = 2 ** -125;
const MAX_32 = 3.4028234663852886e38;

export type Width = 32 | 64;

/** Whether a result is one that cannot have overflowed or underflowed. */
export const safeResult = (width: Width, value: number): boolean => {
  const magnitude = Math.abs(value);
  return width === 64
    ? magnitude >= LEAST_64 && magnitude < Number.POSITIVE_INFINITY
    : magnitude >= LEAST_32 && magnitude <= MAX_32;
};
/** Whether an operand is an ordinary number: no NaN, infinity or denormal. */
export const safeOperand = (width: Width, value: number): boolean => value === 0 || safeResult(width, value);

export interface Native {
  /** In binary64; the caller rounds to binary32, which is as good as rounding once for these four. */
  readonly compute: (a: number, b: number) => number;
  /** Whether a zero result of ordinary operands is exact. */
  readonly exactZero: (a: number, b: number) => boolean;
  /** Whether result is not exactly a op b. Exponents are moderate when the width is 64. */
  readonly inexact64: (a: number, b: number, result: number) => boolean;
  readonly inexact32: (a: number, b: number, result: number) => boolean;
}

/** a * b - product, exactly (Dekker), when nothing of it overflows or underflows. */
function productError(a: number, b: number, product: number): number {
  const a1 = 134_217_729 * a;
  const aHigh = a1 - (a1 - a);
  const aLow = a - aHigh;
  const b1 = 134_217_729 * b;
  const bHigh = b1 - (b1 - b);
  const bLow = b - bHigh;
  return aLow * bLow - (product - aHigh * bHigh - aLow * bHigh - aHigh * bLow);
}

/** a + b - total, exactly (Knuth). */
function sumError(a: number, b: number, total: number): number {
  const b1 = total - a;
  return a - (total - b1) + (b - b1);
}

const moderate = (value: number): boolean => {
  const magnitude = Math.abs(value);
  return magnitude > 2 ** -480 && magnitude < 2 ** 480;
};

export const nativeAdd: Native = {
  compute: (a, b) => a + b,
  exactZero: () => true,
  inexact64: (a, b, result) => sumError(a, b, result) !== 0,
  inexact32: (a, b, result) => a + b !== result || sumError(a, b, result) !== 0,
};
export const nativeSubtract: Native = {
  compute: (a, b) => a - b,
  exactZero: () => true,
  inexact64: (a, b, result) => sumError(a, -b, result) !== 0,
  inexact32: (a, b, result) => a - b !== result || sumError(a, -b, result) !== 0,
};
export const nativeMultiply: Native = {
  compute: (a, b) => a * b,
  exactZero: (a, b) => a === 0 || b === 0,
  inexact64: (a, b, result) => result !== 0 && productError(a, b, result) !== 0,
  inexact32: (a, b, result) => a * b !== result,
};
export const nativeDivide: Native = {
  compute: (a, b) => a / b,
  exactZero: (a) => a === 0,
  inexact64: (a, b, result) => result !== 0 && (result * b !== a || productError(result, b, a) !== 0),
  inexact32: (a, b, result) => result * b !== a,
};
export const nativeRoot: Native = {
  compute: (_, b) => Math.sqrt(b),
  exactZero: () => true,
  inexact64: (_, b, result) =>
    result !== 0 && (result * result !== b || productError(result, result, b) !== 0),
  inexact32: (_, b, result) => result * result !== b,
};

/** Whether inexact64 can be trusted. */
export const canTell = (a: number, b: number, result: number): boolean =>
  (a === 0 || moderate(a)) && (b === 0 || moderate(b)) && (result === 0 || moderate(result));

/**
 * The common case of the x87's arithmetic without bigints: ordinary numbers of 80 bits, in halves, rounded to nearest with
 * 64 bits of precision. Everything else (other kinds of operands, results out of range, other roundings) is left to
 * arithmetic.ts, and says so by `false`.
 */

/** A number: the halves of its significand as signed 32-bit integers, whose highest bit is set; or all of it zero. */
export interface Extended {
  high: number;
  low: number;
  /** Biased; 0 for zero. */
  exponent: number;
  negative: boolean;
}
export const extended = (): Extended => ({ high: 0, low: 0, exponent: 0, negative: false });

export const BIAS = 16_383;
/** The greatest exponent of a number. */
const GREATEST = 0x7ffe;
const TOP = 0x8000_0000 | 0;
const TWO_32 = 2 ** 32;

/** Of the last result: whether it was rounded, and whether its magnitude was rounded up. */
export const rounded = { inexact: false, up: false };

/**
 * Rounds a significand of 64 bits, with 32 more in `guard`; `sticky`: there is something below those. Tininess is found
 * after rounding, as here.
 */
function finish(r: Extended, high: number, low: number, guard: number, sticky: boolean): boolean {
  rounded.inexact = guard !== 0 || sticky;
  rounded.up = guard < 0 && (guard !== TOP || sticky || (low & 1) !== 0);
  if (rounded.up) {
    low = (low + 1) | 0;
    if (low === 0) {
      high = (high + 1) | 0;
      if (high === 0) {
        high = TOP;
        r.exponent++;
      }
    }
  }
  r.high = high;
  r.low = low;
  return r.exponent >= 1 && r.exponent <= GREATEST;
}
function exactly(r: Extended, { high, low, exponent }: Extended, negative: boolean): true {
  r.high = high;
  r.low = low;
  r.exponent = exponent;
  r.negative = negative;
  rounded.inexact = false;
  rounded.up = false;
  return true;
}
const ZERO = extended();

/** r = a + b, or a - b. `r` is neither. */
export function addExtended(r: Extended, a: Extended, b: Extended, subtract: boolean): boolean {
  const otherSign = b.negative !== subtract;
  if (b.exponent === 0) {
    // Zeroes of both signs are a positive one.
    return exactly(r, a, a.exponent === 0 ? a.negative && otherSign : a.negative);
  }
  if (a.exponent === 0) return exactly(r, b, otherSign);
  let [x, y, negative] = [a, b, a.negative];
  const distance = a.exponent - b.exponent;
  const order = distance || (a.high >>> 0) - (b.high >>> 0) || (a.low >>> 0) - (b.low >>> 0);
  if (order < 0) [x, y, negative] = [b, a, otherSign];
  // The lesser one, moved right, with 32 bits below.
  const by = distance < 0 ? -distance : distance;
  let { high, low } = y;
  let guard = 0;
  let sticky = false;
  if (by > 95) {
    [high, low, guard, sticky] = [0, 0, 0, true];
  } else {
    let rest = by;
    for (; rest >= 32; rest -= 32) {
      sticky ||= guard !== 0;
      [guard, low, high] = [low, high, 0];
    }
    if (rest > 0) {
      sticky ||= guard << (32 - rest) !== 0;
      guard = (guard >>> rest) | (low << (32 - rest));
      low = (low >>> rest) | (high << (32 - rest));
      high >>>= rest;
    }
  }
  r.negative = negative;
  r.exponent = x.exponent;
  if (a.negative === otherSign) {
    const lowSum = (x.low >>> 0) + (low >>> 0);
    const highSum = (x.high >>> 0) + (high >>> 0) + (lowSum >= TWO_32 ? 1 : 0);
    low = lowSum | 0;
    high = highSum | 0;
    if (highSum >= TWO_32) {
      sticky ||= (guard & 1) !== 0;
      guard = (guard >>> 1) | (low << 31);
      low = (low >>> 1) | (high << 31);
      high = (high >>> 1) | TOP;
      r.exponent++;
    }
    return finish(r, high, low, guard, sticky);
  }
  if (order === 0) return exactly(r, ZERO, false);
  // What is below the guard borrows from it, and leaves something below.
  const guardLeft = -(guard >>> 0) - (sticky ? 1 : 0);
  const lowLeft = (x.low >>> 0) - (low >>> 0) - (guardLeft < 0 ? 1 : 0);
  const highLeft = (x.high >>> 0) - (high >>> 0) - (lowLeft < 0 ? 1 : 0);
  // Of 2 ** 32 it is the low half that counts.
  guard = guardLeft | 0;
  low = lowLeft | 0;
  high = highLeft | 0;
  for (let moved = 0; high === 0 && moved < 2; moved++) {
    [high, low, guard] = [low, guard, 0];
    r.exponent -= 32;
  }
  const shift = Math.clz32(high);
  if (shift > 0) {
    high = (high << shift) | (low >>> (32 - shift));
    low = (low << shift) | (guard >>> (32 - shift));
    guard <<= shift;
    r.exponent -= shift;
  }
  return finish(r, high, low, guard, sticky);
}

/** The high half of a product: the rounded one is off by less than half of its unit. */
const upper = (a: number, b: number, lower: number) => ((a >>> 0) * (b >>> 0) - (lower >>> 0)) / TWO_32 + 0.5;

export function multiplyExtended(r: Extended, a: Extended, b: Extended): boolean {
  const negative = a.negative !== b.negative;
  if (a.exponent === 0 || b.exponent === 0) return exactly(r, ZERO, negative);
  r.negative = negative;
  r.exponent = a.exponent + b.exponent - BIAS + 1;
  const ll = Math.imul(a.low, b.low);
  const lh = Math.imul(a.low, b.high);
  const hl = Math.imul(a.high, b.low);
  const hh = Math.imul(a.high, b.high);
  // Columns of 32 bits, below 2 ** 34.
  const second = (upper(a.low, b.low, ll) >>> 0) + (lh >>> 0) + (hl >>> 0);
  const third =
    (upper(a.low, b.high, lh) >>> 0) +
    (upper(a.high, b.low, hl) >>> 0) +
    (hh >>> 0) +
    Math.floor(second / TWO_32);
  let high = ((upper(a.high, b.high, hh) >>> 0) + Math.floor(third / TWO_32)) | 0;
  let low = third | 0;
  let guard = second | 0;
  if (high >= 0) {
    high = (high << 1) | (low >>> 31);
    low = (low << 1) | (guard >>> 31);
    guard = (guard << 1) | (ll >>> 31);
    r.exponent--;
    return finish(r, high, low, guard, ll << 1 !== 0);
  }
  return finish(r, high, low, guard, ll !== 0);
}

const digits = [0, 0, 0, 0];
export function divideExtended(r: Extended, a: Extended, b: Extended): boolean {
  if (b.exponent === 0) return false;
  const negative = a.negative !== b.negative;
  if (a.exponent === 0) return exactly(r, ZERO, negative);
  r.negative = negative;
  r.exponent = a.exponent - b.exponent + BIAS;
  const [bHigh, bLow] = [b.high >>> 0, b.low >>> 0];
  const divisor = bHigh * TWO_32 + bLow;
  let high = a.high >>> 0;
  let low = a.low >>> 0;
  // The dividend is made as great as the divisor, so that the first bit is 1; the rest follow by 16, the last is a guard.
  if (high < bHigh || (high === bHigh && low < bLow)) {
    low *= 2;
    high *= 2;
    if (low >= TWO_32) {
      low -= TWO_32;
      high++;
    }
    r.exponent--;
  }
  high -= bHigh;
  low -= bLow;
  if (low < 0) {
    low += TWO_32;
    high--;
  }
  for (let i = 0; i < 4; i++) {
    let digit = Math.floor(((high * TWO_32 + low) * 65_536) / divisor);
    const below = low * 65_536 - bLow * digit;
    const carry = Math.floor(below / TWO_32);
    low = below - carry * TWO_32;
    high = high * 65_536 - bHigh * digit + carry;
    // The estimate is off by one at most.
    if (high < 0) {
      digit--;
      low += bLow;
      high += bHigh;
      if (low >= TWO_32) {
        low -= TWO_32;
        high++;
      }
    } else if (high > bHigh || (high === bHigh && low >= bLow)) {
      digit++;
      low -= bLow;
      high -= bHigh;
      if (low < 0) {
        low += TWO_32;
        high--;
      }
    }
    digits[i] = digit;
  }
  const [d0, d1, d2, d3] = digits as [number, number, number, number];
  const rest = high !== 0 || low !== 0;
  return finish(r, TOP | (d0 << 15) | (d1 >>> 1), (d1 << 31) | (d2 << 15) | (d3 >>> 1), d3 << 31, rest);
}

const below16 = (value: number) => Math.min(65_535, Math.floor(value) + 1);

/** The root by 32 bits and then twice 16, each estimated from above, with what is left of the number exactly. */
export function rootExtended(r: Extended, a: Extended): boolean {
  if (a.exponent === 0) return exactly(r, a, a.negative);
  if (a.negative) return false;
  // The number is an integer of 127 or 128 bits: its upper 64, and 32 below them, which hold one bit at most.
  const even = ((a.exponent - BIAS) & 1) === 0;
  const xHigh = even ? a.high >>> 1 : a.high >>> 0;
  const xLow = even ? ((a.low >>> 1) | (a.high << 31)) >>> 0 : a.low >>> 0;
  const next = even ? (a.low << 31) >>> 0 : 0;
  let first = Math.min(TWO_32 - 1, Math.floor(Math.sqrt(xHigh * TWO_32 + xLow)) + 1);
  let rest: number;
  for (; ; first--) {
    const low = Math.imul(first, first);
    rest = (xHigh - (upper(first, first, low) >>> 0)) * TWO_32 + (xLow - (low >>> 0));
    if (rest >= 0) break;
  }
  let second = below16((rest * 65_536 + next / 65_536) / (2 * first));
  let rest2: number;
  for (; ; second--) {
    const product = 2 * first * second;
    const high = Math.floor(product / 65_536);
    rest2 = (rest - high) * TWO_32 + (next - (product - high * 65_536) * 65_536 - second * second);
    if (rest2 >= 0) break;
  }
  let third = below16((rest2 * 65_536) / (2 * (first * 65_536 + second)));
  let high: number;
  let low: number;
  for (; ; third--) {
    low = -(2 * second * third * 65_536 + third * third);
    const carry = Math.floor(low / TWO_32);
    low -= carry * TWO_32;
    high = rest2 - 2 * first * third + carry;
    if (high >= 0) break;
  }
  const lower = second * 65_536 + third;
  r.negative = false;
  r.exponent = BIAS + ((a.exponent - BIAS - (even ? 0 : 1)) >> 1);
  // Beyond one half where what is left is more than the root; it is never just that.
  const more = high > first || (high === first && low > lower);
  return finish(r, first | 0, lower | 0, more ? -1 : high !== 0 || low !== 0 ? 1 : 0, false);
}

/** -1, 0 or 1 as a is less than b, equal or greater. */
export function compareExtended(a: Extended, b: Extended): number {
  const sign = (x: Extended) => (x.exponent === 0 ? 0 : x.negative ? -1 : 1);
  const [x, y] = [sign(a), sign(b)];
  if (x !== y || x === 0) return Math.sign(x - y);
  const magnitude =
    a.exponent - b.exponent || (a.high >>> 0) - (b.high >>> 0) || (a.low >>> 0) - (b.low >>> 0);
  return x * Math.sign(magnitude);
}

/** A double by its halves, if it is ordinary. */
export function fromDouble(r: Extended, low: number, high: number): boolean {
  const exponent = (high >>> 20) & 0x7ff;
  r.negative = high < 0;
  if (exponent === 0) {
    r.high = r.low = r.exponent = 0;
    return high << 1 === 0 && low === 0;
  }
  r.exponent = exponent - 1023 + BIAS;
  r.high = TOP | ((high & 0xf_ffff) << 11) | (low >>> 21);
  r.low = low << 11;
  return exponent !== 0x7ff;
}
export function fromSingle(r: Extended, bits: number): boolean {
  const exponent = (bits >>> 23) & 0xff;
  r.negative = bits < 0;
  r.low = 0;
  if (exponent === 0) {
    r.high = r.exponent = 0;
    return bits << 1 === 0;
  }
  r.exponent = exponent - 127 + BIAS;
  r.high = TOP | ((bits & 0x7f_ffff) << 8);
  return exponent !== 0xff;
}
/** A signed integer of 64 bits. */
export function fromHalves(r: Extended, low: number, high: number): void {
  r.negative = high < 0;
  if (r.negative) {
    low = -low | 0;
    high = (~high + (low === 0 ? 1 : 0)) | 0;
  }
  if (high === 0 && low === 0) {
    r.high = r.low = r.exponent = 0;
    return;
  }
  r.exponent = BIAS + 63;
  if (high === 0) {
    [high, low] = [low, 0];
    r.exponent -= 32;
  }
  const shift = Math.clz32(high);
  r.high = shift === 0 ? high : (high << shift) | (low >>> (32 - shift));
  r.low = low << shift;
  r.exponent -= shift;
}

/** What `toDouble` and `toInteger` give: the halves, or the bits of a single in the low one. */
export const halves = { low: 0, high: 0 };

/** Rounded to 53 bits, if the result is an ordinary double. */
export function toDouble({ high, low, exponent, negative }: Extended): boolean {
  if (exponent === 0) {
    [halves.low, halves.high] = [0, negative ? TOP : 0];
    rounded.inexact = rounded.up = false;
    return true;
  }
  const biased = exponent - BIAS + 1023;
  if (biased < 2 || biased > 0x7fd) return false;
  const rest = low & 0x7ff;
  let whole = (low >>> 11) | (high << 21);
  let upper = (high >>> 11) & 0xf_ffff;
  rounded.inexact = rest !== 0;
  rounded.up = rest > 0x400 || (rest === 0x400 && (whole & 1) !== 0);
  if (rounded.up) {
    whole = (whole + 1) | 0;
    // A carry goes into the exponent.
    if (whole === 0) upper++;
  }
  halves.low = whole;
  halves.high = (negative ? TOP : 0) | ((biased << 20) + upper) | 0;
  return true;
}
export function toSingle({ high, low, exponent, negative }: Extended): boolean {
  const biased = exponent - BIAS + 127;
  if (exponent === 0) {
    halves.low = negative ? TOP : 0;
    rounded.inexact = rounded.up = false;
    return true;
  }
  if (biased < 2 || biased > 0xfd) return false;
  const rest = high & 0xff;
  const bits = (high >>> 8) & 0x7f_ffff;
  rounded.inexact = rest !== 0 || low !== 0;
  rounded.up = rest > 0x80 || (rest === 0x80 && (low !== 0 || (bits & 1) !== 0));
  halves.low = (negative ? TOP : 0) | ((biased << 23) + bits + (rounded.up ? 1 : 0));
  return true;
}
/** To a signed integer below 2 ** 62 in magnitude, rounded to nearest or truncated. */
export function toHalves({ high, low, exponent, negative }: Extended, truncate: boolean): boolean {
  const below = BIAS + 63 - exponent; // bits of the significand behind the point
  if (exponent === 0 || below > 64) {
    // Less than one half.
    rounded.inexact = exponent !== 0;
    rounded.up = false;
    halves.low = halves.high = 0;
    return true;
  }
  if (below < 2) return false;
  let rest = below;
  let guard = 0;
  let sticky = false;
  for (; rest >= 32; rest -= 32) {
    sticky ||= guard !== 0;
    [guard, low, high] = [low, high, 0];
  }
  if (rest > 0) {
    sticky ||= guard << (32 - rest) !== 0;
    guard = (guard >>> rest) | (low << (32 - rest));
    low = (low >>> rest) | (high << (32 - rest));
    high >>>= rest;
  }
  rounded.inexact = guard !== 0 || sticky;
  rounded.up = !truncate && guard < 0 && (guard !== TOP || sticky || (low & 1) !== 0);
  if (rounded.up) {
    low = (low + 1) | 0;
    if (low === 0) high++;
  }
  if (negative) {
    low = -low | 0;
    high = (~high + (low === 0 ? 1 : 0)) | 0;
  }
  halves.low = low;
  halves.high = high;
  return true;
}

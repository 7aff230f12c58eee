/** Random numbers that a seed determines, and values at which instructions go wrong. */

/** Bob Jenkins's small fast counter generator (PractRand's sfc32). */
export class Random {
  #a: number;
  #b: number;
  #c: number;
  #counter = 1;

  constructor(seed: number, stream = 0) {
    this.#a = seed | 0;
    this.#b = stream | 0;
    this.#c = 0x9e37_79b9 | 0;
    for (let i = 0; i < 12; i++) this.u32();
  }

  u32(): number {
    const t = (this.#a + this.#b + this.#counter++) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = (((this.#c << 21) | (this.#c >>> 11)) + t) | 0;
    return t >>> 0;
  }
  u64(): bigint {
    return (BigInt(this.u32()) << 32n) | BigInt(this.u32());
  }
  /** From 0 to below `limit`. */
  below(limit: number): number {
    return this.u32() % limit;
  }
  /** One time in `n`. */
  oneIn(n: number): boolean {
    return this.below(n) === 0;
  }
  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)]!;
  }
}

const U64 = (value: bigint) => BigInt.asUintN(64, value);

/** A 64-bit integer, as a rule one at an edge of some width. */
export function integer64(random: Random): bigint {
  const width = random.pick([8n, 16n, 32n, 64n]);
  switch (random.below(10)) {
    case 0:
      return random.pick([0n, 1n, 2n, U64(-1n), U64(-2n)]);
    case 1: // the greatest and the least of a width, and their neighbours
      return U64((1n << (width - 1n)) + BigInt(random.below(3) - 1));
    case 2:
      return U64(-(1n << (width - 1n)) + BigInt(random.below(3) - 1));
    case 3:
      return U64((1n << width) + BigInt(random.below(3) - 1));
    case 4:
      return 1n << BigInt(random.below(64));
    case 5: // a mask
      return (
        (U64((1n << BigInt(random.below(65))) - 1n) << BigInt(random.below(2) * random.below(64))) & U64(-1n)
      );
    case 6: // small, of either sign
      return U64(BigInt(random.below(256) - 128));
    case 7:
      return U64(BigInt(random.u32() | 0));
    case 8: // decimal digits, and repeated bytes
      return random.oneIn(2)
        ? random.u64() & 0x7777_7777_7777_7777n
        : BigInt(random.below(256)) * 0x0101_0101_0101_0101n;
    default:
      return random.u64();
  }
}

/** The format of a binary floating-point number. */
interface Float {
  readonly exponentBits: number;
  /** Without an integer bit. */
  readonly fractionBits: number;
}
export const SINGLE: Float = { exponentBits: 8, fractionBits: 23 };
export const DOUBLE: Float = { exponentBits: 11, fractionBits: 52 };

function fraction(random: Random, bits: number): bigint {
  const all = (1n << BigInt(bits)) - 1n;
  switch (random.below(6)) {
    case 0:
      return 0n;
    case 1:
      return all >> BigInt(random.below(2));
    case 2:
      return (1n << BigInt(random.below(bits))) & all;
    case 3: // few bits: exact results
      return (random.u64() & 0xfn) << BigInt(bits - 4);
    case 4:
      return (all << BigInt(random.below(bits))) & all;
    default:
      return random.u64() & all;
  }
}

/** The exponent field: as a rule near the bias, where numbers meet, or at an end. */
function exponent(random: Random, bits: number): number {
  const top = (1 << bits) - 1;
  const bias = top >> 1;
  switch (random.below(8)) {
    case 0:
      return 0;
    case 1:
      return top;
    case 2:
      return random.oneIn(2) ? 1 + random.below(3) : top - 1 - random.below(3);
    case 3: // the magnitudes of integers' ends
      return bias + random.pick([7, 8, 15, 16, 31, 32, 62, 63, 64]);
    case 4:
      return random.below(top + 1);
    default:
      return Math.max(0, bias - 4 + random.below(12));
  }
}

/** A single or double: zeroes, denormals, infinities and both kinds of NaN among them. */
export function float(random: Random, format: Float): bigint {
  const { exponentBits, fractionBits } = format;
  const sign = BigInt(random.below(2)) << BigInt(exponentBits + fractionBits);
  return (
    sign | (BigInt(exponent(random, exponentBits)) << BigInt(fractionBits)) | fraction(random, fractionBits)
  );
}

/** Sixteen bytes for an XMM register or for memory: two or four numbers of one kind. */
export function vector(random: Random, view: DataView, at: number): void {
  const kind = random.below(4);
  for (let i = 0; i < 16; i += kind === 0 ? 4 : 8) {
    if (kind === 0) view.setUint32(at + i, Number(float(random, SINGLE)), true);
    else view.setBigUint64(at + i, kind === 1 ? float(random, DOUBLE) : integer64(random), true);
  }
}

/** An 80-bit number: with what only that format has, numbers whose integer bit contradicts their exponent. */
export function extended(random: Random, view: DataView, at: number): void {
  const exp = exponent(random, 15);
  const odd = random.oneIn(16);
  const integerBit = (exp !== 0) !== odd ? 1n << 63n : 0n;
  view.setBigUint64(at, integerBit | fraction(random, 63), true);
  view.setUint16(at + 8, exp | (random.below(2) << 15), true);
}

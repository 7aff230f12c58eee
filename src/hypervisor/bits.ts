/** Bits in memory that threads share, as words of 32: one atomic operation for many. */

/** Visits the bits [first, first + count): each word's index, and those of its bits. */
export function eachWord(first: number, count: number, visit: (word: number, bits: number) => void): void {
  const end = first + count;
  for (let bit = first; bit < end; ) {
    const next = Math.min(bit - (bit & 31) + 32, end);
    visit(bit >>> 5, bitsOf(bit, next));
    bit = next;
  }
}

/** Those bits of one word that are [first, end) of all. */
export const bitsOf = (first: number, end: number): number => (-1 >>> (32 - (end - first))) << (first & 31);

/** The lowest bit that is set, of at least one. */
export const lowestOf = (bits: number): number => 31 - Math.clz32(bits & -bits);

/**
 * Small guests written down as a listing: machine code on the left of each `|`, its source on the right. People
 * read the source, the program runs the bytes, `node scripts/guests.mjs` makes one from the other and a test holds
 * them together.
 */
export interface Guest {
  /** Which mode the code is for. */
  readonly bits: 16 | 32 | 64;
  /** The machine code. */
  readonly code: Uint8Array<ArrayBuffer>;
  /** The listing that it was made from. */
  readonly listing: string;
}

/**
 * The guest in a listing. The source is in GNU as's Intel syntax; the code must not depend on where it lies.
 * @example
 * ```ts
 * import { guest } from 'vmexit';
 *
 * const { bits, code } = guest(
 *   16,
 *   `
 *   b0 2a | mov al, 42
 *   f4    | hlt
 *   `,
 * );
 * console.log(`${code.length} bytes of ${bits}-bit code`);
 * // prints: 3 bytes of 16-bit code
 * ```
 */
export function guest(bits: 16 | 32 | 64, listing: string): Guest {
  const hex = listing
    .split('\n')
    .map((line) => line.split('|')[0]!)
    .join(' ')
    .trim();
  const code = Uint8Array.from(hex === '' ? [] : hex.split(/\s+/), (byte) => Number.parseInt(byte, 16));
  return { bits, code, listing };
}

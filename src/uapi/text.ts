/** Numbers of the ABI as people read them. */

/** `0xfee00000` */
export function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`;
}

/** `[0x1000, +0x2000)`: a range by its first byte and its size in bytes. */
hex.range = (start: number | bigint, size: number | bigint): string => `[${hex(start)}, +${hex(size)})`;

/** `0f0b90` */
export const hexBytes = (data: Uint8Array): string =>
  Array.from(data, (byte) => byte.toString(16).padStart(2, '0')).join('');

/** `1 byte`, `2 bytes` */
export const plural = (count: number, noun: string): string => `${count} ${noun}${count === 1 ? '' : 's'}`;

/** The name of a value in a table of constants, or the value in hex: `0x63`. */
export const nameOf = (table: Readonly<Record<string, number>>, value: number | bigint): string =>
  Object.keys(table).find((name) => BigInt(table[name]!) === BigInt(value)) ?? hex(value);

/** The names of the bits that are set, and what has no name in hex: `SMM|0x40`; `0` for none. */
export function flagNames(table: Readonly<Record<string, number>>, value: number | bigint): string {
  let rest = BigInt(value);
  const names = Object.entries(table).flatMap(([name, bit]) => {
    if (bit === 0 || (rest & BigInt(bit)) !== BigInt(bit)) return [];
    rest &= ~BigInt(bit);
    return [name];
  });
  if (rest !== 0n) names.push(hex(rest));
  return names.join('|') || '0';
}

/**
 * A linear address in halves, signed: what is looked up for each access is cheaper so than as a bigint. By memory, which makes
 * no bigint; and not with BigInt.asIntN: V8 11.3 ends the process where an address that may come from two places gets there.
 */
const whole = new BigUint64Array(1);
const words = new Int32Array(whole.buffer);
export function lowHalf(linear: bigint): number {
  whole[0] = linear;
  return words[0]!;
}
export function highHalf(linear: bigint): number {
  whole[0] = linear;
  return words[1]!;
}
export const halves = (linear: bigint): [low: number, high: number] => [lowHalf(linear), highHalf(linear)];
/** And back, unsigned. */
export function joined(low: number, high: number): bigint {
  words[0] = low;
  words[1] = high;
  return whole[0]!;
}

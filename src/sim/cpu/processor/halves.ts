/**
 * A linear address in halves, signed: what is looked up for each access is cheaper so than as a bigint. Not with
 * BigInt.asIntN: V8 11.3 ends the process where an address that may come from two places gets there.
 */
export const lowHalf = (linear: bigint): number => Number(linear & 0xffff_ffffn) | 0;
export const highHalf = (linear: bigint): number => Number((linear >> 32n) & 0xffff_ffffn) | 0;
export const halves = (linear: bigint): [low: number, high: number] => [lowHalf(linear), highHalf(linear)];
/** And back, unsigned. */
export const joined = (low: number, high: number): bigint => (BigInt(high >>> 0) << 32n) | BigInt(low >>> 0);

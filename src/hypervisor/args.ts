/** Checks of arguments: what a number must be before it goes into a struct. */
import { outOfRange, wrongType } from './errors.ts';

/** A whole number of either type. */
export type Integer = number | bigint;

export const PAGE_SIZE = 4096;

const whole = (low: number, high: number) => `a whole number from ${low} to 0x${high.toString(16)}`;

/** The argument as a number, checked to be whole and in the range. */
export function integer(name: string, value: unknown, high = Number.MAX_SAFE_INTEGER, low = 0): number {
  if (typeof value !== 'number' && typeof value !== 'bigint') throw wrongType(name, value, whole(low, high));
  const number = Number(value);
  if (!Number.isSafeInteger(number) || number < low || number > high) {
    throw outOfRange(name, value, whole(low, high));
  }
  return number;
}

export const u32 = (name: string, value: unknown): number => integer(name, value, 0xffff_ffff);

/** As `integer`, and a multiple of the page size. */
export function pages(name: string, value: unknown, high?: number, low?: number): number {
  const number = integer(name, value, high, low);
  if (number % PAGE_SIZE === 0) return number;
  throw outOfRange(
    name,
    value,
    `a multiple of ${PAGE_SIZE} (the page size), such as 0x${roundUp(number).toString(16)}`,
  );
}

/** Up to the next multiple of `unit`. */
export const roundUp = (value: number, unit = PAGE_SIZE): number => Math.ceil(value / unit) * unit;

/** The argument if it is an object; a clear error for what JS callers pass by mistake. */
export function object<T extends object>(name: string, value: T): T {
  if (typeof value !== 'object' || value === null) throw wrongType(name, value, 'an object');
  return value;
}

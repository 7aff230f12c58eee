/** Which MSRs a VM's guests may access: KVM_X86_SET_MSR_FILTER with its bitmaps. */
import type { Input, Value } from '../uapi/layout.ts';
import type { kvm_msr_filter } from '../uapi/x86.ts';
import { integer, object, u32 } from './args.ts';
import { outOfRange, wrongType } from './errors.ts';

/** KVM_MSR_FILTER_MAX_RANGES, and KVM_MSR_FILTER_MAX_BITMAP_SIZE in bits. */
const MAX_RANGES = 16;
const MAX_MSRS = 0x600 * 8;
const WORD_BITS = 64;

/** A range of MSRs of a filter (struct kvm_msr_filter_range). */
export interface MsrFilterRange {
  /** MsrFilter.READ and WRITE: the accesses that it is about. */
  readonly flags: number;
  /** The first register's number. */
  readonly base: number;
  /** Registers, 0 to 12288; 0 is no range. */
  readonly nmsrs: number;
  /** A bit for each register, the lowest of a byte first: 1 allows. At least `nmsrs` of them. */
  readonly bitmap: Uint8Array;
}

/** A filter of MSRs (struct kvm_msr_filter). */
export interface MsrFilterOptions {
  /** MsrFilter.DEFAULT_ALLOW or DEFAULT_DENY, for registers in no range; ALLOW without it. */
  readonly flags?: number;
  /** At most 16. The first that has the register and is about the access decides. None without it. */
  readonly ranges?: readonly MsrFilterRange[];
}

/** The bitmap in whole words, as KVM reads it. */
function wordsOf(name: string, bitmap: unknown, bits: number): Uint8Array | null {
  if (!(bitmap instanceof Uint8Array)) throw wrongType(name, bitmap, 'a Uint8Array');
  if (bitmap.length * 8 < bits)
    throw outOfRange(
      `${name}'s length`,
      bitmap.length,
      `at least the ${Math.ceil(bits / 8)} bytes of nmsrs bits`,
    );
  if (bits === 0) return null;
  const words = new Uint8Array((Math.ceil(bits / WORD_BITS) * WORD_BITS) / 8);
  words.set(bitmap.subarray(0, words.length));
  return words;
}

/** A filter as KVM takes it: the struct, and the bitmaps that it refers to. */
export function msrFilter(filter: MsrFilterOptions): {
  readonly fields: Input<Value<typeof kvm_msr_filter>>;
  readonly bitmaps: readonly (Uint8Array | null)[];
} {
  const { flags = 0, ranges = [] } = object('filter', filter);
  if (!Array.isArray(ranges)) throw wrongType('filter.ranges', ranges, 'an array');
  if (ranges.length > MAX_RANGES)
    throw outOfRange('filter.ranges: the length', ranges.length, `at most ${MAX_RANGES}`);
  const parts = ranges.map((range: MsrFilterRange, i) => {
    const name = `filter.ranges[${i}]`;
    const { flags: accesses, base, nmsrs, bitmap } = object(name, range);
    const fields = {
      flags: u32(`${name}.flags`, accesses),
      base: u32(`${name}.base`, base),
      nmsrs: integer(`${name}.nmsrs`, nmsrs, MAX_MSRS),
    };
    return { fields, bitmap: wordsOf(`${name}.bitmap`, bitmap, fields.nmsrs) };
  });
  return {
    fields: { flags: u32('filter.flags', flags), ranges: parts.map(({ fields }) => fields) },
    bitmaps: parts.map(({ bitmap }) => bitmap),
  };
}

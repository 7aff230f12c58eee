/** The guest's performance counters, and KVM's statistics. */

/** KVM_PMU_EVENT_*: kvm_pmu_event_filter.action and flags. */
export const PmuEvent = {
  /** An action: only events of the list can be counted. */
  ALLOW: 0,
  /** An action: events of the list cannot be counted. */
  DENY: 1,
  /** A flag: events are given with masks (KVM_CAP_PMU_EVENT_MASKED_EVENTS). */
  FLAG_MASKED_EVENTS: 1 << 0,
} as const;

/** KVM_PMU_CAP_*: arguments of KVM_CAP_PMU_CAPABILITY. */
export const PmuCap = {
  /** The guest has no performance counters. */
  DISABLE: 1 << 0,
} as const;

/** KVM_PMU_MASKED_ENTRY_*: the fields of an event with masks, as bigints. pmuMaskedEntry() puts one together. */
export const PmuMaskedEntry = {
  /** The event select, in two parts. */
  EVENT_SELECT: 0xf_0000_00ffn,
  /** The bits of the unit mask that are compared. */
  UMASK_MASK: 0xff00_0000_0000_0000n,
  /** What they must be. */
  UMASK_MATCH: 0xff00n,
  /** Events that match are none of the list's. */
  EXCLUDE: 0x80_0000_0000_0000n,
  /** The lowest bit of UMASK_MASK. */
  UMASK_MASK_SHIFT: 56n,
} as const;

/**
 * KVM_PMU_ENCODE_MASKED_ENTRY: an event of kvm_pmu_event_filter with PmuEvent.FLAG_MASKED_EVENTS (since 6.3). Of
 * `select` 12 bits count, of `mask` and `match` eight.
 */
export const pmuMaskedEntry = (select: number, mask: number, match: number, exclude: boolean): bigint =>
  BigInt(select & 0xff) |
  (BigInt(select & 0xf00) << 24n) |
  (BigInt(mask & 0xff) << 56n) |
  (BigInt(match & 0xff) << 8n) |
  (exclude ? PmuMaskedEntry.EXCLUDE : 0n);

/** An event of kvm_pmu_event_filter without masks, as the processor's event select has it: `select` has 12 bits, `unit` eight. */
export const pmuEvent = (select: number, unit: number): bigint =>
  BigInt(select & 0xff) | (BigInt(unit & 0xff) << 8n) | (BigInt(select & 0xf00) << 24n);

/** KVM_STATS_TYPE_*: bits 0 to 3 of kvm_stats_desc.flags. */
export const StatsType = {
  /** It only grows. */
  CUMULATIVE: 0x0,
  /** It is what is now. */
  INSTANT: 0x1,
  /** The most that it was. */
  PEAK: 0x2,
  /** A histogram with buckets of `bucketSize`. */
  LINEAR_HIST: 0x3,
  /** A histogram with buckets of powers of two. */
  LOG_HIST: 0x4,
  /** The bits of the type. */
  MASK: 0xf,
  /** The lowest of them. */
  SHIFT: 0,
} as const;
/** One of the numbers in the table {@link StatsType}. */
export type StatsType = (typeof StatsType)[keyof typeof StatsType];

/** KVM_STATS_UNIT_*: bits 4 to 7 of kvm_stats_desc.flags. */
export const StatsUnit = {
  /** A number of things. */
  NONE: 0x00,
  /** Bytes. */
  BYTES: 0x10,
  /** Seconds. */
  SECONDS: 0x20,
  /** Clock cycles. */
  CYCLES: 0x30,
  /** 0 or 1. */
  BOOLEAN: 0x40,
  /** The bits of the unit. */
  MASK: 0xf0,
  /** The lowest of them. */
  SHIFT: 4,
} as const;
/** One of the numbers in the table {@link StatsUnit}. */
export type StatsUnit = (typeof StatsUnit)[keyof typeof StatsUnit];

/** KVM_STATS_BASE_*: bits 8 to 11 of kvm_stats_desc.flags: a value counts units times the base to the `exponent`. */
export const StatsBase = {
  /** Powers of ten. */
  POW10: 0x000,
  /** Powers of two. */
  POW2: 0x100,
  /** The bits of the base. */
  MASK: 0xf00,
  /** The lowest of them. */
  SHIFT: 8,
} as const;
/** One of the numbers in the table {@link StatsBase}. */
export type StatsBase = (typeof StatsBase)[keyof typeof StatsBase];

/** Descriptors and what they become in a segment register: SDM volume 3, 3.4.5 and 5.2. Nothing here touches a processor. */

/** A segment register with its descriptor cache (SDM volume 3, 3.4.3). */
export interface Segment {
  readonly selector: number;
  /** Unsigned, 64 bits. */
  readonly base: bigint;
  /** In bytes, the granularity applied: the offset of the last byte. */
  readonly limit: number;
  /** The descriptor's type field; 3 (data, read/write, accessed) and so on. */
  readonly type: number;
  /** Code or data (1), or system (0). */
  readonly s: number;
  readonly dpl: number;
  readonly present: number;
  readonly avl: number;
  readonly l: number;
  readonly db: number;
  readonly g: number;
  /** A null selector was loaded. */
  readonly unusable: number;
}

/** GDTR and IDTR. */
export interface Table {
  base: bigint;
  limit: number;
}

/** The order of Registers.segments. */
export const Seg = { ES: 0, CS: 1, SS: 2, DS: 3, FS: 4, GS: 5 } as const;

/** Types of system descriptors (SDM volume 3, table 3-2). */
export const System = {
  TSS16: 1,
  LDT: 2,
  TSS16_BUSY: 3,
  CALL16: 4,
  TASK_GATE: 5,
  INTERRUPT16: 6,
  TRAP16: 7,
  TSS: 9,
  TSS_BUSY: 11,
  CALL: 12,
  INTERRUPT: 14,
  TRAP: 15,
} as const;

/** Bits of a code or data descriptor's type (SDM volume 3, table 3-1). */
export const Type = {
  ACCESSED: 1,
  WRITABLE: 2,
  READABLE: 2,
  EXPAND_DOWN: 4,
  CONFORMING: 4,
  CODE: 8,
} as const;

/** A descriptor as it lies in its table. */
export interface Descriptor {
  readonly lo: number;
  readonly hi: number;
  /** Its linear address. */
  readonly linear: bigint;
  readonly type: number;
  /** Code or data, not system. */
  readonly s: boolean;
  readonly dpl: number;
  readonly present: boolean;
}

export const isNull = (selector: number): boolean => (selector & 0xfffc) === 0;
export const rpl = (selector: number): number => selector & 3;
/** The error code that names a selector. `ext` is 1 where an event from outside is being delivered. */
export const selectorCode = (selector: number, ext = 0): number => (selector & 0xfffc) | ext;

export const isCode = ({ s, type }: Descriptor): boolean => s && (type & Type.CODE) !== 0;
export const isConforming = ({ type }: Descriptor): boolean => (type & Type.CONFORMING) !== 0;
export const isWritableData = ({ s, type }: Descriptor): boolean =>
  s && (type & (Type.CODE | Type.WRITABLE)) === Type.WRITABLE;
/** Bits L and D of a code descriptor. */
export const isLong = ({ hi }: Descriptor): boolean => (hi & 0x20_0000) !== 0;
export const isBig = ({ hi }: Descriptor): boolean => (hi & 0x40_0000) !== 0;

export const descriptorOf = (lo: number, hi: number, linear: bigint): Descriptor => ({
  lo,
  hi,
  linear,
  type: (hi >>> 8) & 15,
  s: (hi & 0x1000) !== 0,
  dpl: (hi >>> 13) & 3,
  present: (hi & 0x8000) !== 0,
});

/** The segment register's contents after a descriptor is loaded into it. */
export function segmentOf(selector: number, descriptor: Descriptor): Segment {
  const { lo, hi, type, s, dpl, present } = descriptor;
  const g = (hi >>> 23) & 1;
  const limit = ((hi & 0xf_0000) | (lo & 0xffff)) >>> 0;
  return {
    selector,
    base: BigInt(((hi & 0xff00_0000) | ((hi & 0xff) << 16) | (lo >>> 16)) >>> 0),
    limit: g ? ((limit << 12) | 0xfff) >>> 0 : limit,
    type: s ? type | Type.ACCESSED : type,
    s: s ? 1 : 0,
    dpl,
    present: present ? 1 : 0,
    avl: (hi >>> 20) & 1,
    l: (hi >>> 21) & 1,
    db: (hi >>> 22) & 1,
    g,
    unusable: 0,
  };
}

export const flatSegment = (overrides: Partial<Segment> & { selector: number }): Segment => ({
  base: 0n,
  limit: 0xffff_ffff,
  type: 3,
  s: 1,
  dpl: 0,
  present: 1,
  avl: 0,
  l: 0,
  db: 1,
  g: 1,
  unusable: 0,
  ...overrides,
});
/** The fixed segments of SYSCALL and its like. */
export const flatCode = (selector: number, dpl: number, long: boolean): Segment =>
  flatSegment({ selector, dpl, type: 11, l: long ? 1 : 0, db: long ? 0 : 1 });
export const flatData = (selector: number, dpl: number): Segment => flatSegment({ selector, dpl });

/** A stack segment with a null selector, which 64-bit mode has in privilege levels below 3. Its DPL is the CPL. */
export const nullStack = (level: number, selector = level): Segment =>
  flatSegment({ selector, dpl: level, type: 3, limit: 0, g: 0, db: 0, present: 0, unusable: 1 });

/** Whether `size` bytes from `offset` lie in a segment (SDM volume 3, 5.3). */
export function inLimit({ type, limit, db }: Segment, offset: number, size: number): boolean {
  const last = offset + size - 1;
  if ((type & (Type.CODE | Type.EXPAND_DOWN)) === Type.EXPAND_DOWN) {
    return offset > limit && last <= (db ? 0xffff_ffff : 0xffff);
  }
  return last <= limit;
}

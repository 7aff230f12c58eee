/** The modes in which cases execute, as data: what the generator, the runner and the oracles need to know of each. */
import type { Sregs } from '../../src/index.ts';
import { Place, System } from './places.ts';

export type SegmentName = 'cs' | 'ss' | 'ds' | 'es' | 'fs' | 'gs';
type Segment = Sregs['cs'];

export interface Mode {
  /** What operands and addresses have without a prefix; 64 stands for 64-bit mode. */
  readonly bits: 16 | 32 | 64;
  readonly privilege: 0 | 3;
  readonly segments: { readonly [name in SegmentName]: Segment };
}
/** Which modes have the tables of long mode. */
export const isLong = (name: ModeName): boolean => name !== 'protected32' && name !== 'paged32';

/** A descriptor's parts (SDM volume 3, 3.4.5): access is its byte 5, flags are G, D/B, L and AVL. */
export interface Descriptor {
  readonly base: number;
  readonly limit: number;
  readonly access: number;
  readonly flags: number;
}
const flat = (access: number, flags: number): Descriptor => ({ base: 0, limit: 0xf_ffff, access, flags });
const LONG = 0xa;
const WIDE = 0xc;
const BYTES = 0x4;
/** In 64-bit mode the descriptors of systems have 16 bytes, which is why some selectors are unused here. */
export const TSS_LIMIT = 0x2068;

/** As Linux numbers the first ones, for a host that lets the guest's program see its own descriptor tables. */
export const Selector = {
  code: 0x10,
  data: 0x18,
  user32: 0x23,
  userData: 0x2b,
  user64: 0x33,
  tss: 0x40,
  ldt: 0x90,
  freeTss: 0xa0,
  gate: 0xb0,
  shifted: 0xd8,
  limited: 0xe0,
  expandDown: 0x70,
} as const;

/** The linear address that offset 0 is at in DS and ES of 32-bit protected mode. */
const SHIFT = 0x2_8000;

/** The global descriptor table of a mode of this kind, but for its gate. */
export const globalDescriptors = (long: boolean): ReadonlyMap<number, Descriptor> =>
  new Map([
    [Selector.code, flat(0x9b, long ? LONG : WIDE)],
    [Selector.data, flat(0x93, WIDE)],
    [Selector.user32 & ~3, flat(0xfb, WIDE)],
    [Selector.userData & ~3, flat(0xf3, WIDE)],
    // Elsewhere of 16 bits: QEMU 7.2 ends when it meets a 64-bit one outside of long mode.
    [Selector.user64 & ~3, flat(0xfb, long ? LONG : 0x8)],
    [Selector.tss, { base: long ? System.tss : System.tss32, limit: TSS_LIMIT, access: 0x8b, flags: 0 }],
    [0x50, flat(0x9a, WIDE)],
    [0x58, { base: Place.code, limit: 0xffff, access: 0x9b, flags: 0 }],
    [0x60, flat(0x9f, WIDE)],
    [0x68, flat(0x90, WIDE)],
    [Selector.expandDown, { base: SHIFT, limit: 0x7fff, access: 0x97, flags: BYTES }],
    [0x78, flat(0x13, WIDE)],
    [0x80, flat(0x1b, long ? LONG : WIDE)],
    [0x88, { base: Place.data, limit: 0xffff, access: 0x93, flags: 0 }],
    [Selector.ldt, { base: long ? System.ldt : System.ldt32, limit: 0x1f, access: 0x82, flags: 0 }],
    [Selector.freeTss, { base: System.tss, limit: 0x67, access: 0x89, flags: 0 }],
    [0xc0, flat(0x98, WIDE)],
    [Selector.shifted, { ...flat(0x93, WIDE), base: SHIFT }],
    [Selector.limited, { base: SHIFT, limit: 0xb7ff, access: 0x93, flags: BYTES }],
    [0xe8, flat(0xf2, WIDE)],
    [0xf0, flat(0xfe, long ? LONG : WIDE)],
  ]);
export const GDT_LIMIT = 0xff;

/** The local one: the mode's code, data, data that is not present, a program's data. */
export const localDescriptors = (long: boolean): readonly Descriptor[] => [
  flat(0x9b, long ? LONG : WIDE),
  flat(0x93, WIDE),
  flat(0x13, WIDE),
  flat(0xf3, WIDE),
];

export const encodeDescriptor = ({ base, limit, access, flags }: Descriptor): bigint =>
  BigInt(limit & 0xffff) |
  (BigInt(base & 0xff_ffff) << 16n) |
  (BigInt(access) << 40n) |
  (BigInt(((limit >> 16) & 0xf) | (flags << 4)) << 48n) |
  (BigInt(base >>> 24) << 56n);

/** A segment register as KVM_SET_SREGS takes it. */
export function segment(selector: number, { base, limit, access, flags }: Descriptor): Segment {
  const [g, db, l, avl] = [3, 2, 1, 0].map((bit) => (flags >> bit) & 1) as [number, number, number, number];
  return {
    selector,
    base: BigInt(base),
    limit: g === 1 ? limit * 0x1000 + 0xfff : limit,
    type: access & 15,
    s: (access >> 4) & 1,
    dpl: (access >> 5) & 3,
    present: access >> 7,
    db,
    l,
    g,
    avl,
    unusable: 0,
    padding: 0,
  };
}

const loaded = (long: boolean, selector: number): Segment =>
  segment(selector, globalDescriptors(long).get(selector & ~3)!);
const real = (selector: number, access = 0x93): Segment =>
  segment(selector, { base: selector << 4, limit: 0xffff, access, flags: 0 });
const all = (data: Segment) => ({ ss: data, ds: data, es: data, fs: data, gs: data });

const userData = loaded(true, Selector.userData);
const data = loaded(true, Selector.data);
const long3 = {
  ...all(userData),
  cs: loaded(true, Selector.user64),
  fs: { ...userData, base: BigInt(Place.fsBase) },
  gs: { ...userData, base: Place.gsBase },
};

const long0 = { ...long3, cs: loaded(true, Selector.code), ss: data, ds: data, es: data };

/** With bases, a limit, and one that grows downwards. */
const protected32 = {
  cs: loaded(false, Selector.code),
  ss: loaded(false, Selector.data),
  ds: loaded(false, Selector.shifted),
  es: loaded(false, Selector.limited),
  fs: loaded(false, Selector.userData),
  gs: loaded(false, Selector.expandDown),
};

export const MODES = {
  /** 64-bit mode at privilege 3. */
  long3: { bits: 64, privilege: 3, segments: long3 },
  /** The same with CR4.OSXSAVE, and with AVX's registers in XCR0. */
  avx3: { bits: 64, privilege: 3, segments: long3 },
  /** A 32-bit program of a 64-bit system. */
  compat3: { bits: 32, privilege: 3, segments: { ...all(userData), cs: loaded(true, Selector.user32) } },
  /** 64-bit mode at privilege 0. */
  long0: {
    bits: 64,
    privilege: 0,
    segments: long0,
  },
  /** The same, for what AMD's processors alone have. */
  amd0: { bits: 64, privilege: 0, segments: long0 },
  /** 32-bit protected mode at privilege 0, without paging. */
  protected32: { bits: 32, privilege: 0, segments: protected32 },
  /** The same with paging, which a PVM host has in long mode only. */
  paged32: { bits: 32, privilege: 0, segments: protected32 },
  /** Real mode. */
  real16: {
    bits: 16,
    privilege: 0,
    segments: { ...all(real(0x3000)), cs: real(0x2000, 0x9b), fs: real(0x2f80), gs: real(0x3080) },
  },
} as const satisfies { readonly [name: string]: Mode };

export type ModeName = keyof typeof MODES;
export const modes = Object.keys(MODES) as ModeName[];
export const isAmds = (name: ModeName): boolean => name === 'amd0';
export const hasAvx = (name: ModeName): boolean => name === 'avx3';
export const modeOf = (name: ModeName): Mode => MODES[name];

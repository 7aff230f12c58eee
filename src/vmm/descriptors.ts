/** Segment descriptors, gates, and the tables that have them (SDM volume 3, 3.4.5, 3.5 and 6.11 to 6.14). */
import { integer, object } from '../hypervisor/args.ts';
import { outOfRange, wrongType } from '../hypervisor/errors.ts';
import { type GuestMemory, guestMemory } from '../hypervisor/guest-memory.ts';
import { type Value, viewOf } from '../uapi/layout.ts';
import type { kvm_segment } from '../uapi/x86.ts';

/** A segment as Vcpu.changeSregs() takes it: what its register holds, the hidden part with it. */
export type SegmentRegister = Omit<Value<typeof kvm_segment>, 'padding'>;

/** What every kind of segment has. */
export interface DescriptorOptions {
  /** Where the segment begins, a linear address: 0 without it. */
  readonly base?: number | bigint;
  /** Its last byte, counted from there: below 2^20, or below 2^32 with the lower 12 bits set. */
  readonly limit?: number;
  /** The privilege that it takes, or gives: 0, which it is without this, to 3. */
  readonly dpl?: number;
}

const GRANULE = 0x1000;
const FLAT = 0xffff_ffff;

function register(
  name: string,
  { base = 0, limit = FLAT, dpl = 0 }: DescriptorOptions,
  rest: Partial<SegmentRegister>,
): SegmentRegister {
  integer(`${name}.limit`, limit, FLAT);
  const g = limit < 2 ** 20 ? 0 : 1;
  if (g === 1 && limit % GRANULE !== GRANULE - 1)
    throw outOfRange(`${name}.limit`, limit, 'below 2^20, or a multiple of 4096 less 1');
  return {
    base: address(`${name}.base`, base),
    limit,
    dpl: integer(`${name}.dpl`, dpl, 3),
    selector: 0,
    type: 0,
    present: 1,
    db: 0,
    s: 1,
    l: 0,
    g,
    avl: 0,
    unusable: 0,
    ...rest,
  };
}

/** A size in bits, if it is one of those. */
function sizeOf<N extends number>(name: string, bits: N, sizes: readonly N[]): N {
  if (!sizes.includes(bits)) throw outOfRange(name, bits, `one of ${sizes.join(', ')}`);
  return bits;
}

const Type = { ACCESSED: 1, WRITABLE: 2, READABLE: 2, EXPAND_DOWN: 4, CONFORMING: 4, CODE: 8 } as const;
const System = { LDT: 2, TSS: 9, TSS_16: 1, BUSY: 2 } as const;

/**
 * Segment descriptors, as values: of code, of data, and of the two segments that the processor itself uses. Without a
 * `limit`, code and data have 4 GiB.
 */
export const descriptor = {
  /**
   * A code segment of 16, 32 or 64 bits. It can be read, unless `readable` says no; `conforming` code runs with the
   * privilege of its caller.
   * @throws RangeError ERR_KVM_INVALID_ARG
   */
  code(
    options: DescriptorOptions & {
      readonly bits: 16 | 32 | 64;
      readonly readable?: boolean;
      readonly conforming?: boolean;
    },
  ): SegmentRegister {
    const { readable = true, conforming = false } = object('options', options);
    const bits = sizeOf('code.bits', options.bits, [16, 32, 64]);
    const type =
      Type.CODE | Type.ACCESSED | (readable ? Type.READABLE : 0) | (conforming ? Type.CONFORMING : 0);
    return register('code', options, { type, db: bits === 32 ? 1 : 0, l: bits === 64 ? 1 : 0 });
  },

  /**
   * A data segment, or one of a stack. It can be written, unless `writable` says no. `bits`: how wide a stack pointer
   * is in it, 32 or 16; 64-bit code does not ask.
   * @throws RangeError ERR_KVM_INVALID_ARG
   */
  data(
    options: DescriptorOptions & {
      readonly bits?: 16 | 32;
      readonly writable?: boolean;
      readonly expandDown?: boolean;
    } = {},
  ): SegmentRegister {
    const { writable = true, expandDown = false } = object('options', options);
    const bits = sizeOf('data.bits', options.bits ?? 32, [16, 32]);
    const type = Type.ACCESSED | (writable ? Type.WRITABLE : 0) | (expandDown ? Type.EXPAND_DOWN : 0);
    return register('data', options, { type, db: bits === 32 ? 1 : 0 });
  },

  /**
   * A task-state segment: of 64 bits, which is 0x68 bytes long, unless `bits` says something else. Its register says
   * that it is busy, as LTR leaves it; its descriptor in a table says that it is not.
   * @throws RangeError ERR_KVM_INVALID_ARG
   */
  tss(options: DescriptorOptions & { readonly bits?: 16 | 32 | 64 }): SegmentRegister {
    const bits = sizeOf('tss.bits', object('options', options).bits ?? 64, [16, 32, 64]);
    const type = (bits === 16 ? System.TSS_16 : System.TSS) | System.BUSY;
    const limit = bits === 16 ? 0x2b : 0x67;
    return register('tss', { limit, ...options }, { type, s: 0 });
  },

  /**
   * A local descriptor table: of 64 KiB without a `limit`.
   * @throws RangeError ERR_KVM_INVALID_ARG
   */
  ldt(options: DescriptorOptions): SegmentRegister {
    return register('ldt', { limit: 0xffff, ...object('options', options) }, { type: System.LDT, s: 0 });
  },
} as const;

/** The most that a field of a segment holds beside its base. */
const fields = { limit: FLAT, type: 15, s: 1, dpl: 3, present: 1, avl: 1, l: 1, db: 1, g: 1 } as const;

function checked(name: string, segment: SegmentRegister): SegmentRegister {
  const { base } = object(name, segment);
  if (typeof base !== 'bigint') throw wrongType(`${name}.base`, base, 'a bigint, as descriptor gives it');
  const found = Object.entries(fields).map(([field, most]) => [
    field,
    integer(`${name}.${field}`, segment[field as keyof typeof fields], most),
  ]);
  return { ...segment, ...Object.fromEntries(found) };
}

/** A descriptor as it lies in a table. */
function encode({ base, limit, type, s, dpl, present, avl, l, db, g }: SegmentRegister): bigint {
  const units = BigInt(g === 1 ? Math.floor(limit / GRANULE) : limit);
  const access = BigInt((s === 0 && (type & ~System.BUSY) !== 0 ? type & ~System.BUSY : type) | (s << 4));
  const flags = BigInt(avl | (l << 1) | (db << 2) | (g << 3));
  return (
    (units & 0xffffn) |
    ((base & 0xff_ffffn) << 16n) |
    (access << 40n) |
    (BigInt(dpl) << 45n) |
    (BigInt(present) << 47n) |
    ((units >> 16n) << 48n) |
    (flags << 52n) |
    (((base >> 24n) & 0xffn) << 56n)
  );
}

/** A linear address or an offset: of 64 bits, and negative bigints are their two's complement. */
const address = (name: string, value: number | bigint): bigint =>
  BigInt.asUintN(64, typeof value === 'bigint' ? value : BigInt(integer(name, value)));

/** Where in guest memory a table goes. */
export interface TablePlace {
  /** Guest memory. */
  readonly memory: GuestMemory;
  /** The guest-physical address of the table's first byte. */
  readonly address: number;
  /** The guest-physical address at which the memory begins: 0 without it. */
  readonly base?: number;
  /** The linear address of the table, where that is another: what its register holds. */
  readonly linear?: number | bigint;
}

/** Writes it. @returns its linear address */
function put(place: TablePlace, bytes: Uint8Array): bigint {
  const memory = guestMemory('memory', object('place', place).memory);
  const base = integer('base', place.base ?? 0);
  const at = integer('address', place.address);
  const linear = address('linear', place.linear ?? at);
  if (at < base || at + bytes.length > base + memory.size)
    throw outOfRange('address', at, `with ${bytes.length} bytes of the memory from there on`);
  memory.write(at - base, bytes);
  return linear;
}
/** Quadwords. */
function putTable(place: TablePlace, words: readonly bigint[]): DescriptorTable {
  const bytes = new Uint8Array(BigUint64Array.from(words).buffer);
  return { base: put(place, bytes), limit: bytes.length - 1 };
}

/** A descriptor table as its register holds it. */
export interface DescriptorTable {
  /** The linear address of its first byte. */
  readonly base: bigint;
  /** Its last byte, counted from there. */
  readonly limit: number;
}

/** What placeGdt() has written, and what registers can be loaded with. */
export interface Gdt<Name extends string> {
  /** For `gdt` of Vcpu.changeSregs(). */
  readonly table: DescriptorTable;
  /** Each segment with its selector, whose RPL is the segment's privilege. */
  readonly segments: { readonly [K in Name]: SegmentRegister };
}

/**
 * Writes a global descriptor table: the null descriptor, and then these, in their order, from selector 8 on. A segment of
 * the system's (`tss`, `ldt`) takes two places where the table has 64-bit code, as long mode has it.
 * @throws TypeError, RangeError ERR_KVM_INVALID_ARG, also when it does not lie in the memory. Nothing is written then
 * @example
 * ```ts
 * import { descriptor, Machine, openHypervisor, placeGdt } from 'vmexit';
 *
 * const hv = openHypervisor();
 * const machine = new Machine(hv, { memory: 0x10_0000 });
 * const { memory, vcpu } = machine;
 * const { table, segments } = placeGdt(
 *   { memory, address: 0x500 },
 *   {
 *     code: descriptor.code({ bits: 32 }),
 *     data: descriptor.data(),
 *     userCode: descriptor.code({ bits: 32, dpl: 3 }),
 *     tss: descriptor.tss({ bits: 32, base: 0x600 }),
 *   },
 * );
 * vcpu.changeSregs({ gdt: table, tr: segments.tss });
 * console.log(`user code has selector 0x${segments.userCode.selector.toString(16)}`);
 * machine.close();
 * hv.close();
 * // prints: user code has selector 0x1b
 * ```
 */
export function placeGdt<Name extends string>(
  place: TablePlace,
  segments: { readonly [K in Name]: SegmentRegister },
): Gdt<Name> {
  const entries = Object.entries<SegmentRegister>(object('segments', segments));
  const long = entries.some(([, segment]) => segment?.s === 1 && segment.l === 1);
  const words = [0n];
  const found = entries.map(([name, given]) => {
    const segment = checked(name, given);
    const selector = words.length * 8 + (segment.s === 1 ? segment.dpl : 0);
    words.push(encode(segment));
    if (long && segment.s === 0) words.push(segment.base >> 32n);
    return [name, { ...segment, selector }];
  });
  return { table: putTable(place, words), segments: Object.fromEntries(found) };
}

/** Where an exception or an interrupt goes. */
export interface Gate {
  /** The handler: an offset in its code segment. */
  readonly offset: number | bigint;
  /** The selector of its code segment. */
  readonly selector: number;
  /** The least privilege that may come here by INT: 0 without it. */
  readonly dpl?: number;
  /** An interrupt gate turns interrupts off, a trap gate does not: `interrupt` without it. */
  readonly kind?: 'interrupt' | 'trap';
  /** The stack of the TSS's IST that 64-bit handlers run on, 1 to 7: 0, which it is without this, is none. */
  readonly ist?: number;
}

const VECTORS = 256;
const GateType = {
  16: { interrupt: 0x6, trap: 0x7 },
  32: { interrupt: 0xe, trap: 0xf },
  64: { interrupt: 0xe, trap: 0xf },
} as const;

function encodeGate(name: string, gate: Gate, bits: 16 | 32 | 64): bigint[] {
  const { selector, dpl = 0, kind = 'interrupt', ist = 0 } = object(name, gate);
  const offset = address(`${name}.offset`, gate.offset);
  if (offset >> BigInt(bits) !== 0n) throw outOfRange(`${name}.offset`, gate.offset, `of ${bits} bits`);
  if (kind !== 'interrupt' && kind !== 'trap')
    throw outOfRange(`${name}.kind`, kind, "'interrupt' or 'trap'");
  const low =
    (offset & 0xffffn) |
    (BigInt(integer(`${name}.selector`, selector, 0xffff)) << 16n) |
    (BigInt(integer(`${name}.ist`, ist, bits === 64 ? 7 : 0)) << 32n) |
    (BigInt(GateType[bits][kind]) << 40n) |
    (BigInt(integer(`${name}.dpl`, dpl, 3)) << 45n) |
    (1n << 47n) |
    (((offset >> 16n) & 0xffffn) << 48n);
  return bits === 64 ? [low, offset >> 32n] : [low];
}

/**
 * Writes an interrupt descriptor table of 256 gates: those that are given by their vector, and the others as not present.
 * @param bits of the code that is interrupted: 64 in long mode, else that of the handlers' code
 * @returns for `idt` of Vcpu.changeSregs()
 * @throws TypeError, RangeError ERR_KVM_INVALID_ARG. Nothing is written then
 */
export function placeIdt(
  place: TablePlace,
  bits: 16 | 32 | 64,
  gates: { readonly [vector: number]: Gate },
): DescriptorTable {
  sizeOf('bits', bits, [16, 32, 64]);
  const perGate = bits === 64 ? 2 : 1;
  const words = Array<bigint>(VECTORS * perGate).fill(0n);
  for (const [vector, gate] of Object.entries(object('gates', gates))) {
    const at = integer('vector', Number(vector), VECTORS - 1) * perGate;
    words.splice(at, perGate, ...encodeGate(`gates[${vector}]`, gate, bits));
  }
  return putTable(place, words);
}

/** The stacks that a TSS names. */
export interface TssOptions {
  /** The stack pointer with which privilege 0 is entered from a lower one. */
  readonly stack: number | bigint;
  /** Its stack segment, in a TSS of 32 bits. */
  readonly stackSegment?: number;
  /** The stacks of the gates' `ist`, from 1 on, in a TSS of 64 bits. */
  readonly ist?: readonly (number | bigint)[];
  /** 64, which it is without this, or 32. */
  readonly bits?: 32 | 64;
}

// SDM volume 3, 8.7, and 8.2.1: where what is written lies, and the size of both.
const Tss64 = { rsp0: 4, ist1: 0x24, ioMap: 0x66, size: 0x68 } as const;
const Tss32 = { esp0: 4, ss0: 8 } as const;

/**
 * Writes a task-state segment with the stacks that handlers run on, and without a map of I/O ports.
 * @returns its descriptor, for placeGdt()
 * @throws TypeError, RangeError ERR_KVM_INVALID_ARG. Nothing is written then
 */
export function placeTss(place: TablePlace, options: TssOptions): SegmentRegister {
  const { stack, stackSegment = 0, ist = [] } = object('options', options);
  const bits = sizeOf('bits', options.bits ?? 64, [32, 64]);
  const bytes = new Uint8Array(Tss64.size);
  const view = viewOf(bytes);
  if (bits === 64) {
    view.setBigUint64(Tss64.rsp0, address('stack', stack), true);
    if (!Array.isArray(ist) || ist.length > 7) throw outOfRange('ist', ist, 'an array of up to 7 stacks');
    ist.forEach((pointer, i) => {
      view.setBigUint64(Tss64.ist1 + 8 * i, address(`ist[${i}]`, pointer), true);
    });
  } else {
    view.setUint32(Tss32.esp0, integer('stack', stack, FLAT), true);
    view.setUint16(Tss32.ss0, integer('stackSegment', stackSegment, 0xffff), true);
  }
  // At the limit: there is none.
  view.setUint16(Tss64.ioMap, bytes.length, true);
  return descriptor.tss({ bits, base: put(place, bytes) });
}

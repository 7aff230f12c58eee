/** What a vCPU needs to begin in 64-bit mode: a GDT, page tables, and the registers that turn them on. */

import { outOfRange } from '../hypervisor/errors.ts';
import type { GuestMemory } from '../hypervisor/guest-memory.ts';
import type { Vcpu } from '../hypervisor/vcpu.ts';
import { viewOf } from '../uapi/layout.ts';

/** Where enterLongMode() puts its tables, and what they map. */
export interface LongModeOptions {
  /** Where the tables go: a page-aligned guest-physical address; tablesSize() bytes from there are written. */
  readonly tables: number;
  /** The guest-physical address at which `memory` begins. */
  readonly base?: number;
  /** How much is mapped, one to one, in bytes: a multiple of 2 MiB up to 512 GiB. 4 GiB without it. */
  readonly identity?: number;
}

const PAGE = 0x1000;
const TABLES = { gdt: 0, pml4: PAGE, pdpt: 2 * PAGE, pd: 3 * PAGE } as const;
const GIB = 2 ** 30;
const LARGE_PAGE = 2 * 2 ** 20;

// SDM volume 3, 4.5, "4-Level Paging": present, writable, user; PS maps 2 MiB in a directory entry.
const ENTRY = 0b111n;
const PS = 1n << 7n;
// SDM volume 3, 2.5, "Control Registers", and 2.2.1, "Extended Feature Enable Register".
const CR0 = { PE: 1n << 0n, MP: 1n << 1n, ET: 1n << 4n, NE: 1n << 5n, WP: 1n << 16n, PG: 1n << 31n };
const CR4 = { PAE: 1n << 5n, OSFXSR: 1n << 9n, OSXMMEXCPT: 1n << 10n };
const EFER = { SCE: 1n << 0n, LME: 1n << 8n, LMA: 1n << 10n, NXE: 1n << 11n };

/** The selectors in the GDT that enterLongMode() writes. */
export const Selector = {
  /** The 64-bit code segment. */
  CODE64: 0x08,
  /** The data segment, for ds, es, fs, gs and ss. */
  DATA: 0x10,
} as const;

const segment = (selector: number, type: number, long: boolean) => ({
  base: 0n,
  limit: 0xffff_ffff,
  selector,
  type,
  present: 1,
  dpl: 0,
  db: long ? 0 : 1,
  s: 1,
  l: long ? 1 : 0,
  g: 1,
  avl: 0,
  unusable: 0,
});
const code = segment(Selector.CODE64, 0b1011, true);
const data = segment(Selector.DATA, 0b0011, false);

/** Bytes that enterLongMode() writes: a GDT, and page tables for `identity` bytes. */
export const tablesSize = (identity = 4 * GIB): number => TABLES.pd + Math.ceil(identity / GIB) * PAGE;

/**
 * Writes the tables into guest memory and puts the vCPU in 64-bit mode at privilege 0, with `identity` bytes mapped
 * one to one by 2 MiB pages, SSE on and interrupts off. rip, rsp and the rest are the caller's, by setRegs(). The vCPU
 * needs a CPUID with long mode first: `vcpu.setCpuid2(hv.getSupportedCpuid())`.
 * @throws KvmError EINVAL without one; RangeError ERR_KVM_INVALID_ARG when the tables do not fit in the memory
 */
export function enterLongMode(vcpu: Vcpu, memory: GuestMemory, options: LongModeOptions): void {
  const { tables, base = 0, identity = 4 * GIB } = options;
  if (identity % LARGE_PAGE !== 0 || identity <= 0 || identity > 512 * GIB) {
    throw outOfRange('identity', identity, 'a multiple of 2 MiB above 0 and up to 512 GiB');
  }
  const size = tablesSize(identity);
  if (tables % PAGE !== 0 || tables < base || tables + size > base + memory.size) {
    throw outOfRange('tables', tables, `page-aligned, with ${size} bytes of the memory from there on`);
  }

  const bytes = new Uint8Array(size);
  const view = viewOf(bytes);
  const set = (at: number, value: bigint) => view.setBigUint64(at, value, true);
  set(TABLES.gdt, 0n);
  set(TABLES.gdt + Selector.CODE64, 0x00af_9b00_0000_ffffn);
  set(TABLES.gdt + Selector.DATA, 0x00cf_9300_0000_ffffn);
  set(TABLES.pml4, BigInt(tables + TABLES.pdpt) | ENTRY);
  for (let gib = 0; gib * GIB < identity; gib++) {
    set(TABLES.pdpt + 8 * gib, BigInt(tables + TABLES.pd + PAGE * gib) | ENTRY);
  }
  for (let page = 0; page * LARGE_PAGE < identity; page++) {
    set(TABLES.pd + 8 * page, BigInt(page * LARGE_PAGE) | PS | ENTRY);
  }
  memory.write(tables - base, bytes);

  vcpu.changeSregs({
    cr0: CR0.PE | CR0.MP | CR0.ET | CR0.NE | CR0.WP | CR0.PG,
    cr3: BigInt(tables + TABLES.pml4),
    cr4: CR4.PAE | CR4.OSFXSR | CR4.OSXMMEXCPT,
    efer: EFER.SCE | EFER.LME | EFER.LMA | EFER.NXE,
    gdt: { base: BigInt(tables + TABLES.gdt), limit: 3 * 8 - 1 },
    cs: code,
    ds: data,
    es: data,
    fs: data,
    gs: data,
    ss: data,
  });
}

/** Puts the vCPU in real mode at `segment:0`, all data segments at the same base. rip is the caller's. */
export function enterRealMode(vcpu: Vcpu, segmentSelector = 0): void {
  const at = { base: BigInt(segmentSelector * 16), selector: segmentSelector };
  vcpu.changeSregs({ cs: at, ds: at, es: at, ss: at });
}

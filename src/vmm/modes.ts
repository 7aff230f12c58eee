/** What a vCPU needs to begin in a mode: tables in guest memory, and the registers that turn it on. */

import { integer, object } from '../hypervisor/args.ts';
import { outOfRange, wrongType } from '../hypervisor/errors.ts';
import { type GuestMemory, guestMemory } from '../hypervisor/guest-memory.ts';
import { Vcpu } from '../hypervisor/vcpu.ts';
import { descriptor, placeGdt, type SegmentRegister } from './descriptors.ts';
import { PageTables } from './page-tables.ts';

/** Where a mode's tables go. */
export interface ProtectedModeOptions {
  /** Where the tables go: a page-aligned guest-physical address. */
  readonly tables: number;
  /** The guest-physical address at which `memory` begins: 0 without it. */
  readonly base?: number;
}

/** Where enterLongMode() puts its tables, and what they map. tablesSize() bytes are written. */
export interface LongModeOptions extends ProtectedModeOptions {
  /** How much is mapped, one to one, in bytes: a multiple of 2 MiB up to 512 GiB. 4 GiB without it. */
  readonly identity?: number;
}

const PAGE = 0x1000;
const GIB = 2 ** 30;
const LARGE_PAGE = 2 * 2 ** 20;

// SDM volume 3, 2.5, "Control Registers", and 2.2.1, "Extended Feature Enable Register".
const CR0 = { PE: 1n << 0n, MP: 1n << 1n, ET: 1n << 4n, NE: 1n << 5n, WP: 1n << 16n, PG: 1n << 31n };
const CR4 = { PAE: 1n << 5n, OSFXSR: 1n << 9n, OSXMMEXCPT: 1n << 10n };
const EFER = { SCE: 1n << 0n, LME: 1n << 8n, LMA: 1n << 10n, NXE: 1n << 11n };

/** The selectors in the GDT that enterLongMode() and enterProtectedMode() write. */
export const Selector = {
  /** The 64-bit code segment of long mode. */
  CODE64: 0x08,
  /** The 32-bit code segment of protected mode. */
  CODE32: 0x08,
  /** The data segment, for ds, es, fs, gs and ss. */
  DATA: 0x10,
} as const;

/** Bytes that enterLongMode() writes: a GDT, and page tables for `identity` bytes. */
export const tablesSize = (identity = 4 * GIB): number =>
  (3 + Math.ceil(integer('identity', identity) / GIB)) * PAGE;

/** A GDT with one segment of code and one of data; all registers that it loads. */
function flatSegments(memory: GuestMemory, bits: 32 | 64, { tables, base = 0 }: ProtectedModeOptions) {
  const kinds = { code: descriptor.code({ bits }), data: descriptor.data() };
  const { table, segments } = placeGdt({ memory, address: tables, base }, kinds);
  return { gdt: table, ...registers(segments.code, segments.data) };
}
const registers = (cs: SegmentRegister, data: SegmentRegister) => ({
  cs,
  ds: data,
  es: data,
  fs: data,
  gs: data,
  ss: data,
});

function checkVcpu(vcpu: Vcpu): void {
  if (!(vcpu instanceof Vcpu)) throw wrongType('vcpu', vcpu, 'a vCPU, from Vm.createVcpu()');
}

function checkTables(memory: GuestMemory, options: ProtectedModeOptions, size: number): void {
  const base = integer('base', options.base ?? 0);
  const tables = integer('tables', options.tables);
  guestMemory('memory', memory);
  if (tables % PAGE !== 0 || tables < base || tables + size > base + memory.size)
    throw outOfRange('tables', tables, `page-aligned, with ${size} bytes of the memory from there on`);
}

/**
 * Writes the tables into guest memory and puts the vCPU in 64-bit mode at privilege 0, with `identity` bytes mapped
 * one to one by 2 MiB pages that privilege 3 may use too, SSE on and interrupts off. rip, rsp and the rest are the
 * caller's, by setRegs(). The vCPU needs a CPUID with long mode first: `vcpu.setCpuid2(hv.getSupportedCpuid())`.
 * @throws KvmError EINVAL without one; RangeError ERR_KVM_INVALID_ARG when the tables do not fit in the memory
 */
export function enterLongMode(vcpu: Vcpu, memory: GuestMemory, options: LongModeOptions): void {
  checkVcpu(vcpu);
  const { tables } = object('options', options);
  const identity = integer('identity', options.identity ?? 4 * GIB);
  if (identity % LARGE_PAGE !== 0 || identity === 0 || identity > 512 * GIB) {
    throw outOfRange('identity', identity, 'a multiple of 2 MiB above 0 and up to 512 GiB');
  }
  checkTables(memory, options, tablesSize(identity));
  const size = tablesSize(identity) - PAGE;
  const paging = new PageTables(memory, { ...options, at: Number(tables) + PAGE, size });
  const segments = flatSegments(memory, 64, options);
  paging.map({ linear: 0, size: identity, pageSize: LARGE_PAGE, user: true });
  vcpu.changeSregs({
    cr0: CR0.PE | CR0.MP | CR0.ET | CR0.NE | CR0.WP | CR0.PG,
    cr3: paging.root,
    cr4: CR4.PAE | CR4.OSFXSR | CR4.OSXMMEXCPT,
    efer: EFER.SCE | EFER.LME | EFER.LMA | EFER.NXE,
    ...segments,
  });
}

/**
 * Writes a GDT into guest memory and puts the vCPU in 32-bit protected mode at privilege 0, every segment at 0 with 4 GiB,
 * without paging, SSE on and interrupts off. rip, rsp and the rest are the caller's, by setRegs().
 * @throws RangeError ERR_KVM_INVALID_ARG when the GDT does not fit in the memory
 */
export function enterProtectedMode(vcpu: Vcpu, memory: GuestMemory, options: ProtectedModeOptions): void {
  checkVcpu(vcpu);
  checkTables(memory, object('options', options), PAGE);
  vcpu.changeSregs({
    cr0: CR0.PE | CR0.MP | CR0.ET | CR0.NE | CR0.WP,
    cr4: CR4.OSFXSR | CR4.OSXMMEXCPT,
    efer: 0n,
    ...flatSegments(memory, 32, options),
  });
}

/**
 * Puts the vCPU, which is in protected or long mode, at privilege 3: with this code segment, and this data segment in
 * all other segment registers, as placeGdt() gives them. rip, rsp and the rest are the caller's, by setRegs(). What comes back
 * to privilege 0 by the IDT needs a TSS with its stack: placeTss().
 * @throws RangeError ERR_KVM_INVALID_ARG for segments of another privilege
 * @example
 * ```ts
 * import { descriptor, enterUserMode, exitName, FLAT_ADDRESS, flatImage, guest } from 'vmexit';
 * import { Machine, openHypervisor, placeGdt, placeIdt, placeTss } from 'vmexit';
 *
 * const hv = openHypervisor();
 * const machine = new Machine(hv, { memory: 0x10_0000 });
 * const { memory, vcpu } = machine;
 * // Privilege 3 may not execute HLT: the handler of #GP does, at privilege 0.
 * const { code } = guest(
 *   64,
 *   `
 *   f4 |          hlt
 *   f4 | handler: hlt
 *   `,
 * );
 * machine.load(flatImage(code, 'long'));
 *
 * const { table, segments: of } = placeGdt(
 *   { memory, address: 0x500 },
 *   {
 *     code: descriptor.code({ bits: 64 }),
 *     userCode: descriptor.code({ bits: 64, dpl: 3 }),
 *     userData: descriptor.data({ dpl: 3 }),
 *     tss: placeTss({ memory, address: 0x600 }, { stack: 0x9000 }),
 *   },
 * );
 * const gate = { offset: FLAT_ADDRESS + 1, selector: of.code.selector };
 * vcpu.changeSregs({ gdt: table, tr: of.tss, idt: placeIdt({ memory, address: 0x2000 }, 64, { 13: gate }) });
 * enterUserMode(vcpu, { code: of.userCode, data: of.userData });
 * const exit = vcpu.run(5000);
 * console.log(`${exitName(exit)} at privilege ${vcpu.getSregs().cs.selector & 3}`);
 * machine.close();
 * hv.close();
 * // prints: HLT at privilege 0
 * ```
 */
export function enterUserMode(
  vcpu: Vcpu,
  segments: { readonly code: SegmentRegister; readonly data: SegmentRegister },
): void {
  checkVcpu(vcpu);
  const { code, data } = object('segments', segments);
  for (const [name, segment] of Object.entries({ code, data })) {
    const { dpl, selector } = object(name, segment);
    if (dpl !== 3 || integer(`${name}.selector`, selector, 0xffff) % 4 !== 3)
      throw outOfRange(
        `${name}.dpl`,
        dpl,
        '3, and so must be the RPL of the selector: placeGdt() gives both',
      );
  }
  vcpu.changeSregs(registers(code, data));
}

/**
 * Puts the vCPU in real mode at `segment:0`, all data segments at the same base. rip is the caller's.
 * @throws TypeError, RangeError ERR_KVM_INVALID_ARG
 */
export function enterRealMode(vcpu: Vcpu, segmentSelector = 0): void {
  checkVcpu(vcpu);
  const selector = integer('segmentSelector', segmentSelector, 0xffff);
  const at = { base: BigInt(selector * 16), selector };
  vcpu.changeSregs({ cs: at, ds: at, es: at, ss: at });
}

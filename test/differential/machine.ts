/** The guest's own machine: descriptor tables, page tables and handlers, and the system registers of each mode. */
import type { GuestMemory, Sregs, Vcpu } from '../../src/index.ts';
import { viewOf } from '../../src/uapi/index.ts';
import { enterLongMode } from '../../src/vmm/modes.ts';
import { FILLER } from './case.ts';
import {
  encodeDescriptor,
  GDT_LIMIT,
  globalDescriptors,
  hasAvx,
  isLong,
  localDescriptors,
  type ModeName,
  modeOf,
  modes,
  Selector,
  segment,
  TSS_LIMIT,
} from './modes.ts';
import { PAGE, Place, System } from './places.ts';

export const HANDLER_SIZE = 4;
export const RAM_SIZE = 0x11_0000;

// SDM volume 3, 4.5: present, writable, user, not executable.
const P = 1n;
const RW = 2n;
const US = 4n;
const NX = 1n << 63n;

/** What a page permits: to the system, no more than it needs, so that a case at privilege 0 cannot break it. */
export function rights(address: number): bigint {
  if (address < PAGE) return P | NX;
  if (address < Place.code - PAGE) {
    if (address === System.handlers) return P;
    const isWritten = address === System.gdt || address === System.stack - PAGE;
    return P | NX | (isWritten ? RW : 0n);
  }
  if (address >= Place.code && address < Place.codeEnd) return P | US;
  if (address >= Place.data && address < Place.readOnly) return P | RW | US;
  if (address === Place.readOnly) return P | US;
  return address === Place.supervisor ? P | RW : 0n;
}
/** The same where pages cannot forbid execution: a jump into the system's is a page fault nevertheless. */
const rights32 = (address: number): bigint =>
  address < System.gdt ? 0n : BigInt.asUintN(32, rights(address) & ~NX);

/** Which exceptions a program may raise with INT3 and INTO. */
const SOFTWARE = [3, 4];

/** MSRs of which any value is harmless, and one that does not exist. */
export const MSRS = [
  0x174, 0x175, 0x176, 0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084, 0xc000_0100, 0xc000_0101,
  0xc000_0102, 0x1234_5678,
];
/** Those among them that KVM_GET_SREGS does not have. */
export const HIDDEN_MSRS = MSRS.filter((index) => index !== 0x1234_5678 && index >> 1 !== 0xc000_0100 >> 1);

/** Flags in frames for IRET: no trap, no task to return to, no virtual-8086 mode, and every port permitted. */
export const RETURN_FLAGS = { variable: 0x24_0ed5n, fixed: 0x3002n };

// SDM volume 3, 2.5 and 2.2.1.
const CR0 = { real: 0x32n, protected: 0x33n, paging: 0x8001_0033n };
const CR4 = { sse: 0x600n, long: 0x1_0620n, avx: 0x5_0620n };
const EFER_LONG = 0xd01n;
const CR3 = { long: BigInt(System.tables + PAGE), paged32: BigInt(System.directory32) };

/** The control registers and EFER in a mode. */
export function controlOf(name: ModeName): Pick<Sregs, 'cr0' | 'cr3' | 'cr4' | 'efer'> {
  if (name === 'real16') return { cr0: CR0.real, cr3: 0n, cr4: CR4.sse, efer: 0n };
  if (name === 'protected32') return { cr0: CR0.protected, cr3: 0n, cr4: CR4.sse, efer: 0n };
  if (name === 'paged32') return { cr0: CR0.paging, cr3: CR3.paged32, cr4: CR4.sse, efer: 0n };
  return { cr0: CR0.paging, cr3: CR3.long, cr4: hasAvx(name) ? CR4.avx : CR4.long, efer: EFER_LONG };
}

export const isPaged = (name: ModeName): boolean => controlOf(name).cr0 === CR0.paging;

function writeDescriptors(view: DataView, long: boolean): void {
  const set = (at: number, value: bigint) => view.setBigUint64(at, value, true);
  const gdt = long ? System.gdt : System.gdt32;
  for (const [selector, descriptor] of globalDescriptors(long))
    set(gdt + selector, encodeDescriptor(descriptor));
  localDescriptors(long).forEach((descriptor, i) => {
    set((long ? System.ldt : System.ldt32) + 8 * i, encodeDescriptor(descriptor));
  });
  const target = Place.code + 0x200;
  set(
    gdt + Selector.gate,
    BigInt(target & 0xffff) | (BigInt(Selector.code) << 16n) | (0x8cn << 40n) | (BigInt(target >> 16) << 48n),
  );
}

function writeHandlers(ram: GuestMemory): void {
  const view = viewOf(ram.bytes);
  for (let vector = 0; vector < 256; vector++) {
    const handler = System.handlers + HANDLER_SIZE * vector;
    ram.bytes.set([0xe6, vector, 0xf4], handler); // out vector, al; hlt
    const access = 0x8e00 | (SOFTWARE.includes(vector) ? 0x6000 : 0);
    const [gate, gate32] = [System.idt + 16 * vector, System.idt32 + 8 * vector];
    view.setUint32(System.ivt + 4 * vector, handler, true); // in segment 0
    for (const at of [gate, gate32]) view.setUint32(at, (Selector.code << 16) | handler, true);
    view.setUint32(gate + 4, access | 1, true); // on a stack of its own
    view.setUint32(gate32 + 4, access, true);
  }
  // Each TSS has a map that permits every port: a program may end itself with an OUT.
  for (const tss of [System.tss, System.tss32]) {
    view.setUint32(tss + 4, System.stack, true);
    view.setUint16(tss + 0x66, 0x68, true);
    ram.bytes[tss + TSS_LIMIT] = 0xff;
  }
  view.setUint32(System.tss + 0x24, System.stack, true);
  view.setUint32(System.tss32 + 8, Selector.data, true);
}

function writePageTables(view: DataView): void {
  const set = (at: number, value: bigint) => view.setBigUint64(at, value, true);
  const [pml4, pd] = [System.tables + PAGE, System.tables + 3 * PAGE];
  set(pd, BigInt(System.pages) | P | RW | US);
  view.setUint32(System.directory32, Number(BigInt(System.pages32) | P | RW | US), true);
  for (let page = 0; page < 512; page++) {
    const address = page * PAGE;
    const [access, access32] = [rights(address), rights32(address)];
    set(System.pages + 8 * page, access === 0n ? 0n : BigInt(address) | access);
    view.setUint32(System.pages32 + 4 * page, access32 === 0n ? 0 : address | Number(access32), true);
  }
  set(pml4 + 8 * Number(Place.alias >> 39n), view.getBigUint64(pml4, true));
}

/** Writes all of it, and gives KVM_SET_SREGS's argument for each mode. */
export function buildMachine(vcpu: Vcpu, ram: GuestMemory): { readonly [mode in ModeName]: Sregs } {
  const view = viewOf(ram.bytes);
  // Wherever a far transfer leads, it ends there.
  ram.bytes.fill(FILLER, 0, System.gdt);
  ram.bytes.fill(FILLER, Place.reach);
  enterLongMode(vcpu, ram, { tables: System.tables, identity: 2 * 2 ** 20 });
  writePageTables(view);
  for (const long of [true, false]) writeDescriptors(view, long);
  writeHandlers(ram);

  const sregs = vcpu.getSregs();
  const table = (base: number, limit: number) => ({ ...sregs.gdt, base: BigInt(base), limit });
  const entries = modes.map((name): [ModeName, Sregs] => {
    const { segments, bits } = modeOf(name);
    const long = isLong(name);
    const descriptors = globalDescriptors(long);
    const system = {
      tr: segment(Selector.tss, descriptors.get(Selector.tss)!),
      ldt: segment(Selector.ldt, descriptors.get(Selector.ldt)!),
      gdt: table(long ? System.gdt : System.gdt32, GDT_LIMIT),
      idt: long ? table(System.idt, 16 * 256 - 1) : table(System.idt32, 8 * 256 - 1),
    };
    if (bits === 16) system.idt = table(System.ivt, 0x3ff);
    return [name, { ...sregs, ...segments, ...system, ...controlOf(name) }];
  });
  return Object.fromEntries(entries) as { readonly [mode in ModeName]: Sregs };
}

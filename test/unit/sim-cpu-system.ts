/** A simulated processor with flat memory, whose system instructions are executed one by one. */

import { createRequire } from 'node:module';
import { Arena } from '../../src/sim/arena.ts';
import { Cpu } from '../../src/sim/cpu/cpu.ts';
import { flatCode, flatData, Seg, type Segment } from '../../src/sim/cpu/processor/descriptors.ts';
import { GuestFault } from '../../src/sim/cpu/processor/fault.ts';
import type { CpuidEntry } from '../../src/sim/cpu/processor/features.ts';
import { CR0, CR4, EFER } from '../../src/sim/cpu/processor/mode.ts';
import { type GuestChoice, MMIO, type SecondStage } from '../../src/sim/cpu/processor/stage.ts';
import { supportedCpuid } from '../../src/sim/cpu/system/claims.ts';
import { formOf, systemInstructions, systemInstructionsEnding } from '../../src/sim/cpu/system/index.ts';
import { Decoder, type Iced } from '../../src/sim/cpu/translate/decode.ts';
import type { Guest } from '../../src/vmm/guest.ts';

const iced: Iced = createRequire(import.meta.url)('iced-x86');
const decoders = { intel: new Decoder(() => iced), amd: new Decoder(() => iced, 'amd') };

export const MEMORY = 0x20_0000;
/** Where things lie in guest-physical memory; linear addresses are the same wherever a test does not say otherwise. */
export const At = {
  ivt: 0,
  pml4: 0x1000,
  pdpt: 0x2000,
  pd: 0x3000,
  gdt: 0x6000,
  ldt: 0x6800,
  idt: 0x7000,
  tss: 0x8000,
  code: 0x1_0000,
  data: 0x2_0000,
  stack: 0x3_8000,
  inner: 0x4_8000,
} as const;

/** The guest's GDT: selectors without RPL. */
export const Gdt = {
  CODE0: 0x08,
  DATA0: 0x10,
  CODE3: 0x18,
  DATA3: 0x20,
  /** Where SYSRET expects it: behind DATA3. */
  CODE64_3: 0x28,
  CODE64: 0x30,
  CONFORMING0: 0x38,
  TSS: 0x40,
  LDT: 0x50,
  GATE: 0x60,
  ABSENT: 0x70,
  READ_ONLY: 0x78,
  EXECUTE_ONLY: 0x80,
  SMALL: 0x88,
  TSS16: 0x90,
  CODE16: 0x98,
  FREE: 0xa0,
} as const;

/** An 8-byte descriptor. `access` is P, DPL, S and type; `flags` G, D, L and AVL. */
export const descriptor = (base: number, limit: number, access: number, flags: number): bigint =>
  BigInt(limit & 0xffff) |
  (BigInt(base & 0xff_ffff) << 16n) |
  (BigInt(access) << 40n) |
  (BigInt((limit >>> 16) & 15) << 48n) |
  (BigInt(flags) << 52n) |
  (BigInt((base >>> 24) & 0xff) << 56n);

export const gate = (selector: number, offset: number, access: number, parameters = 0): bigint =>
  BigInt(offset & 0xffff) |
  (BigInt(selector) << 16n) |
  (BigInt(parameters) << 32n) |
  (BigInt(access) << 40n) |
  (BigInt(offset >>> 16) << 48n);

export type Fault = {
  readonly vector: number;
  readonly errorCode: number | undefined;
  readonly address: bigint;
};

export interface Options {
  readonly vendor?: 'intel' | 'amd';
  readonly choice?: GuestChoice;
  readonly cpuid?: readonly CpuidEntry[];
}

export class Machine {
  readonly cpu: Cpu;
  readonly ram: number;
  readonly arena = new Arena();
  /** What the second stage was asked for. */
  readonly asked: [gpa: number, access: number, wants: boolean | undefined][] = [];
  /** Guest-physical pages that cannot be written. */
  readonly readOnly = new Set<number>();

  readonly #decoder: Decoder;

  constructor({ vendor = 'intel', choice, cpuid = supportedCpuid(vendor, choice) }: Options = {}) {
    this.ram = this.arena.allocate(MEMORY)!;
    const page = (gpa: number, access: number) =>
      gpa >= MEMORY || (access === 1 && this.readOnly.has(gpa)) ? MMIO : this.ram + gpa;
    const stage: SecondStage = {
      page: (gpa, access, wants) => {
        this.asked.push([gpa, access, wants]);
        return page(gpa, access);
      },
      sharedPage: page,
    };
    this.#decoder = decoders[vendor];
    this.cpu = new Cpu(this.arena, stage, { vendor, decoder: this.#decoder, choice });
    this.cpu.cpuid = cpuid;
  }

  // --- memory ---
  u8 = (gpa: number) => this.arena.views.u8[this.ram + gpa]!;
  u16 = (gpa: number) => this.arena.views.dv.getUint16(this.ram + gpa, true);
  u32 = (gpa: number) => this.arena.views.dv.getUint32(this.ram + gpa, true);
  u64 = (gpa: number) => this.arena.views.dv.getBigUint64(this.ram + gpa, true);
  set16 = (gpa: number, value: number) => this.arena.views.dv.setUint16(this.ram + gpa, value, true);
  set32 = (gpa: number, value: number) => this.arena.views.dv.setUint32(this.ram + gpa, value, true);
  set64 = (gpa: number, value: bigint) => this.arena.views.dv.setBigUint64(this.ram + gpa, value, true);
  bytes(gpa: number, hex: string): void {
    const bytes = hex.replaceAll(' ', '').match(/../g)!;
    this.arena.views.u8.set(
      bytes.map((byte) => Number.parseInt(byte, 16)),
      this.ram + gpa,
    );
  }

  /** Puts a guest's code at an address. */
  place(gpa: number, { code }: Guest): this {
    this.arena.views.u8.set(code, this.ram + gpa);
    return this;
  }

  // --- registers ---
  get rsp(): bigint {
    return this.cpu.state.gpr(4);
  }
  set rsp(value: bigint | number) {
    this.cpu.state.setGpr(4, BigInt(value));
  }
  gpr = (index: number) => this.cpu.state.gpr(index);
  setGpr = (index: number, value: bigint | number) =>
    this.cpu.state.setGpr(index, BigInt.asUintN(64, BigInt(value)));
  segment = (index: number): Segment => this.cpu.segments[index]!;

  /** Real mode with everything at the same base. */
  real(): this {
    const { cpu } = this;
    cpu.segments.forEach((segment, index) => {
      cpu.segments[index] = { ...segment, selector: 0, base: 0n };
    });
    cpu.state.rip = BigInt(At.code & 0xffff) || 0x4000n;
    this.rsp = 0x3000;
    cpu.changed();
    return this;
  }

  /** The GDT, and a TSS for it. */
  tables(): this {
    const rows: [number, bigint][] = [
      [Gdt.CODE0, descriptor(0, 0xf_ffff, 0x9b, 0xc)],
      [Gdt.DATA0, descriptor(0, 0xf_ffff, 0x93, 0xc)],
      [Gdt.CODE3, descriptor(0, 0xf_ffff, 0xfb, 0xc)],
      [Gdt.DATA3, descriptor(0, 0xf_ffff, 0xf3, 0xc)],
      [Gdt.CONFORMING0, descriptor(0, 0xf_ffff, 0x9f, 0xc)],
      [Gdt.CODE64, descriptor(0, 0xf_ffff, 0x9b, 0xa)],
      [Gdt.CODE64_3, descriptor(0, 0xf_ffff, 0xfb, 0xa)],
      [Gdt.TSS, descriptor(At.tss, 0x1fff, 0x89, 0)],
      [Gdt.LDT, descriptor(At.ldt, 0xff, 0x82, 0)],
      [Gdt.ABSENT, descriptor(0, 0xf_ffff, 0x13, 0xc)],
      [Gdt.READ_ONLY, descriptor(0, 0xf_ffff, 0x91, 0xc)],
      [Gdt.EXECUTE_ONLY, descriptor(0, 0xf_ffff, 0x99, 0xc)],
      [Gdt.SMALL, descriptor(0, 0xfff, 0x93, 4)],
      [Gdt.TSS16, descriptor(At.tss, 0x2b, 0x81, 0)],
      [Gdt.CODE16, descriptor(0, 0xffff, 0x9b, 0)],
    ];
    for (const [selector, value] of rows) this.set64(At.gdt + selector, value);
    const { cpu } = this;
    cpu.gdtr = { base: BigInt(At.gdt), limit: 0xbf };
    cpu.idtr = { base: BigInt(At.idt), limit: 0xfff };
    cpu.tr = { ...cpu.tr, selector: Gdt.TSS, base: BigInt(At.tss), limit: 0x1fff, type: 11, s: 0 };
    // Stacks of privilege levels 0 to 2 outside IA-32e mode.
    this.set32(At.tss + 4, At.inner);
    this.set16(At.tss + 8, Gdt.DATA0);
    return this;
  }

  #enter(level: number, code: Segment, data: number): this {
    const { cpu } = this;
    this.tables();
    cpu.cr0 |= CR0.PE;
    cpu.segments[Seg.CS] = code;
    for (const index of [Seg.ES, Seg.SS, Seg.DS, Seg.FS, Seg.GS])
      cpu.segments[index] = flatData(data | level, level);
    cpu.state.rip = BigInt(At.code);
    this.rsp = At.stack;
    cpu.changed();
    return this;
  }
  /** Protected mode with flat 32-bit segments and no paging. */
  protected(level: 0 | 3 = 0): this {
    const code = level === 0 ? Gdt.CODE0 : Gdt.CODE3;
    return this.#enter(level, flatCode(code | level, level, false), level === 0 ? Gdt.DATA0 : Gdt.DATA3);
  }
  /** 64-bit mode (or compatibility mode) with all memory mapped to itself, for the user too. */
  long(level: 0 | 3 = 0, compatible = false): this {
    const { cpu } = this;
    this.set64(At.pml4, BigInt(At.pdpt) | 7n);
    this.set64(At.pdpt, BigInt(At.pd) | 7n);
    this.set64(At.pd, 0x87n);
    cpu.cr3 = BigInt(At.pml4);
    cpu.cr4 = CR4.PAE;
    cpu.cr0 = (cpu.cr0 | CR0.PG | CR0.WP) >>> 0;
    cpu.efer = EFER.LME | EFER.LMA | EFER.NXE | EFER.SCE;
    const [code0, code3] = compatible ? [Gdt.CODE0, Gdt.CODE3] : [Gdt.CODE64, Gdt.CODE64_3];
    const code = (level === 0 ? code0 : code3) | level;
    this.#enter(level, flatCode(code, level, !compatible), level === 0 ? Gdt.DATA0 : Gdt.DATA3);
    cpu.flushTlb();
    // RSP0, and the first stack of the interrupt stack table.
    this.set64(At.tss + 4, BigInt(At.inner));
    this.set64(At.tss + 36, BigInt(At.inner) + 0x1008n);
    return this;
  }

  /** What is raised by `act`, if something is. */
  fault(act: () => void): Fault | undefined {
    try {
      act();
      return undefined;
    } catch (thrown) {
      if (!(thrown instanceof GuestFault)) throw thrown;
      const { vector, errorCode, address } = thrown;
      return { vector, errorCode, address };
    }
  }

  /**
   * Executes one instruction of the system side; gives the fault that it raises, which has changed nothing.
   * @param mode as KVM's emulator does it, or by itself
   */
  execute(hex: string, mode: 'emulated' | 'alone' = 'emulated'): Fault | undefined {
    const { cpu } = this;
    const { state } = cpu;
    const bytes = Uint8Array.from(hex.replaceAll(' ', '').match(/../g)!, (byte) => Number.parseInt(byte, 16));
    const decoded = this.#decoder.decode(bytes, cpu.mode.bits, state.rip, () => false);
    if (typeof decoded === 'string') throw new Error(`${hex}: ${decoded} for the decoder`);
    const insn = decoded[0]!;
    const form = formOf(insn);
    const helper = systemInstructions[form] ?? systemInstructionsEnding[form];
    if (helper === undefined) throw new Error(`${form} is not in the tables of the system side`);
    state.moved = false;
    cpu.io.mode = mode;
    const raised = this.fault(() => helper(cpu, insn));
    cpu.io.mode = undefined;
    if (raised === undefined && !state.moved) state.rip = insn.next;
    cpu.changed();
    return raised;
  }
}

/** Vector and error code: what most tests compare. */
export const code = (fault: Fault | undefined): [number, number | undefined] | undefined =>
  fault && [fault.vector, fault.errorCode];

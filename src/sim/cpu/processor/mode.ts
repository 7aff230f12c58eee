/** What follows from the control registers and the segments: which mode this is, and with what privilege. */
import { Seg } from './descriptors.ts';
import { raise, Vector } from './fault.ts';
import { highHalf } from './halves.ts';
import type { Registers } from './registers.ts';
import { Flag, State } from './state.ts';

/** CR0 (SDM volume 3, 2.5). */
export const CR0 = {
  PE: 0x1,
  MP: 0x2,
  EM: 0x4,
  TS: 0x8,
  ET: 0x10,
  NE: 0x20,
  WP: 0x1_0000,
  AM: 0x4_0000,
  NW: 0x2000_0000,
  CD: 0x4000_0000,
  PG: 0x8000_0000,
} as const;

/** CR4 (SDM volume 3, 2.5). */
export const CR4 = {
  VME: 0x1,
  PVI: 0x2,
  TSD: 0x4,
  DE: 0x8,
  PSE: 0x10,
  PAE: 0x20,
  MCE: 0x40,
  PGE: 0x80,
  PCE: 0x100,
  OSFXSR: 0x200,
  OSXMMEXCPT: 0x400,
  UMIP: 0x800,
  FSGSBASE: 0x1_0000,
  PCIDE: 0x2_0000,
  OSXSAVE: 0x4_0000,
  SMEP: 0x10_0000,
  SMAP: 0x20_0000,
  PKE: 0x40_0000,
} as const;

/** XCR0's components that AVX needs: SSE's and its own (SDM volume 1, 14.3). */
export const AVX_STATE = 6n;

/** IA32_EFER (SDM volume 3, 2.2.1). */
export const EFER = { SCE: 0x1, LME: 0x100, LMA: 0x400, NXE: 0x800 } as const;

export const protectedMode = (cpu: Registers): boolean => (cpu.cr0 & CR0.PE) !== 0;
export const paging = (cpu: Registers): boolean => (cpu.cr0 & CR0.PG) !== 0;
/** IA-32e mode: 64-bit mode or compatibility mode. */
export const ia32e = (cpu: Registers): boolean => (cpu.efer & EFER.LMA) !== 0;
/** 64-bit mode. */
export const longMode = (cpu: Registers): boolean => ia32e(cpu) && cpu.segments[Seg.CS]!.l === 1;

export const codeSize = (cpu: Registers): 16 | 32 | 64 => {
  if (longMode(cpu)) return 64;
  return cpu.segments[Seg.CS]!.db ? 32 : 16;
};
export const stackSize = (cpu: Registers): 16 | 32 | 64 => {
  if (longMode(cpu)) return 64;
  return cpu.segments[Seg.SS]!.db ? 32 : 16;
};

/** Virtual-8086 mode (SDM volume 3, 20.2). RFLAGS.VM, which userspace can set in any mode, is protected mode's alone. */
export const virtual8086 = (cpu: Registers): boolean =>
  (cpu.state.u32(State.eflags) & Flag.VM) !== 0 && protectedMode(cpu) && !ia32e(cpu);

/** The current privilege level is SS's DPL, null selectors included (SDM volume 3, 24.4.1 on SS's access rights). */
export const cpl = (cpu: Registers): number => {
  if (!protectedMode(cpu)) return 0;
  return virtual8086(cpu) ? 3 : cpu.segments[Seg.SS]!.dpl;
};
/** The level from which on interrupts and ports are not the program's. */
export const iopl = (cpu: Registers): number => (cpu.state.u32(State.eflags) & Flag.IOPL) >> 12;

/** Raises #GP(0) above privilege level 0. */
export function privileged(cpu: Registers): void {
  if (cpl(cpu) !== 0) raise(Vector.GP, 0);
}

/** SGDT, SIDT, SLDT, STR and SMSW are for privilege level 0 alone when CR4.UMIP is set. */
export function refuseUserMode(cpu: Registers): void {
  if ((cpu.cr4 & CR4.UMIP) !== 0 && cpl(cpu) !== 0) raise(Vector.GP, 0);
}

/** Bits 63:47 of a linear address are all equal (SDM volume 1, 3.3.7.1). */
export function canonical(linear: bigint): boolean {
  const high = highHalf(linear);
  return (high << 16) >> 16 === high;
}

export const low32 = (value: bigint): bigint => value & 0xffff_ffffn;
/** Linear addresses have 32 bits outside IA-32e mode. */
export const wrapLinear = (cpu: Registers, linear: bigint): bigint =>
  ia32e(cpu) ? BigInt.asUintN(64, linear) : low32(linear);

/**
 * Thrown where the guest asks for what this processor does not have and an exception would be wrong: KVM_RUN then
 * ends with KVM_EXIT_INTERNAL_ERROR, as it does where KVM's own emulator gives up.
 */
export class Unmodelled {
  readonly what: string;
  /** KVM_INTERNAL_ERROR_*: EMULATION (1) or DELIVERY_EV (3). */
  readonly suberror: 1 | 3;
  constructor(what: string, suberror: 1 | 3 = 1) {
    this.what = what;
    this.suberror = suberror;
  }
}

/** Debug registers (SDM volume 3, chapter 18): breakpoints, single steps, and userspace's own (KVM_SET_GUEST_DEBUG). */

import type { Cpu } from './cpu.ts';
import { deliver } from './events.ts';
import { Vector } from './fault.ts';
import { CR4 } from './mode.ts';
import type { Stop } from './processor.ts';
import { Flag } from './state.ts';

/** DR6's bits. */
export const DR6 = { B: 0xfn, BD: 1n << 13n, BS: 1n << 14n, BT: 1n << 15n, FIXED: 0xffff_0ff0n } as const;
export const DR7_GD = 1n << 13n;

/** What a breakpoint waits for: DR7's R/W field. */
const Kind = { EXECUTE: 0, WRITE: 1, IO: 2, ACCESS: 3 } as const;
/** Bytes by DR7's LEN field. */
const LENGTH = [1, 2, 8, 4] as const;

/** Of the instruction that is being stepped. Nothing outlives a step, so that one of each is enough. */
let hits = 0n;
let stepLost = false;

/** The debug registers that count: userspace's hide the guest's. */
function registers(cpu: Cpu): { addresses: readonly bigint[]; dr7: bigint } {
  return cpu.debugging.hardware ?? { addresses: cpu.dr, dr7: cpu.dr[7]! };
}

/** DR6's B bits of the enabled breakpoints of these kinds that an access touches. */
function matching(cpu: Cpu, kinds: readonly number[], first: bigint, size: number): bigint {
  const { addresses, dr7 } = registers(cpu);
  if ((dr7 & 0xffn) === 0n) return 0n;
  let found = 0n;
  for (let i = 0; i < 4; i++) {
    const enabled = ((dr7 >> BigInt(i * 2)) & 3n) !== 0n;
    const field = Number((dr7 >> BigInt(16 + i * 4)) & 15n);
    if (!enabled || !kinds.includes(field & 3)) continue;
    const length = LENGTH[field >> 2]!;
    const start = addresses[i]! & -BigInt(length);
    if (first < start + BigInt(length) && start < first + BigInt(size)) found |= 1n << BigInt(i);
  }
  return found;
}

const userspaceDebugs = (cpu: Cpu) => cpu.debugging.singleStep || cpu.debugging.hardware !== undefined;

/** KVM_EXIT_DEBUG at the current RIP. */
export const debugStop = (cpu: Cpu, exception: number, dr6 = 0n): Stop => ({
  kind: 'debug',
  exception,
  pc: cpu.linearOf(cpu.state.rip),
  dr6: DR6.FIXED | dr6,
  dr7: registers(cpu).dr7 | 0x400n,
});

/** Raises #DB, or stops for userspace when it debugs the guest: then all debug exceptions are its. */
export function debugException(cpu: Cpu, dr6: bigint): Stop | undefined {
  if (userspaceDebugs(cpu)) return debugStop(cpu, Vector.DB, dr6);
  deliver(cpu, { kind: 'exception', vector: Vector.DB, address: dr6 });
  return undefined;
}

/** What #DB does to the debug registers before its handler runs (arch/x86/kvm/x86.c, kvm_deliver_exception_payload). */
export function recordDebug(cpu: Cpu, dr6: bigint): void {
  if (dr6 !== 0n) cpu.dr[6] = (cpu.dr[6]! & ~DR6.B) | DR6.FIXED | dr6;
  cpu.dr[7] = cpu.dr[7]! & ~DR7_GD;
}

/** Before an instruction is executed: delivers #DB if a breakpoint is set on it, or stops for userspace's. */
export function instructionBreakpoint(cpu: Cpu, linear: bigint): Stop | undefined {
  hits = 0n;
  stepLost = false;
  if ((cpu.state.flags & Flag.RF) !== 0) return undefined;
  const found = matching(cpu, [Kind.EXECUTE], linear, 1);
  return found === 0n ? undefined : debugException(cpu, found);
}

/** To be called for each data access of an instruction that is executed by itself: trapsAfter() looks at it. */
export function noteDataAccess(cpu: Cpu, linear: bigint, size: number, write: boolean): void {
  hits |= matching(cpu, write ? [Kind.WRITE, Kind.ACCESS] : [Kind.ACCESS], linear, size);
}
/** As noteDataAccess(), for ports: only with CR4.DE. */
export function notePortAccess(cpu: Cpu, port: number, size: number): void {
  if ((cpu.cr4 & CR4.DE) !== 0) hits |= matching(cpu, [Kind.IO], BigInt(port), size);
}

/**
 * The instruction takes its own single step away: INT n, whose delivery clears TF, and SYSCALL with TF masked.
 * @param before RFLAGS before the instruction
 */
export function loseStep(before: number): void {
  if ((before & Flag.TF) !== 0) stepLost = true;
}

/**
 * After an instruction: delivers the #DB of TF and of data breakpoints, or stops for userspace's single step.
 * @param before RFLAGS before the instruction: TF holds from then
 */
export function trapsAfter(cpu: Cpu, before: number): Stop | undefined {
  // RF lasts for one instruction (SDM volume 3, 18.3.1.1).
  if ((before & Flag.RF) !== 0) cpu.state.flags &= ~Flag.RF;
  const stepped = (before & Flag.TF) !== 0 && !stepLost;
  stepLost = false;
  if (cpu.debugging.singleStep) {
    const found = hits;
    hits = 0n;
    return debugStop(cpu, Vector.DB, DR6.BS | found);
  }
  // MOV SS holds debug exceptions back: data breakpoints come after the next instruction, the step is lost.
  if (cpu.shadow === 'mov-ss') return undefined;
  const dr6 = hits | (stepped ? DR6.BS : 0n);
  hits = 0n;
  return dr6 === 0n ? undefined : debugException(cpu, dr6);
}

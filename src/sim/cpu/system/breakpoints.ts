/** Debug registers (SDM volume 3, chapter 18): breakpoints, single steps, and userspace's own (KVM_SET_GUEST_DEBUG). */

import type { Cpu } from '../cpu.ts';
import { Vector } from '../processor/fault.ts';
import { CR4 } from '../processor/mode.ts';
import type { Stop } from '../processor/stage.ts';
import { Flag } from '../processor/state.ts';
import { deliver } from './events.ts';

/** DR6's bits. */
export const DR6 = { B: 0xfn, BD: 1n << 13n, BS: 1n << 14n, BT: 1n << 15n, FIXED: 0xffff_0ff0n } as const;
export const DR7_GD = 1n << 13n;

/** What a breakpoint waits for: DR7's R/W field. */
const Kind = { EXECUTE: 0, WRITE: 1, IO: 2, ACCESS: 3 } as const;
/** Bytes by DR7's LEN field. */
const LENGTH = [1, 2, 8, 4] as const;

/** What a processor keeps of debug exceptions until they are delivered; bits are DR6's. */
export interface DebugEvents {
  /** Breakpoints on data and ports that the instruction that is being stepped has touched. */
  hits: bigint;
  /** The instruction has taken its own single step away. */
  stepLost: boolean;
  /** Comes at the next boundary of instructions that MOV SS does not guard. */
  held: bigint;
}

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
function debugException(cpu: Cpu, dr6: bigint): Stop | undefined {
  const stop = userspaceDebugs(cpu) ? debugStop(cpu, Vector.DB, dr6) : undefined;
  if (stop === undefined) deliver(cpu, { kind: 'exception', vector: Vector.DB, address: dr6 });
  cpu.debug.held = 0n; // it stays where the second stage ends KVM_RUN in the middle of the delivery
  return stop;
}

/** What #DB does to the debug registers before its handler runs (arch/x86/kvm/x86.c, kvm_deliver_exception_payload). */
export function recordDebug(cpu: Cpu, dr6: bigint): void {
  if (dr6 !== 0n) cpu.dr[6] = (cpu.dr[6]! & ~DR6.B) | DR6.FIXED | dr6;
  cpu.dr[7] = cpu.dr[7]! & ~DR7_GD;
}

/**
 * As each step begins, before its instruction: delivers #DB if one has been held back or a breakpoint is set on the
 * instruction, or stops for userspace's. Gives whether there was one: then the instruction is not to be executed now.
 */
export function instructionBreakpoint(cpu: Cpu, linear: bigint): boolean {
  const { debug } = cpu;
  debug.hits = 0n;
  debug.stepLost = false;
  const guarded = cpu.shadow === 'mov-ss';
  // Behind MOV SS Intel's processors look at no breakpoint on code, AMD's do (x86.c, kvm_is_code_breakpoint_inhibited).
  const inhibited = (cpu.state.flags & Flag.RF) !== 0 || (guarded && cpu.vendor === 'intel');
  const found = inhibited ? 0n : matching(cpu, [Kind.EXECUTE], linear, 1);
  const dr6 = found | (guarded ? 0n : debug.held);
  if (dr6 === 0n) return false;
  cpu.stop = debugException(cpu, dr6 | debug.held);
  return true;
}

/** To be called for each data access of an instruction that is executed by itself: trapsAfter() looks at it. */
export function noteDataAccess(cpu: Cpu, linear: bigint, size: number, write: boolean): void {
  cpu.debug.hits |= matching(cpu, write ? [Kind.WRITE, Kind.ACCESS] : [Kind.ACCESS], linear, size);
}
/** As noteDataAccess(), for ports: only with CR4.DE. */
export function notePortAccess(cpu: Cpu, port: number, size: number): void {
  if ((cpu.cr4 & CR4.DE) !== 0) cpu.debug.hits |= matching(cpu, [Kind.IO], BigInt(port), size);
}

/** The instruction takes its own single step away: INT n, whose delivery clears TF. */
export function loseStep({ debug }: Cpu): void {
  debug.stepLost = true;
}
/** TF as SYSCALL and SYSRET leave it decides about their own single step; for all others it is TF as they find it. */
export function stepAsLeft(cpu: Cpu): void {
  loseStep(cpu);
  if ((cpu.state.flags & Flag.TF) !== 0) cpu.debug.held |= DR6.BS;
}

/**
 * After an instruction: delivers the #DB of TF and of data breakpoints, or stops for userspace's single step.
 * @param before RFLAGS before the instruction: TF holds from then
 */
export function trapsAfter(cpu: Cpu, before: number): Stop | undefined {
  // RF lasts for one instruction (SDM volume 3, 18.3.1.1).
  if ((before & Flag.RF) !== 0) cpu.state.flags &= ~Flag.RF;
  const { debug } = cpu;
  const guarded = cpu.shadow === 'mov-ss';
  const stepped = (before & Flag.TF) !== 0 && !debug.stepLost;
  if (cpu.debugging.singleStep) {
    const stop = debugStop(cpu, Vector.DB, DR6.BS | debug.hits | debug.held);
    debug.held = 0n;
    return stop;
  }
  // MOV SS holds debug exceptions back: data breakpoints come after the next instruction, the step is lost.
  debug.held |= debug.hits | (stepped && !guarded ? DR6.BS : 0n);
  debug.hits = 0n;
  if (debug.held === 0n || guarded) return undefined;
  return debugException(cpu, debug.held);
}

/** Debug exceptions: how breakpoints and single steps come to the guest, or to userspace (KVM_SET_GUEST_DEBUG). */
import { DR6, debugRegisters, Kind, matching } from '../processor/debug.ts';
import { Vector } from '../processor/fault.ts';
import type { Processor } from '../processor/processor.ts';
import type { Stop } from '../processor/stage.ts';
import { Flag } from '../processor/state.ts';
import { deliver } from './events.ts';

const userspaceDebugs = (cpu: Processor) => cpu.debugging.singleStep || cpu.debugging.hardware !== undefined;

/** KVM_EXIT_DEBUG at the current RIP. */
export const debugStop = (cpu: Processor, exception: number, dr6 = 0n): Stop => ({
  kind: 'debug',
  exception,
  pc: cpu.linearOf(cpu.state.rip),
  dr6: DR6.FIXED | dr6,
  dr7: debugRegisters(cpu).dr7 | 0x400n,
});

/** Raises #DB, or stops for userspace when it debugs the guest: then all debug exceptions are its. */
function debugException(cpu: Processor, dr6: bigint): Stop | undefined {
  const stop = userspaceDebugs(cpu) ? debugStop(cpu, Vector.DB, dr6) : undefined;
  if (stop === undefined) deliver(cpu, { kind: 'exception', vector: Vector.DB, address: dr6 });
  cpu.debug.held = 0n; // it stays where the second stage ends KVM_RUN in the middle of the delivery
  return stop;
}

/**
 * As each step begins, before its instruction: delivers #DB if one has been held back or a breakpoint is set on the
 * instruction, or stops for userspace's. Gives whether there was one: then the instruction is not to be executed now.
 */
export function instructionBreakpoint(cpu: Processor, linear: bigint): boolean {
  const { debug } = cpu;
  debug.hits = 0n;
  debug.stepLost = false;
  const guarded = cpu.shadow === 'mov-ss';
  // Behind MOV SS Intel's processors look at no breakpoint on code, AMD's do (x86.c, kvm_is_code_breakpoint_inhibited).
  const inhibited = (cpu.state.eflags & Flag.RF) !== 0 || (guarded && cpu.vendor === 'intel');
  const found = inhibited ? 0n : matching(cpu, [Kind.EXECUTE], linear, 1);
  const dr6 = found | (guarded ? 0n : debug.held);
  if (dr6 === 0n) return false;
  cpu.stop = debugException(cpu, dr6 | debug.held);
  return true;
}

/**
 * After an instruction: delivers the #DB of TF and of data breakpoints, or stops for userspace's single step.
 * @param before RFLAGS before the instruction: TF holds from then
 */
export function trapsAfter(cpu: Processor, before: number): Stop | undefined {
  // RF lasts for one instruction (SDM volume 3, 18.3.1.1).
  if ((before & Flag.RF) !== 0) cpu.state.eflags &= ~Flag.RF;
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

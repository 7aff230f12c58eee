/** KVM_RUN (arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_run and vcpu_run). */
import { InternalError, SyncRegs, Vector } from '../../../uapi/constants.ts';
import { Errno } from '../../../uapi/errno.ts';
import { Exit } from '../../../uapi/exit.ts';
import type { Value } from '../../../uapi/layout.ts';
import type { kvm_regs } from '../../../uapi/x86.ts';
import { cpl } from '../../cpu/processor/mode.ts';
import type { Stop } from '../../cpu/processor/stage.ts';
import { Flag } from '../../cpu/processor/state.ts';
import { Msr, msrValue } from '../../cpu/system/msrs.ts';
import type { VcpuData } from '../state/data.ts';
import { getEvents, setEvents } from '../state/events.ts';
import { getRegs, getSregs, setRegs, setSregs } from '../state/registers.ts';
import { answerHypercall, handedOn, raxOf } from './hypercall.ts';

type Regs = Value<typeof kvm_regs>;

const KNOWN_SETS = SyncRegs.REGS | SyncRegs.SREGS | SyncRegs.EVENTS;

/** Why a run ends: an exit reason, or a negated errno. Undefined: it goes on. */
export type End = number | undefined;

/** Whether the answer goes into the instruction: registers have been written back before a write to MMIO exits. */
const waits = (stop: Stop | undefined): boolean =>
  stop !== undefined && !(stop.kind === 'mmio' && stop.write);

export class Runner {
  readonly #vcpu: VcpuData;
  /** What userspace has still to answer. */
  #pending: Stop | undefined;
  /** The registers of the instruction that waits, where userspace has set others since. */
  #before: Regs | undefined;

  constructor(vcpu: VcpuData) {
    this.#vcpu = vcpu;
  }

  /** The last exit waits for userspace's answer. */
  get asks(): boolean {
    return this.#pending !== undefined;
  }

  /** Another thread has run the vCPU since: nothing is left of what was in the middle here. */
  abandon(): void {
    const { cpu } = this.#vcpu;
    this.#pending = undefined;
    this.#before = undefined;
    cpu.abandon();
    cpu.current = undefined;
    cpu.stop = undefined;
  }

  /** KVM_RUN begins: what userspace has written, and the rest of the instruction that the last exit interrupted. */
  begin(): End {
    const { cpu, run } = this.#vcpu;
    run.flags = 0;
    cpu.enter();
    return this.#prepare() ?? this.#complete() ?? (run.immediateExit ? -Errno.EINTR : undefined);
  }

  /** The guest is about to be entered: from now on exit_reason is this run's. */
  enter(): void {
    this.#vcpu.run.exitReason = Exit.UNKNOWN;
  }

  /** Some instructions. A time slice is bounded work: what else it may depend on is looked at after it. */
  slice(instructions: number, exactly: boolean): End {
    const { cpu, run } = this.#vcpu;
    // kvm_dirty_ring_check_request(): until userspace has made room.
    if (this.#vcpu.ring?.isSoftFull) {
      run.exitReason = Exit.DIRTY_RING_FULL;
      return Exit.DIRTY_RING_FULL;
    }
    const stop = cpu.run(instructions, exactly);
    return stop.kind === 'slice' ? undefined : this.#stopped(stop);
  }

  /** A signal that comes while the guest runs says so; one that was there before leaves exit_reason alone. */
  interrupted(): void {
    this.#vcpu.run.exitReason = Exit.INTR;
  }

  /** KVM_RUN ends. */
  leave(): void {
    if (this.#vcpu.run.kvmValidRegs !== 0) this.#storeSets();
    this.#save();
  }

  /** What userspace wrote into kvm_run. */
  #prepare(): End {
    const { run, cpu } = this.#vcpu;
    const valid = run.kvmValidRegs;
    const dirty = run.kvmDirtyRegs;
    if (valid > KNOWN_SETS || dirty > KNOWN_SETS) return -Errno.EINVAL;
    const refused = dirty === 0 ? 0 : this.#loadSets(dirty);
    if (refused !== 0) return refused;
    const { cr8 } = run;
    if (cr8 === undefined) return -Errno.EINVAL;
    cpu.cr8 = cr8;
    cpu.windowRequested = run.requestInterruptWindow;
    return undefined;
  }

  /** sync_regs(): what was taken is no longer dirty. */
  #loadSets(dirty: number): number {
    const { run } = this.#vcpu;
    const done = (set: number) => {
      run.kvmDirtyRegs &= ~set;
    };
    if ((dirty & SyncRegs.REGS) !== 0) {
      this.setRegs(run.getSet('regs'));
      done(SyncRegs.REGS);
    }
    if ((dirty & SyncRegs.SREGS) !== 0) {
      const refused = setSregs(this.#vcpu.cpu, run.getSet('sregs'));
      if (refused !== 0) return refused;
      done(SyncRegs.SREGS);
    }
    if ((dirty & SyncRegs.EVENTS) !== 0) {
      const refused = setEvents(this.#vcpu, run.getSet('events'));
      if (refused !== 0) return refused;
      done(SyncRegs.EVENTS);
    }
    return 0;
  }

  /** store_regs(). */
  #storeSets(): void {
    const { run, cpu } = this.#vcpu;
    const valid = run.kvmValidRegs;
    if ((valid & SyncRegs.REGS) !== 0) run.putSet('regs', getRegs(cpu));
    if ((valid & SyncRegs.SREGS) !== 0) run.putSet('sregs', getSregs(cpu));
    if ((valid & SyncRegs.EVENTS) !== 0) run.putSet('events', getEvents(this.#vcpu));
  }

  /** post_kvm_run_save(). */
  #save(): void {
    const { run, cpu } = this.#vcpu;
    const enabled = (cpu.state.eflags & Flag.IF) !== 0;
    const ready =
      enabled && cpu.interrupt === undefined && cpu.exception === undefined && cpu.shadow === undefined;
    run.save(enabled, ready, cpu.cr8, msrValue(cpu, Msr.APIC_BASE));
  }

  /** KVM_SET_REGS; the instruction that waits for userspace keeps its own. */
  setRegs(regs: Regs): void {
    const { cpu } = this.#vcpu;
    if (cpu.unfinished && waits(this.#pending)) this.#before ??= getRegs(cpu);
    setRegs(cpu, regs);
    if (!this.#vcpu.exceptionPending) return;
    cpu.exception = undefined;
    this.#vcpu.exceptionPending = false;
  }

  /** complete_userspace_io: the rest of the instruction that the last exit interrupted. */
  #complete(): End {
    const { cpu, run } = this.#vcpu;
    const stop = this.#pending;
    if (stop === undefined) return undefined;
    this.#pending = undefined;
    if (stop.kind === 'msr' && run.msrRefused) return this.#refuseMsr();
    const answer = run.answer(stop);
    // What an instruction changes that changed() is for, it has called that for.
    const isAccess = stop.kind === 'io' || stop.kind === 'mmio';
    const next = this.#finish(
      stop,
      stop.kind === 'hypercall' && typeof answer === 'bigint' ? raxOf(stop, answer) : answer,
    );
    if (!isAccess) cpu.changed();
    return next === undefined ? undefined : this.#stopped(next);
  }

  /** complete_fast_msr_access() with an error: #GP(0) at the instruction, or where userspace has set rip since. */
  #refuseMsr(): undefined {
    const { cpu } = this.#vcpu;
    cpu.abandon();
    this.#before = undefined;
    cpu.exception = { vector: Vector.GP, errorCode: 0, payload: undefined };
    this.#vcpu.exceptionPending = true;
    return undefined;
  }

  /**
   * Finishes with the registers that the instruction began with. What userspace has set since: the emulator drops its
   * registers but keeps the instruction pointer (emulate_regs_need_sync_from_vcpu); port I/O outside of it only looks
   * whether the pointer is still the instruction's, and else leaves everything as it was set
   * (complete_fast_pio_in and _out).
   */
  #finish(stop: Stop, answer: Uint8Array | bigint): Stop | undefined {
    const { cpu } = this.#vcpu;
    const before = this.#before;
    if (before === undefined) return cpu.finish(answer);
    const set = getRegs(cpu);
    // kvm_skip_emulated_instruction(): past the instruction, wherever rip was set.
    if (stop.kind === 'msr') {
      set.rip = before.rip;
      setRegs(cpu, set);
    }
    const moved = set.rip !== before.rip;
    // complete_fast_pio_out() and _in() find another instruction there, and leave it.
    if (stop.kind === 'io' && moved && cpu.waitsAlone) {
      this.#before = undefined;
      cpu.abandon();
      return undefined;
    }
    if (stop.kind !== 'mmio' && !moved) {
      this.#before = undefined;
      return cpu.finish(answer);
    }
    setRegs(cpu, before);
    let rip = set.rip;
    try {
      const next = cpu.finish(answer);
      if (stop.kind === 'mmio') rip = cpu.state.rip;
      return next;
    } finally {
      if (!cpu.unfinished) this.#before = undefined;
      setRegs(cpu, { ...set, rip });
    }
  }

  /** What a stop means: the end of KVM_RUN, but for hypercalls that KVM answers. */
  #stopped(first: Exclude<Stop, { kind: 'slice' }> | Stop): End {
    const { cpu, run, vm } = this.#vcpu;
    for (let stop: Stop | undefined = first; stop !== undefined; ) {
      if (stop.kind === 'slice') return undefined;
      if (stop.kind === 'fault') return this.#vcpu.failed || run.exitReason;
      if (stop.kind !== 'hypercall') {
        if (stop.kind === 'io' || stop.kind === 'mmio' || stop.kind === 'msr') this.#pending = stop;
        // #DB of a HLT that was stepped, #UD of what KVM cannot emulate.
        const queues =
          stop.kind === 'halt' ||
          (stop.kind === 'internal-error' && stop.suberror === InternalError.EMULATION);
        if (queues && cpu.exception !== undefined) this.#vcpu.exceptionPending = true;
        return run.tell(stop);
      }
      const answer = answerHypercall(stop, cpl(cpu), vm.exitHypercalls);
      if (answer === undefined) {
        this.#pending = stop;
        return run.tell(handedOn(stop));
      }
      stop = cpu.finish(raxOf(stop, answer));
    }
    return undefined;
  }
}

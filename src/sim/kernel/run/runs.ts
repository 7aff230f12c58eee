/**
 * The runs of a vCPU: synchronous ones, and those that are started and go on from the thread's event loop. What is asked of
 * the vCPU meanwhile, by kick, stop and pause, is looked at between its time slices.
 */
import { type Starter, VCPU_RUNNING } from '../../../hypervisor/backend.ts';
import { outOfRange, wrongType } from '../../../hypervisor/errors.ts';
import { Errno } from '../../../uapi/errno.ts';
import type { VcpuData } from '../state/data.ts';
import type { VcpuShare } from '../state/share.ts';
import { Standing } from '../threads/kicks.ts';
import { isAside } from './aside.ts';
import type { End, Runner } from './runner.ts';
import { type Scheduled, type Step, scheduler, type Taker } from './schedule.ts';

/** Instructions between two looks at what is asked: so many that they take some tens of microseconds. */
const Slice = { least: 2 ** 11, first: 2 ** 13, most: 2 ** 16, shortMs: 0.03, longMs: 0.1 } as const;
/** What a timer can be set to, in milliseconds. */
const MAX_TIMEOUT = 2 ** 31 - 1;
const TIMEOUTS = 'above 0 and below 2^31 (milliseconds), or Infinity';
/** Milliseconds between two looks at kvm_run's immediate_exit, of which no word tells, while a run waits. */
const LOOK_MS = 100;

/** When a run that begins now must end, in performance.now()'s time. @throws TypeError, RangeError ERR_KVM_INVALID_ARG */
function deadlineOf(timeoutMs: number, now: number): number {
  if (typeof timeoutMs !== 'number')
    throw wrongType('timeoutMs', timeoutMs, `a number of milliseconds, ${TIMEOUTS}`);
  if (!(timeoutMs > 0) || (timeoutMs > MAX_TIMEOUT && timeoutMs !== Infinity))
    throw outOfRange('timeoutMs', timeoutMs, TIMEOUTS);
  return now + timeoutMs;
}

/** A vCPU, as far as it is run. */
export interface Runnable extends VcpuData, Taker {
  readonly runner: Runner;
  /** Where other threads have it too. */
  readonly share: VcpuShare | undefined;
  /** An access waits for userspace in another thread's processor. */
  readonly asksElsewhere: boolean;
  /** It is about to execute: if another vCPU has since it did last, that may have written to its code. */
  takesOver(): void;
  /** It is in no run any more: whoever waits for that is told, and what was closed meanwhile goes. */
  stands(): void;
}

export class Runs implements Scheduled {
  readonly vcpu: Runnable;
  /** In KVM_RUN, on this thread's stack. */
  running = false;
  started = false;
  deadline = Number.POSITIVE_INFINITY;
  done: (result: number) => void = () => {};
  /** How far the run has come: before begin(), before its first slice, or in the guest. */
  #phase: 'new' | 'begun' | 'guest' = 'new';
  #parked = false;
  /** The starter's end() was called in this run. */
  #ends = false;

  constructor(vcpu: Runnable) {
    this.vcpu = vcpu;
  }

  /** Whether a call on the vCPU would have to wait for the end of its run; one from within it, by an observer, does not. */
  get busy(): boolean {
    return this.started && !this.#parked && !this.running;
  }
  get parked(): boolean {
    return this.#parked;
  }

  get released(): boolean {
    const { kick, run } = this.vcpu;
    return this.#ends || !kick.paused || kick.stopped || run.immediateExit;
  }

  /** @param now performance.now(), of which one look must do for a run */
  #refused(now: number): number {
    if (!this.vcpu.isOpen) return -Errno.EBADF;
    if (this.running || isAside()) return -Errno.EBUSY;
    if (this.started) return VCPU_RUNNING;
    const { kick, vm } = this.vcpu;
    // If who has begun the access that waits is gone, it begins anew.
    if (this.vcpu.asksElsewhere && !kick.isSilent) return -Errno.EBUSY;
    return kick.claim(vm.host.thread, now) ? 0 : VCPU_RUNNING;
  }

  /** KVM_RUN as the backend's runner has it. @throws TypeError, RangeError ERR_KVM_INVALID_ARG */
  readonly run = (timeoutMs: number = Number.POSITIVE_INFINITY): number => {
    const begun = performance.now();
    const deadline = deadlineOf(timeoutMs, begun);
    const refused = this.#refused(begun);
    if (refused !== 0) return refused;
    const { vcpu } = this;
    this.#phase = 'new';
    this.running = true;
    let last: number | undefined;
    try {
      for (;;) {
        const step = this.#step(this.slice, false);
        if (typeof step === 'number') return step;
        const now = performance.now();
        if (now >= deadline) return this.expire();
        if (step === undefined) {
          if (last !== undefined) this.adapt(now - last);
          last = now;
          vcpu.vm.share?.lock.yield();
        } else if (!this.#wait(deadline)) return this.#alone(() => this.#end(-Errno.EINTR));
      }
    } finally {
      this.running = false;
      this.#parked = false;
      vcpu.stands();
    }
  };

  /** As the backend's starter. */
  starter(done: (result: number) => void): Starter {
    this.vcpu.vm.host.decoder.prepare(); // a tick is shorter than that
    const start = (timeoutMs: number = Number.POSITIVE_INFINITY, ends = false): number => {
      const now = performance.now();
      const deadline = deadlineOf(timeoutMs, now);
      const refused = this.#refused(now);
      if (refused !== 0) return refused;
      this.started = true;
      this.#ends = ends;
      this.deadline = deadline;
      this.done = done;
      this.#phase = 'new';
      this.vcpu.kick.standing = Standing.RUNNING;
      scheduler.add(this);
      return 0;
    };
    const end = (): void => {
      if (!this.started) return;
      this.#ends = true;
      scheduler.wake();
    };
    return { start, end };
  }

  slice: number = Slice.first;
  adapt(ms: number): void {
    if (ms > Slice.longMs) this.slice = Math.max(this.slice / 2, Slice.least);
    else if (ms < Slice.shortMs) this.slice = Math.min(this.slice * 2, Slice.most);
  }

  step(instructions: number, exactly: boolean): Step {
    if (!this.vcpu.isOpen) return -Errno.EBADF;
    this.running = true;
    try {
      return this.#step(instructions, exactly);
    } finally {
      this.running = false;
    }
  }
  expire(): number {
    const { isOpen, kick } = this.vcpu;
    if (!isOpen) return -Errno.EBADF;
    return this.#alone(() => this.#end(kick.kicked && !this.#parked ? -Errno.EINTR : -Errno.ETIME));
  }
  finish(): void {
    this.started = false;
    this.#parked = false;
    this.#ends = false;
    this.vcpu.stands();
  }

  #step(instructions: number, exactly: boolean): Step {
    const { kick, share } = this.vcpu;
    if (this.#phase !== 'new') kick.beat(performance.now()); // claim() has
    if (share === undefined) return this.#advance(instructions, exactly);
    return this.#alone(() => {
      share.runs();
      return this.#advance(instructions, exactly);
    });
  }

  /** While no other thread does anything to the VM. */
  #alone<T>(call: () => T): T | number {
    const { kick, share, vm } = this.vcpu;
    if (share === undefined) return call();
    vm.enter();
    try {
      // It was taken for gone, and another thread has the vCPU now.
      return kick.runner === vm.host.thread ? share.using(call) : -Errno.EBUSY;
    } finally {
      vm.leave();
    }
  }

  #advance(instructions: number, exactly: boolean): Step {
    const { kick, runner } = this.vcpu;
    if (this.#phase === 'new') {
      // A vCPU that is paused and has nothing to complete is left as it is: whoever paused it may be reading it.
      if (!runner.asks && this.#isAsked) {
        const asked = this.#attend();
        if (asked !== undefined) return asked;
      }
      kick.standing = Standing.RUNNING;
      if (!runner.asks && this.#isAsked) {
        const asked = this.#attend(); // it was not seen to run before
        if (asked !== undefined) return asked;
      }
      this.vcpu.hasRun = true;
      this.#phase = 'begun';
      const end = runner.begin();
      if (end !== undefined) return this.#end(end);
    }
    if (this.#isAsked) {
      const asked = this.#attend();
      if (asked !== undefined) return asked;
    }
    if (this.#phase === 'begun') {
      this.#phase = 'guest';
      runner.enter();
    }
    this.vcpu.takesOver();
    const end: End = runner.slice(instructions, exactly);
    return end === undefined ? undefined : this.#end(end);
  }

  /** One that was parked has to be seen to run again. */
  get #isAsked(): boolean {
    return this.#ends || this.#parked || this.vcpu.kick.requested;
  }

  /** What others ask of the vCPU: its end comes before all, and a kick waits until it is resumed. */
  #attend(): Step {
    const { kick, run } = this.vcpu;
    if (this.#ends || kick.takeStop()) return this.#end(-Errno.ECANCELED);
    if (kick.paused) {
      if (run.immediateExit) return this.#end(-Errno.EINTR);
      if (!this.#parked) {
        this.#parked = true;
        kick.standing = Standing.PARKED;
      }
      return 'paused';
    }
    if (this.#parked) {
      this.#parked = false;
      kick.standing = Standing.RUNNING;
      this.vcpu.looksAnew();
      return this.#attend(); // it may have been paused again before it was seen to run
    }
    // Before begin() there is an access to complete, or kvm_run to be read.
    return kick.kicked && this.#phase !== 'new' ? this.#end(-Errno.EINTR) : undefined;
  }

  #end(end: number): number {
    const { kick, runner } = this.vcpu;
    const signalled = end === -Errno.EINTR || end === -Errno.ETIME || end === -Errno.ECANCELED;
    if (signalled && this.#phase === 'guest') runner.interrupted();
    if (this.#phase !== 'new') runner.leave();
    // A kick stays pending until it has interrupted a run.
    if (end === -Errno.EINTR) kick.takeKick();
    return end;
  }

  /** Until something has changed; false where this thread may not wait. */
  #wait(deadline: number): boolean {
    const ms = Math.min(LOOK_MS, deadline - performance.now());
    return this.vcpu.kick.wait(Math.max(ms, 0));
  }
}

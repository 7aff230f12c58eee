/** A vCPU: a processor, its kvm_run, and how it comes to its VM's memory. */
import { outOfRange, wrongType } from '../../hypervisor/errors.ts';
import { Errno } from '../../uapi/errno.ts';
import { Exit } from '../../uapi/exit.ts';
import { PAGE } from '../arena.ts';
import { Cpu } from '../cpu/cpu.ts';
import { type Access, FAULT, type SecondStage } from '../cpu/processor.ts';
import { DirtyRing } from '../memory/dirty.ts';
import type { KickWord } from './kicks.ts';
import { KvmRun } from './kvm-run.ts';
import { secondStageEvent } from './observe.ts';
import { Runner } from './run.ts';
import type { KvmVm } from './vm.ts';

/** A thousandth of the frequency of the time-stamp counter, which counts instructions: they take a nanosecond each. */
export const TSC_KHZ = 1_000_000;
/** What a timer can be set to, in milliseconds. */
const MAX_TIMEOUT = 2 ** 31 - 1;
const TIMEOUTS = 'above 0 and below 2^31 (milliseconds), or Infinity';

/**
 * Instructions of this thread that are in the middle, while somebody is called. What they have computed so far is in
 * variables that all processors use, so no other may run now.
 */
let inMiddle = 0;
function aside<T>(call: () => T): T {
  inMiddle++;
  try {
    return call();
  } finally {
    inMiddle--;
  }
}

const pageOf = (gpa: number): number => gpa - (gpa % PAGE);

export class KvmVcpu {
  readonly vm: KvmVm;
  readonly id: number;
  readonly cpu: Cpu;
  readonly run = new KvmRun();
  readonly runner: Runner;
  readonly kick: KickWord;
  /** cpu.exception has been raised and not yet been delivered: KVM_SET_REGS takes it back. */
  exceptionPending = false;
  /** KVM_RUN was called: CPUID stands. */
  hasRun = false;
  /** What KVM_RUN returns where the second stage gave FAULT: a negated errno, or 0. */
  failed = 0;
  /** KVM_CAP_DIRTY_LOG_RING. */
  readonly ring: DirtyRing | undefined;
  #open = true;
  /** In KVM_RUN, whose file stays until it returns, whatever an observer does. */
  #running = false;

  /** By create(). */
  constructor(vm: KvmVm, id: number, kick: KickWord) {
    this.vm = vm.retain();
    this.id = id;
    this.kick = kick;
    const { host, choice } = vm;
    this.cpu = new Cpu(host.arena, this.#stage(), {
      vendor: host.vendor,
      decoder: host.decoder,
      choice,
      msrPolicy: vm.msrPolicy,
    });
    const { ringBytes, rings } = vm.memory.dirty;
    if (ringBytes !== 0) {
      this.ring = new DirtyRing(ringBytes);
      rings.push(this.ring);
    }
    this.cpu.code.tier = host.tier;
    this.cpu.io.bus = vm.ioeventfds.write;
    this.runner = new Runner(this);
    vm.memory.translators.add(this.cpu);
  }

  /** -ENOMEM when the host has no place for another. */
  static create(vm: KvmVm, id: number): KvmVcpu | number {
    const kick = vm.host.kicks.open();
    if (kick === undefined) return -Errno.ENOMEM;
    try {
      return new KvmVcpu(vm, id, kick);
    } catch (error) {
      kick.close();
      vm.release();
      if (error instanceof RangeError) return -Errno.ENOMEM; // the arena is full
      throw error;
    }
  }

  #stage(): SecondStage {
    const { memory, host } = this.vm;
    return {
      page: (gpa: number, access: Access, wants: boolean | undefined): number => {
        const { mapped } = memory;
        const pushed = this.ring?.pushed;
        const found = memory.access(pageOf(gpa), access, wants, this.ring);
        // Not of MMIO, whose exit tells as much.
        const { observer } = this.cpu;
        if (observer?.secondStage !== undefined && (memory.mapped > mapped || typeof found !== 'number'))
          aside(() => observer.secondStage!(secondStageEvent(memory, pageOf(gpa), access, wants, found)));
        if (typeof found === 'number') return this.ring?.pushed === pushed ? found : this.#entered(found);
        this.failed = this.run.tellFault(found, host.dialect);
        return FAULT;
      },
      // It calls who serves the kernel's own accesses.
      sharedPage: (gpa, access) => aside(() => memory.sharedPage(pageOf(gpa), access, this.ring)),
    };
  }

  /** A page that is in the ring now. One that filled it was an exit from the guest, which is not entered again. */
  #entered(page: number): number {
    if (!this.#running || !this.ring!.isSoftFull) return page;
    this.failed = 0;
    this.run.set('exitReason', Exit.DIRTY_RING_FULL);
    return FAULT;
  }

  /** KVM_RUN as the backend's runner has it. @throws TypeError, RangeError ERR_KVM_INVALID_ARG */
  readonly enter = (timeoutMs: number = Number.POSITIVE_INFINITY): number => {
    if (typeof timeoutMs !== 'number')
      throw wrongType('timeoutMs', timeoutMs, `a number of milliseconds, ${TIMEOUTS}`);
    if (!(timeoutMs > 0) || (timeoutMs > MAX_TIMEOUT && timeoutMs !== Infinity))
      throw outOfRange('timeoutMs', timeoutMs, TIMEOUTS);
    if (!this.#open) return -Errno.EBADF;
    if (this.#running || inMiddle > 0) return -Errno.EBUSY;
    this.hasRun = true;
    this.#running = true;
    try {
      return this.runner.run(timeoutMs);
    } finally {
      this.#running = false;
      if (!this.#open) this.#free();
    }
  };

  close(): void {
    this.#open = false;
    if (!this.#running) this.#free();
  }
  #free(): void {
    this.kick.close();
    this.vm.memory.translators.delete(this.cpu);
    this.cpu.free();
    this.vm.release();
  }
}

/** A vCPU: a processor, its kvm_run, and how it comes to its VM's memory. */
import { Errno } from '../../uapi/errno.ts';
import { Exit } from '../../uapi/exit.ts';
import { PAGE } from '../arena.ts';
import { Cpu } from '../cpu/cpu.ts';
import { type Access, FAULT, type SecondStage } from '../cpu/processor.ts';
import { DirtyRing } from '../memory/dirty.ts';
import { aside } from './aside.ts';
import { type KickWord, Standing } from './kicks.ts';
import { KvmRun } from './kvm-run.ts';
import { secondStageEvent } from './observe.ts';
import { Runner } from './run.ts';
import { Runs } from './runs.ts';
import { scheduler } from './schedule.ts';
import type { KvmVm } from './vm.ts';

/** A thousandth of the frequency of the time-stamp counter, which counts instructions: they take a nanosecond each. */
export const TSC_KHZ = 1_000_000;
/** Which vCPU of this thread has executed last. */
let lastToExecute = 0;

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
  readonly runs = new Runs(this);
  #open = true;

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
    if (!this.runs.running || !this.ring!.isSoftFull) return page;
    this.failed = 0;
    this.run.set('exitReason', Exit.DIRTY_RING_FULL);
    return FAULT;
  }

  /** Instructions that were begun: cheaper than those that are completed, and the same between two slices. */
  get instructions(): bigint {
    return this.cpu.state.count;
  }
  /** Others may have written to its code: it is compared before it is executed. */
  looksAnew(): void {
    this.cpu.enter();
  }
  /** It is about to execute: if another vCPU has since it did last, that may have written to its code. */
  takesOver(): void {
    if (lastToExecute !== this.kick.id) this.looksAnew();
    lastToExecute = this.kick.id;
  }

  get isOpen(): boolean {
    return this.#open;
  }

  /** It is in no run any more: whoever waits for that is told, and what was closed meanwhile goes. */
  stands(): void {
    if (!this.#open) this.#free();
    else this.kick.standing = this.runner.asks ? Standing.ASKING : Standing.IDLE;
  }

  /** A run in progress keeps it until that has ended, whatever an observer does. */
  close(): void {
    this.#open = false;
    if (this.runs.started) scheduler.wake();
    else if (!this.runs.running) this.#free();
  }
  #free(): void {
    this.kick.close();
    this.vm.memory.translators.delete(this.cpu);
    this.cpu.free();
    this.vm.release();
  }
}

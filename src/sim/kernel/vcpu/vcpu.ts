/** A vCPU: a processor, its kvm_run, and how it comes to its VM's memory. */
import { type SharedVcpu, VCPU_RUNNING } from '../../../hypervisor/backend.ts';
import { Errno } from '../../../uapi/errno.ts';
import { Exit } from '../../../uapi/exit.ts';
import { PAGE } from '../../arena.ts';
import { Cpu } from '../../cpu/cpu.ts';
import { type Access, FAULT, type SecondStage } from '../../cpu/processor/stage.ts';
import { DirtyRing } from '../../memory/dirty.ts';
import { KvmRun } from '../abi/kvm-run.ts';
import type { Host } from '../host/host.ts';
import { aside } from '../run/aside.ts';
import { Runner } from '../run/runner.ts';
import { type Runnable, Runs } from '../run/runs.ts';
import { scheduler } from '../run/schedule.ts';
import { isVcpuToken, type SimVcpuToken, VcpuShare } from '../state/share.ts';
import { type KickWord, Standing } from '../threads/kicks.ts';
import { Random } from '../vm/random.ts';
import { KvmVm } from '../vm/vm.ts';
import { secondStageEvent } from './observe.ts';

/** vCPUs of this thread that others have, or that others have made, by the numbers by which they are kicked. */
const here = new Map<number, KvmVcpu>();

/** Which vCPU of this thread has executed last. */
let lastToExecute = 0;

const pageOf = (gpa: number): number => gpa - (gpa % PAGE);

export class KvmVcpu implements Runnable {
  readonly vm: KvmVm;
  readonly id: number;
  readonly cpu: Cpu;
  readonly run: KvmRun;
  readonly runner: Runner;
  readonly kick: KickWord;
  exceptionPending = false;
  hasRun = false;
  failed = 0;
  readonly ring: DirtyRing | undefined;
  readonly runs = new Runs(this);
  #open = true;

  /** By create(). */
  constructor(vm: KvmVm, id: number, kick: KickWord, token?: SimVcpuToken) {
    this.run = new KvmRun(token?.run);
    this.vm = vm.retain();
    this.id = id;
    this.kick = kick;
    const { host, choice } = vm;
    const { seed } = host.options;
    const random = seed === undefined ? undefined : Random.ofVcpu(seed, id);
    this.cpu = new Cpu(host.arena, this.#stage(), {
      vendor: host.vendor,
      decoder: host.decoder,
      choice,
      msrPolicy: vm.msrPolicy,
      absent: host.absent,
      random: random && (() => random.below(2 ** 32)),
    });
    const { ringBytes, rings } = vm.memory.dirty;
    if (ringBytes !== 0) {
      this.ring = new DirtyRing(token?.ring ?? ringBytes);
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

  /** Named for other threads. */
  share: VcpuShare | undefined;

  /** What it is opened by in another thread; or a negated errno. */
  token(): SimVcpuToken | number {
    const vm = this.vm.token();
    if (typeof vm === 'number') return vm;
    if (this.share === undefined) {
      this.share = VcpuShare.create(this, vm);
      here.set(this.kick.id, this);
    }
    return this.share.token;
  }

  /** The vCPU that a token names, in this thread; or a negated errno. */
  static open(host: Host, token: SharedVcpu): KvmVcpu | number {
    if (!isVcpuToken(token)) return -Errno.EBADF;
    const known = here.get(token.kickId);
    if (known !== undefined) return known.#retain();
    const kick = host.kicks.find(token.kickId);
    if (kick === undefined) return -Errno.ESTALE;
    const vm = KvmVm.open(host, token.vm);
    if (typeof vm === 'number') return vm;
    try {
      const vcpu = new KvmVcpu(vm, token.id, kick, token);
      vcpu.share = new VcpuShare(vcpu, token);
      if (!vcpu.share.retain()) {
        vcpu.#free(false);
        return -Errno.ESTALE;
      }
      here.set(token.kickId, vcpu);
      return vcpu;
    } catch (error) {
      if (error instanceof RangeError) return -Errno.ENOMEM; // the arena is full
      throw error;
    } finally {
      vm.release(); // the vCPU has it
    }
  }

  /** Another handle of this thread's. */
  #retain(): this {
    this.#handles++;
    return this;
  }
  #handles = 1;

  /** Another thread is running it. */
  get isElsewhere(): boolean {
    const { kick, vm } = this;
    const { runner } = kick;
    if (runner === 0 || runner === vm.host.thread || kick.standing !== Standing.RUNNING) return false;
    if (!kick.isSilent) return true;
    kick.unclaim(runner);
    kick.standing = Standing.IDLE;
    return false;
  }

  get asksElsewhere(): boolean {
    const { kick, share, vm } = this;
    return share !== undefined && kick.standing === Standing.ASKING && share.ran !== vm.host.thread;
  }

  /** A call on it, unless it runs: VCPU_RUNNING. */
  use<T>(call: () => T): T | number {
    if (this.runs.busy) return VCPU_RUNNING;
    const { share, vm } = this;
    if (share === undefined) return call();
    vm.enter();
    try {
      return this.isElsewhere ? VCPU_RUNNING : share.using(call);
    } finally {
      vm.leave();
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
    this.run.exitReason = Exit.DIRTY_RING_FULL;
    return FAULT;
  }

  /** Instructions that were completed. */
  get completed(): bigint {
    const { share, vm, cpu } = this;
    if (share === undefined) return cpu.completed;
    vm.enter();
    try {
      if (!this.isElsewhere) share.load();
      return cpu.completed;
    } finally {
      vm.leave();
    }
  }
  get instructions(): bigint {
    return this.cpu.state.count;
  }
  looksAnew(): void {
    this.cpu.enter(true);
  }
  takesOver(): void {
    const { id } = this.kick;
    const anotherThreads = this.vm.share?.takesTurn(id | 0) ?? false;
    if (anotherThreads || lastToExecute !== id) this.looksAnew();
    lastToExecute = id;
  }

  get isOpen(): boolean {
    return this.#open;
  }

  stands(): void {
    const { kick, runner, vm } = this;
    kick.standing = runner.asks ? Standing.ASKING : Standing.IDLE;
    kick.unclaim(vm.host.thread);
    if (!this.#open) this.#free();
  }

  /** A run in progress keeps it until that has ended, whatever an observer does. */
  close(): void {
    if (--this.#handles > 0) return;
    this.#open = false;
    if (this.runs.started) scheduler.wake();
    else if (!this.runs.running) this.#free();
  }
  #free(hasHandle = true): void {
    if (!hasHandle) {
      // It was gone before it was here.
    } else if (this.share === undefined) this.kick.close();
    else {
      here.delete(this.kick.id);
      if (this.share.close()) this.kick.close();
    }
    this.vm.memory.translators.delete(this.cpu);
    this.cpu.free();
    this.vm.release();
  }
}

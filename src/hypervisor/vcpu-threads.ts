/** What other threads do with a vCPU while one runs it. */
import type { SharedVcpu } from './backend.ts';
import { kick, pause, resume, stop } from './controls.ts';
import { closed, KvmError } from './errors.ts';
import { VcpuAttributes } from './vcpu-attributes.ts';

/** A vCPU of one thread that another may open: what Vcpu.share() gives. Plain data, for postMessage(). */
export interface VcpuToken extends SharedVcpu {
  /** Vcpu.id. */
  readonly id: number;
}

/**
 * The part of a Vcpu that every thread may use at any time. Each other method throws VmexitError ERR_KVM_VCPU_RUNNING while
 * another thread runs the vCPU: the kernel would let it wait for the end of that run.
 */
export abstract class VcpuThreads extends VcpuAttributes {
  /** The vCPU's number, which is its initial APIC id. */
  abstract readonly id: number;
  /** What Hypervisor.kick() and its like take, in any thread of this process. */
  abstract readonly kickId: number;

  /**
   * What another thread of this process opens this vCPU by (Hypervisor.openVcpu()): the same vCPU, with the same kvm_run.
   * One thread should run it for its whole life: KVM is slow when a vCPU moves.
   * @throws VmexitError ERR_KVM_CLOSED; KvmError ENOMEM in the simulator
   */
  share(): VcpuToken {
    const shared = this.fd.backend.shareVcpu(this.fd.handle);
    if (typeof shared === 'number') throw new KvmError(shared, 'share');
    return { ...shared, id: this.id };
  }

  /** The run in progress, or else the next, gives INTERRUPTED. @throws VmexitError ERR_KVM_CLOSED */
  kick(): void {
    kick(this.#backend, this.kickId);
  }

  /**
   * Lets the vCPU enter the guest no more until resume() was called as often. Resolves when it stands still: it is in no
   * KVM_RUN, and its last exit waits for no answer of the VMM's. Then its registers are the guest's, and every method works. A
   * run() that finds the vCPU paused first finishes the access in hand, whose further exits it gives, and then waits; its deadline
   * counts on. Where an exit that wants an answer was given and nobody runs the vCPU any more, it resolves when somebody does.
   * A vCPU whose memory fault waits for the thread that owns the memory stands still.
   * @throws VmexitError ERR_KVM_CLOSED; KvmError EMFILE
   */
  async pause(): Promise<void> {
    await pause(this.#backend, this.kickId);
  }

  /** Undoes one pause(). @throws KvmError EINVAL when there is none; VmexitError ERR_KVM_CLOSED */
  resume(): void {
    resume(this.#backend, this.kickId);
  }

  /**
   * The run in progress, or else the next, finishes the access in hand, whose further exits it gives, and then gives STOPPED:
   * what ends start() and the loop of whoever runs it. It also ends the wait of a run that is paused.
   * @throws VmexitError ERR_KVM_CLOSED
   */
  stop(): void {
    stop(this.#backend, this.kickId);
  }

  get #backend() {
    if (this.fd.closed) throw closed('vCPU');
    return this.fd.backend;
  }
}

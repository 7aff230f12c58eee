/**
 * A vCPU that several threads have: each has a processor of its own, with its own caches and its own page of state, and one of
 * these is the one that counts. Whoever uses the vCPU, with the VM's lock, takes over from it first.
 */
import type { SharedVcpu } from '../../../hypervisor/backend.ts';
import { PAGE } from '../../arena.ts';
import { SharedFields } from '../../cpu/processor/fields.ts';
import { STATE_BYTES } from '../../cpu/processor/state.ts';
import { isSharedMemory, retain, sharedMemory } from '../../shared-memory.ts';
import { MMAP_SIZE } from '../abi/kvm-run.ts';
import type { SimVmToken } from '../vm/share.ts';
import type { VcpuData } from './data.ts';

/** What a token of the simulator's carries besides its numbers. */
export interface SimVcpuToken extends SharedVcpu {
  readonly id: number;
  readonly vm: SimVmToken;
  readonly words: ArrayBufferLike;
  /** kvm_run, with the pages after it. */
  readonly run: ArrayBufferLike;
  readonly ring: ArrayBufferLike | undefined;
}

/** A vCPU, as far as it is shared. */
interface Shareable extends VcpuData {
  readonly runner: { abandon(): void };
}

/**
 * Words: in how many threads there is a handle; the page of the state that counts, 0 where it is here; flags; and the thread
 * that has run it last. Then the state, and the processor's fields.
 */
const [THREADS, CURRENT, FLAGS, RAN] = [0, 1, 2, 3] as const;
const STATE_AT = 64;
const FIELDS_AT = 1024;
const BYTES = 65_536;
const Flags = { HAS_RUN: 1, EXCEPTION_PENDING: 2 } as const;

export class VcpuShare {
  readonly token: SimVcpuToken;
  readonly #vcpu: Shareable;
  readonly #words: Int32Array;
  readonly #fields: SharedFields;

  constructor(vcpu: Shareable, token: SimVcpuToken) {
    this.#vcpu = vcpu;
    this.token = token;
    this.#words = new Int32Array(token.words);
    this.#fields = new SharedFields(vcpu.cpu, token.words, FIELDS_AT);
  }

  /** Of a vCPU that this thread alone has. @param vm its VM's */
  static create(vcpu: Shareable, vm: SimVmToken): VcpuShare {
    const share = new VcpuShare(vcpu, {
      backend: 'sim',
      kickId: vcpu.kick.id,
      id: vcpu.id,
      vm,
      words: sharedMemory(BYTES),
      run: vcpu.run.bytes.buffer,
      ring: vcpu.ring?.memory,
    });
    share.#words[THREADS] = 1;
    share.#words[CURRENT] = vcpu.cpu.state.base / PAGE;
    share.#words[RAN] = vcpu.vm.host.thread;
    share.store();
    return share;
  }

  /** Another thread has a handle; false when none had one any more. */
  retain(): boolean {
    return retain(this.#words, THREADS);
  }

  /** The thread that has run it last: an access that waits for userspace is in that one's processor. */
  get ran(): number {
    return Atomics.load(this.#words, RAN);
  }
  runs(): void {
    Atomics.store(this.#words, RAN, this.#vcpu.vm.host.thread);
  }

  /** By this thread's processor, which counts from now on. With the VM's lock. */
  using<T>(call: () => T): T {
    this.load();
    try {
      return call();
    } finally {
      this.store();
    }
  }

  /** From now on this thread's processor counts. With the VM's lock. */
  load(): void {
    const { cpu, vm } = this.#vcpu;
    const page = cpu.state.base / PAGE;
    const current = this.#words[CURRENT]!;
    if (current === page) return;
    const { u8 } = vm.host.arena.views;
    if (current !== 0) u8.copyWithin(cpu.state.base, current * PAGE, current * PAGE + STATE_BYTES);
    else u8.set(new Uint8Array(this.token.words, STATE_AT, STATE_BYTES), cpu.state.base);
    this.#fields.load();
    const flags = this.#words[FLAGS]!;
    this.#vcpu.hasRun = (flags & Flags.HAS_RUN) !== 0;
    this.#vcpu.exceptionPending = (flags & Flags.EXCEPTION_PENDING) !== 0;
    this.#words[CURRENT] = page;
    if (this.ran !== vm.host.thread) this.#vcpu.runner.abandon(); // it is of another time
    cpu.changed();
    cpu.flushTlb();
    cpu.enter(true);
  }
  /** What is not in the state's page. With the VM's lock. */
  store(): void {
    this.#fields.store();
    const { hasRun, exceptionPending } = this.#vcpu;
    this.#words[FLAGS] = (hasRun ? Flags.HAS_RUN : 0) | (exceptionPending ? Flags.EXCEPTION_PENDING : 0);
  }

  /** This thread's last handle is closed. Gives whether it was the last of all. */
  close(): boolean {
    const { cpu, vm } = this.#vcpu;
    const { base } = cpu.state;
    vm.enter();
    if (this.#words[CURRENT] === base / PAGE) {
      const state = vm.host.arena.views.u8.subarray(base, base + STATE_BYTES);
      new Uint8Array(this.token.words, STATE_AT, STATE_BYTES).set(state);
      this.#words[CURRENT] = 0;
    }
    vm.leave();
    return Atomics.sub(this.#words, THREADS, 1) === 1;
  }
}

/** A token is data from elsewhere. */
export function isVcpuToken(token: SharedVcpu): token is SimVcpuToken {
  const { words, run, ring, vm, kickId, id } = token as Partial<SimVcpuToken>;
  return (
    isSharedMemory(words) &&
    words.byteLength === BYTES &&
    isSharedMemory(run) &&
    run.byteLength === MMAP_SIZE &&
    (ring === undefined || isSharedMemory(ring)) &&
    typeof vm === 'object' &&
    vm !== null &&
    Number.isSafeInteger(kickId) &&
    Number.isSafeInteger(id)
  );
}

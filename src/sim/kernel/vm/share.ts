/**
 * A VM that several threads have. One of them owns it: it has made it, keeps its memory, and changes slots, attributes and
 * capabilities. The others have copies of these, which they bring up to date whenever they get the lock. What changes while
 * vCPUs run is in memory that all of them share: guest memory, the chunks of guest_memfds, logs and rings, the vCPUs.
 */
import type { SharedVm } from '../../../hypervisor/backend.ts';
import { Copier, Teller } from '../../memory/copies.ts';
import { type Entry, JOURNAL_WORDS, Journal } from '../../memory/journal.ts';
import type { VmMemory } from '../../memory/vm-memory.ts';
import { retain, sharedMemory } from '../../shared-memory.ts';
import type { Memory } from '../../webassembly.ts';
import { type Host, hostOf, type SimulatedHost } from '../host/host.ts';
import { LOCK_WORDS, VmLock } from '../threads/lock.ts';

/** What a token of the simulator's carries besides its numbers. */
export interface SimVmToken extends SharedVm {
  readonly type: number;
  readonly arena: Memory;
  readonly words: ArrayBufferLike;
  readonly host: SimulatedHost;
  /** Which table its eventfds and vCPUs are in. */
  readonly table: number;
}

/** What of a VM is neither memory nor vCPUs. */
export interface Config {
  readonly exitHypercalls: number;
  readonly exceptionPayload: boolean;
  readonly zapsAll: boolean;
  readonly manual: number;
  readonly ringBytes: number;
  readonly msrs: unknown;
  readonly ioeventfds: unknown;
}

/** A VM, as far as it is shared. */
export interface Shareable {
  readonly host: Host;
  readonly type: number;
  readonly memory: VmMemory;
  readonly config: Config;
  /** In a copy: what its owner has told. */
  configure(config: Config): void;
}

/** Words: the lock, the journal, which vCPU has executed last, and in how many threads there is a handle. */
const JOURNAL = LOCK_WORDS;
const LAST = JOURNAL + JOURNAL_WORDS;
const THREADS = LAST + 1;
const WORDS = THREADS + 1;
export const VM_WORDS_BYTES = WORDS * Int32Array.BYTES_PER_ELEMENT;

export class VmShare {
  readonly lock: VmLock;
  readonly token: SimVmToken;
  readonly isOwner: boolean;
  readonly #vm: Shareable;
  readonly #words: Int32Array;
  readonly #journal: Journal;
  readonly #teller: Teller | undefined;
  readonly #copier: Copier | undefined;

  private constructor(vm: Shareable, token: SimVmToken, isOwner: boolean) {
    this.#vm = vm;
    this.token = token;
    this.isOwner = isOwner;
    this.#words = new Int32Array(token.words);
    this.lock = new VmLock(this.#words, vm.host.thread);
    this.#journal = new Journal(vm.host.arena, this.#words.subarray(JOURNAL, JOURNAL + JOURNAL_WORDS));
    if (isOwner) this.#teller = new Teller(vm.memory, (entry) => this.tell(entry));
    else this.#copier = new Copier(vm.memory);
  }

  /** By the VM's owner; undefined when the arena is full. */
  static create(vm: Shareable): VmShare | undefined {
    const { arena, kicks, options } = vm.host;
    const token: SimVmToken = {
      backend: 'sim',
      number: kicks.number(),
      type: vm.type,
      arena: arena.memory,
      words: sharedMemory(VM_WORDS_BYTES),
      host: hostOf(options),
      table: kicks.table[1]!,
    };
    const share = new VmShare(vm, token, true);
    share.#words[THREADS] = 1;
    if (!share.#journal.begin(share.#all())) return undefined;
    vm.memory.told = share.#teller;
    return share;
  }

  /** By another thread, for its copy. Undefined when the VM is gone. */
  static open(vm: Shareable, token: SimVmToken): VmShare | undefined {
    const share = new VmShare(vm, token, false);
    return share.retain() ? share : undefined;
  }

  /** Another thread has a handle; false when none had one any more. */
  retain(): boolean {
    return retain(this.#words, THREADS);
  }
  release(): void {
    Atomics.sub(this.#words, THREADS, 1);
  }
  /** No thread has a handle any more. */
  get isUnused(): boolean {
    return Atomics.load(this.#words, THREADS) === 0;
  }

  /** From now on no other thread does anything to the VM, and this one knows what others have done. */
  enter(): void {
    if (!this.lock.enter()) return;
    this.#vm.host.arena.refresh();
    if (this.#copier === undefined || !this.#journal.isBehind) return;
    const copier = this.#copier;
    for (const [name, ...given] of this.#journal.read(() => copier.clear())) {
      if (name === 'config') this.#vm.configure(given[0] as Config);
      else (copier as unknown as Record<string, (...given: unknown[]) => void>)[name]!(...given);
    }
  }
  leave(): void {
    this.lock.leave();
  }

  /** A vCPU is about to execute. Gives whether another one has since it did last. */
  takesTurn(vcpu: number): boolean {
    if (this.#words[LAST] === vcpu) return false;
    this.#words[LAST] = vcpu;
    return true;
  }

  tell(entry: Entry): void {
    this.lock.enter();
    try {
      this.#journal.tell(entry, () => this.#all());
    } finally {
      this.lock.leave();
    }
  }
  tellConfig(): void {
    this.tell(['config', this.#vm.config]);
  }
  *#all(): Generator<Entry> {
    yield ['config', this.#vm.config];
    yield* this.#teller!.all();
  }

  free(): void {
    this.#vm.memory.told = undefined;
    this.#journal.free();
  }
}

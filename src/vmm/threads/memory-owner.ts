/**
 * A VM's memory has one owner: the thread that has made the VM, and keeps the record. vCPUs may run in other threads; what
 * they meet of memory faults is served here, while they wait.
 */
import { object } from '../../hypervisor/args.ts';
import { dataOf } from '../../hypervisor/error-data.ts';
import { closed, wrongType } from '../../hypervisor/errors.ts';
import type { EventFd } from '../../hypervisor/event-fd.ts';
import type { Hypervisor } from '../../hypervisor/hypervisor.ts';
import type { ExitHandler } from '../../hypervisor/vcpu.ts';
import { Vcpu } from '../../hypervisor/vcpu.ts';
import { offer } from '../../hypervisor/vcpu-start.ts';
import { type MemoryOwnerToken, memoryFor, type Place, placeAt, State, TEXT, Word } from './protocol.ts';

/** Whom a MemoryOwner serves, and how. */
export interface MemoryOwnerOptions {
  /** The vCPUs that run in other threads, as this thread has them. */
  readonly vcpus: readonly Vcpu[];
  /** Asked in order about each exit: a Pager, a MemoryFaultService. */
  readonly handlers: readonly ExitHandler[];
  /** The vCPUs that this thread runs by run(): a request kicks them, so that check() is called. */
  readonly own?: readonly Vcpu[];
}

/**
 * Serves memory faults (Exit.MEMORY_FAULT, MEMORY_POISONED) and guests' requests to convert memory (Exit.HYPERCALL) of vCPUs
 * that other threads run: for the thread that has made the VM. Those threads have an AskOwner among their handlers. Requests
 * come by the event loop; a thread that runs a vCPU of its own synchronously calls check() after each run(), as a RunLoop does
 * with this among its handlers.
 */
export class MemoryOwner implements ExitHandler, Disposable {
  /** What AskOwner.connect() takes, in the threads of the vCPUs. */
  readonly token: MemoryOwnerToken;
  readonly #vcpus: readonly Vcpu[];
  readonly #handlers: readonly ExitHandler[];
  readonly #places: readonly Place[];
  readonly #bell: EventFd;
  /** Whose request is being served, by a handler that takes its time. */
  readonly #busy = new Set<number>();
  #open = true;

  /** @throws TypeError ERR_KVM_INVALID_ARG; KvmError EMFILE; VmexitError ERR_KVM_CLOSED */
  constructor(hv: Hypervisor, options: MemoryOwnerOptions) {
    const { vcpus, handlers, own = [] } = object('options', options);
    for (const [name, list] of Object.entries({ vcpus, own }))
      if (!Array.isArray(list) || !list.every((vcpu) => vcpu instanceof Vcpu))
        throw wrongType(name, list, 'an array of vCPUs');
    if (!Array.isArray(handlers)) throw wrongType('handlers', handlers, 'an array of exit handlers');
    this.#vcpus = vcpus;
    this.#handlers = handlers;
    this.#bell = hv.createEventFd();
    const memory = memoryFor(vcpus.length);
    this.#places = vcpus.map((_, index) => placeAt(memory, index));
    const idOf = ({ kickId }: Vcpu): number => kickId;
    this.token = {
      kickIds: vcpus.map(idOf),
      ownKickIds: own.map(idOf),
      bell: this.#bell.share(),
      memory,
    };
    this.#bell.watch(() => this.#serve());
  }

  /** Serves nothing of the vCPU that this thread runs. */
  handle(): boolean {
    return false;
  }

  /** Serves what was asked for meanwhile. @throws VmexitError ERR_KVM_CLOSED */
  check(): void {
    if (!this.#open) throw closed('MemoryOwner');
    this.#bell.drain();
    this.#serve();
  }

  #serve(): void {
    for (const [index, { words }] of this.#places.entries()) {
      if (this.#busy.has(index) || Atomics.load(words, Word.STATE) !== State.ASKED) continue;
      this.#offer(index, Atomics.load(words, Word.EXIT));
    }
  }

  #offer(index: number, exit: number): void {
    const answer = (is: boolean) => this.#answer(index, is ? State.SERVED : State.NOBODY);
    try {
      const served = offer(this.#handlers, this.#vcpus[index]!, exit);
      if (served instanceof Promise) {
        this.#busy.add(index);
        served.then(answer, (error) => this.#fail(index, error));
      } else answer(served);
    } catch (error) {
      this.#fail(index, error);
    }
  }

  #fail(index: number, error: unknown): void {
    const { words, text } = this.#places[index]!;
    // Of a character JSON makes up to six, and all must fit.
    const cut = (name: string, value: unknown) =>
      typeof value === 'string' ? value.slice(0, name === 'message' ? TEXT / 8 : TEXT / 128) : value;
    const bytes = new TextEncoder().encode(JSON.stringify(dataOf(error), cut));
    text.set(bytes);
    Atomics.store(words, Word.LENGTH, bytes.length);
    this.#answer(index, State.FAILED);
  }

  #answer(index: number, state: number): void {
    this.#busy.delete(index);
    const { words } = this.#places[index]!;
    if (!this.#open) return;
    Atomics.store(words, Word.STATE, state);
    Atomics.notify(words, Word.STATE);
  }

  /** Whoever waits, or asks later, gets VmexitError ERR_KVM_CLOSED. Idempotent. */
  close(): void {
    if (!this.#open) return;
    for (const index of this.#places.keys()) this.#answer(index, State.CLOSED);
    this.#open = false;
    this.#bell.close();
  }

  /** As close(): for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}

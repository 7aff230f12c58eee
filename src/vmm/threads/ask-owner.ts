/** What a thread that runs a vCPU does with a memory fault: it asks the thread that owns the memory, and waits. */
import { object } from '../../hypervisor/args.ts';
import { errorOf } from '../../hypervisor/error-data.ts';
import { closed, wrongType } from '../../hypervisor/errors.ts';
import type { EventFd } from '../../hypervisor/event-fd.ts';
import type { Hypervisor } from '../../hypervisor/hypervisor.ts';
import type { ExitHandler, Vcpu } from '../../hypervisor/vcpu.ts';
import { Exit } from '../../uapi/exit.ts';
import { type MemoryOwnerToken, type Place, placeAt, State, Word } from './protocol.ts';

const asked: ReadonlySet<number> = new Set([Exit.MEMORY_FAULT, Exit.MEMORY_POISONED, Exit.HYPERCALL]);

/**
 * Hands the memory faults of a vCPU, and its guest's requests to convert memory, to the thread that owns the VM's memory (its
 * MemoryOwner), and waits for the answer. A handler for the loop of the thread that runs the vCPU synchronously. A vCPU whose
 * memory fault waits so stands still: the owner can pause it, and use it.
 */
export class AskOwner implements ExitHandler, Disposable {
  readonly #hv: Hypervisor;
  readonly #bell: EventFd;
  readonly #own: readonly number[];
  readonly #places: ReadonlyMap<number, Place>;

  private constructor(hv: Hypervisor, { kickIds, ownKickIds, bell, memory }: MemoryOwnerToken) {
    this.#hv = hv;
    this.#own = ownKickIds;
    this.#places = new Map(kickIds.map((id, index) => [id, placeAt(memory, index)]));
    this.#bell = hv.openEventFd(bell);
  }

  /**
   * @param token MemoryOwner.token, from the owner's thread
   * @throws KvmError ESTALE when the owner is closed; TypeError ERR_KVM_INVALID_ARG
   */
  static connect(hv: Hypervisor, token: MemoryOwnerToken): AskOwner {
    const { kickIds, ownKickIds, memory } = object('token', token);
    if (!Array.isArray(kickIds) || !Array.isArray(ownKickIds) || !(memory instanceof SharedArrayBuffer))
      throw wrongType('token', token, 'what MemoryOwner.token is');
    return new AskOwner(hv, token);
  }

  /**
   * Waits for the owner's answer, without a limit: the owner's thread must turn its event loop, or call check().
   * @returns whether the owner has served the exit; false at once for exits of other kinds, and for a vCPU that the owner has
   *   not named
   * @throws what the owner's handler has thrown: a KvmError, a VmexitError, or an Error with its message and code;
   *   VmexitError ERR_KVM_CLOSED when the owner is closed
   */
  handle(vcpu: Vcpu, exit: number): boolean {
    const place = asked.has(exit) ? this.#places.get(vcpu.kickId) : undefined;
    if (place === undefined) return false;
    const { words } = place;
    Atomics.store(words, Word.EXIT, exit);
    if (Atomics.compareExchange(words, Word.STATE, State.IDLE, State.ASKED) === State.CLOSED)
      throw closed('MemoryOwner');
    this.#bell.signal();
    for (const id of this.#own) this.#hv.kick(id);
    // An earlier answer's notification may come now, where that answer was seen before this thread slept.
    let answer: number = State.ASKED;
    while (answer === State.ASKED) {
      Atomics.wait(words, Word.STATE, State.ASKED);
      answer = Atomics.load(words, Word.STATE);
    }
    if (answer === State.CLOSED) throw closed('MemoryOwner');
    Atomics.store(words, Word.STATE, State.IDLE);
    if (answer === State.FAILED) throw errorIn(place);
    return answer === State.SERVED;
  }

  /** Idempotent. */
  close(): void {
    this.#bell.close();
  }

  /** As close(): for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/** What the owner's handler has thrown. */
const errorIn = ({ words, text }: Place): Error =>
  errorOf(JSON.parse(new TextDecoder().decode(text.slice(0, Atomics.load(words, Word.LENGTH)))));

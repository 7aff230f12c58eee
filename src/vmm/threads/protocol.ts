/** What the thread that owns a VM's memory and the threads of its vCPUs share: a few words for each vCPU, and an EventFd. */
import type { EventFdToken } from '../../hypervisor/backend.ts';

/** What a vCPU's thread opens the owner by: what MemoryOwner.token is. Plain data, for postMessage(). */
export interface MemoryOwnerToken {
  /** Of the vCPUs that may ask, in the order of their places. */
  readonly kickIds: readonly number[];
  /** Of the vCPUs that the owner's thread itself runs: whoever asks kicks them out of a synchronous run. */
  readonly ownKickIds: readonly number[];
  /** Signalled by who asks. */
  readonly bell: EventFdToken;
  /** Words and bytes: see below. */
  readonly memory: SharedArrayBuffer;
}

/** Words of a place: what it is about, which exit, and how many bytes of an error's text there are. */
export const Word = { STATE: 0, EXIT: 1, LENGTH: 2 } as const;
const WORDS = 4;
/** Bytes of an error as JSON. */
export const TEXT = 4096;

/** What a place is about. */
export const State = {
  IDLE: 0,
  /** The vCPU's thread waits. */
  ASKED: 1,
  /** A handler has served the exit. */
  SERVED: 2,
  /** No handler wants it. */
  NOBODY: 3,
  /** A handler has thrown: the text says what. */
  FAILED: 4,
  /** There is no owner any more. */
  CLOSED: 5,
} as const;

/** One vCPU's place. */
export interface Place {
  readonly words: Int32Array;
  readonly text: Uint8Array;
}

const PLACE = WORDS * Int32Array.BYTES_PER_ELEMENT + TEXT;

/** Memory for so many vCPUs. */
export const memoryFor = (vcpus: number): SharedArrayBuffer => new SharedArrayBuffer(vcpus * PLACE);

export const placeAt = (memory: SharedArrayBuffer, index: number): Place => ({
  words: new Int32Array(memory, index * PLACE, WORDS),
  text: new Uint8Array(memory, index * PLACE + WORDS * Int32Array.BYTES_PER_ELEMENT, TEXT),
});

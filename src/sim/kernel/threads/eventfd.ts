/** eventfd(2), in memory that threads can share (fs/eventfd.c). */
import type { EventFdToken } from '../../../hypervisor/backend.ts';
import { Errno } from '../../../uapi/errno.ts';
import { isSharedMemory, update } from '../../shared-memory.ts';
import { EventWord, eventWords, type Kicks, signalEvent, TABLE_BYTES, TOP } from './kicks.ts';

/** What a token of the simulator's carries besides its number. */
export interface SimEventFdToken extends EventFdToken {
  readonly memory: SharedArrayBuffer;
}

const { NUMBER, COUNT, SEMAPHORE, HANDLES } = EventWord;
/** A timer may not be set later. */
const LATEST = 2 ** 31 - 1;

export class EventFdFile {
  readonly #words: BigInt64Array;
  /** By which it is found in its table. */
  readonly number: number;
  #stop: (() => void) | undefined;

  /** By create() and open(). */
  constructor(words: BigInt64Array, number: number) {
    this.#words = words;
    this.number = number;
  }

  /** -ENFILE when there are too many. */
  static create(kicks: Kicks, initial: number, semaphore: boolean): EventFdFile | number {
    const made = kicks.openEvent();
    if (made === undefined) return -Errno.ENFILE;
    made.words.set([BigInt(initial), semaphore ? 1n : 0n, 1n], COUNT);
    return new EventFdFile(made.words, made.number);
  }

  /** One that somebody else keeps. */
  static at(table: ArrayBufferLike, number: number): EventFdFile {
    return new EventFdFile(eventWords(table, number), number);
  }

  /** -ESTALE when its last handle is closed. */
  static open(token: EventFdToken): EventFdFile | number {
    const { memory, number } = token as Partial<SimEventFdToken>;
    if (!isMemory(memory) || !Number.isInteger(number) || !(number! > 0)) return -Errno.EBADF;
    const words = eventWords(memory, number!);
    const file = new EventFdFile(words, number!);
    const handles = update(words, HANDLES, (count) =>
      file.isThere && count !== 0n ? count + 1n : undefined,
    );
    if (handles === 0n || !file.isThere) return -Errno.ESTALE;
    return file;
  }

  /** Another handle of it. */
  retain(): EventFdFile {
    Atomics.add(this.#words, HANDLES, 1n);
    return new EventFdFile(this.#words, this.number);
  }

  get isThere(): boolean {
    return Atomics.load(this.#words, NUMBER) === BigInt(this.number);
  }
  /** The table that it is in. */
  get table(): ArrayBufferLike {
    return this.#words.buffer;
  }
  /** Whether both are handles of one counter. */
  is(other: EventFdFile): boolean {
    return this.number === other.number && this.table === other.table;
  }

  share(): SimEventFdToken {
    return { backend: 'sim', number: this.number, memory: this.table as unknown as SharedArrayBuffer };
  }

  /** write(2). */
  write(count: number): number {
    const room = TOP - BigInt(count);
    const before = update(this.#words, COUNT, (value) => (value < room ? value + BigInt(count) : undefined));
    if (before >= room) return -Errno.EAGAIN;
    Atomics.notify(this.#words, COUNT);
    return 0;
  }

  /** eventfd_signal(). */
  signal(): void {
    signalEvent(this.#words);
  }

  /** read(2). */
  read(): number {
    const one = Atomics.load(this.#words, SEMAPHORE) !== 0n;
    const before = update(this.#words, COUNT, (value) => (value === 0n ? undefined : one ? value - 1n : 0n));
    if (before === 0n) return -Errno.EAGAIN;
    return one ? 1 : Number(before);
  }

  watch(callback: (() => void) | undefined): number {
    this.#stop?.();
    this.#stop = undefined;
    if (callback === undefined) return 0;
    if (!('waitAsync' in Atomics)) return -Errno.ENOSYS;
    this.#stop = watch(this.#words, callback);
    return 0;
  }

  /** A handle of it is closed. */
  release(): void {
    this.#stop?.();
    if (Atomics.sub(this.#words, HANDLES, 1n) === 1n) Atomics.store(this.#words, NUMBER, 0n);
  }
}

/** A token is data from elsewhere. */
const isMemory = (memory: unknown): memory is SharedArrayBuffer =>
  isSharedMemory(memory) && memory.byteLength === TABLE_BYTES;

/** Calls back from the event loop while the count is not 0, until it is stopped. */
function watch(words: BigInt64Array, callback: () => void): () => void {
  let stopped = false;
  // Who waits for memory keeps no event loop alive.
  const alive = setInterval(() => {}, LATEST);
  const look = (): void => {
    if (stopped) return;
    const { async, value } = Atomics.waitAsync(words, COUNT, 0n);
    // What is thrown in a promise's callback would be a rejection, and is an uncaught exception here.
    if (async) void value.then(() => queueMicrotask(tell));
    else setTimeout(tell, 0);
  };
  const tell = (): void => {
    if (stopped) return;
    try {
      if (Atomics.load(words, COUNT) !== 0n) callback();
    } finally {
      look();
    }
  };
  look();
  return () => {
    stopped = true;
    clearInterval(alive);
    Atomics.notify(words, COUNT); // lets go of what waits
  };
}

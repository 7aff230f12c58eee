/**
 * Who is kicked: a word for each vCPU, in memory that threads can share, so that a kick needs no more than a number.
 * A vCPU looks at its word whenever its time slice is over.
 */

/** An id and a flag for each vCPU; before them, the last number that was given. */
export type KickTable = Int32Array<ArrayBufferLike>;

const HEAD = 1;
const WORDS = 2;
/** vCPUs of one process that can be open at a time. */
const PLACES = 4096;

const LENGTH = HEAD + PLACES * WORDS;

/** One that threads can share. */
export const makeKickTable = (): KickTable =>
  new Int32Array(new SharedArrayBuffer(LENGTH * Int32Array.BYTES_PER_ELEMENT));

/** A vCPU's own word. */
export interface KickWord {
  /** What others kick it by. */
  readonly id: number;
  readonly pending: boolean;
  /** A run was interrupted by it. */
  clear(): void;
  close(): void;
}

export class Kicks {
  readonly #table: KickTable;

  /** @param table this thread's own without it: a page that is not cross-origin isolated can share none */
  constructor(table: KickTable = new Int32Array(LENGTH)) {
    this.#table = table;
  }

  /** A number that no other thread of the process is given, above 0 and below 2^31. */
  number(): number {
    return ((Atomics.add(this.#table, 0, 1) >>> 0) % 0x7fff_ffff) + 1;
  }

  /** Undefined when there are too many. An id is never given twice. */
  open(): KickWord | undefined {
    const table = this.#table;
    for (let tries = 0; tries < PLACES; tries++) {
      const id = this.number();
      const at = this.#place(id);
      if (Atomics.compareExchange(table, at, 0, id) !== 0) continue;
      Atomics.store(table, at + 1, 0);
      return {
        id,
        get pending() {
          return Atomics.load(table, at + 1) !== 0;
        },
        clear: () => void Atomics.store(table, at + 1, 0),
        close: () => void Atomics.compareExchange(table, at, id, 0),
      };
    }
    return undefined;
  }

  #place(id: number): number {
    return HEAD + (id % PLACES) * WORDS;
  }

  /** Whether there is such a vCPU. */
  kick(id: number): boolean {
    const at = this.#place(id);
    if (id <= 0 || id > 0x7fff_ffff || Atomics.load(this.#table, at) !== id) return false;
    Atomics.store(this.#table, at + 1, 1);
    return true;
  }
}

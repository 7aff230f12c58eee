/**
 * Who is kicked: a word for each vCPU, in memory that threads can share, so that a kick needs no more than a number.
 * A vCPU looks at its word whenever its time slice is over. Threads that were started too early for it have a table each;
 * an id says which table it is of, so that none reaches another vCPU than its own.
 */

/** A number and a flag for each vCPU; before them, the last number that was given, and which table this is. */
export type KickTable = Int32Array<ArrayBufferLike>;

const HEAD = 2;
const WORDS = 2;
/** vCPUs of one process that can be open at a time. */
const PLACES = 4096;

const LENGTH = HEAD + PLACES * WORDS;

/** An id is the table's name and, in the lower bits, a number. */
const NUMBERS = 2 ** 31;
/** Names of tables are above 0, and leave an id a safe integer. */
const NAMES = 2 ** 22;
const nameBy = (number: number): number => 1 + (number % (NAMES - 1));

/** One that threads can share. @param maker the number of the thread that makes it: no other makes one */
export function makeKickTable(maker: number): KickTable {
  const table = new Int32Array(new SharedArrayBuffer(LENGTH * Int32Array.BYTES_PER_ELEMENT));
  table[1] = nameBy(maker);
  return table;
}

/** Where threads have no numbers: by chance another's name, once in four million. */
function makeOwnTable(): KickTable {
  const table = new Int32Array(LENGTH);
  table[1] = nameBy(crypto.getRandomValues(new Uint32Array(1))[0]!);
  return table;
}

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
  constructor(table: KickTable = makeOwnTable()) {
    this.#table = table;
  }

  get #base(): number {
    return this.#table[1]! * NUMBERS;
  }

  /** A number that no other thread of the process is given, above 0 and below 2^31. */
  number(): number {
    return ((Atomics.add(this.#table, 0, 1) >>> 0) % 0x7fff_ffff) + 1;
  }

  /** Undefined when there are too many. An id is never given twice. */
  open(): KickWord | undefined {
    const table = this.#table;
    for (let tries = 0; tries < PLACES; tries++) {
      const number = this.number();
      const at = this.#place(number);
      if (Atomics.compareExchange(table, at, 0, number) !== 0) continue;
      Atomics.store(table, at + 1, 0);
      return {
        id: this.#base + number,
        get pending() {
          return Atomics.load(table, at + 1) !== 0;
        },
        clear: () => void Atomics.store(table, at + 1, 0),
        close: () => void Atomics.compareExchange(table, at, number, 0),
      };
    }
    return undefined;
  }

  #place(number: number): number {
    return HEAD + (number % PLACES) * WORDS;
  }

  /** Whether there is such a vCPU; undefined when the id is of a table that this thread has not. */
  kick(id: number): boolean | undefined {
    if (id < NUMBERS) return false;
    const number = id - this.#base;
    if (number < 0 || number >= NUMBERS) return undefined;
    const at = this.#place(number);
    if (number === 0 || Atomics.load(this.#table, at) !== number) return false;
    Atomics.store(this.#table, at + 1, 1);
    return true;
  }
}

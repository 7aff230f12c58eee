/**
 * The lock of a VM that several threads have: whoever executes a vCPU of it has it for a time slice, and whoever changes
 * anything of it meanwhile. So one vCPU of a VM executes at a time, and what LOCK promises is kept.
 */

/** Words at the beginning of a VM's shared ones: who has it, who wants it, signs of life, and how often it was waited for. */
const [HOLDER, WANTED, BEAT, TURNS] = [0, 1, 2, 3] as const;
export const LOCK_WORDS = 4;

/** How often one looks before one waits: some microseconds. */
const SPINS = 200;
/** How many slices there may be between two that wait for whom nobody has seen come: a tenth of a second. */
const MOST_SKIPS = 4096;
/** Milliseconds between two looks, should nobody wake who waits. */
const LOOK_MS = 20;
/** Milliseconds without a sign of life after which a thread is taken for gone: it cannot say so when it is terminated. */
export const GONE_MS = 4000;

/** Waits where a thread may; a browser's main thread only looks again. */
function wait(words: Int32Array, at: number, value: number, ms: number): void {
  try {
    Atomics.wait(words as Int32Array<SharedArrayBuffer>, at, value, ms);
  } catch {
    // It spins.
  }
}

export class VmLock {
  readonly #words: Int32Array;
  readonly #me: number;
  #depth = 0;

  /** @param me this thread's number */
  constructor(words: Int32Array, me: number) {
    this.#words = words;
    this.#me = me;
  }

  /** Gives whether it is the first of several by the same thread. */
  enter(): boolean {
    if (this.#depth++ > 0) return false;
    const { compareExchange } = Atomics;
    for (let i = 0; i < SPINS; i++) if (compareExchange(this.#words, HOLDER, 0, this.#me) === 0) return true;
    this.#await();
    return true;
  }

  #await(): void {
    const words = this.#words;
    Atomics.add(words, WANTED, 1);
    let seen = 0;
    let since = 0;
    for (;;) {
      const holder = Atomics.compareExchange(words, HOLDER, 0, this.#me);
      if (holder === 0) break;
      const beat = Atomics.load(words, BEAT) ^ holder;
      const now = performance.now();
      if (beat !== seen) [seen, since] = [beat, now];
      const gone = now - since > GONE_MS;
      if (gone && Atomics.compareExchange(words, HOLDER, holder, this.#me) === holder) break;
      wait(words, HOLDER, holder, LOOK_MS);
    }
    Atomics.sub(words, WANTED, 1);
    Atomics.add(words, TURNS, 1);
    Atomics.notify(words, TURNS);
  }

  leave(): void {
    if (--this.#depth > 0) return;
    const words = this.#words;
    Atomics.add(words, BEAT, 1);
    // It may have been taken for gone.
    if (Atomics.compareExchange(words, HOLDER, this.#me, 0) !== this.#me) return;
    if (Atomics.load(words, WANTED) > 0) Atomics.notify(words, HOLDER);
  }

  /**
   * After leave(), by who comes again at once: lets somebody else have it who waits for it. Who was terminated while it waited
   * is still counted: the more often nobody comes, the more seldom it is waited for.
   */
  yield(): void {
    const words = this.#words;
    const turns = Atomics.load(words, TURNS);
    if (Atomics.load(words, WANTED) <= 0 || this.#skips-- > 0) return;
    wait(words, TURNS, turns, 1);
    this.#skip = Atomics.load(words, TURNS) === turns ? Math.min(this.#skip * 2, MOST_SKIPS) : 1;
    this.#skips = this.#skip;
  }
  #skip = 1;
  #skips = 0;
}

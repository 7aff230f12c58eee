/**
 * Which pages are there, in memory that the pager's two threads share: the VMM's, which serves what its own exits and
 * reads ask for, and the one that owns the source. A page is claimed before it is read, so none is served twice.
 */

/** Of a page. Absent is 0: fresh shared memory says so of all. */
const State = { CLAIMED: 1, PRESENT: 2 } as const;

/** Why a page was served. */
export const causes = ['fault', 'kernel', 'ensure', 'prefetch', 'push'] as const;
export type Cause = (typeof causes)[number];

/** Words before the pages' bytes. */
const Word = { progress: 0, present: 1, failed: 2, latencies: 3, zero: 4, causes: 5 } as const;
const RING = 1024;
const RING_AT = Word.causes + causes.length;
const HEAD = (RING_AT + RING) * Int32Array.BYTES_PER_ELEMENT;

export interface Latency {
  /** How many were measured: faults that somebody waited for. */
  readonly count: number;
  /** Microseconds, of the last thousand. */
  readonly medianUs: number;
  readonly p99Us: number;
  readonly maxUs: number;
}

export class PageStates {
  readonly buffer: SharedArrayBuffer;
  readonly pages: number;
  readonly #words: Int32Array;
  readonly #states: Uint8Array;

  constructor(pages: number, buffer = new SharedArrayBuffer(HEAD + pages)) {
    this.pages = pages;
    this.buffer = buffer;
    this.#words = new Int32Array(buffer, 0, HEAD / Int32Array.BYTES_PER_ELEMENT);
    this.#states = new Uint8Array(buffer, HEAD, pages);
  }

  get present(): number {
    return Atomics.load(this.#words, Word.present);
  }
  get complete(): boolean {
    return this.present === this.pages;
  }
  isPresent(page: number): boolean {
    return Atomics.load(this.#states, page) === State.PRESENT;
  }

  #take(page: number): boolean {
    return Atomics.compareExchange(this.#states, page, 0, State.CLAIMED) === 0;
  }

  /**
   * Claims the page, and of its neighbours in the batch that it lies in those around it that nobody has.
   * Undefined when the page itself is somebody's, or there.
   */
  claim(page: number, batch: number): { first: number; count: number } | undefined {
    if (!this.#take(page)) return undefined;
    const start = page - (page % batch);
    const limit = Math.min(start + batch, this.pages);
    let first = page;
    while (first > start && this.#take(first - 1)) first--;
    let end = page + 1;
    while (end < limit && this.#take(end)) end++;
    return { first, count: end - first };
  }

  /** They are in guest memory, and the guest can see them. */
  settle(first: number, count: number, cause: Cause): void {
    for (let page = first; page < first + count; page++) Atomics.store(this.#states, page, State.PRESENT);
    Atomics.add(this.#words, Word.causes + causes.indexOf(cause), count);
    Atomics.add(this.#words, Word.present, count);
    this.#wake();
  }
  /** Only these are to be served: the others are zeroes, as fresh memory is. Before any other thread looks. */
  only(runs: Iterable<{ readonly first: number; readonly count: number }>): void {
    this.#states.fill(State.PRESENT);
    let present = this.pages;
    for (const { first, count } of runs) {
      this.#states.fill(0, first, first + count);
      present -= count;
    }
    this.#words[Word.present] = present;
    this.#words[Word.zero] = present;
  }
  /** How many are zeroes from the beginning. */
  get zero(): number {
    return this.#words[Word.zero]!;
  }

  /** They could not be had: absent again. */
  unclaim(first: number, count: number): void {
    for (let page = first; page < first + count; page++) Atomics.store(this.#states, page, 0);
    this.#wake();
  }
  #wake(): void {
    Atomics.add(this.#words, Word.progress, 1);
    Atomics.notify(this.#words, Word.progress);
  }

  /** The first page from `page` on, and then from 0 on, that nobody has claimed. */
  nextAbsent(page: number): number | undefined {
    const after = this.#states.indexOf(0, page);
    if (after >= 0) return after;
    const before = this.#states.indexOf(0);
    return before < 0 ? undefined : before;
  }
  /** The pages that are not there, as ranges [first, end). */
  missing(): { first: number; end: number }[] {
    const ranges: { first: number; end: number }[] = [];
    for (let page = 0; page < this.pages; page++) {
      if (this.isPresent(page)) continue;
      const last = ranges.at(-1);
      if (last?.end === page) last.end++;
      else ranges.push({ first: page, end: page + 1 });
    }
    return ranges;
  }

  /** The source has failed, or the pager was stopped: nothing more comes. */
  get failed(): boolean {
    return Atomics.load(this.#words, Word.failed) !== 0;
  }
  fail(): void {
    Atomics.store(this.#words, Word.failed, 1);
    this.#wake();
  }

  /** Keeps this thread until the page is there, or nothing more comes. @returns whether it is there */
  waitFor(page: number, timeoutMs: number): boolean {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      const seen = Atomics.load(this.#words, Word.progress);
      if (this.isPresent(page)) return true;
      const left = deadline - performance.now();
      if (this.failed || left <= 0) return false;
      Atomics.wait(this.#words, Word.progress, seen, left);
    }
  }

  /** How long somebody has waited for a page. */
  measured(us: number): void {
    const at = Atomics.add(this.#words, Word.latencies, 1) % RING;
    this.#words[RING_AT + at] = Math.round(us);
  }
  get latency(): Latency {
    const count = Atomics.load(this.#words, Word.latencies);
    const ring = this.#words.slice(RING_AT, RING_AT + Math.min(count, RING)).sort();
    const at = (share: number) => ring[Math.floor((ring.length - 1) * share)] ?? 0;
    return { count, medianUs: at(0.5), p99Us: at(0.99), maxUs: at(1) };
  }
  get byCause(): Readonly<Record<Cause, number>> {
    const count = (index: number) => Atomics.load(this.#words, Word.causes + index);
    return Object.fromEntries(causes.map((cause, index) => [cause, count(index)])) as Record<Cause, number>;
  }
}

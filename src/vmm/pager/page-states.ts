/**
 * Which pages are there, in memory that the pager's two threads share: the VMM's, which serves what its own exits and
 * reads ask for, and the one that owns the source. A page is claimed before it is read, so none is served twice.
 */
import { bitsOf, eachWord, lowestOf } from '../../hypervisor/bits.ts';

/** Why a page was served; `discard`: it was given back before it had come, and is zeroes. */
export const causes = ['fault', 'kernel', 'ensure', 'prefetch', 'push', 'discard'] as const;
export type Cause = (typeof causes)[number];

/** Words before the pages' bits. */
const Word = { progress: 0, present: 1, failed: 2, latencies: 3, zero: 4, causes: 5 } as const;
const RING = 1024;
const RING_AT = Word.causes + causes.length;
const HEAD = RING_AT + RING;
const BYTES = Int32Array.BYTES_PER_ELEMENT;

/** How long pages were waited for. */
export interface Latency {
  /** How many were measured: faults that somebody waited for. */
  readonly count: number;
  /** Microseconds: the median of the last 1024. */
  readonly medianUs: number;
  /** Microseconds that 99 of 100 of those took at most. */
  readonly p99Us: number;
  /** Microseconds that the slowest of those took. */
  readonly maxUs: number;
}

export class PageStates {
  readonly buffer: SharedArrayBuffer;
  readonly pages: number;
  readonly #words: Int32Array;
  /** A bit for each page that somebody has claimed, and stays so when it is there. */
  readonly #claimed: Int32Array;
  /** A bit for each page that is there. */
  readonly #there: Int32Array;

  /** Without a buffer, all pages are absent. */
  constructor(pages: number, buffer?: SharedArrayBuffer) {
    const words = Math.ceil(pages / 32);
    this.pages = pages;
    this.buffer = buffer ?? new SharedArrayBuffer((HEAD + 2 * words) * BYTES);
    this.#words = new Int32Array(this.buffer, 0, HEAD);
    this.#claimed = new Int32Array(this.buffer, HEAD * BYTES, words);
    this.#there = new Int32Array(this.buffer, (HEAD + words) * BYTES, words);
    // What is beyond the last page is nobody's to claim.
    if (buffer === undefined && pages % 32 > 0) this.#claimed[words - 1] = ~bitsOf(0, pages % 32);
  }

  get present(): number {
    return Atomics.load(this.#words, Word.present);
  }
  get complete(): boolean {
    return this.present === this.pages;
  }
  isPresent(page: number): boolean {
    return (Atomics.load(this.#there, page >>> 5) & (1 << (page & 31))) !== 0;
  }

  /** A guess: only #take() knows. */
  #isFree(page: number): boolean {
    return (Atomics.load(this.#claimed, page >>> 5) & (1 << (page & 31))) === 0;
  }
  /** Where those from `page` on that are free end: in its word, and at `limit`. */
  #freeEnd(page: number, limit: number): number {
    const stop = Math.min(limit, page - (page & 31) + 32);
    let end = page;
    while (end < stop && this.#isFree(end)) end++;
    return end;
  }
  /** Where those before `page` that are free begin: in one word, and at `start`. */
  #freeStart(page: number, start: number): number {
    const stop = Math.max(start, page - 1 - ((page - 1) & 31));
    let first = page;
    while (first > stop && this.#isFree(first - 1)) first--;
    return first;
  }
  /** All of these pages, which share a word, or none. There are none where somebody has come between two guesses. */
  #take(first: number, end: number): boolean {
    if (first >= end) return false;
    const word = first >>> 5;
    const bits = bitsOf(first, end);
    for (;;) {
      const seen = Atomics.load(this.#claimed, word);
      if ((seen & bits) !== 0) return false;
      if (Atomics.compareExchange(this.#claimed, word, seen, seen | bits) === seen) return true;
    }
  }

  /**
   * Claims the page, and of its neighbours in the batch that it lies in those around it that nobody has.
   * Undefined when the page itself is somebody's, or there.
   */
  claim(page: number, batch: number): { first: number; count: number } | undefined {
    const start = page - (page % batch);
    const limit = Math.min(start + batch, this.pages);
    let first: number;
    let end: number;
    do {
      if (!this.#isFree(page)) return undefined;
      first = this.#freeStart(page + 1, start);
      end = this.#freeEnd(page, limit);
    } while (!this.#take(first, end));
    // Further, a word at a time, as long as nobody comes between.
    for (;;) {
      const next = this.#freeStart(first, start);
      if (!this.#take(next, first)) break;
      first = next;
    }
    for (;;) {
      const next = this.#freeEnd(end, limit);
      if (!this.#take(end, next)) break;
      end = next;
    }
    return { first, count: end - first };
  }

  /** They are in guest memory, and the guest can see them. */
  settle(first: number, count: number, cause: Cause): void {
    eachWord(first, count, (word, bits) => Atomics.or(this.#there, word, bits));
    Atomics.add(this.#words, Word.causes + causes.indexOf(cause), count);
    Atomics.add(this.#words, Word.present, count);
    this.#wake();
  }
  /** Only these are to be served: the others are zeroes, as fresh memory is. Before any other thread looks. */
  only(runs: Iterable<{ readonly first: number; readonly count: number }>): void {
    this.#claimed.fill(-1);
    this.#there.fill(-1);
    let present = this.pages;
    for (const { first, count } of runs) {
      for (const states of [this.#claimed, this.#there])
        eachWord(first, count, (word, bits) => Atomics.and(states, word, ~bits));
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
    eachWord(first, count, (word, bits) => Atomics.and(this.#claimed, word, ~bits));
    this.#wake();
  }
  #wake(): void {
    Atomics.add(this.#words, Word.progress, 1);
    Atomics.notify(this.#words, Word.progress);
  }

  /** The first page from `page` on, and then from 0 on, that nobody has claimed. */
  nextAbsent(page: number): number | undefined {
    if (this.complete) return undefined;
    const words = this.#claimed.length;
    const begin = page < this.pages ? page >>> 5 : 0;
    for (let i = 0; i <= words; i++) {
      const word = (begin + i) % words;
      const free = ~this.#claimed[word]! & (i === 0 && begin === page >>> 5 ? -1 << (page & 31) : -1);
      if (free !== 0) return word * 32 + lowestOf(free);
    }
    return undefined;
  }
  /** What is there now, for tell(). */
  told(): Int32Array {
    return this.#there.slice();
  }
  /** Visits the pages that have come since, and notes them. */
  tell(told: Int32Array, visit: (page: number) => void): void {
    for (let word = 0; word < told.length; word++) {
      const there = Atomics.load(this.#there, word);
      for (let news = there & ~told[word]!; news !== 0; news &= news - 1) visit(word * 32 + lowestOf(news));
      told[word] = there;
    }
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

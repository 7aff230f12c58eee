/**
 * The simulated host's memory: one WebAssembly.Memory in which guest RAM, guest_memfds and the processors' state lie
 * side by side, because translated code reaches only one memory (there is no multi-memory or memory64 in Node 20).
 * It is shared: growing it detaches nothing, and other threads can have it. What is free of it is told in the memory itself.
 */

import { type Memory, WebAssembly } from './webassembly.ts';

/** Typed views of the whole arena, one per width. They are replaced when it grows: read them from the arena. */
export interface Views {
  readonly u8: Uint8Array<SharedArrayBuffer>;
  readonly i8: Int8Array<SharedArrayBuffer>;
  readonly u16: Uint16Array<SharedArrayBuffer>;
  readonly i32: Int32Array<SharedArrayBuffer>;
  readonly u32: Uint32Array<SharedArrayBuffer>;
  readonly i64: BigInt64Array<SharedArrayBuffer>;
  readonly u64: BigUint64Array<SharedArrayBuffer>;
  readonly f32: Float32Array<SharedArrayBuffer>;
  readonly f64: Float64Array<SharedArrayBuffer>;
  readonly dv: DataView<SharedArrayBuffer>;
}

const WASM_PAGE = 65_536;
const MAX_PAGES = 65_536;
export const PAGE = 4096;

function viewsOf(memory: Memory): Views {
  const buffer = memory.buffer as unknown as SharedArrayBuffer;
  return {
    u8: new Uint8Array(buffer),
    i8: new Int8Array(buffer),
    u16: new Uint16Array(buffer),
    i32: new Int32Array(buffer),
    u32: new Uint32Array(buffer),
    i64: new BigInt64Array(buffer),
    u64: new BigUint64Array(buffer),
    f32: new Float32Array(buffer),
    f64: new Float64Array(buffer),
    dv: new DataView(buffer),
  };
}

/**
 * Words of the first page, which is never given out: who changes the list of free ranges, the page at which that begins (0:
 * there is none), and how many bytes there are, in pages. Then which arena it is.
 */
const [LOCK, FREE, SIZE, NAME] = [0, 1, 2, 4] as const;
/** How often one tries for the lock: far longer than anybody has it. Who has it still is gone in the middle. */
const TRIES = 2 ** 28;

/**
 * Offsets are bytes from the start of the memory; offset 0 is never given out. Free ranges are a list in order of their
 * pages: a range's first words are the page of the next one and the page behind its own end. Ranges are given out from their
 * ends. Each change is made by writes of which none but the last can be missed, so that a thread that is terminated in the
 * middle loses a range at most.
 */
export class Arena {
  readonly memory: Memory;
  views: Views;
  /**
   * What the host does to guest memory, which is in here: how often it was asked to write, and whether it may be written to
   * unseen, by a view or by another thread.
   */
  readonly host = { writes: 0, isUnseen: false };

  /** @param memory another thread's, to have the same arena here */
  constructor(memory?: Memory) {
    this.memory = memory ?? new WebAssembly.Memory({ initial: 1, maximum: MAX_PAGES, shared: true });
    this.views = viewsOf(this.memory);
    if (memory !== undefined) this.refresh();
    else {
      const { u32, u8 } = this.views;
      // It guards nothing: it is told apart from others, and Node need not load its cryptography for that.
      for (let i = 0; i < 8; i++) u8[NAME * 4 + i] = Math.random() * 256;
      const last = WASM_PAGE / PAGE;
      u32[SIZE] = last;
      u32[FREE] = 1;
      this.#setRange(1, 0, last);
    }
  }

  /** Which it is, in whatever thread. */
  get name(): bigint {
    return this.views.u64[NAME / 2]!;
  }

  /** Views of all that other threads have made it by now. */
  refresh(): void {
    if (Atomics.load(this.views.u32, SIZE) * PAGE <= this.views.u8.length && this.views.u8.length !== 0)
      return;
    this.memory.grow(0); // until then an engine may have the old length
    this.views = viewsOf(this.memory);
  }

  #next = (page: number): number => this.views.u32[(page * PAGE) / 4]!;
  #end = (page: number): number => this.views.u32[(page * PAGE) / 4 + 1]!;
  #setRange(page: number, next: number, end: number): void {
    this.views.u32[(page * PAGE) / 4] = next;
    this.views.u32[(page * PAGE) / 4 + 1] = end;
  }
  /** @param before the page of a range, or 0: the list's beginning */
  #setNext(before: number, page: number): void {
    this.views.u32[before === 0 ? FREE : (before * PAGE) / 4] = page;
  }

  #locked<T>(change: () => T): T {
    const words = this.views.u32;
    for (let i = 0; i < TRIES && Atomics.compareExchange(words, LOCK, 0, 1) !== 0; i++);
    this.refresh();
    try {
      return change();
    } finally {
      Atomics.store(words, LOCK, 0);
    }
  }

  /** A range of zeroes, page-aligned, or undefined when 4 GiB are in use. `size` in bytes. */
  allocate(size: number): number | undefined {
    const count = Math.ceil(size / PAGE);
    return this.#locked(() => this.#take(count) ?? (this.#grow(count) ? this.#take(count) : undefined));
  }
  #take(count: number): number | undefined {
    for (let before = 0, page = this.views.u32[FREE]!; page !== 0; before = page, page = this.#next(page)) {
      const start = this.#end(page) - count;
      if (start < page) continue;
      if (start === page) this.#setNext(before, this.#next(page));
      this.#setRange(page, start === page ? 0 : this.#next(page), start === page ? 0 : start);
      return start * PAGE;
    }
    return undefined;
  }

  /**
   * Gives a range back; it is zero when it is given out again.
   * @param written the offsets in it of those pages that are not zero, where that is known
   */
  free(offset: number, size: number, written?: Iterable<number>): void {
    const count = Math.ceil(size / PAGE);
    if (written === undefined) this.zero(offset, count * PAGE);
    else for (const page of written) this.zero(offset + page, PAGE);
    this.#locked(() => this.#give(offset / PAGE, count));
  }
  #give(start: number, count: number): void {
    let before = 0;
    let next = this.views.u32[FREE]!;
    while (next !== 0 && next < start) [before, next] = [next, this.#next(next)];
    let end = start + count;
    let after = next;
    if (next === end) {
      end = this.#end(next);
      after = this.#next(next);
      this.#setNext(before, after);
      this.#setRange(next, 0, 0);
    }
    if (before !== 0 && this.#end(before) === start) {
      this.#setRange(before, after, end);
      return;
    }
    this.#setRange(start, after, end);
    this.#setNext(before, start);
  }

  /** Zeroes what is not zero already: a page that was never written costs no memory of the host's. */
  zero(offset: number, size: number): void {
    const { i32, u8 } = this.views;
    for (let page = offset; page < offset + size; page += PAGE) {
      const end = Math.min(page + PAGE, offset + size);
      let at = page / 4;
      while (at < end / 4 && i32[at] === 0) at++;
      if (at < end / 4) u8.fill(0, page, end);
    }
  }

  /** So that there is a free range of so many pages at its end. */
  #grow(count: number): boolean {
    const top = this.views.u8.length / PAGE;
    let last = 0;
    for (let page = this.views.u32[FREE]!; page !== 0; page = this.#next(page)) last = page;
    const start = last !== 0 && this.#end(last) === top ? last : top;
    const pages = Math.ceil(((start + count - top) * PAGE) / WASM_PAGE);
    if ((top * PAGE) / WASM_PAGE + pages > MAX_PAGES) return false;
    try {
      this.memory.grow(pages);
    } catch {
      return false; // RangeError: the host gives no more address space
    }
    this.views = viewsOf(this.memory);
    const end = this.views.u8.length / PAGE;
    Atomics.store(this.views.u32, SIZE, end);
    this.#give(top, end - top);
    return true;
  }
}

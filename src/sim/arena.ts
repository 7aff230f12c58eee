/**
 * The simulated host's memory: one WebAssembly.Memory in which guest RAM, guest_memfds and the processors' state lie
 * side by side, because translated code reaches only one memory (there is no multi-memory or memory64 in Node 20).
 * It is shared, so that growing it detaches nothing.
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

/** Offsets are bytes from the start of the memory; offset 0 is never given out. */
export class Arena {
  readonly memory: Memory = new WebAssembly.Memory({ initial: 1, maximum: MAX_PAGES, shared: true });
  views: Views = viewsOf(this.memory);
  /** Free ranges in order of their offsets, no two of them adjacent. */
  readonly #free: { start: number; end: number }[] = [{ start: PAGE, end: WASM_PAGE }];

  /** A range of zeroes, page-aligned, or undefined when 4 GiB are in use. `size` in bytes. */
  allocate(size: number): number | undefined {
    const length = Math.ceil(size / PAGE) * PAGE;
    let range = this.#free.find(({ start, end }) => end - start >= length);
    if (range === undefined) {
      if (!this.#grow(length)) return undefined;
      range = this.#free.at(-1)!;
    }
    const { start } = range;
    range.start += length;
    if (range.start === range.end) this.#free.splice(this.#free.indexOf(range), 1);
    return start;
  }

  /** Gives a range back; it is zero when it is given out again. */
  free(offset: number, size: number): void {
    const length = Math.ceil(size / PAGE) * PAGE;
    this.zero(offset, length);
    const index = this.#free.findIndex(({ start }) => start > offset);
    const at = index < 0 ? this.#free.length : index;
    this.#free.splice(at, 0, { start: offset, end: offset + length });
    for (const i of [at, at - 1]) {
      const [low, high] = [this.#free[i], this.#free[i + 1]];
      if (low === undefined || high === undefined || low.end !== high.start) continue;
      low.end = high.end;
      this.#free.splice(i + 1, 1);
    }
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

  #grow(length: number): boolean {
    const top = this.views.u8.length;
    const last = this.#free.at(-1);
    const start = last?.end === top ? last.start : top;
    const pages = Math.ceil((start + length - top) / WASM_PAGE);
    if (top / WASM_PAGE + pages > MAX_PAGES) return false;
    try {
      this.memory.grow(pages);
    } catch {
      return false; // RangeError: the host gives no more address space
    }
    this.views = viewsOf(this.memory);
    const end = this.views.u8.length;
    if (last?.end === top) last.end = end;
    else this.#free.push({ start: top, end });
    return true;
  }
}

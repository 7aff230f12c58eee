/**
 * Where the pages of a guest_memfd are: parts of the arena, by their numbers. They are told in the arena itself, so that every
 * thread that runs a VM finds them, and can add one. Who changes them has the VM's lock.
 */
import { type Arena, PAGE } from '../arena.ts';

export interface Chunk {
  readonly base: number;
  /** Where the bits are that tell which of its pages are allocated: behind it. */
  readonly bits: number;
}

/** Of the directory: how many chunks there are, how often that has changed, and where the bits are; then the chunks. */
const [COUNT, CHANGES, HEAD] = [0, 1, 16] as const;
/** A chunk's number and its base, 8 bytes each. */
const ENTRY = 16;

export class Chunks {
  /** Where the directory begins in the arena. */
  readonly base: number;
  readonly #arena: Arena;
  readonly #chunkSize: number;
  readonly #size: number;
  /** As they were when `#seen` was how often they had changed. */
  readonly #known = new Map<number, Chunk>();
  #seen = 0;

  private constructor(arena: Arena, base: number, chunkSize: number, size: number) {
    this.#arena = arena;
    this.base = base;
    this.#chunkSize = chunkSize;
    this.#size = size;
  }

  /** Chunks of `chunkSize` bytes, as many of them as the arena can have; undefined when it is full. */
  static create(arena: Arena, chunkSize: number, fileSize: number): Chunks | undefined {
    const most = Math.min(Math.ceil(fileSize / chunkSize), 2 ** 32 / chunkSize + 1);
    const size = HEAD + Math.ceil(most) * ENTRY;
    const base = arena.allocate(size);
    return base === undefined ? undefined : new Chunks(arena, base, chunkSize, size);
  }
  /** Those that another thread has made. */
  static open(arena: Arena, base: number, chunkSize: number): Chunks {
    return new Chunks(arena, base, chunkSize, 0);
  }

  get #bytes(): number {
    return this.#chunkSize + Math.ceil(this.#chunkSize / PAGE / 8);
  }
  #word(index: number): number {
    return this.#arena.views.u32[this.base / 4 + index]!;
  }
  #changed(count: number): void {
    const { u32 } = this.#arena.views;
    this.#seen = (this.#word(CHANGES) + 1) >>> 0;
    u32[this.base / 4 + COUNT] = count;
    u32[this.base / 4 + CHANGES] = this.#seen;
  }
  #entry(i: number): number {
    return (this.base + HEAD + i * ENTRY) / 8;
  }

  get all(): ReadonlyMap<number, Chunk> {
    if (this.#seen !== this.#word(CHANGES)) this.#read();
    return this.#known;
  }
  #read(): void {
    this.#known.clear();
    this.#arena.refresh();
    const { f64 } = this.#arena.views;
    for (let i = 0; i < this.#word(COUNT); i++) {
      const base = f64[this.#entry(i) + 1]!;
      this.#known.set(f64[this.#entry(i)]!, { base, bits: base + this.#chunkSize });
    }
    this.#seen = this.#word(CHANGES);
  }

  /** The chunk, made if need be; undefined when the arena is full. */
  make(number: number): Chunk | undefined {
    const known = this.all.get(number);
    if (known !== undefined) return known;
    const base = this.#arena.allocate(this.#bytes);
    if (base === undefined) return undefined;
    const chunk = { base, bits: base + this.#chunkSize };
    const { f64 } = this.#arena.views;
    const count = this.#word(COUNT);
    f64[this.#entry(count)] = number;
    f64[this.#entry(count) + 1] = base;
    this.#known.set(number, chunk);
    this.#changed(count + 1);
    return chunk;
  }

  drop(number: number): void {
    const chunk = this.all.get(number);
    if (chunk === undefined) return;
    const { f64 } = this.#arena.views;
    const last = this.#word(COUNT) - 1;
    let i = 0;
    while (f64[this.#entry(i)] !== number) i++;
    for (const word of [0, 1]) f64[this.#entry(i) + word] = f64[this.#entry(last) + word]!;
    this.#known.delete(number);
    this.#changed(last);
    this.#arena.free(chunk.base, this.#bytes);
  }

  /** By who has made them. */
  free(): void {
    for (const { base } of this.all.values()) this.#arena.free(base, this.#bytes);
    this.#known.clear();
    this.#arena.free(this.base, this.#size);
  }
}

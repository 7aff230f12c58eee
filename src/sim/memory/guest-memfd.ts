/** guest_memfd (virt/kvm/guest_memfd.c): private memory, whose pages come on demand and are forgotten when punched. */
import { GuestMemfdFlag } from '../../uapi/constants.ts';
import { Errno } from '../../uapi/errno.ts';
import { type Arena, PAGE } from '../arena.ts';
import { type Chunk, Chunks } from './chunks.ts';
import { Counted, checkFallocate, Falloc, type MemoryFile } from './host-memory.ts';

/** Whom it tells that pages are gone or are there: the VM that made it. */
export interface Binding {
  /** The part of the file, in bytes. */
  readonly start: number;
  readonly end: number;
  /** What maps [start, end) of the file must be forgotten. */
  zap(start: number, end: number): void;
  /** The file is gone; the slot stays, with nothing private behind it. */
  unbound(): void;
  /** Which pages cannot be had has changed. */
  fails(): void;
}

/** Bytes of the arena that are taken at once. A file that can be mapped is all one chunk, for views are contiguous. */
const CHUNK = 2 * 2 ** 20;

const isMappable = (flags: number): boolean => (flags & GuestMemfdFlag.MMAP) !== 0;
const chunkSizeOf = (size: number, flags: number): number =>
  isMappable(flags) ? size : Math.min(CHUNK, size);

export class GuestMemfdFile extends Counted implements MemoryFile {
  readonly size: number;
  /** GUEST_MEMFD_FLAG_*. */
  readonly flags: number;
  /** The VM that made it, as the only one whose slots can have it. */
  readonly owner: object;
  readonly bindings = new Set<Binding>();
  readonly #arena: Arena;
  readonly #chunkSize: number;
  readonly #chunks: Chunks;
  /** Offsets of pages that cannot be had, and why: negated errnos. */
  readonly #failing = new Map<number, number>();
  /** Zaps also what is allocated: in the first of the ABIs, that makes a page private. */
  readonly #allocationConverts: boolean;

  /** By create(). */
  constructor(
    arena: Arena,
    owner: object,
    size: number,
    flags: number,
    allocationConverts: boolean,
    chunks: Chunks,
  ) {
    super();
    this.#arena = arena;
    this.owner = owner;
    this.size = size;
    this.flags = flags;
    this.#chunkSize = chunkSizeOf(size, flags);
    this.#allocationConverts = allocationConverts;
    this.#chunks = chunks;
  }

  /** Undefined when the arena is full. */
  static create(
    arena: Arena,
    owner: object,
    size: number,
    flags: number,
    allocationConverts: boolean,
  ): GuestMemfdFile | undefined {
    const chunks = Chunks.create(arena, chunkSizeOf(size, flags), size);
    return chunks && new GuestMemfdFile(arena, owner, size, flags, allocationConverts, chunks);
  }

  /** The same file in another thread, by what `place` gives. */
  static copy(
    arena: Arena,
    owner: object,
    size: number,
    flags: number,
    allocationConverts: boolean,
    place: number,
  ): GuestMemfdFile {
    const chunks = Chunks.open(arena, place, chunkSizeOf(size, flags));
    return new GuestMemfdFile(arena, owner, size, flags, allocationConverts, chunks);
  }
  /** Where its chunks are told in the arena. */
  get place(): number {
    return this.#chunks.base;
  }

  get mappable(): boolean {
    return isMappable(this.flags);
  }

  /** Whether the host can touch what it maps: else the first touch is a SIGBUS. */
  get hasHostView(): boolean {
    const needed = GuestMemfdFlag.MMAP | GuestMemfdFlag.INIT_SHARED;
    return (this.flags & needed) === needed;
  }

  /** Of one that can be mapped; undefined when the arena is full. */
  get base(): number | undefined {
    return this.mappable ? this.#chunk(0)?.base : undefined;
  }

  #chunk(index: number): Chunk | undefined {
    return this.#chunks.make(index);
  }

  isAllocated(offset: number): boolean {
    const page = (offset % this.#chunkSize) / PAGE;
    const chunk = this.#chunks.all.get(Math.floor(offset / this.#chunkSize));
    return chunk !== undefined && (this.#arena.views.u8[chunk.bits + (page >> 3)]! & (1 << (page & 7))) !== 0;
  }

  /** kvm_gmem_get_pfn(): where the page lies in the arena, allocated if need be, or a negated errno. */
  page(offset: number): number {
    const failure = this.#failing.get(offset);
    if (failure !== undefined) return failure;
    const chunk = this.#chunk(Math.floor(offset / this.#chunkSize));
    if (chunk === undefined) return -Errno.ENOMEM;
    const within = offset % this.#chunkSize;
    const bit = 1 << ((within / PAGE) & 7);
    this.#arena.views.u8[chunk.bits + ((within / PAGE) >> 3)]! |= bit;
    return chunk.base + within;
  }

  /** kvm_gmem_fallocate(). */
  fallocate(mode: number, offset: number, size: number): number {
    const refused = checkFallocate(mode, offset, size);
    if (refused !== 0) return refused;
    if ((mode & Falloc.KEEP_SIZE) === 0) return -Errno.EOPNOTSUPP;
    if (offset % PAGE !== 0 || size % PAGE !== 0) return -Errno.EINVAL;
    return (mode & Falloc.PUNCH_HOLE) !== 0 ? this.#punch(offset, size) : this.#allocate(offset, size);
  }

  #allocate(start: number, size: number): number {
    if (start + size > this.size) return -Errno.EINVAL;
    if (this.#allocationConverts) this.#zap(start, start + size);
    for (let offset = start; offset < start + size; offset += PAGE) {
      const page = this.page(offset);
      if (page < 0) return page;
    }
    return 0;
  }

  #punch(start: number, size: number): number {
    const end = Math.min(start + size, this.size);
    if (end <= start) return 0;
    this.#zap(start, end);
    const mended = [...this.#failing.keys()].filter((offset) => offset >= start && offset < end);
    for (const offset of mended) this.#failing.delete(offset);
    if (mended.length > 0) for (const binding of this.bindings) binding.fails();
    for (const [index, chunk] of [...this.#chunks.all]) {
      const first = index * this.#chunkSize;
      const [from, to] = [Math.max(start, first), Math.min(end, first + this.#chunkSize)];
      if (from < to) this.#forget(index, chunk, from - first, to - first);
    }
    return 0;
  }

  #forget(index: number, { base, bits }: Chunk, from: number, to: number): void {
    // A page that goes back and forth keeps its place: only what is punched as a whole is given back.
    if (to - from >= this.#chunkSize && !this.mappable) {
      this.#chunks.drop(index);
      return;
    }
    const { u8 } = this.#arena.views;
    for (let page = from / PAGE; page < to / PAGE; page++) u8[bits + (page >> 3)]! &= ~(1 << (page & 7));
    this.#arena.zero(base + from, to - from);
  }

  #zap(start: number, end: number): void {
    for (const binding of this.bindings) {
      const [from, to] = [Math.max(start, binding.start), Math.min(end, binding.end)];
      if (from < to) binding.zap(from, to);
    }
  }

  /**
   * The page cannot be had until it is punched: EHWPOISON is a hardware memory error (kvm_gmem_error_folio), ENOMEM a
   * host without memory.
   */
  fail(offset: number, errno: number): void {
    this.#zap(offset, offset + PAGE);
    this.#failing.set(offset, -errno);
    for (const binding of this.bindings) binding.fails();
  }
  get failing(): [offset: number, errno: number][] {
    return [...this.#failing];
  }
  set failing(pages: readonly (readonly [offset: number, errno: number])[]) {
    this.#failing.clear();
    for (const [offset, errno] of pages) this.#failing.set(offset, errno);
  }

  protected free(): void {
    for (const binding of this.bindings) binding.unbound();
    this.#chunks.free();
  }
}

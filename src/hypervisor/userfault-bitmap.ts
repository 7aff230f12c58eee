/** The bitmap of KVM_MEM_USERFAULT: which pages of a slot the VMM wants to bring in before a vCPU may use them. */
import { integer, roundUp } from './args.ts';
import type { MemoryToken } from './backend.ts';
import { eachWord } from './bits.ts';
import { closed, outOfRange } from './errors.ts';
import type { GuestMemory } from './guest-memory.ts';

/** KVM_MEM_MAX_NR_PAGES: what one slot can have. */
export const MAX_BITMAP_PAGES = 2 ** 31 - 1;

/** Bytes of memory for so many bits. */
export const bitmapSize = (pages: number): number => roundUp(Math.ceil(pages / 8));

/**
 * A bit for each page of a slot, in memory that KVM reads: bit i is the page at guestPhysAddr + 4096 * i. A vCPU's
 * access to a page whose bit is set, and which KVM has not mapped, ends KVM_RUN with Exit.MEMORY_FAULT and
 * flags.userfault. KVM looks at the bit only when it maps a page: setting one has no effect on a page that is mapped
 * until the slot's USERFAULT is turned off and on again.
 *
 * Ordering: write a page's contents first, then release() it. Whoever sees the bit clear sees the contents.
 *
 * A proposal (KVM_CAP_USERFAULT), in no released kernel: `features(hv)` tells whether there is `userfault`.
 */
export class UserfaultBitmap implements Disposable {
  /** How many bits it has. */
  readonly pages: number;
  readonly #memory: GuestMemory;
  #view: Int32Array | undefined;

  /** Made by Vm.createUserfaultBitmap() and Hypervisor.openUserfaultBitmap(). */
  constructor(memory: GuestMemory, pages: number) {
    this.#memory = memory;
    this.pages = pages;
  }

  /** Whether close() was called. */
  get closed(): boolean {
    return this.#memory.closed;
  }

  /** The memory that holds the bits, for this package's own classes. @throws VmexitError ERR_KVM_CLOSED */
  get memory(): GuestMemory {
    if (this.#memory.closed) throw closed('userfault bitmap');
    return this.#memory;
  }

  /**
   * Sets the bits of [first, first + count).
   * @param first a page, counted from the bitmap's start
   * @throws TypeError, RangeError ERR_KVM_INVALID_ARG; VmexitError ERR_KVM_CLOSED. Nothing has changed then
   */
  set(first: number, count = 1): void {
    this.#change(first, count, (words, word, bits) => Atomics.or(words, word, bits));
  }

  /**
   * Clears the bits of [first, first + count): their contents are there. As set(), in errors.
   *
   * Each word is changed by an atomic read-modify-write, for other threads may change its other bits at the same time.
   * ECMAScript's Atomics are sequentially consistent, and V8 makes of them instructions with a lock prefix on x86, also
   * on a buffer that is not shared. So what this thread wrote before is visible to whoever sees the bit clear: more
   * than the store-release that KVM asks for.
   */
  release(first: number, count = 1): void {
    this.#change(first, count, (words, word, bits) => Atomics.and(words, word, ~bits));
  }

  /** Whether the page's bit is set now. As set(), in errors. */
  isSet(page: number): boolean {
    const at = integer('page', page, this.pages - 1);
    return (Atomics.load(this.#words, at >>> 5) & (1 << (at & 31))) !== 0;
  }

  /** @throws VmexitError ERR_KVM_CLOSED */
  get #words(): Int32Array {
    const { memory } = this;
    this.#view ??= new Int32Array(memory.bytes.buffer, memory.bytes.byteOffset, memory.size / 4);
    return this.#view;
  }

  #change(
    first: number,
    count: number,
    change: (words: Int32Array, word: number, bits: number) => void,
  ): void {
    const words = this.#words;
    const from = integer('first', first, this.pages);
    eachWord(from, integer('count', count, this.pages - from), (word, bits) => change(words, word, bits));
  }

  /** A token that another thread of this process gives to Hypervisor.openUserfaultBitmap(), before this is closed. */
  share(): MemoryToken {
    return this.memory.share();
  }

  /** Idempotent. A slot that uses the bitmap keeps it. */
  close(): void {
    this.#memory.close();
  }

  /** As close(): for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/** @throws TypeError, RangeError ERR_KVM_INVALID_ARG */
export const bitmapPages = (pages: unknown): number => integer('pages', pages, MAX_BITMAP_PAGES, 1);

/** That a slot's pages have a bit each; KVM would read whatever lies behind the bitmap. */
export function fitsSlot(bitmap: UserfaultBitmap, memorySize: number): void {
  const needed = Math.ceil(memorySize / 4096);
  if (bitmap.pages >= needed) return;
  throw outOfRange('userfaultBitmap.pages', bitmap.pages, `at least the ${needed} pages of the slot`);
}

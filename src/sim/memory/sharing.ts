/**
 * Guest memory in other threads. The arena is shared memory, so a token brings it along; whether what it names is
 * still there, and who else uses it, stands in the arena itself.
 */
import type { MemoryToken } from '../../hypervisor/backend.ts';
import { Errno } from '../../uapi/errno.ts';
import { type Arena, PAGE } from '../arena.ts';
import { Counted, checkFallocate, Falloc, type MemoryFile } from './host-memory.ts';

/** What a token of the simulator's carries besides its numbers. */
export interface SimMemoryToken extends MemoryToken {
  /** The arena that has the memory. */
  readonly arena: SharedArrayBuffer;
  readonly base: number;
  readonly size: number;
}

/** Two words for each memory that is shared: its number, 0 when it is gone; and its users in other threads. */
const WORDS = 2;
const PLACES = PAGE / (WORDS * Int32Array.BYTES_PER_ELEMENT);

/** Ranges of the arena that a thread has shared, by token. */
export class Sharing {
  readonly #arena: Arena;
  readonly #number: () => number;
  readonly #pages: number[] = [];
  readonly #free: number[] = [];
  /** Closed here, and in use in another thread still. */
  readonly #lent: { readonly at: number; readonly give: () => void }[] = [];

  /** @param number gives numbers that no other thread is given */
  constructor(arena: Arena, number: () => number) {
    this.#arena = arena;
    this.#number = number;
  }

  /** A place for a range, as the index of its first word, with its number; undefined when the arena is full. */
  open(): { at: number; inode: number } | undefined {
    if (this.#free.length === 0) {
      const page = this.#arena.allocate(PAGE);
      if (page === undefined) return undefined;
      this.#pages.push(page);
      for (let i = 0; i < PLACES; i++) this.#free.push(page / 4 + i * WORDS);
    }
    const at = this.#free.pop()!;
    const inode = this.#number();
    Atomics.store(this.#arena.views.i32, at, inode);
    return { at, inode };
  }

  /** The range's owner is done with it: gives it back, now or when other threads are done too. */
  close(at: number, give: () => void): void {
    Atomics.store(this.#arena.views.i32, at, 0);
    this.#lent.push({ at, give });
    this.reap();
  }

  /** Gives back what other threads have been done with since. */
  reap(): void {
    for (let i = this.#lent.length - 1; i >= 0; i--) {
      const { at, give } = this.#lent[i]!;
      if (Atomics.load(this.#arena.views.i32, at + 1) !== 0) continue;
      this.#lent.splice(i, 1);
      this.#free.push(at);
      give();
    }
  }
}

/** The same pages, reached by a token: for reading and writing in this thread, and for no slot of its own. */
export class SharedFile extends Counted implements MemoryFile {
  readonly base = undefined;
  readonly size: number;
  readonly bytes: Uint8Array;
  readonly #words: Int32Array;
  readonly #at: number;

  private constructor({ arena, base, size, fd }: SimMemoryToken) {
    super();
    this.size = size;
    this.bytes = new Uint8Array(arena, base, size);
    this.#words = new Int32Array(arena);
    this.#at = fd;
  }

  /** -ESTALE when the memory is gone. */
  static open(token: MemoryToken): SharedFile | number {
    if (!isSimToken(token)) return -Errno.EBADF;
    const file = new SharedFile(token);
    Atomics.add(file.#words, file.#at + 1, 1); // first: its owner looks at this after it has cleared the number
    if (Atomics.load(file.#words, file.#at) === token.inode) return file;
    file.free();
    return -Errno.ESTALE;
  }

  protected free(): void {
    Atomics.sub(this.#words, this.#at + 1, 1);
  }

  fallocate(mode: number, offset: number, size: number): number {
    const refused = checkFallocate(mode, offset, size);
    if (refused !== 0) return refused;
    if (mode === 0 && offset + size > this.size) return -Errno.EPERM;
    if ((mode & Falloc.PUNCH_HOLE) !== 0) this.bytes.subarray(offset, offset + size).fill(0);
    return 0;
  }
}

/** A token is data from elsewhere: nothing in it may reach beyond the arena. */
function isSimToken(token: MemoryToken): token is SimMemoryToken {
  const { arena, base, size, fd } = token as Partial<SimMemoryToken>;
  // A page that is not cross-origin isolated has no such name, and gets no token.
  if (typeof SharedArrayBuffer === 'undefined' || !(arena instanceof SharedArrayBuffer)) return false;
  const within = (at: unknown, length: unknown, end: number): boolean =>
    Number.isSafeInteger(at) &&
    Number.isSafeInteger(length) &&
    (at as number) >= 0 &&
    (length as number) > 0 &&
    (at as number) + (length as number) <= end;
  return within(base, size, arena.byteLength) && within(fd, WORDS, arena.byteLength / 4);
}

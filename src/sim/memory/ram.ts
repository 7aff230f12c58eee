/** Guest RAM: a memfd that is sealed against shrinking and growing. A hole in it reads as zero. */
import { Errno } from '../../uapi/errno.ts';
import { type Arena, PAGE } from '../arena.ts';
import { Counted, checkFallocate, Falloc, type MemoryFile, type Notifier } from './host-memory.ts';
import type { Sharing, SimMemoryToken } from './sharing.ts';

export class RamFile extends Counted implements MemoryFile {
  readonly base: number;
  readonly size: number;
  readonly notifiers = new Set<Notifier>();
  readonly #arena: Arena;
  readonly #sharing: Sharing;
  #place: { readonly at: number; readonly inode: number } | undefined;

  private constructor(arena: Arena, sharing: Sharing, base: number, size: number) {
    super();
    this.#arena = arena;
    this.#sharing = sharing;
    this.base = base;
    this.size = size;
  }

  /** Undefined when the arena is full. */
  static create(arena: Arena, sharing: Sharing, size: number): RamFile | undefined {
    sharing.reap();
    const base = arena.allocate(size);
    return base === undefined ? undefined : new RamFile(arena, sharing, base, size);
  }

  /** What another thread opens it by; undefined when the arena is full. */
  share(): SimMemoryToken | undefined {
    this.#place ??= this.#sharing.open();
    if (this.#place === undefined) return undefined;
    const { at, inode } = this.#place;
    const arena = this.#arena.views.u8.buffer;
    return { backend: 'sim', fd: at, inode, arena, base: this.base, size: this.size };
  }

  protected free(): void {
    const give = () => this.#arena.free(this.base, this.size);
    if (this.#place === undefined) give();
    else this.#sharing.close(this.#place.at, give);
  }

  fallocate(mode: number, offset: number, size: number): number {
    const refused = checkFallocate(mode, offset, size);
    if (refused !== 0) return refused;
    if (mode === 0 && offset + size > this.size) return -Errno.EPERM; // F_SEAL_GROW
    const end = Math.min(offset + size, this.size);
    if ((mode & Falloc.PUNCH_HOLE) === 0 || end <= offset) return 0;
    this.#arena.zero(this.base + offset, end - offset);
    // shmem_fallocate() unmaps whole pages; of others it only clears a part.
    const [first, last] = [Math.ceil(offset / PAGE) * PAGE, Math.floor(end / PAGE) * PAGE];
    for (const notifier of this.notifiers) notifier.zap(first, last);
    return 0;
  }
}

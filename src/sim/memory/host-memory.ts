/**
 * What the simulated process has of memory: files, and mappings of them. Each lives as long as somebody uses it, as
 * the kernel's do: a slot keeps the mapping that it was given, and a mapping keeps its file.
 */
import { Errno } from '../../uapi/errno.ts';

/** FALLOC_FL_* (fallocate(2)). */
export const Falloc = { KEEP_SIZE: 0x01, PUNCH_HOLE: 0x02 } as const;

/** Counts its users; the last one to leave frees it. */
export abstract class Counted {
  #users = 1;

  retain(): this {
    this.#users++;
    return this;
  }
  release(): void {
    if (--this.#users === 0) this.free();
  }
  protected abstract free(): void;
}

/** Whom it concerns that pages of a file are gone: KVM's MMU notifier, for one slot. */
export interface Notifier {
  /** What maps [start, end) of the file, in bytes, must be forgotten. */
  zap(start: number, end: number): void;
}

/** A file whose pages are memory: a memfd or a guest_memfd. */
export interface MemoryFile {
  /** Of slots whose shared side it is. */
  readonly notifiers?: Set<Notifier>;
  /** Bytes. */
  readonly size: number;
  /** Where in the arena its bytes lie side by side, if they do. */
  readonly base: number | undefined;
  retain(): this;
  release(): void;
  /** fallocate(2), giving 0 or a negated errno. */
  fallocate(mode: number, offset: number, size: number): number;
}

/** A range of addresses of the simulated process: a file's memory, or nothing behind them. */
export class Mapping extends Counted {
  readonly file: MemoryFile | undefined;
  readonly size: number;
  /** Called before the simulated kernel itself touches a page, with its offset: what userfaultfd would tell. */
  onOwnAccess: ((offset: number) => void) | undefined;

  /** Takes over its caller's use of the file. */
  constructor(file: MemoryFile | undefined, size: number) {
    super();
    this.file = file;
    this.size = size;
  }

  /** Where it begins in the arena; undefined when nothing is behind it. */
  get base(): number | undefined {
    return this.file?.base;
  }

  protected free(): void {
    this.file?.release();
  }
}

/** What vfs_fallocate() checks before it asks the file (fs/open.c); 0 or a negated errno. */
export function checkFallocate(mode: number, offset: number, size: number): number {
  if (size === 0) return -Errno.EINVAL;
  if ((mode & ~(Falloc.KEEP_SIZE | Falloc.PUNCH_HOLE)) !== 0) return -Errno.EOPNOTSUPP;
  if (mode === Falloc.PUNCH_HOLE) return -Errno.EOPNOTSUPP;
  return offset + size > 2 ** 63 - 1 ? -Errno.EFBIG : 0;
}

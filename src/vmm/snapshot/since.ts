/** What a DirtyPages tells is since some snapshot: which one that is, and whether it still is so. */
import type { GuestMemory } from '../../hypervisor/guest-memory.ts';
import { DirtyPages, type DirtyPagesOptions, type DirtyRange } from '../dirty-pages.ts';
import type { Snapshot } from './read.ts';
import type { RestoredMachine } from './restore.ts';

/** The snapshot that the next take() is since. */
interface Since {
  readonly identity: string;
  /** The machine's memories in that snapshot's order. */
  readonly memories: readonly GuestMemory[];
  /** Of DirtyPages: one take() more, by anybody, and what it told is lost to the next snapshot. */
  readonly taken: number;
}

const known = new WeakMap<DirtyPages, Since>();

/**
 * Keeps account of a machine that was just restored, so that the next writeSnapshot() with `since` of that file need not
 * compare all its memory.
 * @param machine has not run yet, and nobody has written to its memory
 * @throws as DirtyPages.start()
 */
export function dirtySince(
  snapshot: Snapshot,
  { vm, vcpus, memories }: RestoredMachine,
  options: Omit<DirtyPagesOptions, 'vcpus'> = {},
): DirtyPages {
  const { identity } = snapshot;
  const dirty = DirtyPages.start(vm, { ...options, vcpus });
  known.set(dirty, { identity, memories, taken: dirty.taken });
  return dirty;
}

/** What a snapshot that is being written takes of a DirtyPages: it is given back when that fails. */
export class Taking {
  readonly #dirty: DirtyPages;
  readonly #since: Since | undefined;
  readonly #ranges: readonly DirtyRange[];
  readonly #memories: readonly GuestMemory[];

  private constructor(dirty: DirtyPages, identity: string | undefined, memories: readonly GuestMemory[]) {
    const since = known.get(dirty);
    const isThat = since !== undefined && since.identity === identity && since.taken === dirty.taken;
    this.#dirty = dirty;
    this.#since = isThat ? since : undefined;
    this.#memories = memories;
    this.#ranges = dirty.take();
  }

  /** @param identity of the snapshot that it builds on */
  static begin(dirty: DirtyPages, identity: string | undefined, memories: readonly GuestMemory[]): Taking {
    return new Taking(dirty, identity, memories);
  }

  /** The ranges of a memory, by its number, that may be other than in the snapshot; undefined: any. */
  known(index: number): readonly DirtyRange[] | undefined {
    const memory = this.#memories[index]!;
    if (this.#since?.memories[index] !== memory || !this.#dirty.knows(memory)) return undefined;
    return this.#ranges.filter((range) => range.memory === memory);
  }

  /** From now on it is since this one. */
  done(identity: string): void {
    known.set(this.#dirty, { identity, memories: this.#memories, taken: this.#dirty.taken });
  }

  undo(): void {
    for (const { memory, offset, size } of this.#ranges) if (!memory.closed) memory.markDirty(offset, size);
    if (this.#since !== undefined) known.set(this.#dirty, { ...this.#since, taken: this.#dirty.taken });
  }
}

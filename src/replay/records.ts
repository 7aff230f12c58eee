/**
 * The records of a recording: one for each call at the waist and each call back, in the order in which they came. A record
 * is its kind, what the VMM gave, and what it got: the result, what the kernel wrote into the argument, and the effects, which
 * are the bytes of kvm_run and of guest memory that have changed.
 */

/** What a record is about; its number is its place here, so a new kind goes last. */
export const kinds = [
  'open',
  'ioctl',
  'create',
  'readStats',
  'allocate',
  'reserve',
  'mapDirtyRing',
  'share',
  'bytes',
  'write',
  'read',
  'fallocate',
  'seek',
  'madvise',
  'createEventFd',
  'shareEventFd',
  'openEventFd',
  'signal',
  'drain',
  'watch',
  'runner',
  'run',
  'starter',
  'start',
  'kickId',
  'kick',
  'pause',
  'resume',
  'stop',
  'observe',
  'ownAccesses',
  'close',
  'mark',
  'input',
  /** A run in which observers are told: what they are told lies between these two. */
  'runBegin',
  'runEnd',
  /** What the backend calls: an observer, the `done` of a run, the callback of an eventfd, ownAccesses()'s. */
  'observed',
  'ownAccess',
  'done',
  'ready',
] as const;
export type Kind = (typeof kinds)[number];
export const numberOf = new Map(kinds.map((kind, i) => [kind, i]));

/** Calls back from the event loop. */
export const callbacks: ReadonlySet<Kind> = new Set<Kind>(['done', 'ready', 'observed', 'ownAccess']);
/**
 * Calls whose place in the sequence follows from something outside: a replay takes them where they come, and their records
 * where they are. What a kick does is in the record of a run; what others have written to memory is in a mark's.
 */
export const floating: ReadonlySet<Kind> = new Set<Kind>(['kick', 'stop', 'close', 'mark']);

/** A record as it lies in a recording. */
export interface Entry {
  readonly kind: Kind;
  /** A list of values, encoded: compared as bytes. */
  readonly given: Uint8Array;
  readonly got: Uint8Array;
}

/** What is known before the first record. */
export interface Head {
  readonly backend: 'kvm' | 'sim';
  readonly dialect: string | undefined;
  /** Why the backend was not the one that `auto` prefers. */
  readonly fallback: string | undefined;
  /** Optional members that the backend has. */
  readonly has: readonly string[];
}

/** Where a recorder puts its records. */
export interface Sink {
  begin(head: Head): void;
  add(entry: Entry): void;
  /** After the last one. */
  end(): void;
}

/** Where a replay has them from. */
export interface Source {
  readonly head: Head;
  /** How many there are. */
  readonly records: number;
  /** Whether the recorder has ended it; false where it was cut off. */
  readonly complete: boolean;
  next(): Entry | undefined;
  close(): void;
}

/** A recording in memory. */
export class Memo implements Sink, Source {
  head!: Head;
  complete = false;
  readonly #entries: Entry[] = [];
  #at = 0;

  get records(): number {
    return this.#entries.length;
  }
  begin(head: Head): void {
    this.head = head;
  }
  add(entry: Entry): void {
    this.#entries.push(entry);
  }
  end(): void {
    this.complete = true;
  }
  next(): Entry | undefined {
    return this.#entries[this.#at++];
  }
  close(): void {}
}

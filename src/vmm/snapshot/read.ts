/** Reads a snapshot from its file. Opening one checks all but the pages, and costs the same for any size of guest. */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { integer, PAGE_SIZE as PAGE } from '../../hypervisor/args.ts';
import { closed, outOfRange } from '../../hypervisor/errors.ts';
import { viewOf } from '../../uapi/layout.ts';
import {
  At,
  bitmapBytes,
  crc32,
  digestOf,
  FORMAT_VERSION,
  MAGIC,
  MAX_HEAD,
  type MemoryHead,
  pageAligned,
  unreadable,
} from './format.ts';
import { type MachineState, parseState } from './schema.ts';

/** The contents of one of a machine's memories. Pages have 4096 bytes. */
export interface SnapshotMemory {
  /** Its size, in pages of 4096 bytes. */
  readonly pages: number;
  /** Pages that are in the file; the others are all zeroes. */
  readonly stored: number;
  /** Whether the page is in the file; if not, it is all zeroes. */
  isStored(page: number): boolean;
  /**
   * The contents of pages, checked.
   * @throws RangeError ERR_KVM_INVALID_ARG; VmexitError ERR_KVM_SNAPSHOT for a page that was altered, by its number;
   *   ERR_KVM_CLOSED
   */
  read(first: number, count: number): Uint8Array<ArrayBuffer>;
  /** Runs of stored pages, in order, of at most `most` pages each. */
  runs(most: number): Iterable<{ readonly first: number; readonly count: number }>;
}

/** A snapshot's file, open for reading. */
export interface Snapshot extends Disposable {
  /** The file, as it was given. */
  readonly path: string;
  /** All of the machine but its memory. */
  readonly state: MachineState;
  /** In the order of the state's sizes. */
  readonly memories: readonly SnapshotMemory[];
  /** Idempotent. */
  close(): void;
}

/**
 * Opens a snapshot's file and checks all of it but the pages, which are checked as they are read. It costs the same for
 * any size of guest.
 * @throws VmexitError ERR_KVM_SNAPSHOT that names the file, what is wrong with it and what to do: it is not there, no
 *   snapshot, truncated, altered, or of another version
 */
export function openSnapshot(path: string): Snapshot {
  const file = new File(path);
  try {
    return open(file);
  } catch (error) {
    file.close();
    throw error;
  }
}

const ALTERED = 'take the snapshot again, or another copy of the file';

class File {
  readonly path: string;
  readonly size: number;
  #fd: number | undefined;

  constructor(path: string) {
    this.path = path;
    try {
      this.#fd = openSync(path, 'r');
    } catch (cause) {
      throw unreadable(path, `it cannot be opened (${(cause as NodeJS.ErrnoException).code})`, { cause });
    }
    const stat = fstatSync(this.#fd);
    this.size = stat.size;
    if (stat.isFile()) return;
    this.close();
    throw unreadable(path, 'it is no file');
  }

  /** Exactly these bytes. */
  read(offset: number, into: Uint8Array): void {
    if (this.#fd === undefined) throw closed('snapshot');
    for (let at = 0; at < into.length; ) {
      let got: number;
      try {
        got = readSync(this.#fd, into, at, into.length - at, offset + at);
      } catch (cause) {
        const { code } = cause as NodeJS.ErrnoException;
        throw unreadable(this.path, `reading it fails (${code})`, { cause });
      }
      if (got === 0) throw unreadable(this.path, `it was truncated while it was in use: ${ALTERED}`);
      at += got;
    }
  }

  close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }
}

function open(file: File): Snapshot {
  const { path } = file;
  const prefix = new Uint8Array(At.HEAD);
  if (file.size < prefix.length)
    throw unreadable(path, `it has ${file.size} bytes, and is no snapshot: ${ALTERED}`);
  file.read(0, prefix);
  const view = viewOf(prefix);
  if (!MAGIC.every((byte, i) => prefix[i] === byte)) throw unreadable(path, 'it is no snapshot of vmexit');
  const version = view.getUint32(At.VERSION, true);
  if (version !== FORMAT_VERSION) {
    const remedy = 'use the vmexit that wrote it';
    throw unreadable(
      path,
      `it is of version ${version}, and this vmexit reads version ${FORMAT_VERSION}: ${remedy}`,
    );
  }
  const wanted = Number(view.getBigUint64(At.FILE_SIZE, true));
  if (wanted !== file.size) {
    const how = file.size < wanted ? 'truncated' : 'altered';
    throw unreadable(path, `it is ${how}: it has ${file.size} bytes, and should have ${wanted}: ${ALTERED}`);
  }
  const headSize = view.getUint32(At.HEAD_SIZE, true);
  const altered = (what: string) => unreadable(path, `its ${what}: ${ALTERED}`);
  if (headSize > MAX_HEAD || At.HEAD + headSize > file.size) throw altered('head does not fit into it');
  const head = new Uint8Array(headSize);
  file.read(At.HEAD, head);

  // What the head says is believed when the digest is right, and that covers the bitmaps, whose sizes it tells.
  const parsed = parseJson(head) as { state?: unknown; memories?: unknown } | undefined;
  const heads = memoryHeads(parsed?.memories);
  const bitmapsSize = heads?.reduce((sum, { size }) => sum + bitmapBytes(size), 0) ?? 0;
  const pagesAt = pageAligned(At.HEAD + headSize + bitmapsSize);
  const before = new Uint8Array(heads !== undefined && pagesAt <= file.size ? pagesAt : At.HEAD);
  file.read(0, before);
  if (
    heads === undefined ||
    before.length !== pagesAt ||
    digestOf(before).compare(before, At.DIGEST, At.HEAD) !== 0
  )
    throw altered('head or bitmaps were altered');
  if (view.getUint32(At.PAGE_SIZE, true) !== PAGE) throw altered(`pages are not of ${PAGE} bytes`);

  const state = stateOf(path, parsed!.state);
  const stored = heads.reduce((sum, memory) => sum + memory.stored, 0);
  const sizes = state.vm.memories;
  if (heads.length !== sizes.length || !heads.every(({ size }, i) => size === sizes[i]))
    throw altered('memories are not those of its state');
  const crcsAt = pagesAt + stored * PAGE;
  if (crcsAt + stored * 4 !== file.size) throw altered('size is not that of its pages');

  let bitmapAt = At.HEAD + headSize;
  let first = 0;
  const memories = heads.map(({ size, stored }, index) => {
    const bitmap = before.subarray(bitmapAt, bitmapAt + bitmapBytes(size));
    const memory = new StoredMemory(file, { bitmap, pages: size / PAGE, first, pagesAt, crcsAt, index });
    if (memory.stored !== stored) throw altered('bitmaps are not those of its pages');
    bitmapAt += bitmap.length;
    first += stored;
    return memory;
  });
  return {
    path,
    state,
    memories,
    close: () => file.close(),
    [Symbol.dispose]: () => file.close(),
  };
}

function parseJson(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return undefined;
  }
}

/** Of a file whose digest was not looked at yet: anything may be here. */
function memoryHeads(value: unknown): MemoryHead[] | undefined {
  if (!Array.isArray(value)) return undefined;
  const whole = (n: unknown) => Number.isSafeInteger(n) && (n as number) >= 0;
  const fits = value.every((one) => whole(one?.size) && one.size % PAGE === 0 && whole(one?.stored));
  return fits ? value : undefined;
}

function stateOf(path: string, value: unknown): MachineState {
  try {
    return parseState(value);
  } catch (cause) {
    throw unreadable(path, (cause as Error).message, { cause });
  }
}

/** Bits that are set in a byte. */
const ONES = Uint8Array.from({ length: 256 }, (_, byte) => {
  let ones = 0;
  for (let rest = byte; rest !== 0; rest &= rest - 1) ones++;
  return ones;
});
/** Bytes of the bitmap that share an entry of the table of ranks. */
const RANK_UNIT = 64;

interface Place {
  readonly bitmap: Uint8Array;
  readonly pages: number;
  /** Stored pages of the memories before this one. */
  readonly first: number;
  readonly pagesAt: number;
  readonly crcsAt: number;
  readonly index: number;
}

class StoredMemory implements SnapshotMemory {
  readonly pages: number;
  readonly stored: number;
  readonly #file: File;
  readonly #place: Place;
  /** Stored pages before each RANK_UNIT bytes of the bitmap. */
  readonly #ranks: Uint32Array;

  constructor(file: File, place: Place) {
    this.#file = file;
    this.#place = place;
    this.pages = place.pages;
    const { bitmap } = place;
    this.#ranks = new Uint32Array(Math.ceil(bitmap.length / RANK_UNIT));
    // Bits of the last byte that are no page's would be counted.
    let stored = (this.pages & 7) !== 0 && bitmap.at(-1)! >>> (this.pages & 7) !== 0 ? Number.NaN : 0;
    for (let i = 0; i < bitmap.length; i++) {
      if (i % RANK_UNIT === 0) this.#ranks[i / RANK_UNIT] = stored;
      stored += ONES[bitmap[i]!]!;
    }
    this.stored = stored;
  }

  isStored(page: number): boolean {
    integer('page', page, this.pages - 1);
    return this.#has(page);
  }
  #has(page: number): boolean {
    return (this.#place.bitmap[page >>> 3]! & (1 << (page & 7))) !== 0;
  }

  /** Stored pages of this memory before the page. */
  #rank(page: number): number {
    const { bitmap } = this.#place;
    const byte = page >>> 3;
    let rank = this.#ranks[Math.floor(byte / RANK_UNIT)] ?? this.stored;
    for (let i = byte - (byte % RANK_UNIT); i < byte; i++) rank += ONES[bitmap[i]!]!;
    return rank + ONES[(bitmap[byte] ?? 0) & ((1 << (page & 7)) - 1)]!;
  }

  *runs(
    most: number,
    from = 0,
    to = this.pages,
  ): Generator<{ readonly first: number; readonly count: number }> {
    for (let page = from; page < to; ) {
      if (!this.#has(page)) {
        // A byte of eight absent pages is passed at once.
        page += this.#place.bitmap[page >>> 3] === 0 ? 8 - (page & 7) : 1;
        continue;
      }
      const first = page;
      while (page < to && page - first < most && this.#has(page)) page++;
      yield { first, count: page - first };
    }
  }

  read(first: number, count: number): Uint8Array<ArrayBuffer> {
    integer('first', first, this.pages);
    integer('count', count, this.pages - first);
    if (count * PAGE > MAX_READ)
      throw outOfRange('count', count, `at most ${MAX_READ / PAGE} pages at a time`);
    const bytes = new Uint8Array(count * PAGE);
    for (const run of this.runs(count, first, first + count)) {
      const at = (run.first - first) * PAGE;
      this.#readStored(run.first, bytes.subarray(at, at + run.count * PAGE));
    }
    return bytes;
  }

  /** Pages that are stored one after the other. */
  #readStored(page: number, into: Uint8Array): void {
    const { first, pagesAt, crcsAt, index } = this.#place;
    const at = first + this.#rank(page);
    const count = into.length / PAGE;
    const crcs = new Uint8Array(count * 4);
    this.#file.read(pagesAt + at * PAGE, into);
    this.#file.read(crcsAt + at * 4, crcs);
    const view = viewOf(crcs);
    for (let i = 0; i < count; i++) {
      if (crc32(into.subarray(i * PAGE, (i + 1) * PAGE)) === view.getUint32(i * 4, true)) continue;
      throw unreadable(this.#file.path, `page ${page + i} of memory ${index} was altered: ${ALTERED}`);
    }
  }
}

/** Bytes that one read() gives at most. */
const MAX_READ = 2 ** 30;

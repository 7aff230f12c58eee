/** The pages of one memory in a snapshot's file, and in those that it builds on. */
import { integer, PAGE_SIZE as PAGE } from '../../hypervisor/args.ts';
import { outOfRange } from '../../hypervisor/errors.ts';
import { viewOf } from '../../uapi/layout.ts';
import { ALTERED, type SnapshotFile } from './file.ts';
import { crc32, unreadable } from './format.ts';

/** The contents of one of a machine's memories. Pages have 4096 bytes. */
export interface SnapshotMemory {
  /** Its size, in pages of 4096 bytes. */
  readonly pages: number;
  /** Pages that are in the file, or in those that it builds on; the others are all zeroes. */
  readonly stored: number;
  /** Whether the page is in one of the files; if not, it is all zeroes. */
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

/** Bits that are set in a byte. */
const ONES = Uint8Array.from({ length: 256 }, (_, byte) => {
  let ones = 0;
  for (let rest = byte; rest !== 0; rest &= rest - 1) ones++;
  return ones;
});
export const onesIn = (bits: Uint8Array): number => bits.reduce((sum, byte) => sum + ONES[byte]!, 0);
/** Bytes of the bitmap that share an entry of the table of ranks. */
const RANK_UNIT = 64;
const has = (bits: Uint8Array, page: number): boolean => (bits[page >>> 3]! & (1 << (page & 7))) !== 0;

/** Where a file has the pages of a memory. */
export interface Place {
  /** A bit for each page that is stored. */
  readonly bitmap: Uint8Array;
  /** A bit for each page that is not as in the file below; undefined of a file that holds all. */
  readonly changed: Uint8Array | undefined;
  readonly pages: number;
  /** Stored pages of the memories before this one. */
  readonly first: number;
  readonly pagesAt: number;
  readonly crcsAt: number;
  readonly index: number;
}

/** What one file has of a memory. */
export class Layer {
  readonly place: Place;
  readonly stored: number;
  readonly #file: SnapshotFile;
  /** Stored pages before each RANK_UNIT bytes of the bitmap. */
  readonly #ranks: Uint32Array;

  constructor(file: SnapshotFile, place: Place) {
    this.#file = file;
    this.place = place;
    const { bitmap, pages } = place;
    this.#ranks = new Uint32Array(Math.ceil(bitmap.length / RANK_UNIT));
    // Bits of the last byte that are no page's would be counted.
    let stored = (pages & 7) !== 0 && bitmap.at(-1)! >>> (pages & 7) !== 0 ? Number.NaN : 0;
    for (let i = 0; i < bitmap.length; i++) {
      if (i % RANK_UNIT === 0) this.#ranks[i / RANK_UNIT] = stored;
      stored += ONES[bitmap[i]!]!;
    }
    this.stored = stored;
  }

  /** Whether what the page holds is told here, and not below. */
  owns(page: number): boolean {
    const { changed } = this.place;
    return changed === undefined || has(changed, page);
  }

  /** Whether it owns what it stores. */
  get ownsAll(): boolean {
    const { bitmap, changed } = this.place;
    return changed === undefined || bitmap.every((byte, i) => (byte & ~changed[i]!) === 0);
  }

  /** Stored pages of this memory before the page. */
  #rank(page: number): number {
    const { bitmap } = this.place;
    const byte = page >>> 3;
    let rank = this.#ranks[Math.floor(byte / RANK_UNIT)] ?? this.stored;
    for (let i = byte - (byte % RANK_UNIT); i < byte; i++) rank += ONES[bitmap[i]!]!;
    return rank + ONES[(bitmap[byte] ?? 0) & ((1 << (page & 7)) - 1)]!;
  }

  /** Pages that are stored one after the other. */
  read(page: number, into: Uint8Array): void {
    const { first, pagesAt, crcsAt, index } = this.place;
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

export class StoredMemory implements SnapshotMemory {
  readonly pages: number;
  readonly stored: number;
  /** The newest first; the last holds all, or what is below it is zeroes. */
  readonly #layers: readonly Layer[];
  /** A bit for each page that is stored in the layer that owns it. */
  readonly #bitmap: Uint8Array;

  constructor(layers: readonly Layer[]) {
    const { pages, bitmap } = layers[0]!.place;
    this.pages = pages;
    this.#layers = layers;
    this.#bitmap = layers.length === 1 ? bitmap : merged(layers);
    this.stored = onesIn(this.#bitmap);
  }

  isStored(page: number): boolean {
    integer('page', page, this.pages - 1);
    return has(this.#bitmap, page);
  }

  *runs(
    most: number,
    from = 0,
    to = this.pages,
  ): Generator<{ readonly first: number; readonly count: number }> {
    for (let page = from; page < to; ) {
      if (!has(this.#bitmap, page)) {
        // A byte of eight absent pages is passed at once.
        page += this.#bitmap[page >>> 3] === 0 ? 8 - (page & 7) : 1;
        continue;
      }
      const first = page;
      while (page < to && page - first < most && has(this.#bitmap, page)) page++;
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
      const end = run.first + run.count;
      for (let page = run.first; page < end; ) {
        const layer = this.#ownerOf(page);
        const from = page++;
        while (page < end && (this.#layers.length === 1 || this.#ownerOf(page) === layer)) page++;
        layer.read(from, bytes.subarray((from - first) * PAGE, (page - first) * PAGE));
      }
    }
    return bytes;
  }

  #ownerOf(page: number): Layer {
    return this.#layers.find((layer) => layer.owns(page))!;
  }
}

/** From the oldest on, each has its say of the pages that it owns. */
function merged(layers: readonly Layer[]): Uint8Array {
  const all = new Uint8Array(layers[0]!.place.bitmap.length);
  for (const { place } of layers.toReversed())
    for (let i = 0; i < all.length; i++)
      all[i] = (all[i]! & ~(place.changed?.[i] ?? 0xff)) | place.bitmap[i]!;
  return all;
}

/** Bytes that one read() gives at most. */
const MAX_READ = 2 ** 30;

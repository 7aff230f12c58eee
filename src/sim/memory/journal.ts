/**
 * What the thread that owns a VM has done to it, for the threads that have a copy: entries as lines of JSON, in the arena. Who
 * has read as far as it goes has the same VM. When it has become long it begins anew, with what makes the VM as it is now.
 */
import { type Arena, PAGE } from '../arena.ts';

/** An operation by its name, and what it is given. */
export type Entry = readonly [name: string, ...given: unknown[]];

/** Words: the page where it begins, its bytes, its pages, and how often it has begun anew. */
const [AT, LENGTH, PAGES, EPOCH] = [0, 1, 2, 3] as const;
export const JOURNAL_WORDS = 4;
const FIRST = 16;
/** Pages of one that is worth beginning anew; at least twice as long as it was then. */
const LONG = 64;

export class Journal {
  readonly #arena: Arena;
  readonly #words: Int32Array;
  /** How far this thread has read. */
  #read = 0;
  #epoch = 0;
  /** Pages at which its owner begins it anew. */
  #long = LONG;

  constructor(arena: Arena, words: Int32Array) {
    this.#arena = arena;
    this.#words = words;
  }

  /** What it begins with. False when the arena is full. */
  begin(entries: Iterable<Entry>): boolean {
    const words = this.#words;
    const old = words[AT]! * PAGE;
    const text = [...entries].map(lineOf).join('');
    const pages = Math.max(FIRST, Math.ceil((text.length * 2) / PAGE));
    const at = this.#arena.allocate(pages * PAGE);
    if (at === undefined) return false;
    if (old !== 0) this.#arena.free(old, words[PAGES]! * PAGE);
    words[AT] = at / PAGE;
    words[PAGES] = pages;
    words[LENGTH] = 0;
    words[EPOCH]!++;
    this.#long = Math.max(LONG, pages * 2);
    this.#put(text);
    return true;
  }

  /** By its owner, with the lock. @param all what makes the VM as it is now, this entry included */
  tell(entry: Entry, all: () => Iterable<Entry>): void {
    const text = lineOf(entry);
    const words = this.#words;
    const room = words[PAGES]! * PAGE - words[LENGTH]!;
    if (text.length <= room) this.#put(text);
    else if (words[PAGES]! >= this.#long || !this.#grow(text.length)) {
      if (!this.begin(all())) throw new RangeError('no memory is left to tell other threads of a change');
    } else this.#put(text);
  }
  #grow(more: number): boolean {
    const words = this.#words;
    const [at, length, pages] = [words[AT]! * PAGE, words[LENGTH]!, words[PAGES]!];
    const larger = Math.max(pages * 2, Math.ceil((length + more) / PAGE));
    const place = this.#arena.allocate(larger * PAGE);
    if (place === undefined) return false;
    this.#arena.views.u8.copyWithin(place, at, at + length);
    words[AT] = place / PAGE;
    words[PAGES] = larger;
    this.#arena.free(at, pages * PAGE);
    return true;
  }
  #put(text: string): void {
    const words = this.#words;
    const { u8 } = this.#arena.views;
    const at = words[AT]! * PAGE + words[LENGTH]!;
    for (let i = 0; i < text.length; i++) u8[at + i] = text.charCodeAt(i);
    words[LENGTH] = words[LENGTH]! + text.length;
  }

  /** Whether there is something to read. With the lock. */
  get isBehind(): boolean {
    return this.#epoch !== this.#words[EPOCH] || this.#read !== this.#words[LENGTH];
  }
  /** What was told since. @param anew it has begun anew: what is known so far counts no more */
  read(anew: () => void): Entry[] {
    const words = this.#words;
    this.#arena.refresh();
    if (this.#epoch !== words[EPOCH]) {
      anew();
      this.#epoch = words[EPOCH]!;
      this.#read = 0;
    }
    const from = words[AT]! * PAGE;
    const bytes = this.#arena.views.u8.slice(from + this.#read, from + words[LENGTH]!);
    this.#read = words[LENGTH]!;
    let text = '';
    for (let i = 0; i < bytes.length; i += PAGE) text += String.fromCharCode(...bytes.subarray(i, i + PAGE));
    return text
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => JSON.parse(line, (_, value) => valueIn(value)) as Entry);
  }

  free(): void {
    if (this.#words[AT] !== 0) this.#arena.free(this.#words[AT]! * PAGE, this.#words[PAGES]! * PAGE);
  }
}

/** JSON has neither infinity nor numbers of 64 bits. */
const lineOf = (entry: Entry): string =>
  `${JSON.stringify(entry, (_, value) =>
    value === Number.POSITIVE_INFINITY ? '#inf' : typeof value === 'bigint' ? `#${value}` : value,
  )}\n`;
const valueIn = (value: unknown): unknown =>
  typeof value !== 'string' || !value.startsWith('#')
    ? value
    : value === '#inf'
      ? Number.POSITIVE_INFINITY
      : BigInt(value.slice(1));

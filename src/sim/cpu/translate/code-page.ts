/** A page of the arena with code in it: where in the page that is, and what bytes it was made of. */
import { type Arena, PAGE } from '../../arena.ts';

/** In the mask: the byte belongs to an instruction. */
const CODE = 0xff;

export class CodePage<Entry, Unit> {
  /** Where it begins in the arena. */
  readonly host: number;
  readonly entries = new Map<number, Entry>();
  /** All that was made of its bytes: what began in it or ended in it, and units with blocks of it. */
  readonly made: Entry[] = [];
  readonly units = new Set<Unit>();
  /** Its bytes were compared with memory in this run. */
  checked: number;
  stale = false;
  readonly #arena: Arena;
  /** What code was made of; the rest means nothing. */
  readonly #bytes = new Uint8Array(PAGE);
  readonly #mask = new Uint8Array(PAGE);
  readonly #words = new Int32Array(this.#bytes.buffer);
  readonly #masks = new Int32Array(this.#mask.buffer);
  /** From where to where there is code in it. */
  #low = PAGE;
  #high = 0;
  #map: number | undefined;

  constructor(arena: Arena, host: number, checked: number) {
    this.#arena = arena;
    this.host = host;
    this.checked = checked;
  }

  /** There is code from an offset on, made of these bytes. */
  cover(start: number, bytes: Uint8Array): void {
    const end = start + bytes.length;
    for (let i = start; i < end; i++) {
      // Bytes of other code stay as that was made: where memory has others by now, the comparison must find it.
      if (this.#mask[i] === 0) this.#bytes[i] = bytes[i - start]!;
    }
    this.#mask.fill(CODE, start, end);
    if (this.#map !== undefined) this.#arena.views.u8.fill(CODE, this.#map + start, this.#map + end);
    this.#low = Math.min(this.#low, start);
    this.#high = Math.max(this.#high, end);
  }

  /** What code was made of. */
  bytes(start: number, end: number): Uint8Array {
    return this.#bytes.subarray(start, end);
  }

  /** Whether all code is what memory has. */
  holds(): boolean {
    const { i32 } = this.#arena.views;
    const end = this.#high / 4;
    for (let i = this.#low >> 2, j = this.host / 4 + i; i < end; i++, j++) {
      if (((this.#words[i]! ^ i32[j]!) & this.#masks[i]!) !== 0) return false;
    }
    return true;
  }

  /** How many bytes from an offset on are no code's: to the end of the page, or fewer. */
  clear(offset: number): number {
    const at = offset < this.#high ? this.#mask.indexOf(CODE, offset) : -1;
    return (at < 0 ? PAGE : at) - offset;
  }

  /** The mask in the arena, where translated code reads it; undefined when the arena is full. */
  get map(): number | undefined {
    if (this.#map === undefined) {
      this.#map = this.#arena.allocate(PAGE);
      if (this.#map !== undefined) this.#arena.views.u8.set(this.#mask, this.#map);
    }
    return this.#map;
  }

  /** Its code is not executed any more. Nobody may use its map from now on. */
  drop(): void {
    this.stale = true;
    if (this.#map !== undefined) this.#arena.free(this.#map, PAGE);
    this.#map = undefined;
  }
}

/**
 * What a replay's memory holds, as far as the recording tells: its recorded pages, and what went through the waist. Recorder
 * and replay keep one each, by the same calls, so that a page that is as it was is told in a byte.
 */
import { PAGE_SIZE as PAGE } from '../hypervisor/args.ts';

const WORDS = PAGE / 4;

export class PageModel {
  /** Those that are not known to be zeroes. */
  readonly #pages = new Map<number, Int32Array>();

  get pages(): Iterable<number> {
    return this.#pages.keys();
  }

  /** Whether the page holds these words. */
  holds(page: number, words: Int32Array): boolean {
    const known = this.#pages.get(page);
    if (known === undefined) return words.every((word) => word === 0);
    for (let i = 0; i < WORDS; i++) if (known[i] !== words[i]) return false;
    return true;
  }

  #page(page: number): Int32Array {
    let words = this.#pages.get(page);
    if (words === undefined) {
      words = new Int32Array(WORDS);
      this.#pages.set(page, words);
    }
    return words;
  }

  /** Any bytes, from an offset on. */
  write(offset: number, bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; ) {
      const at = offset + done;
      const within = at % PAGE;
      const part = bytes.subarray(done, done + PAGE - within);
      new Uint8Array(this.#page((at - within) / PAGE).buffer).set(part, within);
      done += part.length;
    }
  }

  /** Any bytes, from an offset on. */
  read(offset: number, into: Uint8Array): void {
    for (let done = 0; done < into.length; ) {
      const within = (offset + done) % PAGE;
      const part = into.subarray(done, done + PAGE - within);
      part.set(this.bytes((offset + done - within) / PAGE).subarray(within, within + part.length));
      done += part.length;
    }
  }

  /** Whole pages become zeroes. */
  punch(offset: number, size: number): void {
    if (size / PAGE > this.#pages.size) {
      for (const page of this.#pages.keys())
        if (page * PAGE >= offset && page * PAGE < offset + size) this.#pages.delete(page);
      return;
    }
    for (let page = offset / PAGE; page < (offset + size) / PAGE; page++) this.#pages.delete(page);
  }

  /** A page's bytes as they are known. */
  bytes(page: number): Uint8Array {
    return new Uint8Array((this.#pages.get(page) ?? new Int32Array(WORDS)).buffer);
  }
}

/** Memory that VMM and kernel both write without a call: kvm_run with the pages after it, and rings. */
import type { HandleId, Value } from './codec.ts';

const NONE: readonly Value[] = [];
/** kvm_run and the page of port data, in words: what follows is the ring of coalesced writes. */
const PAGES = (2 * 4096) / 4;

/** A mapping, and what it held when it was looked at last. */
export class Mapping {
  readonly bytes: Uint8Array;
  readonly #words: Int32Array;
  readonly #shadow: Int32Array;

  /** Begins as zeroes: the first changes() tells what is there. */
  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.#words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length >>> 2);
    this.#shadow = new Int32Array(this.#words.length);
  }

  /**
   * What has changed since, as pairs of an offset and the bytes there.
   * @param some only of kvm_run and port data: no writes are coalesced
   */
  changes(some = false): readonly Value[] {
    const words = this.#words;
    const shadow = this.#shadow;
    const length = some ? Math.min(PAGES, words.length) : words.length;
    let found: Value[] | undefined;
    for (let i = 0; i < length; i++) {
      if (words[i] === shadow[i]) continue;
      let end = i + 1;
      while (end < length && words[end] !== shadow[end]) end++;
      found ??= [];
      shadow.set(words.subarray(i, end), i);
      found.push(i * 4, this.bytes.slice(i * 4, end * 4));
      i = end;
    }
    return found ?? NONE;
  }

  /** Puts such changes in place, as nobody's here. */
  apply(changes: readonly Value[]): void {
    const shadow = new Uint8Array(this.#shadow.buffer);
    for (let i = 0; i < changes.length; i += 2) {
      const at = changes[i] as number;
      const bytes = changes[i + 1] as Uint8Array;
      this.bytes.set(bytes, at);
      shadow.set(bytes, at);
    }
  }
}

/** What may have such memory: a vCPU, or a ring, which is of one. */
interface Mapped {
  readonly id: HandleId;
  readonly mapping?: Mapping;
  readonly of?: Mapped;
}

/**
 * What has been written since to the memory of a vCPU and to that of its rings.
 * @param coalesces whether the ring of coalesced writes is in use, behind kvm_run
 */
export function written(mapped: Iterable<Mapped>, vcpu: Mapped, coalesces: boolean): Value[] {
  const changed: Value[] = [];
  for (const { id, mapping, of } of mapped) {
    if (id !== vcpu.id && of !== vcpu) continue;
    const changes = mapping!.changes(of === undefined && !coalesces);
    if (changes.length > 0) changed.push([id, ...changes]);
  }
  return changed;
}

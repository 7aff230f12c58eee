/** How values lie in a recording: a tag each, and whole numbers as varints. */

/** A handle of a recorded backend, by the number that its maker's record gave it. */
export class HandleId {
  readonly id: number;
  constructor(id: number) {
    this.id = id;
  }
}

/** What a record can hold. */
export type Value =
  | undefined
  | null
  | boolean
  | number
  | bigint
  | string
  | Uint8Array
  | HandleId
  | readonly Value[]
  | { readonly [name: string]: Value };

const Tag = {
  UNDEFINED: 0,
  NULL: 1,
  FALSE: 2,
  TRUE: 3,
  WHOLE: 4,
  NEGATIVE: 5,
  DOUBLE: 6,
  BIGINT: 7,
  STRING: 8,
  BYTES: 9,
  HANDLE: 10,
  LIST: 11,
  OBJECT: 12,
} as const;

const utf8 = new TextEncoder();
const text = new TextDecoder();

/** Bytes that grow. */
export class Writer {
  #bytes = new Uint8Array(4096);
  #view = new DataView(this.#bytes.buffer);
  #length = 0;

  get length(): number {
    return this.#length;
  }
  /** What was written, until something else is. */
  get bytes(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }
  clear(): void {
    this.#length = 0;
  }

  #room(more: number): void {
    if (this.#length + more <= this.#bytes.length) return;
    const bytes = new Uint8Array(Math.max(this.#bytes.length * 2, this.#length + more));
    bytes.set(this.bytes);
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer);
  }

  byte(value: number): void {
    this.#room(1);
    this.#bytes[this.#length++] = value;
  }
  /** A whole number from 0 to 2^53 - 1: seven bits a byte, the lowest first. */
  varint(value: number): void {
    this.#room(8);
    let rest = value;
    while (rest > 0x7f) {
      this.#bytes[this.#length++] = (rest % 0x80) | 0x80;
      rest = Math.floor(rest / 0x80);
    }
    this.#bytes[this.#length++] = rest;
  }
  raw(bytes: Uint8Array): void {
    this.#room(bytes.length);
    this.#bytes.set(bytes, this.#length);
    this.#length += bytes.length;
  }
  /** With its length before it. */
  sized(bytes: Uint8Array): void {
    this.varint(bytes.length);
    this.raw(bytes);
  }

  value(value: Value): void {
    if (value === undefined) this.byte(Tag.UNDEFINED);
    else if (value === null) this.byte(Tag.NULL);
    else if (typeof value === 'boolean') this.byte(value ? Tag.TRUE : Tag.FALSE);
    else if (typeof value === 'number') this.#number(value);
    else if (typeof value === 'bigint') this.#tagged(Tag.BIGINT, utf8.encode(value.toString(16)));
    else if (typeof value === 'string') this.#tagged(Tag.STRING, utf8.encode(value));
    else if (value instanceof Uint8Array) this.#tagged(Tag.BYTES, value);
    else this.#compound(value);
  }
  #tagged(tag: number, bytes: Uint8Array): void {
    this.byte(tag);
    this.sized(bytes);
  }
  #number(value: number): void {
    if (Number.isSafeInteger(value) && !Object.is(value, -0)) {
      this.byte(value < 0 ? Tag.NEGATIVE : Tag.WHOLE);
      this.varint(Math.abs(value));
      return;
    }
    this.byte(Tag.DOUBLE);
    this.#room(8);
    this.#view.setFloat64(this.#length, value, true);
    this.#length += 8;
  }
  #compound(value: HandleId | readonly Value[] | { readonly [name: string]: Value }): void {
    if (value instanceof HandleId) {
      this.byte(Tag.HANDLE);
      this.varint(value.id);
    } else if (Array.isArray(value)) {
      this.byte(Tag.LIST);
      this.list(value);
    } else {
      const entries = Object.entries(value);
      this.byte(Tag.OBJECT);
      this.varint(entries.length);
      for (const [name, item] of entries) {
        this.sized(utf8.encode(name));
        this.value(item);
      }
    }
  }
  list(values: readonly Value[]): void {
    this.varint(values.length);
    for (const value of values) this.value(value);
  }
}

/** Reads what a Writer has written. What is no such thing ends in a RangeError: the file's checksums find it before. */
export class Reader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  get atEnd(): boolean {
    return this.#at >= this.#bytes.length;
  }

  byte(): number {
    return this.#view.getUint8(this.#at++);
  }
  varint(): number {
    let value = 0;
    for (let unit = 1; ; unit *= 0x80) {
      const byte = this.byte();
      value += (byte & 0x7f) * unit;
      if (byte < 0x80) return value;
    }
  }
  /** A view of the bytes, not a copy. */
  sized(): Uint8Array {
    const length = this.varint();
    if (this.#at + length > this.#bytes.length) throw new RangeError('a record ends beyond its block');
    this.#at += length;
    return this.#bytes.subarray(this.#at - length, this.#at);
  }

  value(): Value {
    const tag = this.byte();
    const read = readers[tag];
    if (read === undefined) throw new RangeError(`no value has the tag ${tag}`);
    return read(this);
  }
  list(): Value[] {
    return Array.from({ length: this.varint() }, () => this.value());
  }
  double(): number {
    this.#at += 8;
    return this.#view.getFloat64(this.#at - 8, true);
  }
}

const readers: { readonly [tag: number]: (from: Reader) => Value } = {
  [Tag.UNDEFINED]: () => undefined,
  [Tag.NULL]: () => null,
  [Tag.FALSE]: () => false,
  [Tag.TRUE]: () => true,
  [Tag.WHOLE]: (from) => from.varint(),
  [Tag.NEGATIVE]: (from) => -from.varint(),
  [Tag.DOUBLE]: (from) => from.double(),
  [Tag.BIGINT]: (from) => {
    const hex = text.decode(from.sized());
    return hex.startsWith('-') ? -BigInt(`0x${hex.slice(1)}`) : BigInt(`0x${hex}`);
  },
  [Tag.STRING]: (from) => text.decode(from.sized()),
  [Tag.BYTES]: (from) => from.sized(),
  [Tag.HANDLE]: (from) => new HandleId(from.varint()),
  [Tag.LIST]: (from) => from.list(),
  [Tag.OBJECT]: (from) => {
    const object: { [name: string]: Value } = {};
    for (let left = from.varint(); left > 0; left--) object[text.decode(from.sized())] = from.value();
    return object;
  },
};

/** Lent to one list at a time: a getter of a caller's value may encode another one meanwhile. */
const writers: Writer[] = [];

/** A list of values as its bytes. */
export function encoded(values: readonly Value[]): Uint8Array {
  const writer = writers.pop() ?? new Writer();
  writer.list(values);
  const bytes = writer.bytes.slice();
  writer.clear();
  // One that has grown to a guest's memory is not kept.
  if (bytes.length < KEPT) writers.push(writer);
  return bytes;
}
const KEPT = 2 ** 20;

/** The list of values that the bytes are. */
export const decoded = (bytes: Uint8Array): Value[] => new Reader(bytes).list();

export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** Up to so many bytes a record has as they are; of more it has their number and a digest. */
const WHOLE = 64;

/** Bytes that a VMM gives and a replay has by itself: to be compared, not kept. */
export function fingerprint(bytes: Uint8Array): Value {
  if (bytes.length <= WHOLE) return bytes;
  let a = 0x811c9dc5;
  let b = 0x9e3779b9;
  // A copy only where the bytes do not lie on words.
  const aligned = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice();
  const words = new Int32Array(aligned.buffer, aligned.byteOffset, aligned.length >>> 2);
  for (let i = 0; i < words.length; i++) {
    a = Math.imul(a ^ words[i]!, 0x0100_0193);
    b = Math.imul(b + words[i]!, 0x85eb_ca6b) ^ (b >>> 13);
  }
  for (let i = words.length * 4; i < bytes.length; i++) {
    a = Math.imul(a ^ bytes[i]!, 0x0100_0193);
    b = Math.imul(b + bytes[i]!, 0x85eb_ca6b) ^ (b >>> 13);
  }
  return [bytes.length, a >>> 0, b >>> 0];
}

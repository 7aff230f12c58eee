/** WebAssembly's binary format, as far as translated code needs it (WebAssembly specification, 5). */

export const Wasm = {
  block: 0x02,
  loop: 0x03,
  if: 0x04,
  else: 0x05,
  end: 0x0b,
  br: 0x0c,
  brIf: 0x0d,
  brTable: 0x0e,
  return: 0x0f,
  call: 0x10,
  select: 0x1b,
  localGet: 0x20,
  localSet: 0x21,
  localTee: 0x22,
  globalGet: 0x23,
  i32Load: 0x28,
  i64Load: 0x29,
  i32Load8u: 0x2d,
  i32Load16u: 0x2f,
  i32Store: 0x36,
  i64Store: 0x37,
  i32Store8: 0x3a,
  i32Store16: 0x3b,
  i32Const: 0x41,
  i64Const: 0x42,
  void: 0x40,
  i32: 0x7f,
  i64: 0x7e,
} as const;

/** Bytes that grow. */
export class Bytes {
  #bytes = new Uint8Array(64);
  length = 0;

  /** What there is so far, until more comes. */
  get all(): Uint8Array<ArrayBuffer> {
    return this.#bytes.subarray(0, this.length);
  }
  #reserve(more: number): void {
    if (this.length + more <= this.#bytes.length) return;
    const larger = new Uint8Array(Math.max(this.#bytes.length * 2, this.length + more));
    larger.set(this.all);
    this.#bytes = larger;
  }
  #put(byte: number): void {
    if (this.length === this.#bytes.length) this.#reserve(1);
    this.#bytes[this.length++] = byte;
  }

  op(...bytes: number[]): this {
    for (let i = 0; i < bytes.length; i++) this.#put(bytes[i]!);
    return this;
  }
  /** LEB128, unsigned. */
  u(value: number): this {
    let rest = value >>> 0;
    for (; rest >= 0x80; rest >>>= 7) this.#put((rest & 0x7f) | 0x80);
    this.#put(rest);
    return this;
  }
  /** LEB128, signed. */
  s(value: number): this {
    let rest = value | 0;
    for (;;) {
      const byte = rest & 0x7f;
      rest >>= 7;
      const done = (rest === 0 && (byte & 0x40) === 0) || (rest === -1 && (byte & 0x40) !== 0);
      this.#put(done ? byte : byte | 0x80);
      if (done) return this;
    }
  }
  s64(value: bigint): this {
    if (value >= -0x8000_0000n && value <= 0x7fff_ffffn) return this.s(Number(value));
    let rest = value;
    for (;;) {
      const byte = Number(rest & 0x7fn);
      rest >>= 7n;
      const done = (rest === 0n && (byte & 0x40) === 0) || (rest === -1n && (byte & 0x40) !== 0);
      this.#put(done ? byte : byte | 0x80);
      if (done) return this;
    }
  }
  append(other: Bytes): this {
    this.#reserve(other.length);
    this.#bytes.set(other.all, this.length);
    this.length += other.length;
    return this;
  }
  name(text: string): this {
    this.u(text.length);
    for (const char of text) this.#put(char.charCodeAt(0));
    return this;
  }
  section(id: number, contents: Bytes): this {
    return this.op(id).u(contents.length).append(contents);
  }
}

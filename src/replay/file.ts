/**
 * The file of a recording, little-endian:
 *
 *     0        magic, u32 version, u32 bytes of the head, u32 their CRC-32
 *     20       the head: JSON
 *              blocks, each u32 bytes as they are stored, u32 bytes of records, u32 records, u32 CRC-32 of the bytes as they
 *              are stored, u32 CRC-32 of these four words, and those bytes: the records, deflated
 *
 * A record is a byte for its kind, and two lists of values with their lengths before them. A block without bytes, of
 * 0xffffffff records, is the end; a file without one was cut off.
 */
import { closeSync, fstatSync, openSync, readSync, writeSync } from 'node:fs';
import { crc32, deflateRawSync, inflateRawSync } from 'node:zlib';
import { VmexitError } from '../hypervisor/errors.ts';
import { Reader, Writer } from './codec.ts';
import { ReplayError } from './errors.ts';
import { type Entry, type Head, kinds, numberOf, type Sink, type Source } from './records.ts';

const MAGIC = new TextEncoder().encode('vmexit\x1b\n');
const VERSION = 1;
const PREFIX = 20;
const BLOCK = 20;
/** Bytes of records after which a block is written. */
const BLOCK_SIZE = 2 ** 18;
/** Of a block, as a check: one record has no more than a guest's memory. */
const MAX_BLOCK = 2 ** 31 - 1;
const MAX_HEAD = 2 ** 20;
const END = 0xffff_ffff;
/** The fastest: most of what is written are zeroes. */
const LEVEL = 1;

const codeOf = (cause: unknown): string => (cause as NodeJS.ErrnoException).code ?? String(cause);

/** Writes a recording. What is not in a whole block yet is written when the process ends. */
export class RecordingFile implements Sink {
  readonly #path: string;
  readonly #records = new Writer();
  #count = 0;
  #fd: number | undefined;

  /** @throws VmexitError ERR_KVM_RECORDING where it cannot be made */
  constructor(path: string) {
    this.#path = path;
    // Guest memory is in it.
    this.#fd = this.#try(() => openSync(path, 'w', 0o600));
    process.on('exit', this.#atExit);
  }

  #try<T>(use: () => T): T {
    try {
      return use();
    } catch (cause) {
      throw new VmexitError(
        'ERR_KVM_RECORDING',
        `recording ${this.#path}: it cannot be written (${codeOf(cause)})`,
        {
          cause,
        },
      );
    }
  }
  #write(bytes: Uint8Array): void {
    const fd = this.#fd!;
    for (let at = 0; at < bytes.length; ) at += this.#try(() => writeSync(fd, bytes, at));
  }

  begin(head: Head): void {
    const json = new TextEncoder().encode(JSON.stringify(head));
    const prefix = new Uint8Array(PREFIX);
    const view = new DataView(prefix.buffer);
    prefix.set(MAGIC);
    view.setUint32(8, VERSION, true);
    view.setUint32(12, json.length, true);
    view.setUint32(16, crc32(json), true);
    this.#write(prefix);
    this.#write(json);
  }

  add({ kind, given, got }: Entry): void {
    if (this.#fd === undefined) return;
    this.#records.byte(numberOf.get(kind)!);
    this.#records.sized(given);
    this.#records.sized(got);
    this.#count++;
    if (this.#records.length >= BLOCK_SIZE) this.#flush();
  }

  #flush(): void {
    if (this.#count === 0 || this.#fd === undefined) return;
    const stored = deflateRawSync(this.#records.bytes, { level: LEVEL });
    const head = blockHead(stored.length, this.#records.length, this.#count, crc32(stored));
    this.#records.clear();
    this.#count = 0;
    this.#write(head);
    this.#write(stored);
  }

  end(): void {
    if (this.#fd === undefined) return;
    process.off('exit', this.#atExit);
    try {
      this.#flush();
      this.#write(blockHead(0, 0, END, 0));
    } finally {
      closeSync(this.#fd);
      this.#fd = undefined;
    }
  }

  /** Not all was closed; what there is is whole. */
  readonly #atExit = (): void => {
    try {
      this.end();
    } catch (error) {
      process.stderr.write(`vmexit: ${(error as Error).message}\n`);
    }
  };
}

function blockHead(...words: readonly number[]): Uint8Array {
  const view = new DataView(new ArrayBuffer(BLOCK));
  words.forEach((word, i) => {
    view.setUint32(i * 4, word, true);
  });
  const head = new Uint8Array(view.buffer);
  view.setUint32(BLOCK - 4, crc32(head.subarray(0, BLOCK - 4)), true);
  return head;
}

/** Reads a recording. All of it is checked when it is opened. */
export class ReplayFile implements Source {
  readonly head: Head;
  readonly records: number;
  readonly complete: boolean;
  readonly #path: string;
  readonly #fd: number;
  readonly #blocks: { readonly at: number; readonly stored: number; readonly size: number }[] = [];
  #block = 0;
  #reader: Reader | undefined;
  #closed = false;

  /** @throws ReplayError `damaged` for a file that is no recording, or was altered */
  constructor(path: string) {
    this.#path = path;
    try {
      this.#fd = openSync(path, 'r');
    } catch (cause) {
      throw this.#damaged(`it cannot be opened (${codeOf(cause)})`, cause);
    }
    try {
      const stat = fstatSync(this.#fd);
      if (!stat.isFile()) throw this.#damaged('it is no file');
      const { head, end } = this.#readHead(stat.size);
      this.head = head;
      const { records, complete } = this.#check(end, stat.size);
      this.records = records;
      this.complete = complete;
    } catch (error) {
      this.close();
      throw error;
    }
  }

  #damaged(what: string, cause?: unknown): ReplayError {
    return new ReplayError('damaged', `recording ${this.#path}: ${what}`, { cause });
  }

  #read(at: number, size: number): Uint8Array {
    const bytes = new Uint8Array(size);
    for (let done = 0; done < size; ) {
      let got: number;
      try {
        got = readSync(this.#fd, bytes, done, size - done, at + done);
      } catch (cause) {
        throw this.#damaged(`reading it fails (${codeOf(cause)})`, cause);
      }
      if (got === 0) throw this.#damaged('it was truncated while it was in use');
      done += got;
    }
    return bytes;
  }

  #readHead(size: number): { head: Head; end: number } {
    if (size < PREFIX) throw this.#damaged('it is no recording of vmexit');
    const prefix = this.#read(0, PREFIX);
    const view = new DataView(prefix.buffer);
    if (MAGIC.some((byte, i) => byte !== prefix[i])) throw this.#damaged('it is no recording of vmexit');
    const version = view.getUint32(8, true);
    if (version !== VERSION)
      throw this.#damaged(`it is of version ${version}, and this vmexit reads version ${VERSION}`);
    const length = view.getUint32(12, true);
    if (length > MAX_HEAD || PREFIX + length > size) throw this.#damaged('it ends in its head');
    const json = this.#read(PREFIX, length);
    if (crc32(json) !== view.getUint32(16, true)) throw this.#damaged('its head was altered');
    return { head: JSON.parse(new TextDecoder().decode(json)) as Head, end: PREFIX + length };
  }

  /** Finds the blocks; one that is not whole is the end. */
  #check(from: number, size: number): { records: number; complete: boolean } {
    let records = 0;
    for (let at = from; at + BLOCK <= size; ) {
      const head = this.#read(at, BLOCK);
      const view = new DataView(head.buffer);
      const word = (i: number) => view.getUint32(i * 4, true);
      const [stored, raw, count] = [word(0), word(1), word(2)];
      const altered = (end: number) =>
        this.#damaged(`it was altered between bytes ${at} and ${end}, at record ${records + 1} or after it`);
      if (crc32(head.subarray(0, BLOCK - 4)) !== word(4)) throw altered(at + BLOCK);
      if (at + BLOCK + stored > size) break;
      if (raw > MAX_BLOCK || crc32(this.#read(at + BLOCK, stored)) !== word(3))
        throw altered(at + BLOCK + stored);
      at += BLOCK + stored;
      if (count === END) {
        if (at !== size) throw this.#damaged(`it has ${size - at} bytes behind its end`);
        return { records, complete: true };
      }
      this.#blocks.push({ at: at - stored, stored, size: raw });
      records += count;
    }
    return { records, complete: false };
  }

  #inflate(stored: Uint8Array, size: number): Uint8Array {
    try {
      const raw = inflateRawSync(stored, { maxOutputLength: Math.max(size, 1) });
      if (raw.length === size) return raw;
    } catch (cause) {
      throw this.#damaged('a block of it cannot be read', cause);
    }
    throw this.#damaged('a block of it has another size than it says');
  }

  next(): Entry | undefined {
    while (this.#reader === undefined || this.#reader.atEnd) {
      const block = this.#closed ? undefined : this.#blocks[this.#block++];
      if (block === undefined) return undefined;
      this.#reader = new Reader(this.#inflate(this.#read(block.at, block.stored), block.size));
    }
    const kind = kinds[this.#reader.byte()];
    if (kind === undefined) throw this.#damaged('it has a record of a kind that this vmexit does not know');
    return { kind, given: this.#reader.sized(), got: this.#reader.sized() };
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    closeSync(this.#fd);
  }
}

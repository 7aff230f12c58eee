/**
 * Templates and patterns that were made when the package was built (prepare.ts), for the modes and the forms that guests use
 * most, so that neither iced-x86 nor the lowerings nor a compiler has to be warm before a guest executes. They are what
 * would be made of the same forms when they are met; what is not among them still is.
 */
import { type Module, WebAssembly } from '../../webassembly.ts';
import type { Mode } from '../processor/modes.ts';
import type { Pattern } from './patterns.ts';

/** The modes that a template is for which has not looked at whether vectors and the x87 may be used. */
export type Family = Pick<Mode, 'bits' | 'stackBits' | 'user' | 'privileged' | 'flat' | 'codeLimit'>;
export const familyKey = ({ bits, stackBits, user, privileged, flat, codeLimit }: Family): string =>
  [bits, stackBits, user, privileged, flat, codeLimit].join();

/** Bytes of the file, from a place on, or undefined where they cannot be had: it is read as far as it is needed. */
export type Read = (start: number, length: number) => Uint8Array | undefined;

/** The head of the file in numbers of 32 bits: a checksum of all that follows it, how many there are of each, then their rows. */
const Sizes = { checksum: 0, families: 1, patterns: 2, rows: 3 } as const;
export const HEAD_BYTES = 1024;
/** What is read at once: where it begins, and how many bytes it has. */
const Part = { start: 0, bytes: 1 } as const;
/** A family, whose part has rows of forms, in their order; words for the imports that are helpers; and the module. */
export const FamilyRow = {
  ...Part,
  bits: 2,
  stackBits: 3,
  user: 4,
  flat: 5,
  /** 0: without a limit. */
  codeLimit: 6,
  forms: 7,
  helpers: 8,
  functions: 9,
  privileged: 10,
  length: 11,
} as const;
/** A form: what of it is in Shape (`x87`: only where that may be used), the mask of counts, and its first function. */
export const FormRow = { form: 0, shape: 1, counts: 2, first: 3, length: 4 } as const;
export const Shape = { byteRm: 1, byteRegister: 2, compares: 4, ends: 8, x87: 16 } as const;
/**
 * Patterns of code of so many bits: the part has rows in the order of forms, each with where its JSON begins in the part, and
 * one more for where the last ends.
 */
export const PatternsRow = { ...Part, bits: 2, count: 3, length: 4 } as const;
export const PatternRow = { form: 0, text: 1, length: 2 } as const;

export interface PreparedForm {
  /** Of Shape. */
  readonly shape: number;
  /** As a template's. */
  readonly counts: number;
  /** Its functions are from this on: for registers that differ and that are the same, each without a count and with one. */
  readonly first: number;
}

/** Numbers of 32 bits. */
const wordsOf = (bytes: Uint8Array, start = 0, count = bytes.length >> 2) =>
  new Int32Array(bytes.buffer, bytes.byteOffset + start, count);

/** Of a part that cannot be had. */
const NOTHING = new Uint8Array();

export class PreparedFamily {
  readonly #read: Read;
  /** Of FamilyRow. */
  readonly #row: Int32Array;
  #part: Uint8Array | undefined;
  #forms: Int32Array | undefined;
  #module: Module | undefined;

  constructor(read: Read, row: Int32Array) {
    this.#read = read;
    this.#row = row;
  }
  #field(name: keyof typeof FamilyRow): number {
    return this.#row[FamilyRow[name]]!;
  }

  get key(): string {
    const limit = this.#field('codeLimit');
    return familyKey({
      bits: this.#field('bits') as 16 | 32 | 64,
      stackBits: this.#field('stackBits') as 16 | 32 | 64,
      user: this.#field('user') !== 0,
      privileged: this.#field('privileged') !== 0,
      flat: this.#field('flat'),
      codeLimit: limit === 0 ? Number.POSITIVE_INFINITY : limit >>> 0,
    });
  }
  get #bytes(): Uint8Array {
    this.#part ??= this.#read(this.#field('start'), this.#field('bytes')) ?? NOTHING;
    return this.#part;
  }
  get #formBytes(): number {
    return this.#field('forms') * FormRow.length * 4;
  }
  /** All of its templates. Their imports are those of any template, and the table and the place in it where they go. */
  get module(): Module {
    this.#module ??= new WebAssembly.Module(
      this.#bytes.subarray(this.#formBytes + this.#field('helpers') * 4),
    );
    return this.#module;
  }
  get functions(): number {
    return this.#field('functions');
  }
  /** For each helper among the imports, which of its template's it is. */
  get helpers(): Int32Array {
    return wordsOf(this.#bytes, this.#formBytes, this.#field('helpers'));
  }

  /** @param x87 whether that may be used */
  form(form: number, x87: boolean): PreparedForm | undefined {
    if (this.#bytes === NOTHING) return undefined;
    this.#forms ??= wordsOf(this.#bytes, 0, this.#field('forms') * FormRow.length);
    const words = this.#forms;
    const row = found(words, this.#field('forms'), FormRow.length, form);
    if (row === undefined) return undefined;
    const shape = words[row + FormRow.shape]!;
    if (!x87 && (shape & Shape.x87) !== 0) return undefined;
    return { shape, counts: words[row + FormRow.counts]!, first: words[row + FormRow.first]! };
  }
}

class PreparedPatterns {
  readonly #read: Read;
  /** Of PatternsRow. */
  readonly #row: Int32Array;
  #part: Uint8Array | undefined;

  constructor(read: Read, row: Int32Array) {
    this.#read = read;
    this.#row = row;
  }
  pattern(form: number): Pattern | undefined {
    const count = this.#row[PatternsRow.count]!;
    this.#part ??= this.#read(this.#row[PatternsRow.start]!, this.#row[PatternsRow.bytes]!) ?? NOTHING;
    if (this.#part === NOTHING) return undefined;
    const words = wordsOf(this.#part, 0, (count + 1) * PatternRow.length);
    const row = found(words, count, PatternRow.length, form);
    if (row === undefined) return undefined;
    const [start, end] = [words[row + PatternRow.text]!, words[row + PatternRow.length + PatternRow.text]!];
    return JSON.parse(String.fromCharCode(...this.#part.subarray(start, end)));
  }
}

export class Prepared {
  readonly #families = new Map<string, PreparedFamily>();
  readonly #patterns = new Map<number, PreparedPatterns>();

  constructor(file: Read) {
    const first = file(0, HEAD_BYTES);
    if (first === undefined) return;
    const head = wordsOf(first);
    // Another file may have come into its place since, with another version of the package.
    const read: Read = (start, length) => {
      const part = file(start, length);
      const now = file(0, HEAD_BYTES);
      return now !== undefined && wordsOf(now).every((word, i) => word === head[i]) ? part : undefined;
    };
    let at: number = Sizes.rows;
    const row = (length: number) => {
      at += length;
      return head.subarray(at - length, at);
    };
    for (let i = 0; i < head[Sizes.families]!; i++) {
      const family = new PreparedFamily(read, row(FamilyRow.length));
      this.#families.set(family.key, family);
    }
    for (let i = 0; i < head[Sizes.patterns]!; i++) {
      const patterns = row(PatternsRow.length);
      this.#patterns.set(patterns[PatternsRow.bits]!, new PreparedPatterns(read, patterns));
    }
  }

  family(mode: Family): PreparedFamily | undefined {
    return this.#families.get(familyKey(mode));
  }
  pattern(bits: number, form: number): Pattern | undefined {
    return this.#patterns.get(bits)?.pattern(form);
  }
}

/** The row of a form, among rows in the order of forms. */
function found(words: Int32Array, count: number, length: number, form: number): number | undefined {
  let [first, last] = [0, count];
  while (first < last) {
    const middle = (first + last) >>> 1;
    const row = middle * length;
    const there = words[row]!;
    if (there === form) return row;
    if (there < form) first = middle + 1;
    else last = middle;
  }
  return undefined;
}

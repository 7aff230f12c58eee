/**
 * Templates and patterns that were made when the package was built (prepare.ts), for the modes and the forms that guests use
 * most, so that neither iced-x86 nor the lowerings nor a compiler has to be warm before a guest executes. They are what
 * would be made of the same forms when they are met; what is not among them still is.
 */
import { type Module, WebAssembly } from '../../webassembly.ts';
import type { Mode } from '../processor/modes.ts';
import type { Pattern } from './patterns.ts';

/** The modes that a template is for which has not looked at whether vectors and the x87 may be used. */
export type Family = Pick<Mode, 'bits' | 'stackBits' | 'user' | 'flat' | 'codeLimit'>;
export const familyKey = ({ bits, stackBits, user, flat, codeLimit }: Family): string =>
  [bits, stackBits, user, flat, codeLimit].join();

/** The file in numbers of 32 bits: how many there are of each, then their rows. Places are bytes from its start. */
export const Sizes = { families: 0, patterns: 1, rows: 2 } as const;
export const FamilyRow = {
  bits: 0,
  stackBits: 1,
  user: 2,
  flat: 3,
  /** 0: without a limit. */
  codeLimit: 4,
  /** Rows of forms, in their order; and of the imports that are helpers. */
  forms: 5,
  formCount: 6,
  helpers: 7,
  helperCount: 8,
  module: 9,
  moduleBytes: 10,
  functions: 11,
  length: 12,
} as const;
/** A form: what of it is in Shape (`x87`: only where that may be used), the mask of counts, and its first function. */
export const FormRow = { form: 0, shape: 1, counts: 2, first: 3, length: 4 } as const;
export const Shape = { byteRm: 1, byteRegister: 2, compares: 4, ends: 8, x87: 16 } as const;
/** Patterns of code of so many bits: rows in the order of forms, each with where its JSON begins; one more where the last ends. */
export const PatternsRow = { bits: 0, rows: 1, count: 2, length: 3 } as const;
export const PatternRow = { form: 0, text: 1, length: 2 } as const;

export interface PreparedForm {
  /** Of Shape. */
  readonly shape: number;
  /** As a template's. */
  readonly counts: number;
  /** Its functions are from this on: for registers that differ and that are the same, each without a count and with one. */
  readonly first: number;
}

export class PreparedFamily {
  readonly #words: Int32Array;
  readonly #bytes: Uint8Array;
  /** Where its row begins. */
  readonly #at: number;
  #module: Module | undefined;

  constructor(bytes: Uint8Array, words: Int32Array, at: number) {
    this.#bytes = bytes;
    this.#words = words;
    this.#at = at;
  }
  #field(name: keyof typeof FamilyRow): number {
    return this.#words[this.#at + FamilyRow[name]]!;
  }

  get key(): string {
    const limit = this.#field('codeLimit');
    return familyKey({
      bits: this.#field('bits') as 16 | 32 | 64,
      stackBits: this.#field('stackBits') as 16 | 32 | 64,
      user: this.#field('user') !== 0,
      flat: this.#field('flat'),
      codeLimit: limit === 0 ? Number.POSITIVE_INFINITY : limit >>> 0,
    });
  }
  /** All of its templates. Their imports are those of any template, and the table and the place in it where they go. */
  get module(): Module {
    const start = this.#field('module');
    this.#module ??= new WebAssembly.Module(this.#bytes.subarray(start, start + this.#field('moduleBytes')));
    return this.#module;
  }
  get functions(): number {
    return this.#field('functions');
  }
  /** For each helper among the imports, which of its template's it is. */
  get helpers(): Int32Array {
    const start = this.#field('helpers') / 4;
    return this.#words.subarray(start, start + this.#field('helperCount'));
  }

  form(form: number, x87: boolean): PreparedForm | undefined {
    const words = this.#words;
    const row = found(words, this.#field('forms') / 4, this.#field('formCount'), FormRow.length, form);
    if (row === undefined) return undefined;
    const shape = words[row + FormRow.shape]!;
    if (!x87 && (shape & Shape.x87) !== 0) return undefined;
    return {
      shape,
      counts: words[row + FormRow.counts]!,
      first: words[row + FormRow.first]!,
    };
  }
}

export class Prepared {
  readonly #words: Int32Array;
  readonly #bytes: Uint8Array;
  readonly #families = new Map<string, PreparedFamily>();
  /** By bits: where rows begin, and how many there are. */
  readonly #patterns = new Map<number, readonly [at: number, count: number]>();

  constructor(bytes: Uint8Array) {
    const words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length >> 2);
    this.#bytes = bytes;
    this.#words = words;
    let at: number = Sizes.rows;
    for (let i = 0; i < words[Sizes.families]!; i++, at += FamilyRow.length) {
      const family = new PreparedFamily(bytes, words, at);
      this.#families.set(family.key, family);
    }
    for (let i = 0; i < words[Sizes.patterns]!; i++, at += PatternsRow.length)
      this.#patterns.set(words[at + PatternsRow.bits]!, [
        words[at + PatternsRow.rows]! / 4,
        words[at + PatternsRow.count]!,
      ]);
  }

  family(mode: Family): PreparedFamily | undefined {
    return this.#families.get(familyKey(mode));
  }
  pattern(bits: number, form: number): Pattern | undefined {
    const [at, count] = this.#patterns.get(bits) ?? [0, 0];
    const words = this.#words;
    const row = found(words, at, count, PatternRow.length, form);
    if (row === undefined) return undefined;
    const [start, end] = [words[row + PatternRow.text]!, words[row + PatternRow.length + PatternRow.text]!];
    return JSON.parse(String.fromCharCode(...this.#bytes.subarray(start, end)));
  }
}

/** The row of a form, among rows in the order of forms. */
function found(
  words: Int32Array,
  at: number,
  count: number,
  length: number,
  form: number,
): number | undefined {
  let [first, last] = [0, count];
  while (first < last) {
    const middle = (first + last) >>> 1;
    const row = at + middle * length;
    const there = words[row]!;
    if (there === form) return row;
    if (there < form) first = middle + 1;
    else last = middle;
  }
  return undefined;
}

/** What is known of forms: which templates they have, where those are, and for which registers and immediates. */
import type { Mode } from '../processor/modes.ts';
import type { Encoding } from './forms.ts';
import type { Interpreter } from './interpreter.ts';
import { familyKey, type Prepared, type PreparedFamily, Shape } from './prepared.ts';
import type { Template } from './template.ts';

/** What is known of a form in a mode. */
export interface Form {
  /** Operands of one byte are in these fields. */
  readonly byteRm: boolean;
  readonly byteRegister: boolean;
  /** For these registers or this immediate alone, or for two that are one or not: then one of several. */
  readonly registers: boolean;
  readonly compares: boolean;
  readonly counts: number;
  readonly immediate: boolean;
  readonly one: Placed | undefined;
  readonly several: Map<string, Placed>;
}
/** A template. */
export interface Placed {
  readonly key: string;
  readonly ends: boolean;
  /** In the table of functions; undefined until it is compiled. */
  place: number | undefined;
  /** The records that wait for that, and are executed by closures meanwhile. */
  readonly waiting: number[];
}
/** The form has no template, or none is made of it. */
export const NO_TEMPLATE = 'none';
type Known = Form | typeof NO_TEMPLATE;

/** Which of its templates an instruction of the form has. */
export function variantOf(
  {
    registers,
    compares,
    immediate,
    counts,
  }: Pick<Template, 'registers' | 'compares' | 'immediate' | 'counts'>,
  { rm, register, legacy, immLow, immHigh }: Encoding,
): string {
  const which = registers ? `${rm},${register},${legacy}` : compares ? `${rm === register}` : '';
  return `${which}/${immediate ? `${immLow},${immHigh}` : (immLow & counts) !== 0}`;
}

/** Of one mode, and of the others that differ from it by vectors alone. */
export class KnownForms {
  readonly #own = new Map<number, Known>();
  readonly #shared: Map<number, Form>;
  readonly #prepared: PreparedFamily | undefined;
  readonly #x87: boolean;
  readonly #interpreter: Interpreter;

  /** @param x87 it may be used in the mode */
  constructor(
    shared: Map<number, Form>,
    prepared: PreparedFamily | undefined,
    x87: boolean,
    interpreter: Interpreter,
  ) {
    this.#shared = shared;
    this.#x87 = x87;
    this.#prepared = prepared;
    this.#interpreter = interpreter;
  }

  get(form: number): Known | undefined {
    return this.#own.get(form) ?? this.#elsewhere(form);
  }
  /** @param vectors it depends on them */
  set(form: number, known: Known, vectors: boolean): void {
    this.#own.set(form, known);
    if (!vectors && known !== NO_TEMPLATE) this.#shared.set(form, known);
  }
  #elsewhere(form: number): Form | undefined {
    let known = this.#shared.get(form);
    let vectors = false;
    if (known === undefined) [known, vectors] = this.#ahead(form);
    if (known !== undefined) this.set(form, known, vectors);
    return known;
  }

  /** One that was prepared. */
  #ahead(form: number): [form: Form | undefined, vectors: boolean] {
    const family = this.#prepared;
    const prepared = family?.form(form, this.#x87);
    const all = prepared && this.#interpreter.placeOfAll(family!);
    if (prepared === undefined || all === undefined) return [undefined, false];
    const { shape, counts, first } = prepared;
    const compares = (shape & Shape.compares) !== 0;
    const several = new Map<string, Placed>();
    let place = all + first;
    for (const same of compares ? ['false', 'true'] : ['']) {
      for (const count of counts === 0 ? [false] : [false, true]) {
        const key = `${same}/${count}`;
        several.set(key, { key, ends: (shape & Shape.ends) !== 0, place, waiting: [] });
        place++;
      }
    }
    const known = {
      byteRm: (shape & Shape.byteRm) !== 0,
      byteRegister: (shape & Shape.byteRegister) !== 0,
      registers: false,
      compares,
      counts,
      immediate: false,
      one: several.size === 1 ? several.get('/false') : undefined,
      several,
    };
    return [known, (shape & Shape.x87) !== 0];
  }
}

export class Forms {
  readonly #prepared: Prepared | undefined;
  readonly #interpreter: Interpreter;
  #modes = new WeakMap<Mode, KnownForms>();
  #shared = new Map<string, Map<number, Form>>();

  constructor(prepared: Prepared | undefined, interpreter: Interpreter) {
    this.#prepared = prepared;
    this.#interpreter = interpreter;
  }

  of(mode: Mode): KnownForms {
    let known = this.#modes.get(mode);
    if (known === undefined) {
      const key = familyKey(mode);
      const shared = this.#shared.get(key) ?? new Map<number, Form>();
      this.#shared.set(key, shared);
      known = new KnownForms(shared, this.#prepared?.family(mode), mode.x87, this.#interpreter);
      this.#modes.set(mode, known);
    }
    return known;
  }
  forget(): void {
    this.#modes = new WeakMap();
    this.#shared = new Map();
  }
}

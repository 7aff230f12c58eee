/**
 * Code and stack segments with the mode that they make, by number. Translated code goes from one to another by itself, where
 * the processor has gone the same way before: it changes State.context, and whoever it calls adopts that.
 */
import type { Segment, Table } from './descriptors.ts';
import type { Mode } from './modes.ts';

export interface Context {
  readonly cs: Segment;
  readonly ss: Segment;
  readonly mode: Mode;
  readonly alone: Mode;
  /** The modes' own number for it. */
  readonly what: number;
}

/** How an event was delivered from one context to another: system/known-events.ts. */
export interface Delivery {
  readonly from: number;
  readonly to: number;
  readonly idtr: Table;
  readonly gdtr: Table;
  /** The gate, and the code segment's descriptor: linear addresses, and what is there. */
  readonly gateAt: bigint;
  readonly gate: bigint;
  readonly upper: bigint;
  readonly codeAt: bigint;
  readonly code: bigint;
  /** To an inner privilege level; which the handler's is; its entry of the interrupt stack table. */
  readonly inner: boolean;
  readonly level: number;
  readonly ist: number;
  /** IF is cleared. */
  readonly masks: boolean;
  readonly rip: bigint;
}

const MOST = 16;

const isSame = (a: Segment, b: Segment): boolean =>
  a === b ||
  (a.selector === b.selector &&
    a.type === b.type &&
    a.dpl === b.dpl &&
    a.limit === b.limit &&
    a.present === b.present &&
    a.unusable === b.unusable &&
    a.l === b.l &&
    a.db === b.db &&
    a.s === b.s &&
    a.g === b.g &&
    a.avl === b.avl &&
    a.base === b.base);

export class Contexts {
  readonly #known: Context[] = [];
  /** The number of the first of them, from 1 on: none is given again, for a way may be noted from one that was forgotten. */
  #first = 1;

  at(number: number): Context {
    return this.#known[number - this.#first]!;
  }
  /** Its number; undefined where there are too many. */
  numberOf(context: Context): number | undefined {
    const { cs, ss, mode } = context;
    const known = this.#known.findIndex(
      (other) => other.mode === mode && isSame(other.cs, cs) && isSame(other.ss, ss),
    );
    if (known >= 0) return this.#first + known;
    return this.#known.length < MOST ? this.#first + this.#known.push(context) - 1 : undefined;
  }
  forget(): void {
    this.#first += this.#known.length;
    this.#known.length = 0;
  }
}

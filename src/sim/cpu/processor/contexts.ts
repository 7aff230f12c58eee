/**
 * Code and stack segments with the mode that they make, by number. Translated code goes from one to another by itself, where
 * the processor has gone the same way before: it changes State.context, and whoever it calls adopts that.
 */
import type { Segment } from './descriptors.ts';
import type { Mode } from './modes.ts';

export interface Context {
  readonly cs: Segment;
  readonly ss: Segment;
  readonly mode: Mode;
  readonly alone: Mode;
  /** The modes' own number for it. */
  readonly what: number;
}

/** A way from one context to another, in the arena: offsets in bytes. What the processor looked at must be what it was. */
export const Transition = {
  /** Contexts; `from` is 0 where the way is not known. */
  from: 0,
  to: 4,
  /** What is to be added to State.generation and State.globals. */
  step: 8,
  /** The new selectors: CS's in the lower half. */
  selectors: 12,
  /** Linear addresses of the descriptors, 0 of a null selector, and what is there. */
  codeAt: 16,
  code: 24,
  stackAt: 32,
  stack: 40,
  /** SYSCALL's LSTAR and FMASK. */
  rip: 48,
  mask: 56,
  bytes: 64,
} as const;
/** The ways' places in State.transitions. There are two of IRET: to the same privilege level, and to another. */
export const Way = { SYSCALL: 0, SYSRET: 1, IRET: 2, count: 4 } as const;

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

  /** @param number from 1 on */
  at(number: number): Context {
    return this.#known[number - 1]!;
  }
  /** Its number; undefined where there are too many. */
  numberOf(context: Context): number | undefined {
    const { cs, ss, mode } = context;
    const known = this.#known.findIndex(
      (other) => other.mode === mode && isSame(other.cs, cs) && isSame(other.ss, ss),
    );
    if (known >= 0) return known + 1;
    return this.#known.length < MOST ? this.#known.push(context) : undefined;
  }
  forget(): void {
    this.#known.length = 0;
  }
}

/**
 * FMA by the machine's own arithmetic, which has none: an attempt as those of floats.ts. What is rounded away of products and sums
 * is a number itself (Dekker 1971, Knuth 1997), and a last but one rounding to odd makes the last one right (Boldo and Melquiond,
 * "Emulation of a FMA and correctly rounded sums", IEEE Transactions on Computers 57, 2008).
 *
 * Operands that are denormal, NaNs, infinite, or far from 1 give up, so that nothing of it overflows or is lost; so does a result
 * that may be tiny, and any rounding but to nearest. A zero is what the sum of the product and the addend has for one.
 */
import type { Attempt, AttemptCode } from './attempt.ts';
import { rounds, type Source } from './floats.ts';
import { denormal, extreme, integer, number, pd, ps, type Shape, V128 } from './shapes.ts';
import { simd } from './vectors.ts';
import { Wasm } from './wasm-bytes.ts';

const [ADD, SUB, MUL] = [240, 241, 242].map((of) => simd(of)) as [number[], number[], number[]];
const [AND, OR, XOR, SELECT, ANY] = [78, 80, 81, 82, 83].map((of) => simd(of)) as number[][] as [
  number[],
  number[],
  number[],
  number[],
  number[],
];
const [EQUAL_NUMBERS, DIFFERENT_NUMBERS] = [71, 72].map((of) => simd(of)) as [number[], number[]];
const [EQUAL, ADD_INTEGERS, SHIFT_SIGNED] = [214, 206, 204].map((of) => simd(of)) as number[][] as [
  number[],
  number[],
  number[],
];
const [DEMOTE, PROMOTE] = [94, 95].map((of) => simd(of)) as [number[], number[]];
/** The upper two of four lanes as the lower ones; and the lower ones of two as all four. */
const UPPER = simd(13, [8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15]);
const BOTH = simd(13, [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23]);

/** 2 ** 27 + 1: it splits a number of 53 bits in two of 26. */
const SPLITTER = 134_217_729;

/** Two doubles at a time, in locals. */
class Doubles {
  readonly code: AttemptCode;
  constructor(code: AttemptCode) {
    this.code = code;
  }
  local(): number {
    return this.code.local(V128);
  }
  /** A new local with `instruction` of others. */
  of(instruction: readonly number[], ...operands: readonly number[]): number {
    const made = this.local();
    for (const operand of operands) this.code.get(operand);
    this.code.op(...instruction).set(made);
    return made;
  }
  /** a + b, and what is rounded away of it. */
  sum(a: number, b: number): [sum: number, rest: number] {
    const sum = this.of(ADD, a, b);
    const b1 = this.of(SUB, sum, a);
    const a1 = this.of(SUB, sum, b1);
    return [sum, this.of(ADD, this.of(SUB, a, a1), this.of(SUB, b, b1))];
  }
  #split(a: number): [high: number, low: number] {
    const c = this.local();
    this.code.get(a);
    number(this.code, pd, SPLITTER);
    this.code.op(...MUL).set(c);
    const high = this.of(SUB, c, this.of(SUB, c, a));
    return [high, this.of(SUB, a, high)];
  }
  product(a: number, b: number): [product: number, rest: number] {
    const product = this.of(MUL, a, b);
    const [ah, al] = this.#split(a);
    const [bh, bl] = this.#split(b);
    let rest = this.of(SUB, product, this.of(MUL, ah, bh));
    rest = this.of(SUB, rest, this.of(MUL, al, bh));
    rest = this.of(SUB, rest, this.of(MUL, ah, bl));
    return [product, this.of(SUB, this.of(MUL, al, bl), rest)];
  }
  /** What was rounded to nearest, and lost `rest`, rounded to odd: an even one becomes its neighbour on the rest's side. */
  odd(a: number, rest: number): number {
    const { code } = this;
    const changed = this.local();
    code
      .get(a)
      .get(a)
      .get(rest)
      .op(...XOR)
      .const32(63)
      .op(...SHIFT_SIGNED);
    integer(code, pd, 1n);
    code.op(...OR).get(a);
    integer(code, pd, 1n);
    code.op(...AND);
    integer(code, pd, 0n);
    code.op(...EQUAL, ...AND).get(rest);
    number(code, pd, 0);
    code.op(...DIFFERENT_NUMBERS, ...AND, ...ADD_INTEGERS).set(changed);
    return changed;
  }
  /** The mask of lanes that are not zero; of those that are. */
  isNot0(a: number): void {
    this.code.get(a);
    number(this.code, pd, 0);
    this.code.op(...DIFFERENT_NUMBERS);
  }
}

/** The result and, by `inexact`, whether it was rounded, as a mask. */
interface Fused {
  readonly result: number;
  readonly inexact: () => void;
}

/** Gives up where a lane is outside of a range of biased exponents, and not zero. */
function within(code: AttemptCode, a: number, least: bigint, beyond: bigint): void {
  extreme(code, pd, a, { least, beyond });
  code.get(a);
  number(code, pd, 0);
  code.op(...DIFFERENT_NUMBERS, ...AND, ...ANY).slowIf();
}

function fused64(code: AttemptCode, a: number, b: number, c: number): Fused {
  const doubles = new Doubles(code);
  for (const factor of [a, b]) within(code, factor, 1023n - 480n, 1023n + 480n);
  within(code, c, 1023n - 960n, 1023n + 960n);
  const [uh, ul] = doubles.product(a, b);
  const [th, tl] = doubles.sum(c, ul);
  const [vh, vl] = doubles.sum(uh, th);
  const [zh, zl] = doubles.sum(tl, vl);
  const z = doubles.odd(zh, zl);
  const [sum, lost] = doubles.sum(vh, z);
  // Zeroes have the sign that the plain sum has.
  const result = doubles.local();
  code
    .get(uh)
    .get(c)
    .op(...ADD)
    .get(sum)
    .get(sum);
  number(code, pd, 0);
  code.op(...EQUAL_NUMBERS, ...SELECT).set(result);
  extreme(code, pd, result);
  doubles.isNot0(result);
  code.op(...AND, ...ANY).slowIf();
  return {
    result,
    inexact: () => {
      doubles.isNot0(lost);
      doubles.isNot0(zl);
      code.op(...OR);
    },
  };
}

/** Of doubles that were singles: the product is exact. The result is rounded to singles, in the lower lanes. */
function fused32(code: AttemptCode, a: number, b: number, c: number): Fused {
  const doubles = new Doubles(code);
  const [sum, rest] = doubles.sum(doubles.of(MUL, a, b), c);
  const odd = doubles.odd(sum, rest);
  const result = doubles.of(DEMOTE, odd);
  const again = doubles.of(PROMOTE, result);
  // Extreme as singles are, and not zero before that.
  extreme(code, pd, again, { least: 1023n - 125n, beyond: 1023n + 128n });
  doubles.isNot0(odd);
  code.op(...AND, ...ANY).slowIf();
  return {
    result,
    inexact: () => {
      code
        .get(again)
        .get(odd)
        .op(...DIFFERENT_NUMBERS);
    },
  };
}

/** Signs that are changed, of the product and of the addend, by lane. */
export type Signs = (lane: number) => readonly [product: boolean, addend: boolean];

function signed(code: AttemptCode, shape: Shape, local: number, change: (lane: number) => boolean): void {
  const { bits, lanes } = shape;
  const changes = Array.from({ length: lanes }, (_, i) => change(i));
  if (!changes.includes(true)) return;
  const zeroes = new Array<number>(bits / 8 - 1).fill(0);
  code.get(local).op(0xfd, 12, ...changes.flatMap((one) => [...zeroes, one ? 0x80 : 0]));
  code.op(...XOR).set(local);
}

/** 16 bytes of a source, or a number alone with zeroes above it. */
function read(code: AttemptCode, shape: Shape, from: Source, scalar: boolean): number {
  const local = code.local(V128);
  if ('offset' in from) {
    if (scalar) code.load([0xfd, shape.bits === 64 ? 93 : 92], from.offset);
    else code.load(shape.load, from.offset);
  } else if (!scalar) {
    code
      .argument(from.argument)
      .op(...simd(18))
      .argument(from.argument + 1)
      .op(...simd(30, [1]));
  } else {
    integer(code, pd, 0n);
    code.argument(from.argument).op(...simd(shape.bits === 64 ? 30 : 28, [0]));
  }
  code.set(local);
  return local;
}

/** a * b + c to a place of 16 bytes, of which a number alone takes its own. */
export function fused(
  width: 32 | 64,
  scalar: boolean,
  signs: Signs,
  to: number,
  sources: readonly [a: Source, b: Source, c: Source],
): Attempt {
  const shape = width === 64 ? pd : ps;
  return (code) => {
    const [a, b, c] = sources.map((from) => read(code, shape, from, scalar)) as [number, number, number];
    for (const [i, local] of [a, b, c].entries()) {
      denormal(code, shape, local);
      if (i > 0) code.op(...OR);
    }
    code.op(...ANY).slowIf();
    signed(code, shape, a, (lane) => signs(lane)[0]);
    signed(code, shape, c, (lane) => signs(lane)[1]);
    const parts: Fused[] = [];
    if (width === 64) parts.push(fused64(code, a, b, c));
    else {
      const doubles = new Doubles(code);
      const lower = [a, b, c].map((local) => doubles.of(PROMOTE, local)) as [number, number, number];
      parts.push(fused32(code, ...lower));
      if (!scalar) {
        const upper = [a, b, c].map((local) => doubles.of([...UPPER, ...PROMOTE], local, local));
        parts.push(fused32(code, ...(upper as [number, number, number])));
      }
    }
    rounds(code, () => {
      for (const [i, { inexact }] of parts.entries()) {
        inexact();
        if (i > 0) code.op(...OR);
      }
      code.op(...ANY);
    });
    const results = parts.map(({ result }) => result);
    if (scalar) {
      const lane = simd(width === 64 ? 29 : 27, [0]);
      code.store([width === 64 ? Wasm.i64Store : Wasm.i32Store], to, () => code.get(results[0]!).op(...lane));
    } else {
      code.store(shape.store, to, () => {
        for (const result of results) code.get(result);
        if (results.length > 1) code.op(...BOTH);
      });
    }
  };
}

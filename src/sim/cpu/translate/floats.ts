/**
 * SSE's floating point by the machine's own: attempts at what helpers do exactly (sse/float.ts, sse/convert.ts).
 *
 * WebAssembly's arithmetic is IEEE 754's, to nearest and without flags, so an attempt must know that the helper would
 * have set no flag of MXCSR that is not set, and raised nothing (SDM volume 1, 11.5.2 and 4.9.1):
 *
 * IE  An operand is an SNaN, or the operation has no result: the result is a NaN. Every NaN gives up, also because which
 *     one is the result is x86's own rule (table 4-7), and which one WebAssembly gives is not determined. Comparisons,
 *     MIN and MAX look at the operands for NaNs; conversions to integers at the range.
 * DE  An operand is denormal: any such gives up, so DAZ makes no difference.
 * ZE  A division by zero: the result is infinite.
 * OE  The result is infinite, which gives up even where it comes from an infinite operand and there is no flag.
 * UE  The result is denormal, or the least exponent's, which may have been tiny before rounding, or zero without one of
 *     the operands that make zero exact. What is left is not tiny, so FZ makes no difference.
 * PE  The result is rounded. That is nothing new where PE is set already and masked, and it nearly always is: the first
 *     inexact result sets it. Else whether it is exact is computed; one that is not gives up.
 *
 * Another rounding than to nearest gives up.
 */
import { State } from '../processor/state.ts';
import type { Attempt, AttemptCode } from './attempt.ts';
import {
  type Arithmetic,
  type Comparison,
  denormal,
  extreme,
  integer,
  lane,
  laneBits,
  narrow,
  number,
  packedOf,
  pd,
  ps,
  type Shape,
  scalarOf,
  sd,
  ss,
  type Unary,
  unordered,
  V128,
} from './shapes.ts';
import { simd } from './vectors.ts';
import { Wasm } from './wasm-bytes.ts';

/** An operand: in the state page, or the op's arguments from this one on (64 bits each, or one of 32). */
export type Source = { readonly offset: number } | { readonly argument: number };

/** MXCSR (SDM volume 1, 10.2.3): the rounding, which is 0 to nearest; PE with its mask. */
const ROUNDING = 0x6000;
const INEXACT = 0x1020;

/** An operand of `bytes` bytes in a local: of less than 16, a packed one's upper half does not matter. */
function read(code: AttemptCode, shape: Shape, source: Source, bytes = 16): number {
  const local = code.local(shape.type);
  if ('offset' in source) code.load(shape.load, source.offset);
  else {
    code.argument(source.argument);
    if (shape.lanes === 1) code.op(...shape.fromBits);
    else {
      code.op(...simd(18));
      if (bytes === 16) code.argument(source.argument + 1).op(...simd(30, [1]));
    }
  }
  code.set(local);
  return local;
}
function write(code: AttemptCode, shape: Shape, to: number, local: number): void {
  code.store(shape.store, to, () => code.get(local));
}

/** Gives up unless a result may be rounded to nearest (or in any way) here, or is exact. `inexact` leaves an `i`. */
export function rounds(code: AttemptCode, inexact: () => void, toNearest = true): void {
  const mxcsr = code.local(Wasm.i32);
  code.load([Wasm.i32Load], State.mxcsr).tee(mxcsr);
  code.const32(toNearest ? ROUNDING | INEXACT : INEXACT).op(0x71); // and
  code.const32(INEXACT).op(0x47); // ne
  code.when(() => {
    if (toNearest) code.get(mxcsr).const32(ROUNDING).op(0x71).slowIf();
    inexact();
    code.slowIf();
  });
}
const never = (code: AttemptCode) => () => {
  code.const32(0);
};

/** An `i` that says whether any mask of these has any bit. */
function some(code: AttemptCode, shape: Shape, ...masks: readonly (() => void)[]): void {
  for (const [index, mask] of masks.entries()) {
    mask();
    if (index > 0) code.op(...shape.or);
  }
  code.op(...shape.any);
}
function isZero(code: AttemptCode, shape: Shape, local: number, comparison: Comparison = 'eq'): void {
  code.get(local);
  number(code, shape, 0);
  code.op(...shape.comparison[comparison]);
}

// --- arithmetic ----------------------------------------------------------------------------------------------------

interface Operation {
  readonly name: Arithmetic | 'sqrt';
  /** Operands of which one must be zero for a result that is zero and not tiny; none where that is exact anyway. */
  readonly zeroes: 'ab' | 'a' | '';
}
export const operations = {
  add: { name: 'add', zeroes: '' },
  sub: { name: 'sub', zeroes: '' },
  mul: { name: 'mul', zeroes: 'ab' },
  div: { name: 'div', zeroes: 'a' },
  sqrt: { name: 'sqrt', zeroes: '' },
} as const satisfies { [name: string]: Operation };

/** What becomes of the operands before the operation. */
export type Prepare = (code: AttemptCode, a: number, b: number) => void;

export function arithmetic(
  { name, zeroes }: Operation,
  shape: Shape,
  to: number,
  from: Source,
  prepare?: Prepare,
): Attempt {
  return (code) => {
    const b = read(code, shape, from);
    const a = name === 'sqrt' ? b : read(code, shape, { offset: to });
    const r = code.local(shape.type);
    prepare?.(code, a, b);
    const operands = name === 'sqrt' ? [b] : [a, b];
    for (const operand of operands) code.get(operand);
    code.op(...(name === 'sqrt' ? shape.unary.sqrt : shape.arithmetic[name])).set(r);
    some(code, shape, ...operands.map((operand) => () => denormal(code, shape, operand)));
    code.slowIf();
    some(code, shape, () => extreme(code, shape, r));
    code.when(() => {
      // Zeroes may be right.
      extreme(code, shape, r);
      isZero(code, shape, r, 'ne');
      const exact = [...zeroes].map((which) => (which === 'a' ? a : b));
      for (const [index, operand] of exact.entries()) {
        isZero(code, shape, operand, 'ne');
        if (index > 0) code.op(...shape.and);
      }
      if (exact.length > 0) code.op(...shape.or);
      code.op(...shape.and, ...shape.any).slowIf();
    });
    rounds(code, () => inexact[name](code, shape, a, b, r));
    write(code, shape, to, r);
  };
}

type Inexact = (code: AttemptCode, shape: Shape, a: number, b: number, r: number) => void;

/**
 * A sum is exact where taking either operand off it gives the other: of the two differences the one from the greater operand
 * is exact itself (Dekker 1971). Both sides are rounded, so neither can be left out.
 */
const sum =
  (back: readonly [Arithmetic, Arithmetic]): Inexact =>
  (code, shape, a, b, r) => {
    const { arithmetic: by, comparison } = shape;
    // r - a = b and r - b = a; of a difference a - r = b and r + b = a.
    const first = back[1] === 'add' ? [a, r] : [r, a];
    for (const local of first) code.get(local);
    code.op(...by[back[0]]).get(b);
    code
      .op(...comparison.ne)
      .get(r)
      .get(b);
    code
      .op(...by[back[1]])
      .get(a)
      .op(...comparison.ne, ...shape.or, ...shape.any);
  };

/** Whether x * y is not z, of lanes of 32 bits: products of two of them are exact in 64. */
function product32(code: AttemptCode, shape: Shape, x: number, y: number, z: number): void {
  for (let i = 0; i < shape.lanes; i++) {
    lane(code, shape, x, i);
    lane(code, shape, y, i);
    code.op(...sd.arithmetic.mul);
    lane(code, shape, z, i);
    code.op(...sd.comparison.ne);
    if (i > 0) code.op(0x72); // or
  }
}
/** Whether a product of lanes of 64 bits has more significant bits than 53, or may have: they end in few zeroes. */
function long(code: AttemptCode, shape: Shape, x: number, y: number, index: number): void {
  for (const local of [x, y]) {
    laneBits(code, shape, local, index);
    code.const64(1n << 52n).op(0x84, 0x7a); // or, ctz
  }
  code.op(0x7c).const64(53n).op(0x53); // add, lt_s
}
/** Whether any lane of 64 bits that is not zero in `r` is inexact. */
function lanes64(code: AttemptCode, shape: Shape, r: number, of: (index: number) => void): void {
  for (let i = 0; i < shape.lanes; i++) {
    of(i);
    lane(code, shape, r, i);
    number(code, sd, 0);
    code.op(...sd.comparison.ne, 0x71); // and
    if (i > 0) code.op(0x72); // or
  }
}
/** Whether x * y is not z of the lane: to be asked where the product is not long. */
function product64(code: AttemptCode, shape: Shape, x: number, y: number, z: number, index: number): void {
  lane(code, shape, x, index);
  lane(code, shape, y, index);
  code.op(...sd.arithmetic.mul);
  lane(code, shape, z, index);
  code.op(...sd.comparison.ne);
}

const inexact: { readonly [name in Operation['name']]: Inexact } = {
  add: sum(['sub', 'sub']),
  sub: sum(['sub', 'add']),
  mul: (code, shape, a, b, r) => {
    if (shape.bits === 32) product32(code, shape, a, b, r);
    else lanes64(code, shape, r, (index) => long(code, shape, a, b, index));
  },
  div: (code, shape, a, b, r) => {
    if (shape.bits === 32) return product32(code, shape, r, b, a);
    lanes64(code, shape, r, (index) => {
      long(code, shape, r, b, index);
      product64(code, shape, r, b, a, index);
      code.op(0x72); // or
    });
    // A dividend near the least number: the product may be rounded to it.
    some(code, shape, () => {
      extreme(code, shape, a);
      isZero(code, shape, a, 'ne');
      code.op(...shape.and);
    });
    code.op(0x72); // or
  },
  sqrt: (code, shape, a, _, r) => {
    if (shape.bits === 32) return product32(code, shape, r, r, a);
    lanes64(code, shape, r, (index) => {
      long(code, shape, r, r, index);
      product64(code, shape, r, r, a, index);
      code.op(0x72); // or
    });
  },
};

// --- comparisons ---------------------------------------------------------------------------------------------------

/** Gives up where an operand is a NaN or denormal. */
function comparable(code: AttemptCode, shape: Shape, ...operands: readonly number[]): void {
  some(
    code,
    shape,
    ...operands.flatMap((operand) => [
      () => denormal(code, shape, operand),
      () => unordered(code, shape, operand),
    ]),
  );
  code.slowIf();
}

/** MIN and MAX: the second operand unless the first is beyond it (SDM volume 2, MINPD). */
export function minimum(comparison: 'lt' | 'gt', shape: Shape, to: number, from: Source): Attempt {
  return (code) => {
    const a = read(code, shape, { offset: to });
    const b = read(code, shape, from);
    comparable(code, shape, a, b);
    code.store(shape.store, to, () => {
      code.get(a).get(b).get(a).get(b);
      code.op(...shape.comparison[comparison]);
      code.op(...(shape.lanes === 1 ? [Wasm.select] : simd(82))); // bitselect
    });
  };
}

/** The predicates of CMPxx without NaNs; undefined where all or none of such numbers fulfil it. */
const predicates = ['eq', 'lt', 'le', undefined, 'ne', 'ge', 'gt', undefined] as const;
const ORDERED = 7;

export function comparison(immediate: number, shape: Shape, to: number, from: Source): Attempt {
  const predicate = predicates[immediate & 7];
  return (code) => {
    const a = read(code, shape, { offset: to });
    const b = read(code, shape, from);
    comparable(code, shape, a, b);
    const answer = () => {
      if (predicate === undefined) {
        integer(code, shape, (immediate & 7) === ORDERED ? -1n : 0n);
        return;
      }
      const { lanes, bits } = shape;
      if (lanes === 1) code.const32(0);
      code
        .get(a)
        .get(b)
        .op(...shape.comparison[predicate]);
      if (lanes === 1) code.op(0x6b); // sub: -1 or 0
      if (lanes === 1 && bits === 64) code.op(0xac); // extend
    };
    const store = shape.lanes > 1 ? shape.store : [shape.bits === 64 ? Wasm.i64Store : Wasm.i32Store];
    code.store(store, to, answer);
  };
}

/** COMISx and UCOMISx: ZF and CF at their places in RFLAGS; PF is a NaN's. */
export function order(shape: Shape, to: number, from: Source): Attempt {
  return (code) => {
    const a = read(code, shape, { offset: to });
    const b = read(code, shape, from);
    comparable(code, shape, a, b);
    code
      .get(a)
      .get(b)
      .op(...shape.comparison.eq)
      .const32(6)
      .op(0x74); // shl
    code
      .get(a)
      .get(b)
      .op(...shape.comparison.lt, 0x72); // or
  };
}

// --- conversions ---------------------------------------------------------------------------------------------------

/** Between the two sizes of number; `from` has 8 bytes where it is packed and the lesser. */
export function resize(to: Shape, offset: number, from: Source): Attempt {
  const wider = to.bits === 64;
  const source = to.lanes === 1 ? scalarOf(wider ? ss : sd) : packedOf(wider ? ss : sd);
  const instruction = to.lanes === 1 ? (wider ? [0xbb] : [0xb6]) : wider ? simd(95) : simd(94);
  return (code) => {
    const a = read(code, source, from, wider ? 8 : 16);
    const r = code.local(to.type);
    // Only the low half of a packed source counts, and its upper one may hold anything.
    const lower = source.lanes === 4;
    if (lower)
      code
        .get(a)
        .get(a)
        .op(...simd(13, halves))
        .set(a);
    code
      .get(a)
      .op(...instruction)
      .set(r);
    if (wider) {
      comparable(code, source, a);
    } else {
      const again = code.local(source.type);
      code
        .get(r)
        .op(...(to.lanes === 1 ? [0xbb] : simd(95)))
        .set(again);
      some(code, source, () => denormal(code, source, a));
      code.slowIf();
      some(code, source, () => extreme(code, source, again, narrow));
      code.when(() => {
        // Zeroes of zeroes are right.
        extreme(code, source, again, narrow);
        isZero(code, source, a, 'ne');
        code.op(...source.and, ...source.any).slowIf();
      });
      rounds(code, differs(code, source, a, again));
    }
    write(code, to, offset, r);
  };
}
/** The low 8 bytes twice. */
const halves = [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7];

/** From integers of a general register or memory: the op's argument. */
export function fromInteger(bits: 32 | 64, shape: Shape, to: number): Attempt {
  const convert = shape.bits === 64 ? (bits === 64 ? 0xb9 : 0xb7) : bits === 64 ? 0xb4 : 0xb2;
  return (code) => {
    // Integers of so many bits are exact.
    const exact = shape.bits === 64 ? 53n : 24n;
    if (bits > Number(exact)) {
      const type = bits === 64 ? Wasm.i64 : Wasm.i32;
      const a = code.local(type);
      code.argument(0).set(a);
      const limit = 1n << exact;
      const constant = (value: bigint) => (bits === 64 ? code.const64(value) : code.const32(Number(value)));
      rounds(code, () => {
        code.get(a);
        constant(limit).op(bits === 64 ? 0x7c : 0x6a); // add
        constant(2n * limit).op(bits === 64 ? 0x5a : 0x4f); // ge_u
      });
      code.store(shape.store, to, () => code.get(a).op(convert));
    } else code.store(shape.store, to, () => code.argument(0).op(convert));
  };
}
/** CVTDQ2PS and CVTDQ2PD: of 4 and 2 integers of 32 bits. */
export function fromIntegers(shape: Shape, to: number, from: Source): Attempt {
  return (code) => {
    const a = read(code, ps, from, shape.bits === 64 ? 8 : 16);
    if (shape.bits === 64) return void code.store(shape.store, to, () => code.get(a).op(...simd(254)));
    rounds(code, () => {
      // Magnitudes above 2 ** 24.
      integer(code, ps, 1n << 24n);
      code.get(a).op(...simd(160), ...simd(58), ...simd(83)); // abs, lt_u, any_true
    });
    code.store(shape.store, to, () => code.get(a).op(...simd(250)));
  };
}

/** The number that a local holds, rounded to an integer in another. */
function whole(code: AttemptCode, shape: Shape, a: number, name: Unary): number {
  const r = code.local(shape.type);
  code
    .get(a)
    .op(...shape.unary[name])
    .set(r);
  return r;
}
const differs = (code: AttemptCode, shape: Shape, a: number, r: number) => () =>
  some(code, shape, () => {
    code
      .get(a)
      .get(r)
      .op(...shape.comparison.ne);
  });

/** CVTxx2SI and CVTTxx2SI. The integer is the op's result. Denormals are no exception here, but inexact. */
export function toInteger(bits: 32 | 64, truncate: boolean, shape: Shape, from: Source): Attempt {
  // trunc_sat: after the range is checked it is the plain conversion, which costs a check of its own.
  const convert = (bits === 64 ? 4 : 0) + (shape.bits === 64 ? 2 : 0);
  const limit = 2 ** (bits - 1);
  return (code) => {
    const a = read(code, shape, from);
    const r = whole(code, shape, a, truncate ? 'trunc' : 'nearest');
    // In range, and no NaN.
    code.get(r);
    number(code, shape, -limit);
    code.op(...shape.comparison.ge).get(r);
    number(code, shape, limit);
    code.op(...shape.comparison.lt, 0x71, 0x45).slowIf(); // and, eqz
    rounds(code, differs(code, shape, a, r), !truncate);
    code.get(r).op(0xfc, convert);
  };
}
/** To integers of 32 bits in lanes: of two numbers the upper half becomes zero. */
export function toIntegers(truncate: boolean, shape: Shape, to: number, from: Source): Attempt {
  return (code) => {
    const a = read(code, shape, from);
    const r = whole(code, shape, a, truncate ? 'trunc' : 'nearest');
    code.get(r).op(...shape.unary.abs);
    number(code, shape, 2 ** 31);
    // Where not |r| < 2 ** 31: the least integer is left to the helper.
    code.op(...shape.comparison.lt, ...simd(77), ...simd(83)).slowIf(); // not, any_true
    rounds(code, differs(code, shape, a, r), !truncate);
    code.store(ps.store, to, () => code.get(r).op(...simd(shape.bits === 64 ? 252 : 248)));
  };
}

const roundings = ['nearest', 'floor', 'ceil', 'trunc'] as const;
/** ROUNDxx: bit 3 of the immediate: without PE; bit 2: as MXCSR says; else by bits 1:0. */
export function integral(immediate: number, shape: Shape, to: number, from: Source): Attempt {
  const byMxcsr = (immediate & 4) !== 0;
  return (code) => {
    const a = read(code, shape, from);
    comparable(code, shape, a);
    const r = whole(code, shape, a, byMxcsr ? 'nearest' : roundings[(immediate & 3) as 0 | 1 | 2 | 3]);
    const quietly = (immediate & 8) !== 0;
    if (byMxcsr || !quietly) rounds(code, quietly ? never(code) : differs(code, shape, a, r), byMxcsr);
    write(code, shape, to, r);
  };
}

// --- operands that are arranged first ------------------------------------------------------------------------------

const picks = (bytes: number, ...lanes: readonly number[]) =>
  lanes.flatMap((number) => Array.from({ length: bytes }, (_, i) => number * bytes + i));

/** Neighbours of the destination, then of the source, as operands. */
export const neighbours =
  (shape: Shape): Prepare =>
  (code, a, b) => {
    const bytes = shape.bits / 8;
    const first = Array.from({ length: shape.lanes }, (_, i) => 2 * i);
    const kept = code.local(V128);
    code
      .get(a)
      .get(b)
      .op(...simd(13, picks(bytes, ...first)))
      .set(kept);
    code
      .get(a)
      .get(b)
      .op(...simd(13, picks(bytes, ...first.map((i) => i + 1))))
      .set(b);
    code.get(kept).set(a);
  };
/** The second operand with other signs in the even lanes: a sum with it is a difference there. */
export const alternating =
  (shape: Shape): Prepare =>
  (code, _, b) => {
    code.get(b).op(0xfd, 12);
    const sign = [...new Array<number>(shape.bits / 8 - 1).fill(0), 0x80];
    const none = new Array<number>(shape.bits / 8).fill(0);
    for (let i = 0; i < shape.lanes; i++) code.op(...(i & 1 ? none : sign));
    code.op(...simd(81)).set(b);
  };

export const shapes = { ps, ss, pd, sd } as const;

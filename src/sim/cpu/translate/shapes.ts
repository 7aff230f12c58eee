/**
 * The shapes of SSE's numbers in WebAssembly: one of 32 or 64 bits, or a register full of them. A row has the
 * instructions (WebAssembly specification, 5.4.7 and 5.4.8) that do the same to a number of each shape, so that an
 * attempt is written once for all four.
 */
import type { AttemptCode } from './attempt.ts';
import { simd } from './vectors.ts';

type Instruction = readonly number[];

const F32 = 0x7d;
const F64 = 0x7c;
export const V128 = 0x7b;

export type Arithmetic = 'add' | 'sub' | 'mul' | 'div';
export type Unary = 'sqrt' | 'ceil' | 'floor' | 'trunc' | 'nearest' | 'abs';
export type Comparison = 'eq' | 'ne' | 'lt' | 'gt' | 'le' | 'ge';

export interface Shape {
  readonly bits: 32 | 64;
  readonly lanes: 1 | 2 | 4;
  /** The type of a local that holds it. */
  readonly type: number;
  /** Between a local and the state page, without the offset. */
  readonly load: Instruction;
  readonly store: Instruction;
  readonly arithmetic: { readonly [name in Arithmetic]: Instruction };
  readonly unary: { readonly [name in Unary]: Instruction };
  /** These give masks, as do those of integers: an `i` that is 1 or 0, or lanes of ones or zeroes. */
  readonly comparison: { readonly [name in Comparison]: Instruction };
  /** The numbers as integers of their size, and back; what is done to those. */
  readonly toBits: Instruction;
  readonly fromBits: Instruction;
  readonly add: Instruction;
  readonly lessSigned: Instruction;
  /** Of two masks; and whether one has any bit, as an `i`. */
  readonly and: Instruction;
  readonly or: Instruction;
  readonly any: Instruction;
}

const names = <T extends string>(list: readonly T[], of: (index: number) => Instruction) =>
  Object.fromEntries(list.map((name, index) => [name, of(index)])) as { [name in T]: Instruction };
const ARITHMETIC = ['add', 'sub', 'mul', 'div'] as const;
const COMPARISONS = ['eq', 'ne', 'lt', 'gt', 'le', 'ge'] as const;
const UNARY = ['abs', 'ceil', 'floor', 'trunc', 'nearest', 'sqrt'] as const;

/** abs stands at `first`; neg between it and the roundings; the root and the arithmetic follow. */
const scalarUnary = (first: number) => names(UNARY, (index) => [index === 0 ? first : first + 1 + index]);
const scalars = {
  and: [0x71],
  or: [0x72],
  any: [],
} as const;
const vectors = {
  type: V128,
  load: [0xfd, 0],
  store: [0xfd, 11],
  toBits: [],
  fromBits: [],
  and: simd(78),
  or: simd(80),
  any: simd(83),
} as const;

export const ss: Shape = {
  bits: 32,
  lanes: 1,
  type: F32,
  load: [0x2a],
  store: [0x38],
  arithmetic: names(ARITHMETIC, (index) => [0x92 + index]),
  unary: scalarUnary(0x8b),
  comparison: names(COMPARISONS, (index) => [0x5b + index]),
  toBits: [0xbc],
  fromBits: [0xbe],
  add: [0x6a],
  lessSigned: [0x48],
  ...scalars,
};
export const sd: Shape = {
  bits: 64,
  lanes: 1,
  type: F64,
  load: [0x2b],
  store: [0x39],
  arithmetic: names(ARITHMETIC, (index) => [0xa0 + index]),
  unary: scalarUnary(0x99),
  comparison: names(COMPARISONS, (index) => [0x61 + index]),
  toBits: [0xbd],
  fromBits: [0xbf],
  add: [0x7c],
  lessSigned: [0x53],
  ...scalars,
};
const PS_UNARY = { abs: 224, ceil: 103, floor: 104, trunc: 105, nearest: 106, sqrt: 227 } as const;
const PD_UNARY = { abs: 236, ceil: 116, floor: 117, trunc: 122, nearest: 148, sqrt: 239 } as const;
export const ps: Shape = {
  ...vectors,
  bits: 32,
  lanes: 4,
  arithmetic: names(ARITHMETIC, (index) => simd(228 + index)),
  unary: names(UNARY, (index) => simd(PS_UNARY[UNARY[index]!])),
  comparison: names(COMPARISONS, (index) => simd(65 + index)),
  add: simd(174),
  lessSigned: simd(57),
};
export const pd: Shape = {
  ...vectors,
  bits: 64,
  lanes: 2,
  arithmetic: names(ARITHMETIC, (index) => simd(240 + index)),
  unary: names(UNARY, (index) => simd(PD_UNARY[UNARY[index]!])),
  comparison: names(COMPARISONS, (index) => simd(71 + index)),
  add: simd(206),
  lessSigned: simd(216),
};
/** A shape of the same width with one lane, and by width. */
export const scalarOf = ({ bits }: Shape): Shape => (bits === 32 ? ss : sd);
export const packedOf = ({ bits }: Shape): Shape => (bits === 32 ? ps : pd);

/** An integer of the shape's width in each lane. */
export function integer(code: AttemptCode, { bits, lanes }: Shape, value: bigint): void {
  if (lanes > 1) {
    code.op(0xfd, 12);
    for (let i = 0; i < lanes; i++) code.op(...bytesOf(value, bits));
  } else if (bits === 64) code.const64(value);
  else code.const32(Number(BigInt.asIntN(32, value)));
}
const bytesOf = (value: bigint, bits: number) =>
  Array.from({ length: bits / 8 }, (_, i) => Number((value >> BigInt(8 * i)) & 0xffn));

const number64 = new DataView(new ArrayBuffer(8));
/** A number in each lane. */
export function number(code: AttemptCode, shape: Shape, value: number): void {
  if (shape.bits === 64) number64.setFloat64(0, value);
  else number64.setFloat32(0, value);
  const bits = shape.bits === 64 ? number64.getBigUint64(0) : BigInt(number64.getUint32(0));
  if (shape.lanes > 1) integer(code, shape, bits);
  else code.op(shape.bits === 64 ? 0x44 : 0x43, ...bytesOf(bits, shape.bits));
}

/** Twice the bits of what a local holds: without the sign. */
function doubled(code: AttemptCode, shape: Shape, local: number): void {
  const { bits, lanes, toBits } = shape;
  code.get(local).op(...toBits);
  if (lanes > 1) code.const32(1).op(...simd(bits === 64 ? 203 : 171));
  else if (bits === 64) code.const64(1n).op(0x86);
  else code.const32(1).op(0x74);
}

// Comparisons without signs are those with signs of numbers that are moved by half the range: SIMD has only the latter.
const fractionBits = ({ bits }: Shape) => (bits === 64 ? 52n : 23n);
const half = ({ bits }: Shape) => 1n << BigInt(bits - 1);

/** The mask of denormals: 0 < 2 * bits < 2 ** (fraction bits + 1). */
export function denormal(code: AttemptCode, shape: Shape, local: number): void {
  doubled(code, shape, local);
  integer(code, shape, half(shape) - 1n);
  code.op(...shape.add);
  integer(code, shape, (2n << fractionBits(shape)) - 1n - half(shape));
  code.op(...shape.lessSigned);
}

/** Biased exponents: the least that no tiny number is rounded to, and the first that is no number's any more. */
interface Range {
  readonly least: bigint;
  readonly beyond: bigint;
}
const ranges = { 32: { least: 2n, beyond: 0xffn }, 64: { least: 2n, beyond: 0x7ffn } } as const;
/** Numbers of 64 bits that are numbers of 32. */
export const narrow: Range = { least: 1023n - 125n, beyond: 1023n + 128n };

/**
 * The mask of what may have overflowed or underflowed, zero too, or is no number. What has the exponent 1 may have been
 * tiny before it was rounded.
 */
export function extreme(
  code: AttemptCode,
  shape: Shape,
  local: number,
  { least, beyond }: Range = ranges[shape.bits],
): void {
  const place = fractionBits(shape) + 1n;
  integer(code, shape, ((beyond - least) << place) - 1n - half(shape));
  doubled(code, shape, local);
  integer(code, shape, half(shape) - (least << place));
  code.op(...shape.add, ...shape.lessSigned);
}

/** The mask of NaNs. */
export function unordered(code: AttemptCode, shape: Shape, local: number): void {
  code
    .get(local)
    .get(local)
    .op(...shape.comparison.ne);
}

/** One lane of a local as a number of 64 bits, and of 64 bits as an integer. */
export function lane(code: AttemptCode, shape: Shape, local: number, index: number): void {
  const { bits, lanes } = shape;
  code.get(local);
  if (lanes > 1) code.op(...simd(bits === 64 ? 33 : 31, [index]));
  if (bits === 32) code.op(0xbb); // f64.promote_f32
}
export function laneBits(code: AttemptCode, { lanes }: Shape, local: number, index: number): void {
  code.get(local);
  if (lanes > 1) code.op(...simd(29, [index]));
  else code.op(0xbd);
}

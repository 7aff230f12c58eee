/**
 * SSE's arithmetic on packed and scalar numbers of 32 and 64 bits. Each operation is a lane's; `forms` makes the
 * four instructions of it.
 */
import {
  add,
  compare,
  divide,
  firstNan,
  multiply,
  nanOf,
  Relation,
  squareRoot,
  subtract,
  toIntegral,
} from '../fp/arithmetic.ts';
import {
  Exception,
  F32,
  type Float,
  indefinite,
  infinity,
  Kind,
  Rounding,
  read,
  round,
  unpack,
  zero,
} from '../fp/float.ts';
import {
  nativeAdd,
  nativeDivide,
  nativeMultiply,
  nativeRoot,
  nativeSubtract,
  safeOperand,
  type Width,
} from '../fp/native.ts';
import type { Answers, Helper, Helpers } from '../processor/helper.ts';
import type { Insn } from '../processor/insn.ts';
import type { Processor } from '../processor/processor.ts';
import { begin, bitsOf, end, env, formatOf, numberOf, operation, setBits } from './env.ts';
import { setArithmeticFlags } from './integer.ts';
import { A, B, checkSse, immediate, Lanes, load, R, store, whole } from './operands.ts';

/** R[i] of A[i] and B[i]. */
type Lane = (width: Width, i: number, imm: number) => void;

const float =
  (width: Width, count: number, lane: Lane): Helper =>
  (cpu, insn) => {
    checkSse(cpu);
    load(cpu, insn, 0, A);
    load(cpu, insn, 1, B);
    begin(cpu);
    const imm = immediate(insn);
    for (let i = 0; i < count; i++) lane(width, i, imm);
    end(cpu);
    store(cpu, insn, R, (count * width) / 8);
  };

const forms = (name: string, lane: Lane): Helpers => ({
  [`${name}ps`]: float(32, 4, lane),
  [`${name}ss`]: float(32, 1, lane),
  [`${name}pd`]: float(64, 2, lane),
  [`${name}sd`]: float(64, 1, lane),
});

const plus = operation(nativeAdd, add);
const minus = operation(nativeSubtract, subtract);
const times = operation(nativeMultiply, multiply);
const over = operation(nativeDivide, divide);
const root = operation(nativeRoot, (environment, format, _, b) => squareRoot(environment, format, b));

/** The order of two lanes; the flags of IE and DE as for a comparison. */
function relation(width: Width, i: number, quietly: boolean): number {
  const [x, y] = [numberOf(width, A, i), numberOf(width, B, i)];
  if (safeOperand(width, x) && safeOperand(width, y))
    return Math.sign(x - y) || Number(x > y) - Number(x < y);
  const format = formatOf(width);
  return compare(
    env,
    read(env, format, bitsOf(width, A, i)),
    read(env, format, bitsOf(width, B, i)),
    quietly,
  );
}

/** MIN and MAX: the second operand unless the first is strictly beyond it; any NaN is invalid (SDM volume 2, MINPS). */
const extreme =
  (wanted: number): Lane =>
  (width, i) => {
    const from = relation(width, i, false) === wanted ? A : B;
    const format = formatOf(width);
    const bits = bitsOf(width, from, i);
    const flushed = env.denormalsAreZero && unpack(format, bits).denormal;
    setBits(width, R, i, flushed ? bits & format.sign : bits);
  };

/** The predicates of CMPxx, by the low three bits of the immediate; VEX has five bits of it. */
const eight: readonly { readonly quiet: boolean; readonly holds: (order: number) => boolean }[] = [
  { quiet: true, holds: (order) => order === Relation.EQUAL },
  { quiet: false, holds: (order) => order === Relation.LESS },
  { quiet: false, holds: (order) => order === Relation.LESS || order === Relation.EQUAL },
  { quiet: true, holds: (order) => order === Relation.UNORDERED },
  { quiet: true, holds: (order) => order !== Relation.EQUAL },
  { quiet: false, holds: (order) => order !== Relation.LESS },
  { quiet: false, holds: (order) => order !== Relation.LESS && order !== Relation.EQUAL },
  { quiet: true, holds: (order) => order !== Relation.UNORDERED },
];
/** The same of NaNs (EQ_UQ, NGE, NGT, FALSE, NEQ_OQ, GE, GT, TRUE), and all of them quiet where they were not (SDM volume 2, table 3-1). */
const sixteen: typeof eight = [
  ...eight,
  { quiet: true, holds: (order) => order === Relation.EQUAL || order === Relation.UNORDERED },
  { quiet: false, holds: (order) => order === Relation.LESS || order === Relation.UNORDERED },
  { quiet: false, holds: (order) => order !== Relation.GREATER },
  { quiet: true, holds: () => false },
  { quiet: true, holds: (order) => order === Relation.LESS || order === Relation.GREATER },
  { quiet: false, holds: (order) => order === Relation.EQUAL || order === Relation.GREATER },
  { quiet: false, holds: (order) => order === Relation.GREATER },
  { quiet: true, holds: () => true },
];
const predicates: typeof eight = [
  ...sixteen,
  ...sixteen.map(({ quiet, holds }) => ({ quiet: !quiet, holds })),
];
const comparison: Lane = (width, i, imm) => {
  const { quiet, holds } = predicates[imm & (whole.active ? 31 : 7)]!;
  setBits(
    width,
    R,
    i,
    holds(relation(width, i, quiet)) ? (width === 32 ? 0xffff_ffffn : 0xffff_ffff_ffff_ffffn) : 0n,
  );
};

const CF = 0x1;
const PF = 0x4;
const ZF = 0x40;
/** The answer of COMISx, UCOMISx, FCOMI and FUCOMI. */
export const relationFlags = (order: number): number =>
  order === Relation.UNORDERED
    ? ZF | PF | CF
    : order === Relation.EQUAL
      ? ZF
      : order === Relation.LESS
        ? CF
        : 0;

const compareToFlags =
  (width: Width, quietly: boolean) =>
  (cpu: Processor, insn: Insn): number => {
    checkSse(cpu);
    load(cpu, insn, 0, A);
    load(cpu, insn, 1, B);
    begin(cpu);
    const order = relation(width, 0, quietly);
    end(cpu);
    return relationFlags(order);
  };
/** Comparisons that answer with flags. */
export const sseComparisons = {
  comiss: compareToFlags(32, false),
  comisd: compareToFlags(64, false),
  ucomiss: compareToFlags(32, true),
  ucomisd: compareToFlags(64, true),
} as const satisfies Answers;
const toFlags =
  (name: keyof typeof sseComparisons): Helper =>
  (cpu, insn) =>
    setArithmeticFlags(cpu, sseComparisons[name](cpu, insn));

/** Bit 3 of the immediate: without PE; bit 2: as MXCSR says; else by bits 1:0. */
const integral: Lane = (width, i, imm) => {
  const format = formatOf(width);
  const before = env.flags;
  const rounding = imm & 4 ? env.rounding : imm & 3;
  setBits(width, R, i, toIntegral(env, format, read(env, format, bitsOf(width, B, i)), rounding));
  if (imm & 8) env.flags = (env.flags & ~Exception.PE) | before;
};

/** Neighbours of the destination, then of the source. */
const horizontal =
  (width: Width, op: typeof plus): Helper =>
  (cpu, insn) => {
    checkSse(cpu);
    load(cpu, insn, 0, A);
    load(cpu, insn, 1, B);
    begin(cpu);
    const half = 64 / width;
    for (let i = 0; i < half; i++) {
      op(width, i, A, 2 * i, A, 2 * i + 1);
      op(width, i + half, B, 2 * i, B, 2 * i + 1);
    }
    end(cpu);
    store(cpu, insn, R);
  };

const alternating: Lane = (width, i) => (i & 1 ? plus : minus)(width, i, A, i, B, i);

const products = new Lanes();
/** DPPS and DPPD: the products that bits 7:4 choose, added pairwise, to the lanes that bits 3:0 choose. */
const dot =
  (width: Width): Helper =>
  (cpu, insn) => {
    checkSse(cpu);
    load(cpu, insn, 0, A);
    load(cpu, insn, 1, B);
    begin(cpu);
    const imm = immediate(insn);
    const count = 128 / width;
    R.u8.fill(0);
    for (let i = 0; i < count; i++) if ((imm >> (4 + i)) & 1) times(width, i, A, i, B, i);
    end(cpu);
    // Unmasked exceptions of the products leave the sums undone; for AVX they are raised later.
    if ((env.flags & ~env.masks) !== 0) return;
    const alone = cpu.vendor === 'intel';
    if (alone) sumEach(width, count);
    else sumOnce(width, count);
    end(cpu);
    products.u8.set(R.u8);
    for (let i = 0; i < count; i++)
      setBits(width, R, i, (imm >> i) & 1 ? bitsOf(width, products, alone ? i : 0) : 0n);
    store(cpu, insn, R);
  };
// Silicon shows by NaNs in which order it adds: Intel's each lane for itself, AMD's once for all.
function sumEach(width: Width, count: number): void {
  for (let step = 1; step < count; step <<= 1) {
    products.u8.set(R.u8);
    for (let i = 0; i < count; i++) {
      const swapped = width === 32 && step === 1;
      plus(width, i, products, swapped ? i ^ step : i, products, swapped ? i : i ^ step);
    }
  }
}
function sumOnce(width: Width, count: number): void {
  for (let step = count; step > 1; step >>= 1) {
    products.u8.set(R.u8);
    for (let i = 0; i < step / 2; i++) plus(width, i, products, 2 * i, products, 2 * i + 1);
  }
}

/** What RCPxx and RSQRTxx compute under: not MXCSR's rounding, masks or flags. */
const APPROXIMATELY = {
  ...env,
  rounding: Rounding.NEAREST,
  masks: 0x3f,
  flushToZero: true,
  denormalsAreZero: true,
};
/**
 * Twelve bits of the true result, rounded to nearest: processors differ here, within the permitted relative error of
 * 1.5 * 2 ** -12 (SDM volume 2, RCPPS). Denormals count as zeroes and are not given.
 */
const approximation =
  (infinityOf: (a: Float) => bigint, of: (value: number) => number): Lane =>
  (width, i) => {
    const bits = bitsOf(width, B, i);
    const a = read(APPROXIMATELY, F32, bits);
    setBits(width, R, i, approximate(a, numberOf(width, B, i), infinityOf, of));
  };
function approximate(
  a: Float,
  value: number,
  ofZero: (a: Float) => bigint,
  of: (value: number) => number,
): bigint {
  const answer = nanOf(APPROXIMATELY, F32, a, a, firstNan);
  if (answer !== undefined) return answer;
  if (a.kind === Kind.ZERO) return ofZero(a);
  const result = of(value);
  if (Number.isNaN(result)) return indefinite(F32);
  if (result === 0) return zero(F32, a.negative);
  const exponent = Math.floor(Math.log2(Math.abs(result))) - 11;
  const significand = BigInt(Math.round(Math.abs(result) / 2 ** exponent));
  return round(APPROXIMATELY, F32, result < 0, significand, exponent);
}
const reciprocal = approximation(
  (a) => infinity(F32, a.negative),
  (value) => 1 / value,
);
const reciprocalRoot = approximation(
  (a) => infinity(F32, a.negative),
  (value) => 1 / Math.sqrt(value),
);

export const sseFloat: Helpers = {
  ...forms('add', (width, i) => plus(width, i, A, i, B, i)),
  ...forms('sub', (width, i) => minus(width, i, A, i, B, i)),
  ...forms('mul', (width, i) => times(width, i, A, i, B, i)),
  ...forms('div', (width, i) => over(width, i, A, i, B, i)),
  ...forms('sqrt', (width, i) => root(width, i, B, i, B, i)),
  ...forms('min', extreme(Relation.LESS)),
  ...forms('max', extreme(Relation.GREATER)),
  ...forms('cmp', comparison),
  ...forms('round', integral),
  comiss: toFlags('comiss'),
  comisd: toFlags('comisd'),
  ucomiss: toFlags('ucomiss'),
  ucomisd: toFlags('ucomisd'),
  haddps: horizontal(32, plus),
  haddpd: horizontal(64, plus),
  hsubps: horizontal(32, minus),
  hsubpd: horizontal(64, minus),
  addsubps: float(32, 4, alternating),
  addsubpd: float(64, 2, alternating),
  dpps: dot(32),
  dppd: dot(64),
  rcpps: float(32, 4, reciprocal),
  rcpss: float(32, 1, reciprocal),
  rsqrtps: float(32, 4, reciprocalRoot),
  rsqrtss: float(32, 1, reciprocalRoot),
};

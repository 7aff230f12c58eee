/** The x87's arithmetic and comparisons. */

import {
  add,
  type Binary,
  compare,
  denormals,
  divide,
  extract,
  largerNan,
  multiply,
  Relation,
  remainder,
  scale,
  squareRoot,
  subtract,
  toIntegral,
} from '../fp/arithmetic.ts';
import { F32, F64, F80, type Float, float, indefinite, isNan, Kind, Rounding, unpack } from '../fp/float.ts';
import type { Helper, Helpers } from '../processor/helper.ts';
import type { Insn } from '../processor/insn.ts';
import type { Processor } from '../processor/processor.ts';
import { State } from '../processor/state.ts';
import { relationFlags } from '../sse/float.ts';
import { setArithmeticFlags } from '../sse/integer.ts';
import {
  bitsOfSt,
  controlPrecision,
  env,
  Fsw,
  hasMemory,
  isEmpty,
  operandAddress,
  overflow,
  pop,
  pushValue,
  setConditions,
  setSt,
  settle,
  st,
  stOperand,
  underflow,
  x87,
} from './stack.ts';

/** An integer as a number: exact, whatever its width. */
export const integer = (value: bigint): Float =>
  value === 0n ? float(Kind.ZERO, false) : float(Kind.FINITE, value < 0n, value < 0n ? -value : value);

/** Memory operands by the instruction's kind and the operand's size. */
export function memoryNumber(cpu: Processor, insn: Insn, integral: boolean): Float {
  const operand = insn.operands[0]!;
  const size = operand.kind === 'mem' ? operand.size : 0;
  const linear = operandAddress(cpu, insn, size, false);
  if (integral) {
    if (size === 2) return integer(BigInt.asIntN(16, BigInt(cpu.memory.read16(linear))));
    if (size === 4) return integer(BigInt.asIntN(32, BigInt(cpu.memory.read32(linear))));
    return integer(BigInt.asIntN(64, cpu.memory.read64(linear)));
  }
  if (size === 4) return unpack(F32, BigInt(cpu.memory.read32(linear)));
  return unpack(F64, cpu.memory.read64(linear));
}

/** ST(destination) = ST(destination) op source, where the source is memory or a register; `reversed` swaps them. */
const arithmetic = (
  op: Binary,
  options: { reversed?: boolean; integral?: boolean; pops?: boolean } = {},
): Helper =>
  x87((cpu, insn) => {
    const fromMemory = hasMemory(insn) ? memoryNumber(cpu, insn, options.integral === true) : undefined;
    const to = fromMemory === undefined ? stOperand(insn, 0, 1) : 0;
    const from = stOperand(insn, 1, 0);
    controlPrecision(cpu);
    let result = indefinite(F80);
    if (isEmpty(cpu, to) || (fromMemory === undefined && isEmpty(cpu, from))) underflow();
    else {
      const a = st(cpu, to);
      const b = fromMemory ?? st(cpu, from);
      result = options.reversed === true ? op(env, F80, b, a, largerNan) : op(env, F80, a, b, largerNan);
    }
    if (!settle(cpu)) return;
    setSt(cpu, to, result);
    if (options.pops === true) pop(cpu);
  });

const families = (name: string, op: Binary, reversed?: string): Helpers => ({
  [`f${name}`]: arithmetic(op),
  [`f${name}p`]: arithmetic(op, { pops: true }),
  [`fi${name}`]: arithmetic(op, { integral: true }),
  ...(reversed === undefined
    ? {}
    : {
        [`f${reversed}`]: arithmetic(op, { reversed: true }),
        [`f${reversed}p`]: arithmetic(op, { reversed: true, pops: true }),
        [`fi${reversed}`]: arithmetic(op, { reversed: true, integral: true }),
      }),
});

const CONDITIONS = Fsw.C0 | Fsw.C2 | Fsw.C3;
/** C3, C2 and C0 stand where ZF, PF and CF do when FSW's high byte is loaded with SAHF. */
const conditions = (order: number): number => relationFlags(order) << 8;

interface Comparison {
  quiet?: boolean;
  pops?: number;
  integral?: boolean;
  toFlags?: boolean;
  /** The second operand, if it is implied. */
  against?: Float;
}
const comparison = ({
  quiet = false,
  pops = 0,
  integral = false,
  toFlags = false,
  against,
}: Comparison): Helper =>
  x87((cpu, insn) => {
    const known = against ?? (hasMemory(insn) ? memoryNumber(cpu, insn, integral) : undefined);
    const other = stOperand(insn, 1, 1);
    let order: number = Relation.UNORDERED;
    if (isEmpty(cpu, 0) || (known === undefined && isEmpty(cpu, other))) underflow();
    else order = compare(env, st(cpu, 0), known ?? st(cpu, other), quiet);
    const c1 = cpu.state.u16(State.fsw) & Fsw.C1;
    const stored = settle(cpu);
    // The answer is given even when the exception is taken: silicon does so.
    if (toFlags) {
      setArithmeticFlags(cpu, relationFlags(order));
      // Only a stack fault touches C1 here.
      if ((env.flags & Fsw.SF) === 0) setConditions(cpu, Fsw.C1, c1);
    } else setConditions(cpu, CONDITIONS, conditions(order));
    if (!stored) return;
    for (let i = 0; i < pops; i++) pop(cpu);
  });

/** ST(0) = f(ST(0)). */
const unary = (of: (a: Float) => bigint, controlled = false): Helper =>
  x87((cpu) => {
    let result = indefinite(F80);
    if (controlled) controlPrecision(cpu);
    if (isEmpty(cpu, 0)) underflow();
    else result = of(st(cpu, 0));
    if (settle(cpu)) setSt(cpu, 0, result);
  });

/** FCHS and FABS change the sign of anything. */
const sign = (of: (bits: bigint) => bigint): Helper =>
  x87((cpu) => {
    if (isEmpty(cpu, 0)) underflow();
    const result = isEmpty(cpu, 0) ? indefinite(F80) : of(bitsOfSt(cpu, 0));
    if (settle(cpu)) setSt(cpu, 0, result);
  });

/** ST(0) = ST(0) modulo ST(1); the quotient's low bits are in C0, C3 and C1. */
const partialRemainder = (rounding: number): Helper =>
  x87((cpu) => {
    let answer: { result: bigint; quotient: number | undefined } = { result: indefinite(F80), quotient: 0 };
    if (isEmpty(cpu, 0) || isEmpty(cpu, 1)) underflow();
    else answer = remainder(env, F80, st(cpu, 0), st(cpu, 1), rounding);
    const { result, quotient } = answer;
    const noQuotient = isNan(unpack(F80, result));
    env.roundedUp = false;
    if (!settle(cpu)) return setConditions(cpu, Fsw.C2, 0);
    const [q0, q1, q2] = [1, 2, 4].map((bit) => ((quotient ?? 0) & bit) !== 0);
    if (noQuotient) setConditions(cpu, Fsw.C2, 0);
    else
      setConditions(
        cpu,
        CONDITIONS | Fsw.C1,
        (quotient === undefined ? Fsw.C2 : 0) | (q2 ? Fsw.C0 : 0) | (q1 ? Fsw.C3 : 0) | (q0 ? Fsw.C1 : 0),
      );
    setSt(cpu, 0, result);
  });

/** C3, C2 and C0 by what FXAM finds. */
const classes: { readonly [kind: number]: number } = {
  [Kind.UNSUPPORTED]: 0,
  [Kind.QNAN]: Fsw.C0,
  [Kind.SNAN]: Fsw.C0,
  [Kind.FINITE]: Fsw.C2,
  [Kind.INFINITE]: Fsw.C2 | Fsw.C0,
  [Kind.ZERO]: Fsw.C3,
};

export const x87Arithmetic: Helpers = {
  ...families('add', add),
  ...families('mul', multiply),
  ...families('sub', subtract, 'subr'),
  ...families('div', divide, 'divr'),
  fcom: comparison({}),
  fcomp: comparison({ pops: 1 }),
  fcompp: comparison({ pops: 2 }),
  ficom: comparison({ integral: true }),
  ficomp: comparison({ integral: true, pops: 1 }),
  fucom: comparison({ quiet: true }),
  fucomp: comparison({ quiet: true, pops: 1 }),
  fucompp: comparison({ quiet: true, pops: 2 }),
  fcomi: comparison({ toFlags: true }),
  fcomip: comparison({ toFlags: true, pops: 1 }),
  fucomi: comparison({ toFlags: true, quiet: true }),
  fucomip: comparison({ toFlags: true, quiet: true, pops: 1 }),
  ftst: comparison({ against: float(Kind.ZERO, false) }),
  fsqrt: unary((a) => squareRoot(env, F80, a), true),
  frndint: unary((a) => {
    denormals(env, a);
    return toIntegral(env, F80, a);
  }),
  fchs: sign((bits) => bits ^ F80.sign),
  fabs: sign((bits) => bits & ~F80.sign),
  fprem: partialRemainder(Rounding.ZERO),
  fprem1: partialRemainder(Rounding.NEAREST),
  fscale: x87((cpu) => {
    let result = indefinite(F80);
    if (isEmpty(cpu, 0) || isEmpty(cpu, 1)) underflow();
    else result = scale(env, F80, st(cpu, 0), st(cpu, 1), largerNan);
    if (settle(cpu)) setSt(cpu, 0, result);
  }),
  /** The exponent takes the place of ST(0), and the significand is pushed. */
  fxtract: x87((cpu) => {
    if (isEmpty(cpu, 0)) underflow();
    else if (!isEmpty(cpu, 7)) overflow();
    const none = indefinite(F80);
    const parts = env.flags ? { exponent: none, significand: none } : extract(env, F80, st(cpu, 0));
    if (!settle(cpu)) return;
    setSt(cpu, 0, parts.exponent);
    pushValue(cpu, parts.significand);
  }),
  fxam: x87((cpu) => {
    const value = st(cpu, 0);
    const found = isEmpty(cpu, 0) ? Fsw.C3 | Fsw.C0 : value.denormal ? Fsw.C3 | Fsw.C2 : classes[value.kind]!;
    setConditions(cpu, CONDITIONS | Fsw.C1, found | (value.negative ? Fsw.C1 : 0));
  }),
};

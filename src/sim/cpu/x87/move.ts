/** The x87's loads, stores, constants, stack and control instructions. */

import { convert, encode, toInteger } from '../fp/arithmetic.ts';
import {
  BEFORE,
  Exception,
  F32,
  F64,
  F80,
  type Format,
  float,
  indefinite,
  Kind,
  Rounding,
} from '../fp/float.ts';
import { raise, Vector } from '../processor/fault.ts';
import type { Helper, Helpers } from '../processor/helper.ts';
import type { Insn } from '../processor/insn.ts';
import { CR0 } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import { Flag, State } from '../processor/state.ts';
import { checkPending } from '../sse/operands.ts';
import { memoryNumber } from './arithmetic.ts';
import {
  bitsOfSt,
  checkAvailable,
  EMPTY,
  env,
  Fsw,
  hasMemory,
  isEmpty,
  operandAddress,
  pop,
  push,
  setConditions,
  setSt,
  setTag,
  setTop,
  settle,
  st,
  stOperand,
  summarize,
  top,
  underflow,
  withheld,
  x87,
} from './stack.ts';

const STORE = BEFORE | Exception.OE | Exception.UE;
const memorySize = (insn: Insn): number => {
  const operand = insn.operands[0]!;
  return operand.kind === 'mem' ? operand.size : 0;
};

function write(cpu: Processor, insn: Insn, bits: bigint, size: number): void {
  const linear = operandAddress(cpu, insn, size, true);
  cpu.memory.writeBytes(linear, toBytes(bits, size));
}
export function toBytes(value: bigint, size: number): Uint8Array {
  const bytes = new Uint8Array(size);
  for (let i = 0, rest = value; i < size; i++, rest >>= 8n) bytes[i] = Number(rest & 0xffn);
  return bytes;
}
export function fromBytes(bytes: Uint8Array): bigint {
  let value = 0n;
  for (let i = bytes.length - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[i]!);
  return value;
}

/**
 * Stores of(ST(0)) in memory and pops perhaps. What is withheld is not written; the write comes before FSW changes,
 * for it can fault.
 */
const storing = (
  none: (size: number) => bigint,
  of: (cpu: Processor, size: number) => bigint,
  pops: boolean,
): Helper =>
  x87((cpu, insn) => {
    const size = memorySize(insn);
    let bits = none(size);
    if (isEmpty(cpu, 0)) underflow();
    else bits = of(cpu, size);
    if (!withheld(STORE)) write(cpu, insn, bits, size);
    else {
      cpu.memory.checkWrite(operandAddress(cpu, insn, size, true), size);
      // What overflows or underflows and is not stored is not inexact either.
      env.flags &= ~Exception.PE;
      env.roundedUp = false;
    }
    if (settle(cpu, STORE) && pops) pop(cpu);
  });

const formats: { readonly [size: number]: Format } = { 4: F32, 8: F64, 10: F80 };

/** FST and FSTP: to another register, or to memory; 80 bits are stored as they are. */
const store = (pops: boolean): Helper => {
  const toMemory = storing(
    (size) => indefinite(formats[size]!),
    (cpu, size) => (size === 10 ? bitsOfSt(cpu, 0) : convert(env, formats[size]!, st(cpu, 0), false)),
    pops,
  );
  const toRegister = x87((cpu, insn) => {
    let bits = indefinite(F80);
    if (isEmpty(cpu, 0)) underflow();
    else bits = bitsOfSt(cpu, 0);
    if (!settle(cpu)) return;
    setSt(cpu, stOperand(insn, 0), bits);
    if (pops) pop(cpu);
  });
  return (cpu, insn) => (hasMemory(insn) ? toMemory : toRegister)(cpu, insn);
};

const storeInteger = (pops: boolean, truncate = false): Helper =>
  storing(
    (size) => 1n << BigInt(8 * size - 1),
    (cpu, size) => toInteger(env, 8 * size, st(cpu, 0), truncate ? Rounding.ZERO : env.rounding),
    pops,
  );

/** The packed BCD indefinite. */
const BCD_INDEFINITE = 0xffff_c000_0000_0000_0000n;
const BCD_LIMIT = 10n ** 18n;
function toBcd(cpu: Processor): bigint {
  const value = st(cpu, 0);
  const flags = env.flags;
  const integer = BigInt.asIntN(64, toInteger(env, 64, value));
  const magnitude = integer < 0n ? -integer : integer;
  if (env.flags & Exception.IE || magnitude >= BCD_LIMIT) {
    env.flags = flags | Exception.IE;
    env.roundedUp = false;
    return BCD_INDEFINITE;
  }
  return BigInt(`0x${magnitude.toString()}`) | (value.negative ? F80.sign : 0n);
}
/** Digits above nine count for what they are: nobody promises anything else. */
function fromBcd(bits: bigint): bigint {
  let magnitude = 0n;
  for (let digit = 17n; digit >= 0n; digit--) magnitude = magnitude * 10n + ((bits >> (4n * digit)) & 15n);
  const negative = (bits & F80.sign) !== 0n;
  return encode(env, F80, float(magnitude === 0n ? Kind.ZERO : Kind.FINITE, negative, magnitude));
}

/** Significands of 128 bits, and the exponents of their last: rounded as the rounding control says, silently. */
const constant = (significand: bigint, exponent: number): Helper =>
  x87((cpu) => {
    const bits = encode({ ...env }, F80, float(Kind.FINITE, false, significand, exponent));
    push(cpu, bits);
  });

/** FCMOVcc: the condition on EFLAGS. */
const conditional = (mask: number, wanted: boolean): Helper =>
  x87((cpu, insn) => {
    const from = stOperand(insn, 1, 1);
    if (isEmpty(cpu, 0) || isEmpty(cpu, from)) {
      underflow();
      if (settle(cpu)) setSt(cpu, 0, indefinite(F80));
      return;
    }
    if (((cpu.state.flags & mask) !== 0) === wanted) setSt(cpu, 0, bitsOfSt(cpu, from));
  });

/** A control instruction: it does not wait for pending exceptions, and leaves the pointers alone. */
const control =
  (body: (cpu: Processor, insn: Insn) => void, waits = false): Helper =>
  (cpu, insn) => {
    checkAvailable(cpu);
    if (waits) checkPending(cpu);
    body(cpu, insn);
  };

export function initialize(cpu: Processor): void {
  const { state } = cpu;
  state.setU16(State.fcw, 0x37f);
  state.setU16(State.fsw, 0);
  state.setU16(State.ftw, 0xffff);
  state.setU16(State.fop, 0);
  state.setU64(State.fip, 0n);
  state.setU16(State.fcs, 0);
  state.setU64(State.fdp, 0n);
  state.setU16(State.fds, 0);
}

const turn = (by: number): Helper =>
  x87((cpu) => {
    setTop(cpu, top(cpu) + by);
    setConditions(cpu, Fsw.C1, 0);
  });

const free = (pops: boolean): Helper =>
  x87((cpu, insn) => {
    setTag(cpu, stOperand(insn, 0), EMPTY);
    setConditions(cpu, Fsw.C1, 0);
    if (pops) pop(cpu);
  });

const nothing = control(() => {});
/** FCW's bits that are stored: bit 6 is always one. */
export const controlWord = (value: number): number => (value & 0x1f7f) | 0x40;
export function setControlWord(cpu: Processor, value: number): void {
  cpu.state.setU16(State.fcw, controlWord(value));
}

export const x87Move: Helpers = {
  fld: x87((cpu, insn) => {
    if (!hasMemory(insn)) {
      const from = stOperand(insn, 0);
      if (!isEmpty(cpu, from)) return push(cpu, bitsOfSt(cpu, from));
      underflow();
      return push(cpu, indefinite(F80));
    }
    if (memorySize(insn) !== 10) return push(cpu, convert(env, F80, memoryNumber(cpu, insn, false)));
    push(cpu, fromBytes(cpu.memory.readBytes(operandAddress(cpu, insn, 10, false), 10)));
  }),
  fst: store(false),
  fstp: store(true),
  /** Undocumented: as FSTP ST(i), but an empty ST(0) is no stack fault. */
  fstpnce: x87((cpu, insn) => {
    settle(cpu);
    if (!isEmpty(cpu, 0)) setSt(cpu, stOperand(insn, 0), bitsOfSt(cpu, 0));
    pop(cpu);
  }),
  fild: x87((cpu, insn) => push(cpu, encode(env, F80, memoryNumber(cpu, insn, true)))),
  fist: storeInteger(false),
  fistp: storeInteger(true),
  fisttp: storeInteger(true, true),
  fbld: x87((cpu, insn) => {
    push(cpu, fromBcd(fromBytes(cpu.memory.readBytes(operandAddress(cpu, insn, 10, false), 10))));
  }),
  fbstp: storing(
    () => BCD_INDEFINITE,
    (cpu) => toBcd(cpu),
    true,
  ),
  fldz: x87((cpu) => push(cpu, 0n)),
  fld1: constant(1n, 0),
  fldpi: constant(0xc90fdaa2_2168c234_c4c6628b_80dc1cd1n, -126),
  fldl2t: constant(0xd49a784b_cd1b8afe_492bf6ff_4dafdb4cn, -126),
  fldl2e: constant(0xb8aa3b29_5c17f0bb_be87fed0_691d3e88n, -127),
  fldlg2: constant(0x9a209a84_fbcff798_8f8959ac_0b7c9178n, -129),
  fldln2: constant(0xb17217f7_d1cf79ab_c9e3b398_03f2f6afn, -128),
  fxch: x87((cpu, insn) => {
    const other = stOperand(insn, 1, 1);
    const [left, right] = [0, other].map((i) => {
      if (!isEmpty(cpu, i)) return bitsOfSt(cpu, i);
      underflow();
      return indefinite(F80);
    });
    if (!settle(cpu)) return;
    setSt(cpu, 0, right!);
    setSt(cpu, other, left!);
  }),
  fcmovb: conditional(Flag.CF, true),
  fcmove: conditional(Flag.ZF, true),
  fcmovbe: conditional(Flag.CF | Flag.ZF, true),
  fcmovu: conditional(Flag.PF, true),
  fcmovnb: conditional(Flag.CF, false),
  fcmovne: conditional(Flag.ZF, false),
  fcmovnbe: conditional(Flag.CF | Flag.ZF, false),
  fcmovnu: conditional(Flag.PF, false),
  fincstp: turn(1),
  fdecstp: turn(-1),
  ffree: free(false),
  ffreep: free(true),
  /** It moves the pointers. */
  fnop: x87(() => {}),
  /** For the 8087 and the 80287 only. */
  fneni: nothing,
  fndisi: nothing,
  fnsetpm: nothing,
  fninit: control(initialize),
  fnclex: control((cpu) => cpu.state.setU16(State.fsw, cpu.state.u16(State.fsw) & 0x7f00)),
  fldcw: control((cpu, insn) => {
    setControlWord(cpu, cpu.memory.read16(operandAddress(cpu, insn, 2, false)));
    summarize(cpu);
  }, true),
  fnstcw: control((cpu, insn) => {
    cpu.memory.write16(operandAddress(cpu, insn, 2, true), cpu.state.u16(State.fcw));
  }),
  fnstsw: control((cpu, insn) => {
    const fsw = cpu.state.u16(State.fsw);
    if (hasMemory(insn)) cpu.memory.write16(operandAddress(cpu, insn, 2, true), fsw);
    else cpu.state.setGpr(0, (cpu.state.gpr(0) & ~0xffffn) | BigInt(fsw));
  }),
  wait(cpu) {
    if ((cpu.cr0 & CR0.MP) !== 0 && (cpu.cr0 & CR0.TS) !== 0) raise(Vector.NM);
    checkPending(cpu);
  },
};

/**
 * The x87's registers as a stack, and how its instructions begin and end: pending exceptions, pointers, stack faults,
 * and what unmasked exceptions leave undone (SDM volume 1, chapter 8).
 */

import { addressOf } from '../address/addressing.ts';
import {
  BEFORE,
  type Environment,
  Exception,
  F80,
  type Float,
  indefinite,
  Rounding,
  unpack,
} from '../fp/float.ts';
import { Seg } from '../processor/descriptors.ts';
import { raise, Vector } from '../processor/fault.ts';
import type { Helper } from '../processor/helper.ts';
import type { Insn } from '../processor/insn.ts';
import { CR0 } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import { State } from '../processor/state.ts';
import { checkPending } from '../sse/operands.ts';

export const Fsw = { SF: 0x40, ES: 0x80, C0: 0x100, C1: 0x200, C2: 0x400, C3: 0x4000, B: 0x8000 } as const;
const TOP_SHIFT = 11;
const TOP_MASK = 7 << TOP_SHIFT;
export const EMPTY = 3;

/** Of the instruction that is executing; flags may hold SF beside the exceptions. */
export const env: Environment = {
  rounding: Rounding.NEAREST,
  masks: 0,
  flags: 0,
  denormalsAreZero: false,
  flushToZero: false,
  precision: 64,
  roundedUp: false,
};
/** Precision control, for the few instructions that heed it; the value 1 is reserved and means the same as 3. */
const precisions = [24, 64, 53, 64] as const;
export function controlPrecision(cpu: Processor): void {
  env.precision = precisions[((cpu.state.u16(State.fcw) >> 8) & 3) as 0 | 1 | 2 | 3];
}

const EFER_LMA = 0x400;
const RSP = 4;
const RBP = 5;
export const in64BitMode = (cpu: Processor): boolean =>
  (cpu.efer & EFER_LMA) !== 0 && cpu.segments[Seg.CS]!.l === 1;

export function checkAvailable(cpu: Processor): void {
  if ((cpu.cr0 & (CR0.EM | CR0.TS)) !== 0) raise(Vector.NM);
}

/** An instruction that waits for pending exceptions, and computes. */
export const x87 =
  (body: (cpu: Processor, insn: Insn) => void): Helper =>
  (cpu, insn) => {
    checkAvailable(cpu);
    checkPending(cpu);
    const fcw = cpu.state.u16(State.fcw);
    env.rounding = (fcw >> 10) & 3;
    env.masks = fcw & 0x3f;
    env.flags = 0;
    env.precision = 64;
    env.roundedUp = false;
    body(cpu, insn);
    point(cpu, insn);
  };

/**
 * The pointers to this instruction, and to its operand if that is in memory: else the last one's stay, as on silicon
 * (SDM volume 1, 8.1.8).
 */
function point(cpu: Processor, insn: Insn): void {
  const { segments, state } = cpu;
  state.setU64(State.fip, insn.rip);
  state.setU16(State.fcs, segments[Seg.CS]!.selector);
  state.setU16(State.fop, insn.fop);
  if (!hasMemory(insn)) return;
  state.setU64(State.fdp, lastOffset);
  state.setU16(State.fds, segments[lastSegment]!.selector);
}
/** The memory operand that was accessed last. */
let lastOffset = 0n;
let lastSegment: number = Seg.DS;
export function operandAddress(cpu: Processor, insn: Insn, size: number, write: boolean): bigint {
  const operand = insn.operands[0]!;
  if (operand.kind !== 'mem') throw new TypeError(`${insn.code} without its memory operand`);
  const linear = addressOf(cpu, operand, insn, size, write);
  lastSegment = operand.segment;
  if (!in64BitMode(cpu)) lastOffset = BigInt.asUintN(32, linear - cpu.segments[lastSegment]!.base);
  else if (lastSegment >= Seg.FS) lastOffset = BigInt.asUintN(64, linear - cpu.segments[lastSegment]!.base);
  else {
    // Other overrides are ignored there.
    lastSegment = operand.base === RSP || operand.base === RBP ? Seg.SS : Seg.DS;
    lastOffset = linear;
  }
  return linear;
}

export const top = (cpu: Processor): number => (cpu.state.u16(State.fsw) & TOP_MASK) >> TOP_SHIFT;
export function setTop(cpu: Processor, value: number): void {
  cpu.state.setU16(State.fsw, (cpu.state.u16(State.fsw) & ~TOP_MASK) | ((value & 7) << TOP_SHIFT));
}
export const physical = (cpu: Processor, i: number): number => (top(cpu) + i) & 7;
export const tag = (cpu: Processor, i: number): number =>
  (cpu.state.u16(State.ftw) >> (2 * physical(cpu, i))) & 3;
export const isEmpty = (cpu: Processor, i: number): boolean => tag(cpu, i) === EMPTY;
/** Tags say only whether a register is empty: the full word is made of the registers' contents when it is stored. */
export function setTag(cpu: Processor, i: number, value: number): void {
  const shift = 2 * physical(cpu, i);
  cpu.state.setU16(State.ftw, (cpu.state.u16(State.ftw) & ~(3 << shift)) | (value << shift));
}

/** 80 bits of a physical register. */
export const register = (cpu: Processor, index: number): bigint =>
  cpu.state.u64(State.x87 + 16 * index) | (BigInt(cpu.state.u16(State.x87 + 16 * index + 8)) << 64n);
export function setRegister(cpu: Processor, index: number, bits: bigint): void {
  cpu.state.setU64(State.x87 + 16 * index, bits & 0xffff_ffff_ffff_ffffn);
  cpu.state.setU16(State.x87 + 16 * index + 8, Number(bits >> 64n));
}
export const bitsOfSt = (cpu: Processor, i: number): bigint => register(cpu, physical(cpu, i));
export const st = (cpu: Processor, i: number): Float => unpack(F80, bitsOfSt(cpu, i));
export function setSt(cpu: Processor, i: number, bits: bigint): void {
  setRegister(cpu, physical(cpu, i), bits);
  setTag(cpu, i, 0);
}

export function pop(cpu: Processor): void {
  setTag(cpu, 0, EMPTY);
  setTop(cpu, top(cpu) + 1);
}

/** A source register is empty: the answer to it is the indefinite, if IE is masked. */
export function underflow(): void {
  env.flags |= Exception.IE | Fsw.SF;
}

/** There is no room for what is to be pushed: C1 says which of the two stack faults it is. */
export function overflow(): void {
  env.flags = Exception.IE | Fsw.SF;
  env.roundedUp = true;
}

/** Whether exceptions that are not masked keep the result from being stored. */
export const withheld = (by: number): boolean => (env.flags & ~env.masks & by) !== 0;

/** The instruction's exceptions into FSW, with C1; true when the result may be stored. */
export function settle(cpu: Processor, by = BEFORE): boolean {
  const stopped = withheld(BEFORE);
  if (stopped) env.flags &= BEFORE | Fsw.SF;
  const c1 = env.roundedUp && (!stopped || (env.flags & Fsw.SF) !== 0) ? Fsw.C1 : 0;
  const fsw = (cpu.state.u16(State.fsw) & ~Fsw.C1) | env.flags | c1;
  cpu.state.setU16(State.fsw, fsw);
  summarize(cpu);
  return !withheld(by);
}

/** ES and B follow from the flags and masks. */
export function summarize(cpu: Processor): void {
  const fsw = cpu.state.u16(State.fsw) & ~(Fsw.ES | Fsw.B);
  const pending = (fsw & ~cpu.state.u16(State.fcw) & 0x3f) !== 0;
  cpu.state.setU16(State.fsw, pending ? fsw | Fsw.ES | Fsw.B : fsw);
}

export function setConditions(cpu: Processor, mask: number, bits: number): void {
  cpu.state.setU16(State.fsw, (cpu.state.u16(State.fsw) & ~mask) | bits);
}

/**
 * Pushes, or faults when the stack is full; exceptions of the value itself are in env already. A denormal is pushed
 * even when it raises an exception: silicon does so.
 */
export function push(cpu: Processor, bits: bigint): void {
  const full = !isEmpty(cpu, 7) && (env.flags & Fsw.SF) === 0;
  if (full) overflow();
  if (settle(cpu, Exception.IE)) pushValue(cpu, full ? indefinite(F80) : bits);
}
export function pushValue(cpu: Processor, bits: bigint): void {
  setTop(cpu, top(cpu) - 1);
  setSt(cpu, 0, bits);
}

/** The index of a register operand. */
export function stOperand(insn: Insn, position: number, otherwise = 0): number {
  const operand = insn.operands[position];
  return operand?.kind === 'st' ? operand.index : otherwise;
}
export const hasMemory = (insn: Insn): boolean => insn.operands[0]?.kind === 'mem';

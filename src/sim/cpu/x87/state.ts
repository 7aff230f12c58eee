/**
 * The x87's state in memory: FNSTENV, FLDENV, FNSAVE, FRSTOR (SDM volume 1, 8.1.10).
 */

import type { Helper, Helpers } from '../processor/helper.ts';
import type { Insn } from '../processor/insn.ts';
import type { Processor } from '../processor/processor.ts';
import { State } from '../processor/state.ts';
import { checkPending } from '../sse/operands.ts';
import { fromBytes, initialize, setControlWord, toBytes } from './move.ts';
import {
  checkAvailable,
  EMPTY,
  operandAddress,
  physical,
  register,
  setRegister,
  summarize,
} from './stack.ts';

/** The tag of a register by its contents: valid, zero, special or empty. */
function contentTag(cpu: Processor, index: number): number {
  if (((cpu.state.u16(State.ftw) >> (2 * index)) & 3) === EMPTY) return EMPTY;
  const bits = register(cpu, index);
  const exponent = Number(bits >> 64n) & 0x7fff;
  const significand = bits & 0xffff_ffff_ffff_ffffn;
  if (exponent === 0) return significand === 0n ? 1 : 2;
  return exponent === 0x7fff || significand >> 63n === 0n ? 2 : 0;
}
function tagWord(cpu: Processor): number {
  let word = 0;
  for (let i = 0; i < 8; i++) word |= contentTag(cpu, i) << (2 * i);
  return word;
}
/** What is not empty is valid until somebody asks more precisely. */
export function setTagWord(cpu: Processor, word: number): void {
  let tags = 0;
  for (let i = 0; i < 8; i++) if (((word >> (2 * i)) & 3) === EMPTY) tags |= EMPTY << (2 * i);
  cpu.state.setU16(State.ftw, tags);
}

/** Words of 2 or 4 bytes: control, status, tag, instruction pointer (2), data pointer (2). */
const WORDS = 7;
const isReal = (cpu: Processor): boolean => (cpu.cr0 & 1) === 0 || (cpu.state.flags & 0x2_0000) !== 0;

/** The environment has 14 or 28 bytes; the whole state 94 or 108: 80 more. */
const environmentSize = (insn: Insn): number => {
  const operand = insn.operands[0]!;
  const size = operand.kind === 'mem' ? operand.size : 0;
  return size === 28 || size === 108 ? 28 : 14;
};

/** The upper halves that hold nothing, of words of 4 bytes. */
const ONES = 0xffff_0000;
/** A pointer's words: offset and selector, with `upper` above that; in real mode a linear address, shared with `upper`. */
function pointerWords(
  cpu: Processor,
  [pointer, selector]: readonly [number, number],
  upper: number,
): [number, number] {
  const offset = Number(cpu.state.u64(pointer) & 0xffff_ffffn);
  const segment = cpu.state.u16(selector);
  if (!isReal(cpu)) return [offset, (upper << 16) | segment];
  const linear = offset + (segment << 4);
  return [linear & 0xffff, ((linear >>> 16) << 12) | (upper & 0x7ff)];
}

function environment(cpu: Processor, size: number): Uint8Array {
  const { state } = cpu;
  const words = [
    ONES | state.u16(State.fcw),
    ONES | state.u16(State.fsw),
    ONES | tagWord(cpu),
    ...pointerWords(cpu, [State.fip, State.fcs], state.u16(State.fop)),
    ...pointerWords(cpu, [State.fdp, State.fds], isReal(cpu) ? 0 : 0xffff),
  ];
  const bytes = new Uint8Array(size);
  const view = new DataView(bytes.buffer);
  for (const [i, word] of words.entries()) {
    if (size === 28) view.setUint32(4 * i, word, true);
    else view.setUint16(2 * i, word, true);
  }
  return bytes;
}

function setEnvironment(cpu: Processor, bytes: Uint8Array): void {
  const { state } = cpu;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const wide = bytes.length === 28;
  const words = Array.from({ length: WORDS }, (_, i) =>
    wide ? view.getUint32(4 * i, true) : view.getUint16(2 * i, true),
  );
  const real = isReal(cpu);
  const pointer = (at: number) =>
    BigInt((real ? (words[at]! & 0xffff) | ((words[at + 1]! >>> 12) << 16) : words[at]!) >>> 0);
  const selector = (at: number) => (real ? 0 : words[at]!);
  setControlWord(cpu, words[0]!);
  state.setU16(State.fsw, words[1]!);
  setTagWord(cpu, words[2]!);
  state.setU64(State.fip, pointer(3));
  state.setU16(State.fcs, selector(4));
  state.setU16(State.fop, (real ? words[4]! : words[4]! >>> 16) & 0x7ff);
  state.setU64(State.fdp, pointer(5));
  state.setU16(State.fds, selector(6));
  summarize(cpu);
}

const control =
  (body: Helper, waits = false): Helper =>
  (cpu, insn) => {
    checkAvailable(cpu);
    if (waits) checkPending(cpu);
    body(cpu, insn);
  };

export const x87State: Helpers = {
  /** Afterwards all exceptions are masked. */
  fnstenv: control((cpu, insn) => {
    const size = environmentSize(insn);
    cpu.memory.writeBytes(operandAddress(cpu, insn, size, true), environment(cpu, size));
    cpu.state.setU16(State.fcw, cpu.state.u16(State.fcw) | 0x3f);
    summarize(cpu);
  }),
  fldenv: control((cpu, insn) => {
    const size = environmentSize(insn);
    setEnvironment(cpu, cpu.memory.readBytes(operandAddress(cpu, insn, size, false), size));
  }, true),
  fnsave: control((cpu, insn) => {
    const size = environmentSize(insn);
    const bytes = new Uint8Array(size + 80);
    bytes.set(environment(cpu, size));
    for (let i = 0; i < 8; i++) bytes.set(toBytes(register(cpu, physical(cpu, i)), 10), size + 10 * i);
    cpu.memory.writeBytes(operandAddress(cpu, insn, size + 80, true), bytes);
    initialize(cpu);
  }),
  frstor: control((cpu, insn) => {
    const size = environmentSize(insn);
    const bytes = cpu.memory.readBytes(operandAddress(cpu, insn, size + 80, false), size + 80);
    setEnvironment(cpu, bytes.subarray(0, size));
    for (let i = 0; i < 8; i++) {
      const at = size + 10 * i;
      setRegister(cpu, physical(cpu, i), fromBytes(bytes.subarray(at, at + 10)));
    }
  }, true),
};

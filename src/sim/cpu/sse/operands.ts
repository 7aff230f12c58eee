/**
 * What all vector instructions have in common: whether they may execute at all, and their operands as lanes. MMX
 * and SSE share mnemonics: the registers say which of them an instruction is.
 */
import { addressOf } from '../address/addressing.ts';
import { raise, Vector } from '../processor/fault.ts';
import type { Helper } from '../processor/helper.ts';
import type { Insn, Memory, Operand } from '../processor/insn.ts';
import { CR0, CR4 } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import { State } from '../processor/state.ts';

const FSW_ES = 0x80;

/** A vector register's worth of bytes, seen in lanes of every width. */
export class Lanes {
  readonly u8 = new Uint8Array(16);
  readonly i8 = new Int8Array(this.u8.buffer);
  readonly u16 = new Uint16Array(this.u8.buffer);
  readonly i16 = new Int16Array(this.u8.buffer);
  readonly u32 = new Uint32Array(this.u8.buffer);
  readonly i32 = new Int32Array(this.u8.buffer);
  readonly u64 = new BigUint64Array(this.u8.buffer);
  readonly i64 = new BigInt64Array(this.u8.buffer);
  readonly f32 = new Float32Array(this.u8.buffer);
  readonly f64 = new Float64Array(this.u8.buffer);
}

/** The first and the second source, and the result, of the instruction that is executing. */
export const A = new Lanes();
export const B = new Lanes();
export const R = new Lanes();

/** What AVX has done one half of by SSE's helper. */
export const HELD: readonly [Lanes, Lanes] = [new Lanes(), new Lanes()];

/**
 * An instruction of AVX is executing by SSE's helpers, each of them a part of it: it has checked itself whether it may, and the
 * parts leave their exceptions here, for all lanes raise them together.
 */
export const whole = { active: false, flags: 0 };

/** SDM volume 2, table 2-18 and on: the exceptions of SSE instructions without a memory operand. */
export function checkSse(cpu: Processor): void {
  if (whole.active) return;
  if ((cpu.cr0 & CR0.EM) !== 0 || (cpu.cr4 & CR4.OSFXSR) === 0) raise(Vector.UD);
  if ((cpu.cr0 & CR0.TS) !== 0) raise(Vector.NM);
}

export function checkMmx(cpu: Processor): void {
  if ((cpu.cr0 & CR0.EM) !== 0) raise(Vector.UD);
  if ((cpu.cr0 & CR0.TS) !== 0) raise(Vector.NM);
  checkPending(cpu);
}

/**
 * Whether an x87 exception waits to be taken. CR0.NE makes no difference: what hangs on FERR# and IGNNE# is not there,
 * and on the processors that KVM runs on NE is set underneath.
 */
export function checkPending(cpu: Processor): void {
  if ((cpu.state.u16(State.fsw) & FSW_ES) !== 0) raise(Vector.MF);
}

function clearTop({ state }: Processor): void {
  state.setU16(State.fsw, state.u16(State.fsw) & ~0x3800);
}

/** An MMX instruction leaves all x87 registers valid and TOP zero (SDM volume 1, 9.5.1). */
export function enterMmx(cpu: Processor): void {
  clearTop(cpu);
  cpu.state.setU16(State.ftw, 0);
}

/** Where MOVD, MOVQ or MOVNTQ faults at its store, Intel's processors have TOP zero by then, and the tags as they were; AMD's neither. */
export function beginMmxStore(cpu: Processor): void {
  if (cpu.vendor === 'intel') clearTop(cpu);
}

export const usesMmx = (insn: Insn): boolean =>
  insn.operands[0]?.kind === 'mm' || insn.operands[1]?.kind === 'mm';

/** May the instruction execute? Of those that exist for MMX and SSE registers alike. */
export function check(cpu: Processor, insn: Insn): void {
  if (usesMmx(insn)) checkMmx(cpu);
  else checkSse(cpu);
}

export const xmmOffset = (index: number): number => State.xmm + 16 * index;
export const mmOffset = (index: number): number => State.x87 + 16 * index;

export function copyIn(cpu: Processor, offset: number, words: number, into: Lanes): void {
  const { i32 } = cpu.arena.views;
  const at = (cpu.state.base + offset) >> 2;
  for (let i = 0; i < words; i++) into.i32[i] = i32[at + i]!;
}
export function copyOut(cpu: Processor, offset: number, words: number, from: Lanes): void {
  const { i32 } = cpu.arena.views;
  const at = (cpu.state.base + offset) >> 2;
  for (let i = 0; i < words; i++) i32[at + i] = from.i32[i]!;
}

/** An address of 16 bytes that must be aligned, whatever EFLAGS.AC says. */
export function alignedAddress(
  cpu: Processor,
  insn: Insn,
  operand: Memory,
  size: number,
  write: boolean,
): bigint {
  const linear = addressOf(cpu, operand, insn, size, write);
  if (size === 16 && (linear & 15n) !== 0n) raise(Vector.GP, 0);
  return linear;
}

/** Bytes of memory into the low lanes; the others stay as they are. */
export function loadMemory(
  cpu: Processor,
  insn: Insn,
  operand: Memory,
  size: number,
  into: Lanes,
  aligned: boolean,
): void {
  const linear = aligned
    ? alignedAddress(cpu, insn, operand, size, false)
    : addressOf(cpu, operand, insn, size, false);
  if (size === 4) into.u32[0] = cpu.memory.read32(linear);
  else if (size === 8) into.u64[0] = cpu.memory.read64(linear);
  else into.u8.set(cpu.memory.readBytes(linear, size));
}

/** A source operand, whole. */
export function load(cpu: Processor, insn: Insn, index: number, into: Lanes, aligned = true): void {
  const operand = insn.operands[index]!;
  if (operand.kind === 'xmm') copyIn(cpu, xmmOffset(operand.index), 4, into);
  else if (operand.kind === 'mm') copyIn(cpu, mmOffset(operand.index), 2, into);
  else if (operand.kind === 'mem') loadMemory(cpu, insn, operand, operand.size, into, aligned);
  else if (operand.kind === 'gpr') into.u64[0] = cpu.state.gpr(operand.index);
  else if (operand.kind === 'held') into.i32.set(HELD[operand.index].i32);
  else throw new TypeError(`${insn.code} has an operand of kind ${operand.kind} where a vector belongs`);
}

/** The low `size` bytes to the destination; the rest of a register stays as it is. */
export function store(cpu: Processor, insn: Insn, from: Lanes, size = 16, aligned = true): void {
  const operand = insn.operands[0]!;
  if (operand.kind === 'xmm') copyOut(cpu, xmmOffset(operand.index), size >> 2, from);
  else if (operand.kind === 'mm') storeMm(cpu, operand.index, from);
  else if (operand.kind === 'held') HELD[operand.index].i32.set(from.i32.subarray(0, size >> 2));
  else if (operand.kind === 'mem') {
    const linear = aligned
      ? alignedAddress(cpu, insn, operand, size, true)
      : addressOf(cpu, operand, insn, size, true);
    cpu.memory.writeBytes(linear, from.u8.slice(0, size));
  } else throw new TypeError(`${insn.code} has an operand of kind ${operand.kind} where a vector belongs`);
}

/** Writing an MMX register sets the exponent of the x87 register that it is. */
function storeMm(cpu: Processor, index: number, from: Lanes): void {
  copyOut(cpu, mmOffset(index), 2, from);
  cpu.state.setU16(mmOffset(index) + 8, 0xffff);
}

/** A general register as SSE instructions write it: 32 bits clear the upper ones. */
export function storeGpr(cpu: Processor, operand: Operand, value: bigint): void {
  if (operand.kind !== 'gpr') throw new TypeError(`not a general register: ${operand.kind}`);
  cpu.state.setGpr(operand.index, operand.size === 8 ? value : BigInt.asUintN(32, value));
}

export function immediate(insn: Insn): number {
  const last = insn.operands.at(-1)!;
  return last.kind === 'imm' ? Number(last.value & 0xffn) : 0;
}

/** Bytes of the instruction's vectors: 8 or 16. */
export const vectorSize = (insn: Insn): number => (insn.operands[0]!.kind === 'mm' ? 8 : 16);

/** dest = body(dest, source): body fills R from A and B. */
export const binary =
  (body: (size: number, imm: number, cpu: Processor) => void): Helper =>
  (cpu, insn) => {
    check(cpu, insn);
    load(cpu, insn, 0, A);
    load(cpu, insn, 1, B);
    const size = vectorSize(insn);
    body(size, immediate(insn), cpu);
    if (usesMmx(insn)) enterMmx(cpu);
    store(cpu, insn, R, size);
  };

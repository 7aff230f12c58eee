/**
 * What instructions with a VEX prefix have in common: whether they may execute, and their operands of 16 or 32 bytes, which are
 * pairs of halves as SSE's helpers have them. What writes a register of 16 bytes clears what is above it (SDM volume 1, 14.1.4).
 */
import { addressOf } from '../address/addressing.ts';
import { raise, Vector } from '../processor/fault.ts';
import type { Insn, Memory, Operand } from '../processor/insn.ts';
import { AVX_STATE, CR0, CR4, protectedMode } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import { Flag, State } from '../processor/state.ts';
import { end, env } from '../sse/env.ts';
import { copyIn, copyOut, Lanes, whole, xmmOffset } from '../sse/operands.ts';

/** SDM volume 2, table 2-22 and on: the exceptions of VEX-encoded instructions, but for those of operands in memory. */
export function checkAvx(cpu: Processor): void {
  const missing = (cpu.cr4 & CR4.OSXSAVE) === 0 || (cpu.xcr0 & AVX_STATE) !== AVX_STATE;
  if (missing || !protectedMode(cpu) || (cpu.state.flags & Flag.VM) !== 0) raise(Vector.UD);
  if ((cpu.cr0 & CR0.TS) !== 0) raise(Vector.NM);
}

/** The low and the high half. */
export type Wide = readonly [Lanes, Lanes];
const wide = (): Wide => [new Lanes(), new Lanes()];

/** The sources and the result of the instruction that is executing. */
export const X = wide();
export const Y = wide();
export const Z = wide();
export const W = wide();

export const ymmOffset = (index: number): number => State.ymm + 16 * index;
export const ZEROES = new Lanes();

export const isWide = (operand: Operand | undefined): boolean => operand?.kind === 'ymm';
const fills = (operand: Operand) => isWide(operand) || (operand.kind === 'mem' && operand.size === 32);
/** How many halves the instruction works on. */
export const halvesOf = (insn: Insn): 1 | 2 => (insn.operands.some(fills) ? 2 : 1);

/** The address of `size` bytes; aligned ones raise #GP where they are not. */
export function addressOfSize(
  cpu: Processor,
  insn: Insn,
  operand: Memory,
  size: number,
  write: boolean,
  aligned = false,
): bigint {
  const linear = addressOf(cpu, operand, insn, size, write);
  if (aligned && (linear & BigInt(size - 1)) !== 0n) raise(Vector.GP, 0);
  return linear;
}

/** A source operand, whole: what it lacks is zero. */
export function loadWide(cpu: Processor, insn: Insn, index: number, into: Wide, aligned = false): void {
  const operand = insn.operands[index]!;
  const [low, high] = into;
  if (operand.kind === 'xmm' || operand.kind === 'ymm') {
    copyIn(cpu, xmmOffset(operand.index), 4, low);
    if (operand.kind === 'ymm') copyIn(cpu, ymmOffset(operand.index), 4, high);
    else high.i32.fill(0);
  } else if (operand.kind === 'mem') {
    const { size } = operand;
    const linear = addressOfSize(cpu, insn, operand, size, false, aligned);
    const bytes = cpu.memory.readBytes(linear, size);
    low.i32.fill(0);
    high.i32.fill(0);
    low.u8.set(bytes.subarray(0, 16));
    if (size > 16) high.u8.set(bytes.subarray(16));
  } else throw new TypeError(`${insn.code} has an operand of kind ${operand.kind} where a vector belongs`);
}

/** To the destination: a register, all of it, or `size` bytes of memory. */
export function storeWide(cpu: Processor, insn: Insn, from: Wide, size = 32, aligned = false): void {
  const operand = insn.operands[0]!;
  const [low, high] = from;
  if (operand.kind === 'xmm' || operand.kind === 'ymm') {
    copyOut(cpu, xmmOffset(operand.index), 4, low);
    copyOut(cpu, ymmOffset(operand.index), 4, operand.kind === 'ymm' ? high : ZEROES);
  } else if (operand.kind === 'mem') {
    const linear = addressOfSize(cpu, insn, operand, size, true, aligned);
    const bytes = new Uint8Array(size);
    bytes.set(size < 16 ? low.u8.subarray(0, size) : low.u8);
    if (size > 16) bytes.set(high.u8, 16);
    cpu.memory.writeBytes(linear, bytes);
  } else throw new TypeError(`${insn.code} has an operand of kind ${operand.kind} where a vector belongs`);
}

export function copy(to: Wide, from: Wide): void {
  to[0].i32.set(from[0].i32);
  to[1].i32.set(from[1].i32);
}
export function clear(wide: Wide): void {
  wide[0].i32.fill(0);
  wide[1].i32.fill(0);
}

/** Executes parts by SSE's helpers; the exceptions of all are raised when all are done (SDM volume 1, 14.9). */
export function inParts<T>(cpu: Processor, parts: () => T): T {
  whole.active = true;
  whole.flags = 0;
  let result: T;
  try {
    result = parts();
  } finally {
    whole.active = false;
  }
  env.flags = whole.flags;
  if (env.flags !== 0) end(cpu);
  return result;
}

/** What the running task's segment is asked for: inner stacks, I/O rights, redirected interrupts (SDM volume 3, 8.2). */

import { type Descriptor, isNull, type Segment, System, selectorCode } from '../processor/descriptors.ts';
import { raise, Vector } from '../processor/fault.ts';
import { cpl, iopl, protectedMode, virtual8086, wrapLinear } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import { stackSegment } from './loads.ts';
import { isTss16 } from './tss-layout.ts';

const linearOf = (cpu: Processor, offset: number): bigint => wrapLinear(cpu, cpu.tr.base + BigInt(offset));

/** Raises #TS(TR) when the TSS does not reach to the end of `size` bytes from `offset`. */
function within(cpu: Processor, offset: number, size: number, ext: number): void {
  const { selector, limit } = cpu.tr;
  if (offset + size - 1 > limit) raise(Vector.TS, selectorCode(selector, ext));
}

export interface InnerStack {
  readonly segment: Segment;
  readonly pointer: bigint;
  readonly selector: number;
  readonly descriptor: Descriptor;
}

/** The stack of an inner privilege level, outside IA-32e mode (SDM volume 2, CALL and INT n). */
export function innerStack(cpu: Processor, level: number, ext: number): InnerStack {
  let selector: number;
  let pointer: bigint;
  if (isTss16(cpu.tr)) {
    const offset = level * 4 + 2;
    within(cpu, offset, 4, ext);
    pointer = BigInt(cpu.memory.readSystem16(linearOf(cpu, offset)));
    selector = cpu.memory.readSystem16(linearOf(cpu, offset + 2));
  } else {
    const offset = level * 8 + 4;
    within(cpu, offset, 6, ext);
    pointer = BigInt(cpu.memory.readSystem32(linearOf(cpu, offset)));
    selector = cpu.memory.readSystem16(linearOf(cpu, offset + 4));
  }
  if (isNull(selector)) raise(Vector.TS, ext);
  const { segment, descriptor } = stackSegment(cpu, selector, level, Vector.TS, ext);
  return { segment, pointer: segment.db ? pointer : pointer & 0xffffn, selector, descriptor };
}

const RSP0 = 4;
const IST1 = 36;

/** RSP of an inner privilege level in IA-32e mode, or of an entry of the interrupt stack table (1 to 7). */
export function innerPointer(cpu: Processor, level: number, ist: number, ext: number): bigint {
  const offset = ist !== 0 ? IST1 + 8 * (ist - 1) : RSP0 + 8 * level;
  within(cpu, offset, 8, ext);
  return cpu.memory.readSystem64(linearOf(cpu, offset));
}

const IO_MAP_BASE = 102;

/** Raises #GP(0) where neither IOPL nor the TSS's bitmap allow these ports (SDM volume 1, 18.5). */
export function checkPorts(cpu: Processor, port: number, size: number): void {
  if (!protectedMode(cpu) || (!virtual8086(cpu) && cpl(cpu) <= iopl(cpu))) return;
  const { tr } = cpu;
  const tss = tr.present && !tr.unusable && (tr.type === System.TSS || tr.type === System.TSS_BUSY);
  if (!tss || tr.limit < IO_MAP_BASE + 1) raise(Vector.GP, 0);
  const map = cpu.memory.readSystem16(linearOf(cpu, IO_MAP_BASE));
  const at = map + (port >> 3);
  // Two bytes are always read, which is why a map ends with a byte of ones.
  if (at + 1 > tr.limit) raise(Vector.GP, 0);
  const bits = cpu.memory.readSystem16(linearOf(cpu, at)) >> (port & 7);
  if ((bits & ((1 << size) - 1)) !== 0) raise(Vector.GP, 0);
}

const REDIRECTION_BYTES = 32;

/** Whether INT n of a virtual-8086 program is its own handler's: the bit in the map before the I/O map is clear (20.3.3). */
export function redirected(cpu: Processor, vector: number): boolean {
  const { tr } = cpu;
  if (isTss16(tr) || tr.limit < IO_MAP_BASE + 1) raise(Vector.GP, 0);
  const map = cpu.memory.readSystem16(linearOf(cpu, IO_MAP_BASE));
  const at = map - REDIRECTION_BYTES + (vector >> 3);
  if (at < 0 || at > tr.limit) raise(Vector.GP, 0);
  return ((cpu.memory.readSystem8(linearOf(cpu, at)) >> (vector & 7)) & 1) === 0;
}

/** Segmentation of data accesses: offsets to linear addresses, with the checks of SDM volume 3, 5.3 and 5.5. */

import { inLimit, Seg, Type } from '../processor/descriptors.ts';
import { raise, Vector } from '../processor/fault.ts';
import type { Insn, Memory } from '../processor/insn.ts';
import { canonical, protectedMode, virtual8086 } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';

/** The linear address of `offset` in a segment. `write` says which right is asked for. */
export function linearAddress(
  cpu: Processor,
  index: number,
  offset: bigint,
  size: number,
  write: boolean,
): bigint {
  const segment = cpu.segments[index]!;
  if (cpu.mode.bits === 64) {
    const linear = BigInt.asUintN(64, index >= Seg.FS ? segment.base + offset : offset);
    if (!canonical(linear)) raise(index === Seg.SS ? Vector.SS : Vector.GP, 0);
    return linear;
  }
  const refuse = () => raise(index === Seg.SS ? Vector.SS : Vector.GP, 0);
  const { type, base } = segment;
  if (segment.unusable) refuse();
  if (protectedMode(cpu) && !virtual8086(cpu)) {
    const rights = type & (Type.CODE | Type.WRITABLE);
    if (write ? rights !== Type.WRITABLE : rights === Type.CODE) refuse();
  }
  if (!inLimit(segment, Number(BigInt.asUintN(32, offset)), size)) refuse();
  return BigInt.asUintN(32, base + offset);
}

/** As the micro-op `call64` has it: `l`s are signed. */
export const segmentLinear = (
  cpu: Processor,
  _insn: Insn,
  index: number,
  offset: bigint,
  size: number,
  write: number,
) => linearAddress(cpu, index, offset, size, write !== 0);

/** base + index * scale + displacement, cut to the address size. */
export function effectiveAddress(cpu: Processor, memory: Memory, addressSize: number): bigint {
  const { base, index, scale, displacement } = memory;
  let sum = displacement;
  if (base !== undefined) sum += cpu.state.gpr(base);
  if (index !== undefined) sum += cpu.state.gpr(index) * BigInt(scale);
  return BigInt.asUintN(addressSize * 8, sum);
}

/** The linear address of a memory operand, with everything checked but paging. */
export const addressOf = (cpu: Processor, memory: Memory, insn: Insn, size: number, write: boolean): bigint =>
  linearAddress(cpu, memory.segment, effectiveAddress(cpu, memory, insn.addressSize), size, write);

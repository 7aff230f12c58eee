/** Segmentation of data accesses: offsets to linear addresses, with the checks of SDM volume 3, 5.3 and 5.5. */
import type { Cpu } from '../cpu.ts';
import { inLimit, Seg, Type } from '../processor/descriptors.ts';
import { raise, Vector } from '../processor/fault.ts';
import type { Insn, Memory } from '../processor/insn.ts';
import { canonical, protectedMode } from '../processor/mode.ts';
import { Flag } from '../processor/state.ts';

/**
 * A linear address in halves, signed: what is looked up for each access is cheaper so than as a bigint. Not with
 * BigInt.asIntN: V8 11.3 ends the process where an address that may come from two places gets there.
 */
export const lowHalf = (linear: bigint): number => Number(linear & 0xffff_ffffn) | 0;
export const highHalf = (linear: bigint): number => Number((linear >> 32n) & 0xffff_ffffn) | 0;
export const halves = (linear: bigint): [low: number, high: number] => [lowHalf(linear), highHalf(linear)];
/** And back, unsigned. */
export const joined = (low: number, high: number): bigint => (BigInt(high >>> 0) << 32n) | BigInt(low >>> 0);

/** The linear address of `offset` in a segment. `write` says which right is asked for. */
export function linearAddress(cpu: Cpu, index: number, offset: bigint, size: number, write: boolean): bigint {
  const segment = cpu.segments[index]!;
  if (cpu.mode.bits === 64) {
    const linear = BigInt.asUintN(64, index >= Seg.FS ? segment.base + offset : offset);
    if (!canonical(linear)) raise(index === Seg.SS ? Vector.SS : Vector.GP, 0);
    return linear;
  }
  const refuse = () => raise(index === Seg.SS ? Vector.SS : Vector.GP, 0);
  const { type, base } = segment;
  if (segment.unusable) refuse();
  if (protectedMode(cpu) && (cpu.state.flags & Flag.VM) === 0) {
    const rights = type & (Type.CODE | Type.WRITABLE);
    if (write ? rights !== Type.WRITABLE : rights === Type.CODE) refuse();
  }
  if (!inLimit(segment, Number(BigInt.asUintN(32, offset)), size)) refuse();
  return BigInt.asUintN(32, base + offset);
}

/** As the micro-op `call64` has it: `l`s are signed. */
export const segmentLinear = (
  cpu: Cpu,
  _insn: Insn,
  index: number,
  offset: bigint,
  size: number,
  write: number,
) => linearAddress(cpu, index, offset, size, write !== 0);

/** base + index * scale + displacement, cut to the address size. */
export function effectiveAddress(cpu: Cpu, memory: Memory, addressSize: number): bigint {
  const { base, index, scale, displacement } = memory;
  let sum = displacement;
  if (base !== undefined) sum += cpu.state.gpr(base);
  if (index !== undefined) sum += cpu.state.gpr(index) * BigInt(scale);
  return BigInt.asUintN(addressSize * 8, sum);
}

/** Segmentation of data accesses: offsets to linear addresses, with the checks of SDM volume 3, 5.3 and 5.5. */
import { type Cpu, Seg } from './cpu.ts';
import { raise, Vector } from './fault.ts';
import type { Insn, Memory } from './insn.ts';

const CODE = 8;
/** Of data: expand down. Of code: conforming. */
const EXPAND_DOWN = 4;
/** Of data: writable. Of code: readable. */
const WRITABLE = 2;

/** The linear address of `offset` in a segment. `write` says which right is asked for. */
export function linearAddress(cpu: Cpu, index: number, offset: bigint, size: number, write: boolean): bigint {
  const segment = cpu.segments[index]!;
  if (cpu.mode.bits === 64) {
    const linear = BigInt.asUintN(64, index >= Seg.FS ? segment.base + offset : offset);
    if (BigInt.asUintN(64, BigInt.asIntN(48, linear)) !== linear)
      raise(index === Seg.SS ? Vector.SS : Vector.GP, 0);
    return linear;
  }
  const refuse = () => raise(index === Seg.SS ? Vector.SS : Vector.GP, 0);
  const { type, limit, base, db } = segment;
  if (segment.unusable) refuse();
  if (cpu.cr0 & 1 && !(cpu.state.flags & 0x2_0000)) {
    if (write ? (type & (CODE | WRITABLE)) !== WRITABLE : (type & (CODE | WRITABLE)) === CODE) refuse();
  }
  const first = Number(BigInt.asUintN(32, offset));
  const last = first + size - 1;
  const down = (type & (CODE | EXPAND_DOWN)) === EXPAND_DOWN;
  if (down ? first <= limit || last > (db ? 0xffff_ffff : 0xffff) : last > limit) refuse();
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

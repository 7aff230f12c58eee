/** Operands of helpers: general registers and memory. Values are unsigned. */

import { halves } from '../processor/halves.ts';
import type { Insn, Size } from '../processor/insn.ts';
import { longMode, low32 } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import { Access } from '../processor/stage.ts';
import { addressOf, effectiveAddress } from './addressing.ts';
import { walked } from './paging.ts';

export function readGpr(cpu: Processor, index: number, size: Size, high = false): bigint {
  return BigInt.asUintN(size * 8, cpu.state.gpr(index) >> (high ? 8n : 0n));
}

/** 4 bytes clear the upper half; fewer leave the rest (SDM volume 1, 3.4.1.1). */
export function writeGpr(cpu: Processor, index: number, size: Size, value: bigint): void {
  const bits = size * 8;
  const cut = BigInt.asUintN(bits, value);
  const old = cpu.state.gpr(index);
  cpu.state.setGpr(index, size < 4 ? ((old >> BigInt(bits)) << BigInt(bits)) | cut : cut);
}

export function readMemory(cpu: Processor, linear: bigint, size: number): bigint {
  if (size === 8) return cpu.memory.read64(linear);
  if (size === 4) return BigInt(cpu.memory.read32(linear));
  return BigInt(size === 2 ? cpu.memory.read16(linear) : cpu.memory.read8(linear));
}

export function writeMemory(cpu: Processor, linear: bigint, size: number, value: bigint): void {
  if (size === 8) cpu.memory.write64(linear, value);
  else if (size === 4) cpu.memory.write32(linear, Number(value));
  else if (size === 2) cpu.memory.write16(linear, Number(value));
  else cpu.memory.write8(linear, Number(value));
}

/** A selector or machine status word: 16 bits of a register or of memory. */
export function read16(cpu: Processor, insn: Insn, position: number): number {
  const operand = insn.operands[position]!;
  if (operand.kind === 'gpr') return Number(readGpr(cpu, operand.index, 2));
  if (operand.kind === 'mem') return cpu.memory.read16(addressOf(cpu, operand, insn, 2, false));
  throw new TypeError(`${insn.code}: operand ${position} is neither register nor memory`);
}

/** All of a register, or 16 bits of memory: how SLDT, STR, SMSW and MOV store what is narrower than their operand. */
export function writeWideOr16(cpu: Processor, insn: Insn, position: number, value: bigint): void {
  const operand = insn.operands[position]!;
  if (operand.kind === 'gpr') writeGpr(cpu, operand.index, operand.size, value);
  else if (operand.kind === 'mem')
    cpu.memory.write16(addressOf(cpu, operand, insn, 2, true), Number(value & 0xffffn));
  else throw new TypeError(`${insn.code}: operand ${position} is neither register nor memory`);
}

/** The register operand at a position. */
export function gprAt(insn: Insn, position: number): { readonly index: number; readonly size: Size } {
  const operand = insn.operands[position];
  if (operand?.kind === 'gpr') return operand;
  throw new TypeError(`${insn.code}: operand ${position} is no general register`);
}

/** The memory operand's linear address without any check: what INVLPG and the like take. */
export function uncheckedLinear(cpu: Processor, insn: Insn): bigint {
  const memory = insn.operands.find((operand) => operand.kind === 'mem');
  if (memory === undefined) throw new TypeError(`${insn.code}: no memory operand`);
  const offset = effectiveAddress(cpu, memory, insn.addressSize);
  if (!longMode(cpu)) return low32(cpu.segments[memory.segment]!.base + offset);
  return memory.segment >= 4 ? BigInt.asUintN(64, cpu.segments[memory.segment]!.base + offset) : offset;
}

/** Faults as a read would, and reads nothing: what is there may be a device. */
export function touch(cpu: Processor, linear: bigint): void {
  walked(cpu, ...halves(linear), Access.READ, cpu.user, false);
}

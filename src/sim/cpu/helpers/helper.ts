/**
 * Instructions that are not worth micro-ops: functions in tables by mnemonic. A helper that returns has done its
 * instruction; one that throws has changed nothing (the last access that can fault comes before the first change).
 */
import type { Cpu } from '../cpu.ts';
import type { Insn, Memory } from '../insn.ts';

/** Linear memory with the rights of the current privilege level; all values are unsigned. */
export interface LinearMemory {
  read8(linear: bigint): number;
  read16(linear: bigint): number;
  read32(linear: bigint): number;
  read64(linear: bigint): bigint;
  readBytes(linear: bigint, size: number): Uint8Array;
  write8(linear: bigint, value: number): void;
  write16(linear: bigint, value: number): void;
  write32(linear: bigint, value: number): void;
  write64(linear: bigint, value: bigint): void;
  writeBytes(linear: bigint, bytes: Uint8Array): void;
  /** Raises what a write would raise, and changes nothing. */
  checkWrite(linear: bigint, size: number): void;
}

/** What a helper sees of the processor. */
export type Processor = Cpu & {
  readonly memory: LinearMemory;
  /** The linear address of an operand; raises #GP or #SS for limits, types and canonicality. */
  address(operand: Memory, insn: Insn, size: number, write: boolean): bigint;
};

export type Helper = (cpu: Processor, insn: Insn) => void;
export type Helpers = { readonly [mnemonic: string]: Helper };

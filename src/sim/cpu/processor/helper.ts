/**
 * Instructions that are not worth micro-ops: functions in tables by mnemonic. A helper that returns has done its
 * instruction; one that throws has changed nothing (the last access that can fault comes before the first change).
 */
import type { Cpu } from '../cpu.ts';
import type { Insn } from './insn.ts';

/** What a helper sees of the processor: all of it. */
export type Processor = Cpu;

export type Helper = (cpu: Processor, insn: Insn) => void;
export type Helpers = { readonly [mnemonic: string]: Helper };

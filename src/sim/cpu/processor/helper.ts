/**
 * Instructions that are not worth micro-ops: functions in tables by mnemonic. A helper that returns has done its
 * instruction; one that throws has changed nothing (the last access that can fault comes before the first change).
 */
import type { Insn } from './insn.ts';
import type { Processor } from './processor.ts';

export type Helper = (cpu: Processor, insn: Insn) => void;
export type Helpers = { readonly [mnemonic: string]: Helper };

/** The same of one that leaves its result to its caller: flags at their places in RFLAGS, or a general register's bits. */
export type Answer = (cpu: Processor, insn: Insn) => number | bigint;
export type Answers = { readonly [mnemonic: string]: Answer };

/** Where in code execution begins: what is known of such a place, and of the module that it may have become a part of. */
import { PAGE } from '../../arena.ts';
import type { Mode } from '../processor/modes.ts';
import type { Unit } from '../processor/unit.ts';
import type { CodePage as PageOf } from './code-page.ts';
import type { Block } from './ir.ts';
import type { WasmUnit } from './wasm.ts';

/** What KVM's emulator makes of an instruction. */
export interface Emulation {
  /** Whether it has it, in real mode and in others. */
  readonly real: boolean;
  readonly protected: boolean;
  readonly givesUpBeforeWriting: boolean;
}

/** Where execution may begin: a block, and the unit that has it. */
export class Entry {
  readonly low: number;
  readonly high: number;
  readonly rip: bigint;
  readonly mode: number;
  readonly pages: readonly CodePage[];
  unit: Unit;
  index: number;
  /** Of a single instruction, once somebody has asked. */
  emulation: Emulation | undefined;
  /** How often it was executed as closures. */
  heat = 0;
  /** Its block of records, where it has one. */
  readonly cold: number | undefined;
  /** The entry holds while this is the cache's. */
  epoch = 0;
  #block: Block | (() => Block);

  constructor(
    rip: bigint,
    mode: Mode,
    pages: readonly CodePage[],
    unit: Unit,
    index: number,
    block: Block | (() => Block),
  ) {
    this.low = Number(rip & 0xffff_ffffn);
    this.high = Number(rip >> 32n);
    this.rip = rip;
    this.mode = mode.key;
    this.pages = pages;
    this.unit = unit;
    this.index = index;
    this.#block = block;
    this.cold = typeof block === 'function' ? index : undefined;
  }
  /** As micro-ops, which are made when somebody asks. */
  get block(): Block {
    if (typeof this.#block === 'function') this.#block = this.#block();
    return this.#block;
  }
}

export type MadeUnit = WasmUnit & Module;
export type CodePage = PageOf<Entry, MadeUnit>;

/** What is beside a module's code. */
export interface Module {
  readonly members: readonly Entry[];
  /** Where its function is in the table of functions. */
  readonly place: number;
  /** Its pages, each with one of its entries. */
  readonly places: readonly (readonly [entry: Entry, page: CodePage])[];
  epoch: number;
}

/** An entry's place among its page's. The page may be mapped elsewhere too: who looks compares RIP. */
export const keyOf = (rip: bigint, mode: number) => Number(rip & 0xfffn) + mode * PAGE;
export const placesOf = (members: readonly Entry[]) => [
  ...new Map(members.map((entry) => [entry.rip >> 12n, [entry, entry.pages[0]!] as const])).values(),
];
/** Where execution goes from a block, as far as it can be told; after a call, also where that returns to. */
export function successors({ end, insns }: Block): bigint[] {
  const last = insns.at(-1)!;
  const back = last.mnemonic === 'call' ? [last.next] : [];
  if (end.kind === 'goto') return [end.target, ...back];
  return end.kind === 'branch' ? [end.taken, end.next] : back;
}

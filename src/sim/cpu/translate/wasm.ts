/**
 * The second executor: hot blocks and those that they lead to as one WebAssembly function with their loops inside,
 * since a module for each block would cost more than it saves.
 */

import { WebAssembly } from '../../webassembly.ts';
import type { Processor } from '../processor/processor.ts';
import { State } from '../processor/state.ts';
import type { Unit, Where } from '../processor/unit.ts';
import type { Block } from './ir.ts';
import { Emitter, Jumps } from './wasm-emitter.ts';
import { LEFT, TRAPPED } from './wasm-function.ts';

let units = 0;

/** Several blocks as one unit. `entry` is a block's place in the list. */
export class WasmUnit implements Unit {
  readonly blocks: readonly Block[];
  readonly #cpu: Processor;
  readonly #run: (entry: number) => number;
  /** No other unit ever has it. */
  readonly #id = ++units;
  /** For State.at: each block's first instruction has the number of those before it. */
  readonly #places: Where[] = [];

  constructor(cpu: Processor, blocks: readonly Block[]) {
    this.blocks = blocks;
    this.#cpu = cpu;
    for (const { insns } of blocks) {
      for (const [index, { rip, next }] of insns.entries())
        this.#places.push({ rip, next, rest: insns.length - index });
    }
    const module = new Emitter(cpu, blocks, this.#id).made();
    const imports = { m: cpu.arena.memory, ...slow(cpu), ...module.imports };
    const instance = new WebAssembly.Instance(new WebAssembly.Module(module.bytes()), { e: imports });
    this.#run = instance.exports.r as (entry: number) => number;
  }

  /** Lets its own code find a block by the halves of its RIP. */
  remember(low: number, high: number, index: number): void {
    const { u32 } = this.#cpu.arena.views;
    const slot = ((low ^ (low >>> 12)) & (Jumps.entries - 1)) * Jumps.entryBytes;
    const at = (this.#cpu.state.base + State.jumps + slot) / 4;
    u32[at] = low;
    u32[at + 1] = high;
    u32[at + Jumps.unit / 4] = this.#id;
    u32[at + Jumps.index / 4] = index;
  }

  run(entry: number): boolean {
    const how = this.#run(entry);
    const { state } = this.#cpu;
    if (how === TRAPPED) {
      state.setU32(State.trap, 0);
      return false;
    }
    if (how === LEFT) {
      if (!state.moved) state.rip = this.where(state.u32(State.at)).next;
      this.#cpu.changed();
    }
    return true;
  }

  where(at: number): Where {
    return this.#places[at]!;
  }
}

/** Accesses that the buffers do not answer, at an address in halves. `how`: the bytes, and bits for write and stack. */
export function slow({ memory }: Processor) {
  return {
    s0: (low: number, high: number, how: number) =>
      memory.load32At(low, high, how & 15, (how & 16) !== 0, (how & 32) !== 0, true),
    s1: (low: number, high: number, how: number) => {
      if (how & 64) memory.checkAligned(low, high, (how & 32) !== 0);
      return memory.load64At(low, high, (how & 16) !== 0, (how & 32) !== 0, true);
    },
    s2: (low: number, high: number, value: number, how: number) =>
      memory.store32At(low, high, value, how & 15, (how & 32) !== 0, true),
    s3: (low: number, high: number, value: bigint, how: number) => {
      if (how & 64) memory.checkAligned(low, high, (how & 32) !== 0);
      memory.store64At(low, high, value, (how & 32) !== 0, true);
    },
  };
}

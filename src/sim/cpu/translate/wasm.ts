/**
 * The second executor: hot blocks and those that they lead to as one WebAssembly function with their loops inside,
 * since a module for each block would cost more than it saves.
 */

import { WebAssembly } from '../../webassembly.ts';
import { guestFault } from '../processor/fault.ts';
import type { Processor } from '../processor/processor.ts';
import { State } from '../processor/state.ts';
import type { Unit, Where } from '../processor/unit.ts';
import type { Block } from './ir.ts';
import { Emitter } from './wasm-emitter.ts';
import { LEFT, TRAPPED } from './wasm-function.ts';
import { importsOf, WasmModule } from './wasm-module.ts';

let units = 0;

/** What is due where a unit's code gives LEFT or TRAPPED: gives what Unit.run() does. */
export function ended(cpu: Processor, unit: Unit, how: number): boolean {
  const { state } = cpu;
  cpu.sync();
  if (how === TRAPPED) {
    state.setU32(State.trap, 0);
    return false;
  }
  if (how === LEFT) {
    if (!state.moved) state.rip = unit.where(state.u32(State.at)).next;
    if (cpu.io.port === undefined) cpu.changed();
  }
  return true;
}

/** What becomes a unit: its blocks, where its function will be in the table of functions, if it will, and whose rights its code has. */
export interface Wanted {
  readonly blocks: readonly Block[];
  readonly place?: number;
  readonly user?: boolean;
}

/** Several blocks as one unit. `entry` is a block's place in the list. */
export class WasmUnit implements Unit {
  readonly blocks: readonly Block[];
  readonly #cpu: Processor;
  /** Gives 0, LEFT or TRAPPED. */
  readonly code: (entry: number) => number;
  /** What State.unit is while it executes. No other unit ever has it. */
  readonly id: number;
  /** For State.at: each block's first instruction has the number of those before it. */
  readonly #places: Where[] = [];

  private constructor(cpu: Processor, blocks: readonly Block[], id: number, code: (entry: number) => number) {
    this.blocks = blocks;
    this.#cpu = cpu;
    this.id = id;
    this.code = code;
    for (const { insns } of blocks) {
      for (const [index, { rip, next }] of insns.entries())
        this.#places.push({ rip, next, rest: insns.length - index });
    }
  }

  /** Units of one module: half of what a small one costs has nothing to do with its size. */
  static compile(cpu: Processor, wanted: readonly Wanted[]): WasmUnit[] {
    const module = new WasmModule();
    const ids = wanted.map(({ blocks, place = -1, user = cpu.user }) => {
      const id = ++units;
      new Emitter(cpu, module, user, blocks, id, place).write();
      return id;
    });
    const imports = { m: cpu.arena.memory, ...slow(cpu), ...importsOf(cpu, module.helpers) };
    const { exports } = new WebAssembly.Instance(new WebAssembly.Module(module.bytes()), { e: imports });
    return wanted.map(
      ({ blocks }, i) => new WasmUnit(cpu, blocks, ids[i]!, exports[`r${i}`] as (entry: number) => number),
    );
  }

  run(entry: number): boolean {
    return ended(this.#cpu, this, this.code(entry));
  }

  where(at: number): Where {
    return this.#places[at]!;
  }
}

/** Accesses that the buffers do not answer, at an address in halves. `how`: the bytes, and bits for write and stack. */
export function slow(cpu: Processor) {
  const { memory } = cpu;
  return {
    s0: (low: number, high: number, how: number) => {
      cpu.sync();
      try {
        return memory.load32At(low, high, how & 15, (how & 16) !== 0, (how & 32) !== 0, true);
      } catch (thrown) {
        return Number(trapped(cpu, thrown));
      }
    },
    s1: (low: number, high: number, how: number) => {
      cpu.sync();
      try {
        if (how & 64) memory.checkAligned(low, high, (how & 32) !== 0);
        return memory.load64At(low, high, (how & 16) !== 0, (how & 32) !== 0, true);
      } catch (thrown) {
        return trapped(cpu, thrown);
      }
    },
    s2: (low: number, high: number, value: number, how: number) => {
      cpu.sync();
      try {
        memory.store32At(low, high, value, how & 15, (how & 32) !== 0, true);
      } catch (thrown) {
        trapped(cpu, thrown);
      }
    },
    s3: (low: number, high: number, value: bigint, how: number) => {
      cpu.sync();
      try {
        if (how & 64) memory.checkAligned(low, high, (how & 32) !== 0);
        memory.store64At(low, high, value, (how & 32) !== 0, true);
      } catch (thrown) {
        trapped(cpu, thrown);
      }
    },
  };
}

/** An exception of the guest's is told by State.trap: a throw through WebAssembly costs more than all the rest of it. */
function trapped(cpu: Processor, thrown: unknown): bigint {
  if (thrown !== guestFault) throw thrown;
  cpu.faulted = true;
  cpu.state.setU32(State.trap, 1);
  return 0n;
}

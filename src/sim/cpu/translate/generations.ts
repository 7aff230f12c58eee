/**
 * For how long what was found by RIP holds: a number for what holds while nothing is forgotten, and one for that of global pages,
 * which outlives a load of CR3 (SDM volume 3, 4.10.2.4). The table by RIP (targets.ts) has each with the mode's number, in 32 bits.
 */
import { MODES } from '../processor/modes.ts';
import type { Processor } from '../processor/processor.ts';
import { State } from '../processor/state.ts';
import { forgetTargets } from './targets.ts';

/** What the table tells apart. */
const EPOCHS = 2 ** 32 / MODES;
/** Of what does not hold any more. */
export const NEVER = -1;

export class Generations {
  readonly #cpu: Processor;
  local = 0;
  global = 0;
  /** Numbers that were given. */
  #count = 0;

  constructor(cpu: Processor) {
    this.#cpu = cpu;
  }

  /** What was found for the page of the last fetch holds while it is this. */
  get current(): number {
    return this.#cpu.memory.global ? this.global : this.local;
  }
  holds(epoch: number): boolean {
    return epoch === this.local || epoch === this.global;
  }

  /** Nothing holds any more. */
  advance(): void {
    this.global = this.#next();
    this.advanceLocal();
  }
  /** Nothing but what was found in global pages. */
  advanceLocal(): void {
    this.local = this.#next();
    this.settle();
  }
  /** Where the table's numbers begin again, nothing in it may have one of before. */
  #next(): number {
    if (++this.#count % EPOCHS !== 0) return this.#count;
    forgetTargets(this.#cpu.state);
    this.global = ++this.#count;
    return ++this.#count;
  }

  /** Shows translated code its numbers: a block is gone to only in its generation and its mode. */
  settle(): void {
    const { state, mode } = this.#cpu;
    state.setU32(State.generation, Math.imul(this.local, MODES) + mode.key);
    state.setU32(State.globals, Math.imul(this.global, MODES) + mode.key);
  }
}

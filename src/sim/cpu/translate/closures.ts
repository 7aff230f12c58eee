/** The first executor: a block's micro-ops as closures over a list of values. Slow to run, and made at once. */
import type { Processor } from '../processor/processor.ts';
import { State } from '../processor/state.ts';
import type { Unit, Where } from '../processor/unit.ts';
import type { Block, Node } from './ir.ts';

type Values = (number | bigint)[];
type Step = (values: Values) => void;

/** One for all blocks: no two execute at once, and nothing outlives its block. */
const values: Values = [];

function stepOf(cpu: Processor, node: Node, first: number): Step {
  const { row, args, slot } = node;
  // As they are now: the other executor numbers the same nodes anew.
  const slots = args.map((arg) => arg.slot);
  const [a = 0, b = 0, c = 0] = slots;
  const f = row.js(cpu, node.detail);
  const { helper, insn } = node.detail;
  const alone = () => helper!(cpu, insn!) as never;
  const apply: (v: Values) => number | bigint =
    [
      helper === undefined ? () => f() : alone,
      (v: Values) => f(v[a]),
      (v: Values) => f(v[a], v[b]),
      (v: Values) => f(v[a], v[b], v[c]),
    ][args.length] ?? ((v: Values) => f(...slots.map((from) => v[from])));
  const compute: Step =
    row.result === ''
      ? apply
      : (v) => {
          v[slot] = apply(v);
        };
  if (!row.observes) return compute;
  const { state } = cpu;
  const at = first + node.at;
  if (node.detail.helper === undefined)
    return (v) => {
      state.setU32(State.at, at);
      compute(v);
    };
  const { rip } = node.detail.insn!;
  return (v) => {
    state.setU32(State.at, at);
    state.rip = rip;
    state.moved = false;
    compute(v);
  };
}

export class ClosureUnit implements Unit {
  readonly block: Block;
  readonly #cpu: Processor;
  readonly #steps: Step[];
  /** Where the end's condition or target is; not used by the other kinds. */
  readonly #decides: number;
  readonly #first: number;

  /** @param first what State.at is at the block's first instruction */
  constructor(cpu: Processor, block: Block, first = 0) {
    this.block = block;
    this.#cpu = cpu;
    this.#first = first;
    let slots = 0;
    for (const node of block.nodes) if (node.row.result !== '') node.slot = slots++;
    while (values.length < slots) values.push(0);
    this.#steps = block.nodes.map((node) => stepOf(cpu, node, first));
    const { end } = block;
    this.#decides = end.kind === 'branch' ? end.condition.slot : end.kind === 'dynamic' ? end.target.slot : 0;
  }

  run(): boolean {
    const { state } = this.#cpu;
    const { end, insns } = this.block;
    state.counted += insns.length;
    if (!this.execute()) return false;
    if (end.kind === 'left') {
      if (!state.moved) state.rip = insns.at(-1)!.next;
      this.#cpu.changed();
    }
    return true;
  }

  /** All but the count of instructions, and what is due where the end is `left`; false as in run(). */
  execute(): boolean {
    const { state, io } = this.#cpu;
    const { end } = this.block;
    for (const step of this.#steps) {
      step(values);
      if (io.waiting !== undefined) return false;
    }
    switch (end.kind) {
      case 'goto':
        state.rip = end.target;
        break;
      case 'branch':
        state.rip = values[this.#decides] !== 0 ? end.taken : end.next;
        break;
      case 'dynamic':
        state.rip = BigInt.asUintN(64, values[this.#decides] as bigint);
    }
    return true;
  }

  where(at: number): Where {
    const { insns } = this.block;
    const index = at - this.#first;
    const { rip, next } = insns[index]!;
    return { rip, next, rest: insns.length - index };
  }
}

/**
 * Random sequences of what a VMM and its guest do with memory: slots, attributes, guest_memfds, pre-faulting, and the
 * guest's own accesses. What each step gives is a line; two backends that agree give the same lines. A step's choices
 * never depend on what an earlier one gave, so the number of a sequence names it.
 */
import type { Hypervisor } from '../../src/index.ts';
import { Random } from './random.ts';
import type { Processor } from './sequence-snippets.ts';
import { firstSteps, type Step, stepOf } from './sequence-steps.ts';
import { hex, RAMS, SIZE, World } from './sequence-world.ts';

/** After the first ones. */
const STEPS = 24;

/** What both memories hold at the end: a sum that any byte changes. */
const sums = (): Step[] =>
  Array.from({ length: RAMS }, (_, which) => ({
    text: `ram ${which}`,
    take({ rams }) {
      const { bytes } = rams[which]!;
      const words = new DataView(bytes.buffer, bytes.byteOffset, SIZE);
      let sum = 0;
      for (let at = 0; at < SIZE; at += 4) sum = (Math.imul(sum, 31) + words.getInt32(at, true)) | 0;
      return hex(sum >>> 0);
    },
  }));

export interface Line {
  readonly text: string;
  readonly result: string;
}

/** What a step gives; also where something throws that no backend should. */
function taken(step: Step, world: World): string {
  try {
    return step.take(world);
  } catch (error) {
    world.over = true;
    return `threw ${(error as Error).message}`;
  }
}

/** How many sequences share a VM: making one takes the kernel as long as many of them. */
const BLOCK = 20;

/** Sequences by their numbers. One depends on those before it in its block, for a VM remembers more than its slots. */
export class Sequences implements Disposable {
  readonly #hv: Hypervisor;
  readonly #type: number;
  readonly #seed: number;
  readonly #processor: Processor;
  readonly #userfault: boolean;
  #world: World | undefined;
  #next = 0;

  /** @param options.userfault with the steps that need KVM_MEM_USERFAULT */
  constructor(
    hv: Hypervisor,
    type: number,
    seed: number,
    options: { readonly processor?: Processor; readonly userfault?: boolean } = {},
  ) {
    this.#hv = hv;
    this.#type = type;
    this.#seed = seed;
    this.#processor = options.processor ?? 'silicon';
    this.#userfault = options.userfault ?? false;
  }

  run(number: number): Line[] {
    if (number !== this.#next || number % BLOCK === 0) this[Symbol.dispose]();
    if (number !== this.#next) for (let i = number - (number % BLOCK); i < number; i++) this.#run(i);
    this.#next = number + 1;
    return this.#run(number);
  }

  #run(number: number): Line[] {
    if (this.#world?.over) this[Symbol.dispose]();
    this.#world ??= new World(this.#hv, this.#type, this.#processor, this.#userfault);
    const world = this.#world;
    const random = new Random(this.#seed, number);
    const steps = [
      ...firstSteps(this.#userfault).map((make) => make(random)),
      ...Array.from({ length: STEPS }, () => stepOf(random, this.#userfault)),
    ];
    world.reset();
    return [...steps, ...sums()].map((step) => ({ text: step.text, result: taken(step, world) }));
  }

  [Symbol.dispose](): void {
    this.#world?.[Symbol.dispose]();
    this.#world = undefined;
  }
}

/** Units of WebAssembly: which blocks become one, and whether that still holds. */
import type { Processor } from '../processor/processor.ts';
import type { Unit } from '../processor/unit.ts';
import { ClosureUnit } from './closures.ts';
import { type Entry, type MadeUnit, placesOf, successors } from './entry.ts';
import type { Interpreter } from './interpreter.ts';
import { WasmUnit } from './wasm.ts';

/** How often a block was executed, to be in the module of a hot one: what is cold, or no code at all, is not worth a module's time. */
const BESIDE = 60;
/** Blocks in a unit, and units at most: 16 KiB each, and the blocks' closures beside them. */
const UNIT = 128;
const UNITS = 2000;
/** Of those blocks, what is in another unit already: what a loop needs of it to stay in this one. */
const TWINS = 8;
/** Hot blocks that wait for each other, to be compiled at once. One that is hot a second time waits no longer. */
const TOGETHER = 8;

/** What is known of entries elsewhere. */
interface Known {
  /** The block that another leads to. */
  near(rip: bigint, from: Entry): Entry | undefined;
  /** Whether it holds in what executes now. */
  isCurrent(entry: Entry): boolean;
}
/** What will be a unit: its members, and the first of them is the hot one. */
interface Plan {
  readonly members: Entry[];
  readonly place: number;
  readonly user: boolean;
}

export class Units {
  readonly #cpu: Processor;
  /** It executes blocks that are in no unit, where there is one. */
  readonly #interpreter: Interpreter | undefined;
  readonly #known: Known;
  readonly #made = new Set<MadeUnit>();
  /** Hot blocks that wait, with the rights of their code. */
  readonly #waiting = new Map<Entry, boolean>();

  constructor(cpu: Processor, interpreter: Interpreter | undefined, known: Known) {
    this.#cpu = cpu;
    this.#interpreter = interpreter;
    this.#known = known;
  }

  get isFull(): boolean {
    return this.#made.size >= UNITS;
  }

  /** A block is hot: it becomes a unit with those that it leads to, soon. Gives what executes it now. */
  heat(entry: Entry): Unit {
    const { mode, alignment } = this.#cpu;
    // Not what is executed one instruction at a time.
    if (entry.mode !== mode.key || mode.single || alignment || entry.pages.length > 1) {
      entry.heat = Number.NEGATIVE_INFINITY; // once
      return entry.unit;
    }
    const waited = this.#waiting.has(entry);
    this.#waiting.set(entry, mode.user);
    if (waited || this.#waiting.size >= TOGETHER || this.#interpreter === undefined) this.#make();
    return entry.unit;
  }

  /** Makes units of what waits and holds now. */
  #make(): void {
    const plans: Plan[] = [];
    const planned = new Set<Entry>();
    for (const [entry, user] of this.#waiting) {
      entry.heat = Number.NEGATIVE_INFINITY;
      // It may have gone; what does not hold just now is hot once more, later.
      if (!this.#known.isCurrent(entry) || planned.has(entry)) continue;
      const members = this.#membersOf(entry, planned);
      for (const member of members) planned.add(member);
      plans.push({ members, place: this.#interpreter?.reserve() ?? -1, user });
    }
    this.#waiting.clear();
    const units = this.#compile(plans);
    for (const [i, { members, place }] of plans.entries()) {
      const unit = units[i];
      if (unit === undefined) this.#interpreter?.release(place);
      else this.#enter(unit, members, place);
    }
  }

  #membersOf(entry: Entry, planned: ReadonlySet<Entry>): Entry[] {
    const members = [entry];
    let twins = 0;
    for (let i = 0; i < members.length && members.length < UNIT; i++) {
      for (const target of successors(members[i]!.block)) {
        const found = this.#known.near(target, members[i]!);
        if (found === undefined || !this.#isWorthIt(found) || members.includes(found)) continue;
        const isTwin = found.unit instanceof WasmUnit || planned.has(found);
        if (isTwin && twins++ >= TWINS) continue;
        members.push(found);
      }
    }
    return members;
  }
  #isWorthIt({ heat, cold, pages }: Entry): boolean {
    if (pages.length > 1) return false;
    return cold === undefined ? heat !== 0 : this.#interpreter!.heatOf(cold) >= BESIDE;
  }

  #enter(unit: WasmUnit, members: Entry[], place: number): void {
    const [entry] = members;
    const interpreter = this.#interpreter;
    interpreter?.enter(unit, place);
    const module = Object.assign(unit, { members, place, places: placesOf(members), epoch: entry!.epoch });
    this.#made.add(module);
    for (const [, page] of module.places) page.units.add(module);
    members.forEach((member, index) => {
      // What is in another unit already stays there: it is the one that begins at a hot block.
      if (member !== entry && member.unit instanceof WasmUnit) return;
      if (member.cold !== undefined) interpreter!.promote(member.cold, place, index);
      member.unit = module;
      member.index = index;
    });
  }

  /**
   * The plans as units of one module; where the engine refuses one of that size, each by itself, and then only the first members.
   * (A browser's main thread compiles at once what is small: at most 8 MiB in Chromium, 4 KiB in its older versions.) Undefined
   * where that does not help.
   */
  #compile(plans: readonly Plan[]): (WasmUnit | undefined)[] {
    if (plans.length === 0) return [];
    for (;;) {
      try {
        return WasmUnit.compile(
          this.#cpu,
          plans.map(({ members, place, user }) => ({
            blocks: members.map(({ block }) => block),
            place,
            user,
          })),
        );
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
        if (plans.length > 1) return plans.flatMap((plan) => this.#compile([plan]));
        const { members } = plans[0]!;
        if (members.length === 1) return [undefined];
        members.length >>= 1;
      }
    }
  }

  /** Its blocks start anew. */
  discard(module: MadeUnit): void {
    if (!this.#made.delete(module)) return;
    for (const [, page] of module.places) page.units.delete(module);
    const interpreter = this.#interpreter;
    for (const member of module.members) {
      if (member.unit !== module) continue;
      member.unit = member.cold === undefined ? new ClosureUnit(this.#cpu, member.block) : interpreter!;
      member.index = member.cold ?? 0;
      member.heat = 0;
      if (member.cold !== undefined) interpreter!.cool(member.cold);
    }
    interpreter?.discard(module, module.place);
  }
  /** When all blocks are gone. */
  forget(): void {
    this.#waiting.clear();
    for (const module of this.#made) this.#interpreter?.discard(module, module.place);
    this.#made.clear();
  }
}

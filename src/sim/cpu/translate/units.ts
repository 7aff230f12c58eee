/** Units of WebAssembly: which blocks become one, and whether that still holds. */
import type { Processor } from '../processor/processor.ts';
import type { Unit } from '../processor/unit.ts';
import { ClosureUnit } from './closures.ts';
import { type Entry, type MadeUnit, placesOf, successors } from './entry.ts';
import type { Interpreter } from './interpreter.ts';
import { WasmUnit } from './wasm.ts';

/** How often a block was executed, to be in the module of a hot one: what is cold, or no code at all, is not worth a module's time. */
const BESIDE = 60;
/** Blocks in a module, and modules at most: 16 KiB each, and the blocks' closures beside them. */
const UNIT = 128;
const MODULES = 2000;
/** Of those, what is in another module already: what a loop needs of it to stay in this one. */
const TWINS = 8;

export class Units {
  readonly #cpu: Processor;
  /** It executes blocks that are in no unit, where there is one. */
  readonly #interpreter: Interpreter | undefined;
  readonly #made = new Set<MadeUnit>();

  constructor(cpu: Processor, interpreter: Interpreter | undefined) {
    this.#cpu = cpu;
    this.#interpreter = interpreter;
  }

  get isFull(): boolean {
    return this.#made.size >= MODULES;
  }

  /**
   * Makes one module of a hot block and those that it leads to; gives what executes the block from then on.
   * @param near the block that another leads to, if it is known
   */
  make(entry: Entry, near: (rip: bigint, from: Entry) => Entry | undefined): Unit {
    entry.heat = Number.NEGATIVE_INFINITY; // once
    const { mode, alignment } = this.#cpu;
    // Not what is executed one instruction at a time.
    if (entry.mode !== mode.key || mode.single || alignment || entry.pages.length > 1) return entry.unit;
    const members = [entry];
    let twins = 0;
    for (let i = 0; i < members.length && members.length < UNIT; i++) {
      for (const target of successors(members[i]!.block)) {
        const found = near(target, members[i]!);
        if (found === undefined || !this.#isWorthIt(found) || members.includes(found)) continue;
        if (found.unit instanceof WasmUnit && twins++ >= TWINS) continue;
        members.push(found);
      }
    }
    const interpreter = this.#interpreter;
    const place = interpreter?.reserve() ?? -1;
    const unit = this.#compile(members, place);
    if (unit === undefined) {
      interpreter?.release(place);
      return entry.unit;
    }
    interpreter?.enter(unit, place);
    const module = Object.assign(unit, { members, place, places: placesOf(members), epoch: entry.epoch });
    this.#made.add(module);
    for (const [, page] of module.places) page.units.add(module);
    members.forEach((member, index) => {
      // What is in another module already stays there: it is the one that begins at a hot block.
      if (member !== entry && member.unit instanceof WasmUnit) return;
      if (member.cold !== undefined) interpreter!.promote(member.cold, place, index);
      member.unit = module;
      member.index = index;
    });
    return module;
  }

  #isWorthIt({ heat, cold, pages }: Entry): boolean {
    if (pages.length > 1) return false;
    return cold === undefined ? heat !== 0 : this.#interpreter!.heatOf(cold) >= BESIDE;
  }

  /**
   * The members as one module; only the first of them where the engine refuses one of that size. (A browser's main
   * thread compiles at once what is small: at most 8 MiB in Chromium, 4 KiB in its older versions.) Undefined when that
   * does not help.
   */
  #compile(members: Entry[], place: number): WasmUnit | undefined {
    for (;;) {
      try {
        return new WasmUnit(
          this.#cpu,
          members.map(({ block }) => block),
          place,
        );
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
        if (members.length === 1) return undefined;
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
    for (const module of this.#made) this.#interpreter?.discard(module, module.place);
    this.#made.clear();
  }
}

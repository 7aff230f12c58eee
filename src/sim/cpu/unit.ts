import type { Insn } from './insn.ts';

/** Something that executes: one block as closures, or many as a WebAssembly module. */
export interface Unit {
  /**
   * Executes from the block on that `entry` names, counts instructions as its blocks begin, and leaves RIP where
   * execution goes on. @throws GuestFault, Alone, SecondStageFault, IoStop: then State.at says where it was
   */
  run(entry: number): void;
  /** What the number in State.at means. */
  where(at: number): Where;
}

export interface Where {
  readonly insn: Insn;
  /** Instructions that were counted and have not happened, this one included. */
  readonly rest: number;
}

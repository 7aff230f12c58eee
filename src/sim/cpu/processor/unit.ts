import type { Insn } from '../processor/insn.ts';

/** Something that executes: one block as closures, or many as a WebAssembly module. */
export interface Unit {
  /**
   * Executes from the block on that `entry` names, counts instructions as its blocks begin, and leaves RIP where
   * execution goes on. @throws GuestFault, Alone, SecondStageFault, IoStop: then State.at says where it was
   * @returns false for a fault of the second stage, as if SecondStageFault had been thrown
   */
  run(entry: number): boolean;
  /** What the number in State.at means. */
  where(at: number): Where;
}

export interface Where {
  readonly insn: Insn;
  /** Instructions that were counted and have not happened, this one included. */
  readonly rest: number;
}

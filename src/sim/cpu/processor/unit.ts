/** Something that executes: one block as closures, or many as a WebAssembly module. */
export interface Unit {
  /**
   * Executes from the block on that `entry` names, counts instructions as its blocks begin, and leaves RIP where
   * execution goes on. @throws GuestFault, Alone, SecondStageFault, IoStop: then State.at says where it was
   * @returns false for a fault of the second stage, as if SecondStageFault had been thrown, and for what IoLog.waiting has
   */
  run(entry: number): boolean;
  /** What the number in State.at means. */
  where(at: number): Where;
}

export interface Where {
  /** RIP of the instruction, and of the one after it. */
  readonly rip: bigint;
  readonly next: bigint;
  /** Instructions that were counted and have not happened, this one included. */
  readonly rest: number;
}

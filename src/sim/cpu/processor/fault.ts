/** What is thrown through the processor. One object of each is used again and again: a throw through translated code is dear otherwise. */

import { Vector as Exception } from '../../../uapi/constants.ts';

/** Vectors of the exceptions, and of the one interrupt that has its own (SDM volume 3, table 6-1). */
export const Vector = { ...Exception, NMI: 2 } as const;

/** An exception of the guest's, raised by the instruction that is executing, which has changed nothing. */
export class GuestFault {
  vector = 0;
  /** undefined for those that push none. */
  errorCode: number | undefined;
  /** CR2 of a page fault. */
  address = 0n;
}

/** The one that is thrown. */
export const guestFault = new GuestFault();

/** Raises an exception in the guest. */
export function raise(vector: number, errorCode?: number, address = 0n): never {
  note(vector, errorCode, address);
  throw guestFault;
}
/** Says what an exception would be, for who tells of it without a throw. */
export function note(vector: number, errorCode?: number, address = 0n): void {
  guestFault.vector = vector;
  guestFault.errorCode = errorCode;
  guestFault.address = address;
}

/**
 * The instruction that is executing must be executed again by itself, because it does what translated code cannot:
 * memory-mapped I/O, or a write to code. It has changed nothing yet.
 */
export class Alone {
  /** With everything as KVM's emulator does it, or only by itself. */
  mode: 'alone' | 'emulated' = 'alone';
}
export const alone = new Alone();

/** What KVM's emulator would have to do and cannot: see emulationFailure(). The instruction has changed nothing. */
export class NotEmulated {}
export const notEmulated = new NotEmulated();

/** KVM_RUN must end, for the second stage gave FAULT. Loads and stores of translated code tell of it without a throw. */
export class SecondStageFault {}
export const secondStageFault = new SecondStageFault();

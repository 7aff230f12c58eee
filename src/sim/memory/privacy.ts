/**
 * Whether a page is private: the fourth of the ways in which the ABIs of memory faults differ, and the one that is the
 * memory's. Whose wish it is that is compared with it depends on the VM's type.
 */
import { RangeMap, type ValueRange } from '../../hypervisor/ranges.ts';
import { MemoryAttribute } from '../../uapi/constants.ts';
import type { Dialect } from '../../uapi/dialects.ts';
import type { Slot } from './slots.ts';

export interface Privacy {
  isPrivate(gpa: number, slot: Slot | undefined): boolean;
}

/** KVM_MEMORY_ATTRIBUTE_*, by address; or, in the ninth version, the registered regions. */
export class Attributes implements Privacy {
  #ranges = new RangeMap<number>(0);

  set(start: number, end: number, attributes: number): void {
    this.#ranges.set(start, end, attributes);
  }
  clear(): void {
    this.#ranges = new RangeMap(0);
  }
  get all(): Iterable<ValueRange<number>> {
    return this.#ranges.within(0, Number.POSITIVE_INFINITY);
  }
  isPrivate(gpa: number): boolean {
    return (this.#ranges.at(gpa) & MemoryAttribute.PRIVATE) !== 0;
  }
}

/** The first form: a page is private exactly when the private file has allocated it. */
const byAllocation: Privacy = {
  isPrivate: (gpa, slot) =>
    slot?.guestMemfd?.isAllocated(slot.guestMemfdOffset + (gpa - slot.start)) ?? false,
};

/** What decides, for a dialect's truth. */
export const privacyOf = (truth: Dialect['truth'], attributes: Attributes): Privacy =>
  truth === 'allocation' ? byAllocation : attributes;

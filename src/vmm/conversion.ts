/**
 * Converting guest memory between private and shared: one transaction. Everything is checked before anything
 * changes; then one KVM_SET_MEMORY_ATTRIBUTES for the whole range; and the discards, which cannot be undone, last.
 */

import { PAGE_SIZE } from '../hypervisor/args.ts';
import type { GuestMemory } from '../hypervisor/guest-memory.ts';
import type { Slot } from '../hypervisor/memory-map.ts';
import type { Vm } from '../hypervisor/vm.ts';
import { HypercallErrno, MemoryAttribute } from '../uapi/constants.ts';

/** What a page is: `private`, which only the guest sees, or `shared` with the host. */
export type MemoryState = 'private' | 'shared';

/**
 * Which copy a conversion gives back to the host: `both`, the one that is left, in either direction; `private`,
 * only the private one, so that shared contents outlive a time as private; `none`, neither.
 */
export type Discard = 'both' | 'private' | 'none';

/** Why a range cannot be converted: what a guest that asked by hypercall is told, and what people are. */
export interface Refusal {
  /** KVM_E* (kvm_para.h), positive. */
  readonly errno: HypercallErrno;
  /** A sentence about the range. */
  readonly why: string;
}

/**
 * The reasons for which a conversion is refused: the errno that a guest is told, and the sentence that people
 * are.
 */
export const refusals = {
  /** KVM_EINVAL: not whole pages, or none. */
  malformed: { errno: HypercallErrno.EINVAL, why: 'the range is not made of one or more whole pages' },
  /** KVM_EFAULT: not memory in whole. */
  beyond: { errno: HypercallErrno.EFAULT, why: 'no memory slot has the whole of the range' },
  /** KVM_EOPNOTSUPP: no private pages to be had there. */
  unbacked: {
    errno: HypercallErrno.EOPNOTSUPP,
    why: 'a slot of the range has no open guest_memfd for private pages',
  },
  /** KVM_EPERM: the policy says no. */
  denied: { errno: HypercallErrno.EPERM, why: 'the policy denies it' },
  /** KVM_EFAULT: the kernel refused it. */
  failed: { errno: HypercallErrno.EFAULT, why: 'KVM_SET_MEMORY_ATTRIBUTES failed' },
} as const satisfies { readonly [reason: string]: Refusal };

/** KVM_MEMORY_ATTRIBUTE_* of a page in each state. */
export const attributesOf = { private: MemoryAttribute.PRIVATE, shared: 0 } as const;

/** The highest guest-physical address plus one: 52 bits (SDM volume 3, 4.1.4). */
const MAX_GPA = 2 ** 52;

/** Makes ranges of guest memory private or shared, and gives back the copy that is no longer used. */
export class Converter {
  /** Discards that the host refused. The conversion stands; the memory is only held longer. */
  discardFailures = 0;
  readonly #vm: Vm;
  readonly #discard: Discard;

  /**
   * @param vm whose memory it is
   * @param discard which copy a conversion gives back to the host
   */
  constructor(vm: Vm, discard: Discard) {
    this.#vm = vm;
    this.#discard = discard;
  }

  /**
   * Why [gpa, gpa + size) cannot be converted, or undefined when it can. Looks only at the Vm's record. Every page
   * must be memory, so that no request is larger than the guest: the kernel would work on 2^36 bytes for seconds.
   * Sharing what is nobody's memory and shared already (a guest's device memory) is allowed, and changes nothing.
   */
  check(gpa: number, size: number, to: MemoryState): Refusal | undefined {
    if (!(size > 0 && gpa >= 0 && gpa % PAGE_SIZE === 0 && size % PAGE_SIZE === 0)) return refusals.malformed;
    const end = gpa + size;
    if (end > MAX_GPA) return refusals.beyond;
    const map = this.#vm.memoryMap;
    const slot = map.slotAt(gpa);
    if (slot !== undefined && slot.end >= end) {
      return to === 'shared' || map.hasPrivate(slot) ? undefined : refusals.unbacked;
    }
    let memory = 0;
    for (const piece of map.pieces(gpa, end)) {
      if (piece.slot === undefined) continue;
      if (to === 'private' && !map.hasPrivate(piece.slot)) return refusals.unbacked;
      memory += piece.end - piece.start;
    }
    if (memory === size) return undefined;
    return memory === 0 && to === 'shared' && map.hasAttributes(gpa, end, 0) ? undefined : refusals.beyond;
  }

  /**
   * Converts a range that check() has passed.
   * @returns bytes converted, 0 when all of it was in that state already (nothing is discarded then), or a negated
   *   errno of KVM_SET_MEMORY_ATTRIBUTES, with nothing changed
   */
  apply(gpa: number, size: number, to: MemoryState): number {
    const map = this.#vm.memoryMap;
    const end = gpa + size;
    if (map.hasAttributes(gpa, end, attributesOf[to])) return 0;
    const result = this.#vm.tryConvert(gpa, size, attributesOf[to]);
    if (result < 0) return result;
    if (this.#discard === 'none' || (this.#discard === 'private' && to === 'private')) return size;

    const slot = map.slotAt(gpa);
    if (slot !== undefined && slot.end >= end) {
      this.#drop(slot, gpa, size, to);
    } else {
      for (const piece of map.pieces(gpa, end)) {
        if (piece.slot) this.#drop(piece.slot, piece.start, piece.end - piece.start, to);
      }
    }
    return size;
  }

  /** Drops the copy that the state `now` does not use. */
  #drop(slot: Slot, gpa: number, size: number, now: MemoryState): void {
    const { memory, guestMemfd } = slot;
    const offset = gpa - slot.start;
    let result = 0;
    if (now === 'private') {
      if (memory) result = discardShared(memory, slot.memoryOffset + offset, size);
    } else if (guestMemfd?.closed === false) {
      result = guestMemfd.tryPunchHole(slot.guestMemfdOffset + offset, size);
    }
    if (result < 0) this.discardFailures++;
  }
}

const EBADF = -9;

/** A GuestMemory that was closed under its slot cannot be punched, and lives until the slot is gone. */
const discardShared = (memory: GuestMemory, offset: number, size: number): number =>
  memory.closed ? EBADF : memory.tryDiscard(offset, size);

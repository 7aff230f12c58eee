/**
 * What a VM's memory is: the record of every successful ioctl that concerns it. The kernel has no way to read
 * attributes or slots back, so this is the only place that knows.
 */
import { MemFlag, MemoryAttribute } from '../uapi/constants.ts';
import { flagNames, hex } from '../uapi/text.ts';
import type { GuestMemfd } from './guest-memfd.ts';
import type { GuestMemory } from './guest-memory.ts';
import { inUnits } from './inspect.ts';
import { type Range, RangeMap } from './ranges.ts';
import type { UserfaultBitmap } from './userfault-bitmap.ts';

/** A memory slot as the kernel has it. Addresses and sizes in bytes. */
export interface Slot extends Range {
  /** The slot's number. */
  readonly slot: number;
  /** 0, or 1 for what only SMM sees. */
  readonly addressSpace: number;
  /** MemFlag bits (KVM_MEM_*). */
  readonly flags: number;
  /** Its shared memory, if it has any. */
  readonly memory: GuestMemory | undefined;
  /** Where in `memory` the slot begins, in bytes. */
  readonly memoryOffset: number;
  /** Its private memory, if it has any. */
  readonly guestMemfd: GuestMemfd | undefined;
  /** Where in `guestMemfd` the slot begins, in bytes. */
  readonly guestMemfdOffset: number;
  /** Its bitmap for KVM_MEM_USERFAULT (a proposal), if it has one. */
  readonly userfaultBitmap: UserfaultBitmap | undefined;
}

/** `0: [0x100000, +0x10000) 64 KiB, GUEST_MEMFD` */
export function describeSlot(slot: Slot): string {
  const size = slot.end - slot.start;
  const space = slot.addressSpace === 0 ? '' : ` of address space ${slot.addressSpace}`;
  const flags = slot.flags === 0 ? '' : `, ${flagNames(MemFlag, slot.flags)}`;
  return `${slot.slot}${space}: ${hex.range(slot.start, size)} ${inUnits(size)}${flags}`;
}

/** A part of a range that lies in one slot, or in none. */
export interface Piece extends Range {
  /** The slot that has this part; undefined where there is none. */
  readonly slot: Slot | undefined;
}

/**
 * The slots and attributes of a VM, as its successful ioctls have made them: KVM cannot be asked for either.
 * Addresses are guest-physical, in bytes. Read it; Vm writes it.
 */
export class MemoryMap {
  /** Of address space 0, sorted by address: what guests outside of SMM see. */
  #slots: Slot[] = [];
  readonly #others: Slot[] = [];
  readonly #attributes = new RangeMap<number>(0);

  /** The slots of address space 0 in order of address. */
  get slots(): readonly Slot[] {
    return this.#slots;
  }

  /** The slots of other address spaces, which only SMM sees. */
  get otherSlots(): readonly Slot[] {
    return this.#others;
  }

  /** The first address after the last slot; 0 without slots. Guest requests beyond it concern no memory. */
  get end(): number {
    return this.#slots.at(-1)?.end ?? 0;
  }

  /** The slot of address space 0 that has the address. */
  slotAt(address: number): Slot | undefined {
    let low = 0;
    let high = this.#slots.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#slots[middle]!.end <= address) low = middle + 1;
      else high = middle;
    }
    const slot = this.#slots[low];
    return slot !== undefined && slot.start <= address ? slot : undefined;
  }

  /** The slot of this number. */
  slotById(slot: number, addressSpace = 0): Slot | undefined {
    const among = addressSpace === 0 ? this.#slots : this.#others;
    return among.find((other) => other.slot === slot && other.addressSpace === addressSpace);
  }

  /** [start, end) cut at the borders of slots, holes included. */
  *pieces(start: number, end: number): Generator<Piece> {
    let at = start;
    for (const slot of this.#slots) {
      if (slot.end <= at) continue;
      if (slot.start >= end) break;
      if (slot.start > at) yield { start: at, end: slot.start, slot: undefined };
      const from = Math.max(at, slot.start);
      at = Math.min(end, slot.end);
      yield { start: from, end: at, slot };
    }
    if (at < end) yield { start: at, end, slot: undefined };
  }

  /** KVM_MEMORY_ATTRIBUTE_* of the page at the address. */
  attributesAt(address: number): number {
    return this.#attributes.at(address);
  }

  /** Whether the page at the address has KVM_MEMORY_ATTRIBUTE_PRIVATE. */
  isPrivate(address: number): boolean {
    return (this.#attributes.at(address) & MemoryAttribute.PRIVATE) !== 0;
  }

  /** Whether every page of [start, end) has exactly these attributes. */
  hasAttributes(start: number, end: number, attributes: number): boolean {
    return this.#attributes.is(start, end, attributes);
  }

  /** The runs of equal attributes in [start, end), in order. */
  attributesWithin(start: number, end: number) {
    return this.#attributes.within(start, end);
  }

  /** Whether the slot can hold private pages now: bound to a guest_memfd that is still open. */
  hasPrivate(slot: Slot): boolean {
    return (slot.flags & MemFlag.GUEST_MEMFD) !== 0 && slot.guestMemfd?.closed === false;
  }

  /** After a region ioctl that succeeded. A slot of size 0 is a deletion. */
  recordSlot(slot: Slot): void {
    const keep = (other: Slot) => other.slot !== slot.slot || other.addressSpace !== slot.addressSpace;
    if (slot.addressSpace !== 0) {
      const at = this.#others.findIndex((other) => !keep(other));
      if (at >= 0) this.#others.splice(at, 1);
      if (slot.end > slot.start) this.#others.push(slot);
      return;
    }
    this.#slots = this.#slots.filter(keep);
    if (slot.end === slot.start) return;
    const at = this.#slots.findIndex((other) => other.start > slot.start);
    this.#slots.splice(at < 0 ? this.#slots.length : at, 0, slot);
  }

  /** After a KVM_SET_MEMORY_ATTRIBUTES that succeeded. */
  recordAttributes(start: number, end: number, attributes: number): void {
    this.#attributes.set(start, end, attributes);
  }
}

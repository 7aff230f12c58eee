/** Memory slots, and the rules by which the kernel takes or refuses one (virt/kvm/kvm_main.c, __kvm_set_memory_region). */
import { GuestMemfdFlag, MemFlag } from '../../uapi/constants.ts';
import { Errno } from '../../uapi/errno.ts';
import { PAGE } from '../arena.ts';
import type { DirtyBits } from './dirty.ts';
import type { GuestMemfdFile } from './guest-memfd.ts';
import type { Mapping } from './host-memory.ts';

/** KVM_USER_MEM_SLOTS on x86: 32767 less the three that KVM keeps for itself. */
export const MAX_SLOTS = 32_764;
/** KVM_MEM_MAX_NR_PAGES. */
const MAX_PAGES = 2 ** 31 - 1;
/** access_ok(): what userspace can have of addresses. */
const USER_ADDRESSES = 2 ** 47;

export interface Slot {
  readonly id: number;
  readonly flags: number;
  /** Guest-physical bytes [start, end). */
  readonly start: number;
  readonly end: number;
  readonly mapping: Mapping;
  readonly mappingOffset: number;
  /** Undefined for a slot without one, and once the file is gone. */
  guestMemfd: GuestMemfdFile | undefined;
  readonly guestMemfdOffset: number;
  /** KVM_MEM_USERFAULT's; a null pointer without it. */
  readonly userfaultBitmap: Mapping | undefined;
  /** With LOG_DIRTY_PAGES, where there are no rings. */
  dirty: DirtyBits | undefined;
}

/** A region as userspace gives it: all 64 bits of each field. */
export interface Region {
  readonly slot: number;
  readonly flags: number;
  readonly start: bigint;
  readonly size: bigint;
  /** Null with size 0. */
  readonly mapping: Mapping | undefined;
  readonly mappingOffset: number;
  /** What the fd is: a guest_memfd, another file, or none. */
  readonly guestMemfd: GuestMemfdFile | 'other' | undefined;
  readonly guestMemfdOffset: bigint;
  readonly userfaultBitmap: Mapping | undefined;
}

/** What a VM allows. */
export interface SlotRules {
  readonly addressSpaces: number;
  readonly guestMemfd: boolean;
  readonly userfault: boolean;
  /** The VM itself: files of others cannot be bound. */
  readonly owner: object;
}

export type Change =
  | { readonly kind: 'nothing' }
  | { readonly kind: 'delete'; readonly old: Slot }
  /** KVM_MR_FLAGS_ONLY: what is mapped stays so. */
  | { readonly kind: 'flags'; readonly old: Slot; readonly slot: Slot }
  /** A new slot, or one that moves. */
  | { readonly kind: 'place'; readonly old: Slot | undefined; readonly slot: Slot };

const LIMIT = 1n << 64n;
const aligned = (value: bigint): boolean => value % BigInt(PAGE) === 0n;

/** check_memory_region_flags(): dirty logging and READONLY exclude private memory. */
function knownFlags(flags: number, rules: SlotRules): number {
  const withFile = (flags & MemFlag.GUEST_MEMFD) !== 0;
  const others = withFile ? 0 : MemFlag.LOG_DIRTY_PAGES | MemFlag.READONLY;
  return others | (rules.guestMemfd ? MemFlag.GUEST_MEMFD : 0) | (rules.userfault ? MemFlag.USERFAULT : 0);
}

/** What is wrong with a region whatever slots there are. */
function isMalformed(region: Region, rules: SlotRules): boolean {
  const { flags, start, size, mappingOffset, guestMemfdOffset } = region;
  const file = (flags & MemFlag.GUEST_MEMFD) !== 0;
  return (
    (flags & ~knownFlags(flags, rules)) !== 0 ||
    !aligned(size) ||
    !aligned(start) ||
    mappingOffset % PAGE !== 0 ||
    size > BigInt(USER_ADDRESSES) ||
    (file && (!aligned(guestMemfdOffset) || guestMemfdOffset + size >= LIMIT)) ||
    region.slot >>> 16 >= rules.addressSpaces ||
    (region.slot & 0xffff) >= MAX_SLOTS ||
    start + size >= LIMIT ||
    size / BigInt(PAGE) > BigInt(MAX_PAGES)
  );
}

/** kvm_gmem_bind(): 0, or a negated errno. */
function checkBinding(region: Region, rules: SlotRules): number {
  const { guestMemfd: file, guestMemfdOffset, size } = region;
  if (file === undefined) return -Errno.EBADF;
  if (file === 'other' || file.owner !== rules.owner) return -Errno.EINVAL;
  const end = guestMemfdOffset + size;
  if (end > BigInt(file.size)) return -Errno.EINVAL;
  for (const bound of file.bindings) {
    if (guestMemfdOffset < bound.end && end > bound.start) return -Errno.EINVAL;
  }
  return 0;
}

/**
 * What an existing slot cannot become: 0, or a negated errno. It keeps its memory, its size and READONLY; and with
 * private memory everything but USERFAULT. Another bitmap would say nothing of the pages that are mapped.
 */
function checkChange(old: Slot, region: Region): number {
  const start = Number(region.start);
  const changed = region.flags ^ old.flags;
  const moves = start !== old.start;
  if (
    region.mapping !== old.mapping ||
    region.mappingOffset !== old.mappingOffset ||
    Number(region.size) !== old.end - old.start ||
    (changed & (MemFlag.READONLY | MemFlag.GUEST_MEMFD)) !== 0
  ) {
    return -Errno.EINVAL;
  }
  if ((region.flags & MemFlag.GUEST_MEMFD) !== 0) {
    if (moves || changed !== MemFlag.USERFAULT) return -Errno.EINVAL;
    if (region.guestMemfd === undefined) return -Errno.EBADF;
    const bound = region.guestMemfd === old.guestMemfd;
    if (!bound || Number(region.guestMemfdOffset) !== old.guestMemfdOffset) return -Errno.EINVAL;
  }
  const keeps = (region.flags & old.flags & MemFlag.USERFAULT) !== 0 && !moves;
  return keeps && region.userfaultBitmap !== old.userfaultBitmap ? -Errno.EINVAL : 0;
}

/** The slots of a VM, by number and by address. */
export class Slots {
  readonly #byId = new Map<number, Slot>();
  /** Of address space 0, in order of their addresses. */
  readonly #sorted: Slot[] = [];
  /** The one that was found last: most accesses are to where the one before was. */
  #last: Slot | undefined;

  get all(): Iterable<Slot> {
    return this.#byId.values();
  }

  /** What the region changes, or a negated errno. Changes nothing itself. */
  check(region: Region, rules: SlotRules): Change | number {
    if (isMalformed(region, rules)) return -Errno.EINVAL;
    const old = this.#byId.get(region.slot);
    if (region.size === 0n) return old === undefined ? -Errno.EINVAL : { kind: 'delete', old };

    const [start, end] = [Number(region.start), Number(region.start + region.size)];
    const file = (region.flags & MemFlag.GUEST_MEMFD) !== 0;
    if (old !== undefined) {
      const refused = checkChange(old, region);
      if (refused !== 0) return refused;
      if (start === old.start && region.flags === old.flags) return { kind: 'nothing' };
    }
    const space = region.slot >>> 16;
    for (const other of this.#near(start, end, space)) {
      if (other !== old && other.start < end && other.end > start) return -Errno.EEXIST;
    }
    if (file && old === undefined) {
      const refused = checkBinding(region, rules);
      if (refused !== 0) return refused;
    }
    const slot: Slot = {
      id: region.slot,
      flags: region.flags,
      start,
      end,
      mapping: region.mapping!,
      mappingOffset: region.mappingOffset,
      guestMemfd: file ? (region.guestMemfd as GuestMemfdFile) : undefined,
      guestMemfdOffset: file ? Number(region.guestMemfdOffset) : 0,
      userfaultBitmap: (region.flags & MemFlag.USERFAULT) !== 0 ? region.userfaultBitmap : undefined,
      dirty: (region.flags & MemFlag.LOG_DIRTY_PAGES) !== 0 ? old?.dirty : undefined,
    };
    if (old !== undefined && old.start === start) return { kind: 'flags', old, slot };
    return { kind: 'place', old, slot };
  }

  #near(start: number, end: number, space: number): Iterable<Slot> {
    if (space !== 0) return [...this.#byId.values()].filter(({ id }) => id >>> 16 === space);
    const first = this.#index(start);
    let last = first;
    while (last < this.#sorted.length && this.#sorted[last]!.start < end) last++;
    return this.#sorted.slice(first, last);
  }

  /** The index of the first slot that ends above the address. */
  #index(address: number): number {
    let low = 0;
    let high = this.#sorted.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#sorted[middle]!.end <= address) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  add(slot: Slot): void {
    this.#byId.set(slot.id, slot);
    if (slot.id >>> 16 === 0) this.#sorted.splice(this.#index(slot.start), 0, slot);
  }

  remove(slot: Slot): void {
    this.#byId.delete(slot.id);
    this.#last = undefined;
    const at = this.#index(slot.start);
    if (this.#sorted[at] === slot) this.#sorted.splice(at, 1);
  }

  clear(): void {
    this.#byId.clear();
    this.#sorted.length = 0;
    this.#last = undefined;
  }

  byId(id: number): Slot | undefined {
    return this.#byId.get(id);
  }

  /** The slot of address space 0 that has the guest-physical address. */
  at(gpa: number): Slot | undefined {
    const last = this.#last;
    if (last !== undefined && gpa >= last.start && gpa < last.end) return last;
    const slot = this.#sorted[this.#index(gpa)];
    if (slot === undefined || slot.start > gpa) return undefined;
    this.#last = slot;
    return slot;
  }
}

/** Since 6.18: the shared side of such a slot, too, is its guest_memfd (KVM_MEMSLOT_GMEM_ONLY). */
export const isGuestMemfdOnly = ({ guestMemfd }: Slot): boolean =>
  guestMemfd !== undefined && (guestMemfd.flags & GuestMemfdFlag.MMAP) !== 0;

/**
 * The ways by which a guest's access to a page that is not there yet comes to the pager. Which of them this host has
 * is found by trying: the capability's number for KVM_MEM_USERFAULT means other things on other kernels.
 */
import { PAGE_SIZE as PAGE } from '../../hypervisor/args.ts';
import { KvmError, UnavailableError } from '../../hypervisor/errors.ts';
import type { GuestMemory } from '../../hypervisor/guest-memory.ts';
import type { Slot } from '../../hypervisor/memory-map.ts';
import type { UserfaultBitmap } from '../../hypervisor/userfault-bitmap.ts';
import type { Userfaultfd } from '../../hypervisor/userfaultfd.ts';
import type { Vm } from '../../hypervisor/vm.ts';
import { MemFlag } from '../../uapi/constants.ts';
import type { Run } from './page-source.ts';

/**
 * `userfault`: KVM_MEM_USERFAULT, an exit for each page, with userfaultfd beside it for the kernel's own accesses.
 * `userfaultfd`: vCPUs and the kernel wait in the kernel until the page is there. `sim`: the simulator's userfault,
 * with its own word for its kernel's accesses.
 */
export const strategies = ['userfault', 'userfaultfd', 'sim'] as const;
/** One of the mechanisms above. Which of them a host has is found by trying. */
export type Strategy = (typeof strategies)[number];

export interface ArmedSlot {
  readonly slot: Slot;
  readonly bitmap: UserfaultBitmap;
}

/** What was set up. */
export interface Arms {
  readonly strategy: Strategy;
  readonly slots: readonly ArmedSlot[];
  /** By memory; none where it could not be had or is not needed. */
  readonly userfaultfds: ReadonlyMap<GuestMemory, Userfaultfd>;
  /** Why accesses of the kernel's own are not caught: undefined when they are. */
  readonly uncovered: string | undefined;
}

/** The pages of a slot, counted from its start, that are to be served. */
export type Wanted = (slot: Slot) => Iterable<Run>;

/** Of all pages the wanted ones, or all, that lie in a range, counted from its start. */
export function* within(runs: readonly Run[] | undefined, start: number, pages: number): Generator<Run> {
  for (const { first, count } of runs ?? [{ first: start, count: pages }]) {
    const from = Math.max(first, start);
    const end = Math.min(first + count, start + pages);
    if (from < end) yield { first: from - start, count: end - from };
  }
}

/** A slot again as it is, but for its bitmap. */
function setBitmap(vm: Vm, slot: Slot, userfaultBitmap: UserfaultBitmap | undefined): void {
  vm.setUserMemoryRegion2({
    slot: slot.slot,
    addressSpace: slot.addressSpace,
    flags: slot.flags & ~(MemFlag.GUEST_MEMFD | MemFlag.USERFAULT),
    guestPhysAddr: slot.start,
    memorySize: slot.end - slot.start,
    memory: slot.memory,
    memoryOffset: slot.memoryOffset,
    guestMemfd: slot.guestMemfd,
    guestMemfdOffset: slot.guestMemfdOffset,
    ...(userfaultBitmap && { userfaultBitmap }),
  });
}

/** Arms each slot, or none. @throws KvmError EINVAL where the kernel has no KVM_MEM_USERFAULT */
function armSlots(vm: Vm, slots: readonly Slot[], wanted: Wanted): ArmedSlot[] {
  const armed: ArmedSlot[] = [];
  try {
    for (const slot of slots) {
      const pages = (slot.end - slot.start) / PAGE;
      const bitmap = vm.createUserfaultBitmap(pages);
      armed.push({ slot, bitmap });
      for (const { first, count } of wanted(slot)) bitmap.set(first, count);
      setBitmap(vm, slot, bitmap);
    }
  } catch (error) {
    disarmSlots(vm, armed);
    throw error;
  }
  return armed;
}

/**
 * Turns userfault off where the slot is still as it was armed: KVM may use large mappings again.
 * @throws KvmError when the kernel refuses one; the others are done by then, and another call tries that one again
 */
export function disarmSlots(vm: Vm, armed: readonly ArmedSlot[]): void {
  let refusal: unknown;
  for (const { slot, bitmap } of armed) {
    try {
      const now = vm.closed ? undefined : vm.memoryMap.slotById(slot.slot, slot.addressSpace);
      if (now?.userfaultBitmap === bitmap) setBitmap(vm, now, undefined);
      bitmap.close();
    } catch (error) {
      refusal ??= error;
    }
  }
  if (refusal !== undefined) throw refusal;
}

function openUserfaultfds(memories: readonly GuestMemory[]): Map<GuestMemory, Userfaultfd> {
  const opened = new Map<GuestMemory, Userfaultfd>();
  try {
    for (const memory of memories) opened.set(memory, memory.userfaultfd());
  } catch (error) {
    for (const userfaultfd of opened.values()) userfaultfd.close();
    throw error;
  }
  return opened;
}

/** The value, or why not: what the kernel refused. */
function tried<T>(make: () => T): T | { readonly why: string } {
  try {
    return make();
  } catch (error) {
    if (error instanceof KvmError || error instanceof UnavailableError) return { why: error.message };
    throw error;
  }
}
const refused = <T>(result: T | { readonly why: string }): result is { readonly why: string } =>
  typeof result === 'object' && result !== null && 'why' in result;

/**
 * Sets up the strategy that was asked for, or the best there is.
 * @param ownAccess who is told of the simulated kernel's own accesses, by memory and offset in bytes
 * @throws UnavailableError that says why, for each way that was tried
 */
export function arm(
  vm: Vm,
  memories: readonly GuestMemory[],
  asked: 'auto' | Strategy,
  wanted: Wanted,
  ownAccess: (memory: GuestMemory, offset: number) => void,
): Arms {
  const among = new Set(memories);
  const slots = vm.memoryMap.slots.filter(({ memory }) => memory !== undefined && among.has(memory));
  const reasons: string[] = [];

  if (asked !== 'userfaultfd') {
    const armed = tried(() => armSlots(vm, slots, wanted));
    if (refused(armed)) reasons.push(`KVM_MEM_USERFAULT: ${armed.why}`);
    else {
      const told = memories.map((memory) => memory.onOwnAccess((offset) => ownAccess(memory, offset)));
      const strategy = told.every((is) => is) ? 'sim' : 'userfault';
      if (asked === 'auto' || asked === strategy) {
        if (strategy === 'sim')
          return { strategy, slots: armed, userfaultfds: new Map(), uncovered: undefined };
        const beside = tried(() => openUserfaultfds(memories));
        const none = refused(beside);
        return {
          strategy,
          slots: armed,
          userfaultfds: none ? new Map() : beside,
          uncovered: none ? beside.why : undefined,
        };
      }
      for (const memory of memories) memory.onOwnAccess(undefined);
      disarmSlots(vm, armed);
      reasons.push(`this host has '${strategy}'`);
    }
  }
  if (asked === 'auto' || asked === 'userfaultfd') {
    const opened = tried(() => openUserfaultfds(memories));
    if (!refused(opened))
      return { strategy: 'userfaultfd', slots: [], userfaultfds: opened, uncovered: undefined };
    reasons.push(`userfaultfd: ${opened.why}`);
  }
  const what = asked === 'auto' ? 'no way of demand paging' : `no demand paging by '${asked}'`;
  throw new UnavailableError('feature', `${what} here: ${reasons.join('; ')}`);
}

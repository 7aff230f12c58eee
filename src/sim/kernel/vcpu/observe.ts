/** What an observer is told of the second stage of translation. */
import type { SecondStageEvent } from '../../../hypervisor/backend.ts';
import { errnoName } from '../../../uapi/errno.ts';
import { Access } from '../../cpu/processor/stage.ts';
import { isGuestMemfdOnly, type Slot } from '../../memory/slots.ts';
import type { Failure, VmMemory } from '../../memory/vm-memory.ts';

const NAMES = { [Access.READ]: 'read', [Access.WRITE]: 'write', [Access.FETCH]: 'fetch' } as const;

/** What VmMemory.access() found, in words. */
export function secondStageEvent(
  memory: VmMemory,
  gpa: number,
  access: Access,
  wants: boolean | undefined,
  found: number | Failure,
): SecondStageEvent {
  const isPrivate = memory.isPrivate(gpa);
  const wish = memory.options.hasPrivate && (wants ?? isPrivate);
  const slot = memory.slots.at(gpa);
  return {
    gpa,
    access: NAMES[access],
    wants: wish ? 'private' : 'shared',
    slot: slot?.id,
    mapped:
      typeof found === 'number' ? (wish || isGuestMemfdOnly(slot!) ? 'guest_memfd' : 'memory') : undefined,
    why: typeof found === 'number' ? undefined : why(slot, wish, isPrivate, found),
  };
}

function why(slot: Slot | undefined, wish: boolean, isPrivate: boolean, { errno }: Failure): string {
  if (wish !== isPrivate) return `the page is ${isPrivate ? 'private' : 'shared'}`;
  if (slot === undefined) return 'no slot';
  if (wish && slot.guestMemfd === undefined) return 'the slot has no guest_memfd';
  return errno === undefined ? 'no memory' : errnoName(-errno);
}

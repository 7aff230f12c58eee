/** Guest memory from an offset on, where an ioctl takes a pointer to it. */
import { integer, object } from './args.ts';
import type { Place } from './backend.ts';
import { wrongType } from './errors.ts';
import { GuestMemory } from './guest-memory.ts';

/** Where in guest memory something is, that KVM reaches by its address in this process. */
export interface GuestPlace {
  /** What Vm.allocate() or GuestMemfd.map() gave. */
  readonly memory: GuestMemory;
  /** Bytes from its beginning; 0 without it. */
  readonly offset?: number;
}

/** The place as a backend takes it; null for none. */
export function placeOf(name: string, place: GuestPlace | undefined): Place | null {
  if (place === undefined) return null;
  const { memory, offset = 0 } = object(name, place);
  if (!(memory instanceof GuestMemory))
    throw wrongType(`${name}.memory`, memory, 'what Vm.allocate() or GuestMemfd.map() gives');
  return { memory: memory.handle, offset: integer(`${name}.offset`, offset, memory.size) };
}

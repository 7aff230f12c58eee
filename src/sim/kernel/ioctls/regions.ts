/** The ioctls about memory slots that refer to something: checked as the addon checks it. */
import { wrongType } from '../../../hypervisor/errors.ts';
import { Errno } from '../../../uapi/errno.ts';
import {
  type kvm_clear_dirty_log,
  type kvm_dirty_log,
  type kvm_userspace_memory_region,
  kvm_userspace_memory_region2 as second,
} from '../../../uapi/structs.ts';
import { PAGE } from '../../arena.ts';
import { GuestMemfdFile } from '../../memory/guest-memfd.ts';
import { Mapping } from '../../memory/host-memory.ts';
import { SharedFile } from '../../memory/sharing.ts';
import type { Region } from '../../memory/slots.ts';
import { type Given, PlaceOf, type StructArgument } from '../abi/dispatch.ts';
import type { KvmVm } from '../vm/vm.ts';

/** KVM_SET_USER_MEMORY_REGION_V1_FLAGS: dirty logging and READONLY. */
const V1_FLAGS = 0b11;

function mappingOf(name: string, given: Given): { mapping: Mapping | undefined; offset: number } {
  if (given === null) return { mapping: undefined, offset: 0 };
  if (given instanceof PlaceOf && given.object instanceof Mapping) {
    if (given.object.file instanceof SharedFile)
      throw wrongType(name, given, "of this thread's own: a simulated processor reaches one arena");
    return { mapping: given.object, offset: given.offset };
  }
  throw wrongType(name, given, 'a place in memory, or a reservation');
}

/** What both structs begin with. */
function regionOf(
  { view, bytes }: StructArgument<typeof kvm_userspace_memory_region> | StructArgument<typeof second>,
  given: readonly Given[],
): Region {
  const { fields } = second;
  const [place = null, file = null, bitmap = null] = given;
  const { mapping, offset } = mappingOf('userspaceAddr', place);
  const size = view.getBigUint64(fields.memorySize.offset, true);
  if (mapping === undefined ? size > 0n : BigInt(offset) + size > BigInt(mapping.size))
    throw wrongType('the slot', size, 'within memory, or a reservation');
  const bits = mappingOf('userfaultBitmap', bitmap).mapping;
  if (bits !== undefined && (bits.base === undefined || size / BigInt(PAGE) > BigInt(bits.size) * 8n))
    throw wrongType('userfaultBitmap', bitmap, "memory of this thread's own with a bit for each page");
  if (file instanceof PlaceOf || file instanceof Uint8Array) throw wrongType('guestMemfd', file, 'a handle');
  return {
    slot: view.getUint32(fields.slot.offset, true),
    flags: view.getUint32(fields.flags.offset, true),
    start: view.getBigUint64(fields.guestPhysAddr.offset, true),
    size,
    mapping,
    mappingOffset: offset,
    guestMemfd: file === null || file instanceof GuestMemfdFile ? (file ?? undefined) : 'other',
    guestMemfdOffset:
      bytes.length === second.size ? view.getBigUint64(fields.guestMemfdOffset.offset, true) : 0n,
    userfaultBitmap: bits,
  };
}

export function setRegion(
  vm: KvmVm,
  argument: StructArgument<typeof kvm_userspace_memory_region>,
  given: readonly Given[],
): number {
  const region = regionOf(argument, given);
  return (region.flags & ~V1_FLAGS) === 0 ? vm.memory.setRegion(region) : -Errno.EINVAL;
}

export const setRegion2 = (
  vm: KvmVm,
  argument: StructArgument<typeof second>,
  given: readonly Given[],
): number => vm.memory.setRegion(regionOf(argument, given));

/** KVM_GET_DIRTY_LOG: what the kernel writes is copied as far as the array reaches. */
export function getDirtyLog(
  vm: KvmVm,
  argument: StructArgument<typeof kvm_dirty_log>,
  [bitmap]: readonly Given[],
): number {
  const log = vm.memory.getDirtyLog(argument.value.slot);
  if (typeof log === 'number') return log;
  bitmapOf(bitmap).set(log.subarray(0, (bitmap as Uint8Array).length));
  return 0;
}

export function clearDirtyLog(
  vm: KvmVm,
  argument: StructArgument<typeof kvm_clear_dirty_log>,
  [bitmap]: readonly Given[],
): number {
  const { slot, firstPage, numPages } = argument.value;
  return vm.memory.clearDirtyLog(slot, Number(firstPage), numPages, bitmapOf(bitmap));
}

function bitmapOf(given: Given | undefined): Uint8Array {
  if (given instanceof Uint8Array) return given;
  throw wrongType('dirtyBitmap', given, 'a Uint8Array');
}

/** What a VM's fd does (virt/kvm/kvm_main.c and arch/x86/kvm/x86.c, kvm_vm_ioctl). */
import { Cap } from '../../../uapi/cap.ts';
import { MemoryAttribute } from '../../../uapi/constants.ts';
import { Errno } from '../../../uapi/errno.ts';
import type { kvm_create_guest_memfd, kvm_enc_region, kvm_memory_attributes } from '../../../uapi/structs.ts';
import { PAGE } from '../../arena.ts';
import { GuestMemfdFile } from '../../memory/guest-memfd.ts';
import { type Handlers, type StructArgument, Table } from '../abi/dispatch.ts';
import { checkExtension, guestMemfdFlags, MAX_VCPU_IDS, MAX_VCPUS } from '../host/capabilities.ts';
import { TSC_KHZ } from '../host/host.ts';
import { KvmVcpu } from '../vcpu/vcpu.ts';
import type { KvmVm } from '../vm/vm.ts';
import { enableVmCap } from './enable-cap.ts';
import { clearDirtyLog, getDirtyLog, setRegion, setRegion2 } from './regions.ts';

/** Both ends of a range of whole pages, or a negated errno. `end` is exclusive. */
function pageRange(start: bigint, size: bigint): { start: number; end: number } | number {
  const end = start + size;
  if (size === 0n || end > 0xffff_ffff_ffff_ffffn) return -Errno.EINVAL;
  if ((start | size) % BigInt(PAGE) !== 0n) return -Errno.EINVAL;
  return { start: Number(start), end: Number(end) };
}

/** kvm_vm_ioctl_set_mem_attributes(). */
function setMemoryAttributes(vm: KvmVm, argument: StructArgument<typeof kvm_memory_attributes>): number {
  if (vm.host.dialect.truth !== 'attributes') return -Errno.ENOTTY;
  const attributes = argument.raw('attributes');
  const supported = BigInt(checkExtension(vm.host, vm, Cap.MEMORY_ATTRIBUTES));
  if (argument.raw('flags') !== 0n || (attributes & ~supported) !== 0n) return -Errno.EINVAL;
  const range = pageRange(argument.raw('address'), argument.raw('size'));
  if (typeof range === 'number') return range;
  vm.memory.setAttributes(range.start, range.end, Number(attributes));
  return 0;
}

/** The ninth version's way to convert: guest-physical regions are registered as private. */
const registerRegion =
  (attributes: number) =>
  (vm: KvmVm, argument: StructArgument<typeof kvm_enc_region>): number => {
    if (vm.host.dialect.truth !== 'regions') return -Errno.ENOTTY;
    if (!vm.hasPrivate) return -Errno.EINVAL;
    const range = pageRange(argument.raw('addr'), argument.raw('size'));
    if (typeof range === 'number') return range;
    vm.memory.setAttributes(range.start, range.end, attributes);
    return 0;
  };

/** kvm_gmem_create(). */
function createGuestMemfd(vm: KvmVm, argument: StructArgument<typeof kvm_create_guest_memfd>) {
  const flags = argument.raw('flags');
  const size = argument.raw('size');
  if ((flags & ~BigInt(guestMemfdFlags(vm.hasPrivate))) !== 0n) return -Errno.EINVAL;
  if (size === 0n || size >= 1n << 63n || size % BigInt(PAGE) !== 0n) return -Errno.EINVAL;
  const { host } = vm;
  const converts = host.dialect.truth === 'allocation';
  return GuestMemfdFile.create(host.arena, vm, Number(size), Number(flags), converts) ?? -Errno.ENOMEM;
}

function createVcpu(vm: KvmVm, id: number): KvmVcpu | number {
  if (!(id < MAX_VCPU_IDS) || vm.vcpuIds.size >= MAX_VCPUS) return -Errno.EINVAL;
  if (vm.vcpuIds.has(id)) return -Errno.EEXIST;
  const vcpu = KvmVcpu.create(vm, id);
  if (typeof vcpu !== 'number') vm.vcpuIds.add(id);
  return vcpu;
}

/** The last three pages below 4 GiB can have no TSS. */
const MAX_TSS = 2 ** 32 - 3 * PAGE;

const handlers: Handlers<KvmVm> = {
  KVM_CHECK_EXTENSION: (vm, cap) => checkExtension(vm.host, vm, cap),
  KVM_ENABLE_CAP: (vm, argument) => {
    const { cap, flags, args } = argument.value;
    return enableVmCap(vm, cap, flags, args[0]!);
  },
  KVM_SET_USER_MEMORY_REGION: setRegion,
  KVM_SET_USER_MEMORY_REGION2: setRegion2,
  KVM_SET_MEMORY_ATTRIBUTES: setMemoryAttributes,
  KVM_SET_TSS_ADDR: (_, address) => (address > MAX_TSS ? -Errno.EINVAL : 0),
  KVM_SET_IDENTITY_MAP_ADDR: (vm) => (vm.vcpuIds.size > 0 ? -Errno.EINVAL : 0),
  KVM_GET_TSC_KHZ: () => TSC_KHZ,
  KVM_X86_SET_MSR_FILTER: (vm, argument, given) => vm.msrPolicy.setFilter(argument, given),
  KVM_GET_DIRTY_LOG: getDirtyLog,
  KVM_CLEAR_DIRTY_LOG: clearDirtyLog,
  KVM_RESET_DIRTY_RINGS: (vm) => vm.memory.resetDirtyRings(),
  KVM_IOEVENTFD: (vm, argument, given) => vm.ioeventfds.set(argument, given),
  KVM_MEMORY_ENCRYPT_REG_REGION: registerRegion(MemoryAttribute.PRIVATE),
  KVM_MEMORY_ENCRYPT_UNREG_REGION: registerRegion(0),
};

export const vmIoctls = new Table(handlers);
export const vmCreates = new Table<KvmVm, KvmVcpu | GuestMemfdFile | number>({
  KVM_CREATE_VCPU: createVcpu,
  KVM_CREATE_GUEST_MEMFD: createGuestMemfd,
});

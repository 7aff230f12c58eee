/**
 * What a VMM can need of a hypervisor, by name. Each is tried on a scratch VM rather than asked for: capability
 * numbers depend on the scope, and several have been given to other things in kernels that people run.
 */

import { PAGE_SIZE } from '../hypervisor/args.ts';
import { KvmError } from '../hypervisor/errors.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import type { Vm } from '../hypervisor/vm.ts';
import { Cap } from '../uapi/cap.ts';
import { GuestMemfdFlag, Hypercall, MemFlag, MemoryAttribute, VmType } from '../uapi/constants.ts';

/** Undefined when the feature is there, else why it is not, for a person to read. */
type Try = (hv: Hypervisor) => string | undefined;

function withVm(hv: Hypervisor, type: number, use: (vm: Vm) => string | undefined): string | undefined {
  try {
    using vm = hv.createVm({ type });
    return use(vm);
  } catch (error) {
    if (error instanceof KvmError) return error.message;
    throw error;
  }
}

const has =
  (cap: number, why: string): Try =>
  (hv) =>
    hv.checkExtension(cap) > 0 ? undefined : why;

const onVm =
  (cap: number, type: number, why: string): Try =>
  (hv) =>
    withVm(hv, type, (vm) => (vm.checkExtension(cap) > 0 ? undefined : why));

const privateMemory: Try = (hv) =>
  withVm(hv, VmType.SW_PROTECTED, (vm) => {
    using secret = vm.createGuestMemfd(PAGE_SIZE);
    using ram = vm.allocate(PAGE_SIZE);
    vm.setUserMemoryRegion2({ slot: 0, guestPhysAddr: 0, memory: ram, guestMemfd: secret });
    vm.setMemoryAttributes({ address: 0, size: PAGE_SIZE, attributes: MemoryAttribute.PRIVATE });
    return undefined;
  });

const guestMemfdMmap: Try = (hv) =>
  withVm(hv, VmType.DEFAULT, (vm) => {
    using file = vm.createGuestMemfd(PAGE_SIZE, GuestMemfdFlag.MMAP | GuestMemfdFlag.INIT_SHARED);
    using view = file.map();
    vm.setUserMemoryRegion2({ slot: 0, guestPhysAddr: 0, memory: view, guestMemfd: file });
    return undefined;
  });

/** The capability's number has meant five things: only the flag itself tells (the proposal's 1 << 3). */
const userfault: Try = (hv) =>
  withVm(hv, VmType.DEFAULT, (vm) => {
    using ram = vm.allocate(PAGE_SIZE);
    vm.setUserMemoryRegion2({ slot: 0, guestPhysAddr: 0, memory: ram });
    try {
      vm.setUserMemoryRegion2({ slot: 0, guestPhysAddr: 0, memory: ram, flags: MemFlag.USERFAULT });
      return undefined;
    } catch {
      return 'no released kernel has KVM_MEM_USERFAULT; this one refuses the flag with EINVAL';
    }
  });

const mapGpaRange: Try = (hv) =>
  withVm(hv, VmType.DEFAULT, (vm) => {
    if ((vm.checkExtension(Cap.EXIT_HYPERCALL) & (1 << Hypercall.MAP_GPA_RANGE)) === 0) {
      return 'KVM_CAP_EXIT_HYPERCALL lacks KVM_HC_MAP_GPA_RANGE (since 5.14)';
    }
    vm.enableCap({ cap: Cap.EXIT_HYPERCALL, args: [1 << Hypercall.MAP_GPA_RANGE] });
    return undefined;
  });

export const features = {
  'private-memory': privateMemory,
  'guest-memfd-mmap': guestMemfdMmap,
  'map-gpa-range': mapGpaRange,
  userfault,
  'user-memory2': has(Cap.USER_MEMORY2, 'KVM_SET_USER_MEMORY_REGION2 is missing (since 6.8)'),
  'memory-fault-info': has(Cap.MEMORY_FAULT_INFO, 'KVM_CAP_MEMORY_FAULT_INFO is missing (since 6.8)'),
  'pre-fault': onVm(
    Cap.PRE_FAULT_MEMORY,
    VmType.DEFAULT,
    'KVM_PRE_FAULT_MEMORY is missing (since 6.11, with two-dimensional paging)',
  ),
  'sync-regs': has(Cap.SYNC_REGS, 'KVM_CAP_SYNC_REGS is missing (since 4.17)'),
  'immediate-exit': has(Cap.IMMEDIATE_EXIT, 'KVM_CAP_IMMEDIATE_EXIT is missing (since 4.11)'),
  'readonly-memory': has(Cap.READONLY_MEM, 'KVM_CAP_READONLY_MEM is missing (since 3.7)'),
  irqchip: has(Cap.IRQCHIP, 'there is no in-kernel interrupt controller (KVM_CAP_IRQCHIP)'),
} as const satisfies { readonly [name: string]: Try };

export type Feature = keyof typeof features;

/** Those of the needed features that are missing, each with the reason. */
export function missing(hv: Hypervisor, needs: readonly Feature[]): { feature: Feature; reason: string }[] {
  return needs.flatMap((feature) => {
    const reason = features[feature](hv);
    return reason === undefined ? [] : [{ feature, reason }];
  });
}

/**
 * KVM_CHECK_EXTENSION: Linux 6.12 with private memory, and guest_memfd's host views as in 6.18. A
 * capability that is not here is not modelled, and is 0.
 */
import { Cap } from '../../../uapi/cap.ts';
import { Hypercall, MemoryAttribute, Quirk, SyncRegs, VmType } from '../../../uapi/constants.ts';
import { kvm_xsave } from '../../../uapi/x86.ts';
import { MANUAL_OPTIONS, MAX_RING_BYTES } from '../../memory/dirty.ts';
import { MAX_SLOTS } from '../../memory/slots.ts';
import { hasXsave } from './cpuid.ts';
import type { Host } from './host.ts';

export const MAX_VCPUS = 1024;
/** KVM_MAX_VCPU_IDS. */
export const MAX_VCPU_IDS = 4 * MAX_VCPUS;
/** Debug registers for breakpoints (SDM volume 3, 18.2). */
const BREAKPOINTS = 4;

/** A VM, as far as it decides what can be had. */
interface Scope {
  readonly hasPrivate: boolean;
}
/** A value for both scopes; or one that depends on the VM, which is undefined at /dev/kvm. */
type Value = number | ((host: Host, vm: Scope | undefined) => number);

const { DEFAULT, SW_PROTECTED, SNP, TDX } = VmType;
export const VM_TYPES: readonly number[] = [DEFAULT, SW_PROTECTED, SNP, TDX];

/** Of the calls by which mainline converts, and what came with them. */
const mainline =
  (value: number): Value =>
  ({ dialect }) =>
    dialect.name === 'mainline' ? value : 0;

export const EXIT_HYPERCALLS = 1 << Hypercall.MAP_GPA_RANGE;
export const QUIRKS = Quirk.SLOT_ZAP_ALL;

const values: { readonly [cap in keyof typeof Cap]?: Value } = {
  HLT: 1,
  USER_MEMORY: 1,
  SET_TSS_ADDR: 1,
  EXT_CPUID: 1,
  NR_VCPUS: MAX_VCPUS,
  NR_MEMSLOTS: MAX_SLOTS,
  MP_STATE: 1,
  SYNC_MMU: 1,
  DESTROY_MEMORY_REGION_WORKS: 1,
  USER_NMI: 1,
  SET_GUEST_DEBUG: 1,
  IOEVENTFD: 1,
  JOIN_MEMORY_REGIONS_WORKS: 1,
  SET_IDENTITY_MAP_ADDR: 1,
  INTERNAL_ERROR_DATA: 1,
  VCPU_EVENTS: 1,
  INTR_SHADOW: 1,
  DEBUGREGS: 1,
  X86_ROBUST_SINGLESTEP: 1,
  ENABLE_CAP: 1,
  XSAVE: 1,
  XCRS: (host) => (hasXsave(host) ? 1 : 0),
  GET_TSC_KHZ: 1,
  MAX_VCPUS,
  IOEVENTFD_NO_LENGTH: 1,
  SYNC_REGS: SyncRegs.REGS | SyncRegs.SREGS | SyncRegs.EVENTS,
  READONLY_MEM: 1,
  ENABLE_CAP_VM: 1,
  CHECK_EXTENSION_VM: 1,
  // A kernel without CONFIG_KVM_SMM: there is no system management mode, and no address space for it.
  MULTI_ADDRESS_SPACE: 1,
  IOEVENTFD_ANY_LENGTH: 1,
  GUEST_DEBUG_HW_BPS: BREAKPOINTS,
  GUEST_DEBUG_HW_WPS: BREAKPOINTS,
  MAX_VCPU_ID: MAX_VCPU_IDS,
  IMMEDIATE_EXIT: 1,
  GET_MSR_FEATURES: 1,
  EXCEPTION_PAYLOAD: 1,
  MANUAL_DIRTY_LOG_PROTECT2: MANUAL_OPTIONS,
  DIRTY_LOG_RING: MAX_RING_BYTES,
  SREGS2: 1,
  EXIT_HYPERCALL: EXIT_HYPERCALLS,
  XSAVE2: kvm_xsave.size,
  X86_USER_SPACE_MSR: 1,
  X86_MSR_FILTER: 1,
  DISABLE_QUIRKS2: QUIRKS,
  USER_MEMORY2: 1,
  DIRTY_LOG_RING_ACQ_REL: MAX_RING_BYTES,
  MEMORY_FAULT_INFO: mainline(1),
  MEMORY_ATTRIBUTES: ({ dialect }, vm) =>
    dialect.truth === 'attributes' && (vm === undefined || vm.hasPrivate) ? MemoryAttribute.PRIVATE : 0,
  GUEST_MEMFD: 1,
  VM_TYPES: VM_TYPES.reduce((bits, type) => bits | (1 << type), 0),
  PRE_FAULT_MEMORY: mainline(1),
  // KVM_CAP_USERFAULT in the third version of its proposal; on Arm released kernels mean this.
  ARM_CACHEABLE_PFNMAP_SUPPORTED: mainline(1),
  GUEST_MEMFD_FLAGS: (_, vm) => guestMemfdFlags(vm?.hasPrivate ?? false),
};

/** kvm_gmem_get_supported_flags(): INIT_SHARED, only where no page can be private. */
export const guestMemfdFlags = (hasPrivate: boolean): number => (hasPrivate ? 1 : 3);

const byNumber = new Map(
  Object.entries(values).map(([name, value]) => [Cap[name as keyof typeof Cap] as number, value]),
);

export function checkExtension(host: Host, vm: Scope | undefined, cap: number): number {
  const value = byNumber.get(cap) ?? 0;
  return typeof value === 'number' ? value : value(host, vm);
}

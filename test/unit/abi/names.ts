/** From the names in src/uapi back to the kernel's. */

import type { Struct } from '../../../src/uapi/index.ts';
import * as uapi from '../../../src/uapi/index.ts';

/** The macro of each constant: a prefix, or a pattern in which * stands for the name. */
const prefixes: Record<string, string> = {
  Cap: 'KVM_CAP_',
  Exit: 'KVM_EXIT_',
  Errno: '',
  VmType: 'KVM_X86_*_VM',
  MemFlag: 'KVM_MEM_',
  MemoryAttribute: 'KVM_MEMORY_ATTRIBUTE_',
  GuestMemfdFlag: 'GUEST_MEMFD_FLAG_',
  MemoryFaultFlag: 'KVM_MEMORY_EXIT_FLAG_',
  MpState: 'KVM_MP_STATE_',
  GuestDebug: 'KVM_GUESTDBG_',
  SyncRegs: 'KVM_SYNC_X86_',
  RunFlag: 'KVM_RUN_X86_',
  VcpuEventFlag: 'KVM_VCPUEVENT_VALID_',
  InterruptShadow: 'KVM_X86_SHADOW_INT_',
  Sregs2Flag: 'KVM_SREGS2_FLAGS_',
  IoDirection: 'KVM_EXIT_IO_',
  InternalError: 'KVM_INTERNAL_ERROR_',
  EmulationFlag: 'KVM_INTERNAL_ERROR_EMULATION_FLAG_',
  SystemEvent: 'KVM_SYSTEM_EVENT_',
  MsrExitReason: 'KVM_MSR_EXIT_REASON_',
  MsrFilter: 'KVM_MSR_FILTER_',
  NotifyFlag: 'KVM_NOTIFY_',
  NotifyVmexit: 'KVM_X86_NOTIFY_VMEXIT_',
  BusLockDetection: 'KVM_BUS_LOCK_DETECTION_',
  HypervExit: 'KVM_EXIT_HYPERV_',
  XenExit: 'KVM_EXIT_XEN_',
  Hypercall: 'KVM_HC_',
  MapGpaRange: 'KVM_MAP_GPA_RANGE_',
  HypercallErrno: 'KVM_',
  HypercallFlag: 'KVM_EXIT_HYPERCALL_',
  CpuidFlag: 'KVM_CPUID_FLAG_',
  KvmCpuid: 'KVM_CPUID_',
  KvmFeature: 'KVM_FEATURE_',
  KvmMsr: 'MSR_KVM_',
  Vector: '*_VECTOR',
  Quirk: 'KVM_X86_QUIRK_',
  DisableExits: 'KVM_X86_DISABLE_EXITS_',
  Irqchip: 'KVM_IRQCHIP_',
  IrqRouting: 'KVM_IRQ_ROUTING_',
  Pit: 'KVM_PIT_',
  IrqfdFlag: 'KVM_IRQFD_FLAG_',
  IoeventfdFlag: 'KVM_IOEVENTFD_FLAG_',
  MsiFlag: 'KVM_MSI_',
  ClockFlag: 'KVM_CLOCK_',
  DirtyGfnFlag: 'KVM_DIRTY_GFN_F_',
  DirtyLog: 'KVM_DIRTY_LOG_',
  X2apicApi: 'KVM_X2APIC_API_',
  PmuEvent: 'KVM_PMU_EVENT_',
  NestedState: 'KVM_STATE_NESTED_',
  DeviceType: 'KVM_DEV_TYPE_',
};

/** Single numbers. The offsets of kvm_run that are exported for convenience are checked as its fields. */
const singles: Record<string, string | null> = {
  API_VERSION: 'KVM_API_VERSION',
  PIO_PAGE_OFFSET: 'KVM_PIO_PAGE_OFFSET',
  COALESCED_MMIO_PAGE_OFFSET: 'KVM_COALESCED_MMIO_PAGE_OFFSET',
  DIRTY_LOG_PAGE_OFFSET: 'KVM_DIRTY_LOG_PAGE_OFFSET',
  EXIT_OFFSET: null,
  SYNC_REGS_OFFSET: null,
};

/** Outcomes of run() that are errnos. */
const errnoOutcomes: Record<string, string> = {
  INTERRUPTED: 'EINTR',
  AGAIN: 'EAGAIN',
  FAULT: 'EFAULT',
  DEADLINE: 'ETIME',
  MEMORY_POISONED: 'EHWPOISON',
};

export interface Constant {
  /** What it is called here: `Cap.IRQCHIP`. */
  readonly label: string;
  readonly macro: string;
  /** In terms of the macro. */
  readonly expression: string;
  readonly value: number;
}

const isTable = (name: string, value: unknown): value is Record<string, number> =>
  /^[A-Z]/.test(name) &&
  typeof value === 'object' &&
  value !== null &&
  Object.values(value).every((entry) => typeof entry === 'number');

/** Every number that src/uapi exports. Throws for one that has no row above, so that none goes unchecked. */
export function constants(): Constant[] {
  const found: Constant[] = [];
  for (const [name, value] of Object.entries(uapi)) {
    if (typeof value === 'number') {
      const macro = singles[name];
      if (macro === undefined) throw new Error(`${name} has no kernel name in test/unit/abi/names.ts`);
      if (macro !== null) found.push({ label: name, macro, expression: macro, value });
    } else if (isTable(name, value)) {
      const prefix = prefixes[name];
      if (prefix === undefined) throw new Error(`${name} has no kernel prefix in test/unit/abi/names.ts`);
      for (const [key, number] of Object.entries(value)) {
        const errno = name === 'Exit' ? errnoOutcomes[key] : undefined;
        const macro = errno ?? (prefix.includes('*') ? prefix.replace('*', key) : prefix + key);
        const expression = errno ? `-${errno}` : macro;
        found.push({ label: `${name}.${key}`, macro, expression, value: number });
      }
    }
  }
  for (const { name, request } of Object.values(uapi.ioctls)) {
    found.push({ label: name, macro: name, expression: name, value: request });
  }
  return found;
}

/** Where camelCase loses the kernel's spelling; null: a name of ours, for a union that has none. */
const fieldNames: Record<string, string | null> = {
  blobAddr32: 'blob_addr_32',
  blobAddr64: 'blob_addr_64',
  blobSize32: 'blob_size_32',
  blobSize64: 'blob_size_64',
  exit: null,
};

const isStruct = (value: unknown): value is Struct =>
  typeof value === 'object' && value !== null && 'fields' in value && 'encode' in value;

/** Every struct with a name of its own. The older dialects' arm of kvm_run was never in a released header. */
export const structs = (): Struct[] =>
  Object.values(uapi as Record<string, unknown>)
    .filter(isStruct)
    .filter((type) => type !== uapi.kvm_run_memory);

export interface Member {
  /** As C's offsetof takes it: `exception.nr`. */
  readonly path: string;
  readonly offset: number;
  readonly size: number;
}

/** The fields of a struct, and those of the nameless structs and unions in it. */
export function members(type: Struct, path = '', base = 0): Member[] {
  return Object.entries(type.fields).flatMap(([key, field]) => {
    const kernel = key in fieldNames ? fieldNames[key] : key.replace(/[A-Z]/g, (c) => `_${c.toLowerCase()}`);
    const own = [path, kernel].filter(Boolean).join('.');
    const offset = base + field.offset;
    const inner =
      isStruct(field.type) && field.type.name.includes('.') ? members(field.type, own, offset) : [];
    return kernel === null ? inner : [{ path: own, offset, size: field.type.size }, ...inner];
  });
}

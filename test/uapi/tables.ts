/** What the tables of src/uapi claim of the kernel's ABI, by the kernel's names. */
import type { Struct } from '../../src/uapi/index.ts';
import * as uapi from '../../src/uapi/index.ts';

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
  CreateDeviceFlag: 'KVM_CREATE_DEVICE_',
  VfioAttr: 'KVM_DEV_VFIO_',
  SystemAttr: 'KVM_X86_',
  VcpuTscAttr: 'KVM_VCPU_TSC_',
  NestedSmmFlag: 'KVM_STATE_NESTED_SMM_',
  NestedVmxFlag: 'KVM_STATE_VMX_',
  NestedStateSize: 'KVM_STATE_NESTED_*_SIZE',
  KvmHint: 'KVM_HINTS_',
  AsyncPf: 'KVM_ASYNC_PF_',
  MigrationControl: 'KVM_MIGRATION_',
  PmuCap: 'KVM_PMU_CAP_',
  PmuMaskedEntry: 'KVM_PMU_MASKED_ENTRY_',
  StatsType: 'KVM_STATS_TYPE_',
  StatsUnit: 'KVM_STATS_UNIT_',
  StatsBase: 'KVM_STATS_BASE_',
  RegId: 'KVM_REG_',
  RegType: 'KVM_X86_REG_TYPE_',
  KvmReg: 'KVM_REG_',
  Limit: 'KVM_',
  XenHvmConfigFlag: 'KVM_XEN_HVM_CONFIG_',
  XenAttr: 'KVM_XEN_ATTR_TYPE_',
  XenVcpuAttr: 'KVM_XEN_VCPU_ATTR_TYPE_',
  XenEvtchnFlag: 'KVM_XEN_EVTCHN_',
  Xen: 'KVM_XEN_',
  HypervEventfd: 'KVM_HYPERV_',
  SevCommand: 'KVM_SEV_',
  SnpPageType: 'KVM_SEV_SNP_PAGE_TYPE_',
  SnpSize: 'KVM_SEV_SNP_*_SIZE',
  TdxCommand: 'KVM_TDX_',
  TdxMemRegionFlag: 'KVM_TDX_',
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

/** Constants whose macro does not follow from their table's. */
const others: Record<string, string> = {
  'Exit.INTERRUPTED': 'EINTR',
  'Exit.AGAIN': 'EAGAIN',
  'Exit.FAULT': 'EFAULT',
  'Exit.DEADLINE': 'ETIME',
  'Exit.STOPPED': 'ECANCELED',
  'Exit.MEMORY_POISONED': 'EHWPOISON',
  'SnpPageType.INVALID': 'KVM_SEV_PAGE_TYPE_INVALID',
  'X2apicApi.ENABLE_SUPPRESS_EOI_BROADCAST': 'KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST',
  'X2apicApi.DISABLE_SUPPRESS_EOI_BROADCAST': 'KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST',
  'Xen.EVTCHN_PRIO_2LEVEL': 'KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL',
};

/** Something that src/uapi says of the ABI. */
export interface Claim {
  /** What it is called here: `Cap.IRQCHIP`. */
  readonly label: string;
  /** What the kernel calls it: a macro, a struct, or a field with its struct, `kvm_regs.rax`. */
  readonly name: string;
  /** A constant's value, a struct's size, a field's offset and size. */
  readonly values: readonly bigint[];
}

type Numbers = Record<string, number | bigint>;
const isNumber = (value: unknown) => typeof value === 'number' || typeof value === 'bigint';
const isTable = (name: string, value: unknown): value is Numbers =>
  /^[A-Z]/.test(name) && typeof value === 'object' && value !== null && Object.values(value).every(isNumber);

/** Every number that src/uapi exports. Throws for one that has no row above, so that none goes unchecked. */
function* constants(): Generator<Claim> {
  for (const [table, value] of Object.entries(uapi)) {
    if (typeof value === 'number') {
      const name = singles[table];
      if (name === undefined) throw new Error(`${table} has no kernel name in test/uapi/tables.ts`);
      if (name !== null) yield { label: table, name, values: [BigInt(value)] };
    } else if (isTable(table, value)) {
      const prefix = prefixes[table];
      if (prefix === undefined) throw new Error(`${table} has no kernel prefix in test/uapi/tables.ts`);
      for (const [key, number] of Object.entries(value)) {
        const label = `${table}.${key}`;
        const name = others[label] ?? (prefix.includes('*') ? prefix.replace('*', key) : prefix + key);
        const isErrno = table === 'Exit' && number < 0;
        yield { label, name, values: [isErrno ? -BigInt(number) : BigInt(number)] };
      }
    }
  }
}

/** Where camelCase loses the kernel's spelling; null: a name of ours, for a union that has none. */
const fieldNames: Record<string, string | null> = {
  blobAddr32: 'blob_addr_32',
  blobAddr64: 'blob_addr_64',
  blobSize32: 'blob_size_32',
  blobSize64: 'blob_size_64',
  kernelTdvmcallinfo1R11: 'kernel_tdvmcallinfo_1_r11',
  userTdvmcallinfo1R11: 'user_tdvmcallinfo_1_r11',
  kernelTdvmcallinfo1R12: 'kernel_tdvmcallinfo_1_r12',
  userTdvmcallinfo1R12: 'user_tdvmcallinfo_1_r12',
  exit: null,
};

const isStruct = (value: unknown): value is Struct =>
  typeof value === 'object' && value !== null && 'fields' in value && 'encode' in value;

/** Every struct with a name of its own. The older dialects' arm of kvm_run was never in a released header. */
const structs = (): Struct[] =>
  Object.values(uapi as Record<string, unknown>)
    .filter(isStruct)
    .filter((type) => type !== uapi.kvm_run_memory);

/** The fields of a struct, and those of the nameless structs and unions in it. */
function* fields(type: Struct, path = type.name, base = 0): Generator<Claim> {
  for (const [key, field] of Object.entries(type.fields)) {
    const kernel = key in fieldNames ? fieldNames[key] : key.replace(/[A-Z]/g, (c) => `_${c.toLowerCase()}`);
    const own = kernel === null ? path : `${path}.${kernel}`;
    const offset = base + field.offset;
    if (kernel !== null) yield { label: own, name: own, values: [BigInt(offset), BigInt(field.type.size)] };
    if (isStruct(field.type) && field.type.name.includes('.')) yield* fields(field.type, own, offset);
  }
}

/** All of it: constants, ioctls, structs, their fields. */
export function claims(): Claim[] {
  return [
    ...constants(),
    ...Object.values(uapi.ioctls).map(({ name, request }) => ({
      label: name,
      name,
      values: [BigInt(request)],
    })),
    ...structs().flatMap((type) => [
      { label: type.name, name: type.name, values: [BigInt(type.size)] },
      ...fields(type),
    ]),
  ];
}

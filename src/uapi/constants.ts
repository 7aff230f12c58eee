/**
 * The small constants of <linux/kvm.h>, <asm/kvm.h> and <linux/kvm_para.h>, one object per kernel prefix.
 * Capabilities are in cap.ts, exits in exit.ts, errnos in errno.ts.
 */

/** What KVM_GET_API_VERSION must answer; it has since 2.6.22 (api.rst, KVM_GET_API_VERSION). */
export const API_VERSION = 12;

/** KVM_CREATE_VM's argument (KVM_X86_*_VM). Which ones a host takes: the bits of KVM_CAP_VM_TYPES. */
export const VmType = {
  DEFAULT: 0,
  SW_PROTECTED: 1,
  SEV: 2,
  SEV_ES: 3,
  SNP: 4,
  TDX: 5,
} as const;
export type VmType = (typeof VmType)[keyof typeof VmType];

/** KVM_MEM_*: flags of a memory slot. */
export const MemFlag = {
  LOG_DIRTY_PAGES: 1 << 0,
  READONLY: 1 << 1,
  GUEST_MEMFD: 1 << 2,
  /** A proposal (KVM_CAP_USERFAULT), in no released kernel. */
  USERFAULT: 1 << 3,
} as const;
export type MemFlag = (typeof MemFlag)[keyof typeof MemFlag];

/** KVM_MEMORY_ATTRIBUTE_*. Bits 0 to 2 are kept for read, write and execute. */
export const MemoryAttribute = { PRIVATE: 1 << 3 } as const;
export type MemoryAttribute = (typeof MemoryAttribute)[keyof typeof MemoryAttribute];

/** GUEST_MEMFD_FLAG_* (since 6.18): the file can be mapped; its pages begin as shared. */
export const GuestMemfdFlag = { MMAP: 1 << 0, INIT_SHARED: 1 << 1 } as const;
export type GuestMemfdFlag = (typeof GuestMemfdFlag)[keyof typeof GuestMemfdFlag];

/** KVM_MEMORY_EXIT_FLAG_*: of a memory fault. */
export const MemoryFaultFlag = {
  PRIVATE: 1 << 3,
  /** A proposal (KVM_CAP_USERFAULT), in no released kernel. */
  USERFAULT: 1 << 4,
} as const;
export type MemoryFaultFlag = (typeof MemoryFaultFlag)[keyof typeof MemoryFaultFlag];

/** KVM_MP_STATE_*. x86 uses the first five and AP_RESET_HOLD. */
export const MpState = {
  RUNNABLE: 0,
  UNINITIALIZED: 1,
  INIT_RECEIVED: 2,
  HALTED: 3,
  SIPI_RECEIVED: 4,
  STOPPED: 5,
  CHECK_STOP: 6,
  OPERATING: 7,
  LOAD: 8,
  AP_RESET_HOLD: 9,
  SUSPENDED: 10,
} as const;
export type MpState = (typeof MpState)[keyof typeof MpState];

/** KVM_GUESTDBG_*: kvm_guest_debug.control. */
export const GuestDebug = {
  ENABLE: 0x1,
  SINGLESTEP: 0x2,
  USE_SW_BP: 0x1_0000,
  USE_HW_BP: 0x2_0000,
  INJECT_DB: 0x4_0000,
  INJECT_BP: 0x8_0000,
  BLOCKIRQ: 0x10_0000,
} as const;
export type GuestDebug = (typeof GuestDebug)[keyof typeof GuestDebug];

/** KVM_SYNC_X86_*: kvm_run.kvmValidRegs and kvmDirtyRegs. */
export const SyncRegs = { REGS: 1 << 0, SREGS: 1 << 1, EVENTS: 1 << 2 } as const;
export type SyncRegs = (typeof SyncRegs)[keyof typeof SyncRegs];

/** KVM_RUN_X86_*: kvm_run.flags. */
export const RunFlag = { SMM: 1 << 0, BUS_LOCK: 1 << 1, GUEST_MODE: 1 << 2 } as const;
export type RunFlag = (typeof RunFlag)[keyof typeof RunFlag];

/** KVM_VCPUEVENT_VALID_*: which parts KVM_SET_VCPU_EVENTS takes. */
export const VcpuEventFlag = {
  NMI_PENDING: 0x01,
  SIPI_VECTOR: 0x02,
  SHADOW: 0x04,
  SMM: 0x08,
  PAYLOAD: 0x10,
  TRIPLE_FAULT: 0x20,
} as const;
export type VcpuEventFlag = (typeof VcpuEventFlag)[keyof typeof VcpuEventFlag];

/** KVM_X86_SHADOW_INT_*: kvm_vcpu_events.interrupt.shadow. */
export const InterruptShadow = { MOV_SS: 1, STI: 2 } as const;

/** KVM_SREGS2_FLAGS_*. */
export const Sregs2Flag = { PDPTRS_VALID: 1 } as const;

/** KVM_EXIT_IO_*: kvm_run.io.direction, as the guest sees it. */
export const IoDirection = { IN: 0, OUT: 1 } as const;
export type IoDirection = (typeof IoDirection)[keyof typeof IoDirection];

/** KVM_INTERNAL_ERROR_*: kvm_run.internal.suberror. */
export const InternalError = {
  EMULATION: 1,
  SIMUL_EX: 2,
  DELIVERY_EV: 3,
  UNEXPECTED_EXIT_REASON: 4,
} as const;
export type InternalError = (typeof InternalError)[keyof typeof InternalError];

/** KVM_INTERNAL_ERROR_EMULATION_FLAG_*. */
export const EmulationFlag = { INSTRUCTION_BYTES: 1 << 0 } as const;

/** KVM_SYSTEM_EVENT_*: kvm_run.system_event.type. */
export const SystemEvent = {
  SHUTDOWN: 1,
  RESET: 2,
  CRASH: 3,
  WAKEUP: 4,
  SUSPEND: 5,
  SEV_TERM: 6,
  TDX_FATAL: 7,
} as const;
export type SystemEvent = (typeof SystemEvent)[keyof typeof SystemEvent];

/** KVM_MSR_EXIT_REASON_*: kvm_run.msr.reason; the same bits enable the exits (KVM_CAP_X86_USER_SPACE_MSR). */
export const MsrExitReason = { INVAL: 1 << 0, UNKNOWN: 1 << 1, FILTER: 1 << 2 } as const;
export type MsrExitReason = (typeof MsrExitReason)[keyof typeof MsrExitReason];

/** KVM_MSR_FILTER_*. */
export const MsrFilter = { READ: 1 << 0, WRITE: 1 << 1, DEFAULT_ALLOW: 0, DEFAULT_DENY: 1 << 0 } as const;

/** KVM_NOTIFY_*: kvm_run.notify.flags. */
export const NotifyFlag = { CONTEXT_INVALID: 1 << 0 } as const;

/** KVM_X86_NOTIFY_VMEXIT_*: arguments of KVM_CAP_X86_NOTIFY_VMEXIT. */
export const NotifyVmexit = { ENABLED: 1 << 0, USER: 1 << 1 } as const;

/** KVM_BUS_LOCK_DETECTION_*: arguments of KVM_CAP_X86_BUS_LOCK_EXIT. */
export const BusLockDetection = { OFF: 1 << 0, EXIT: 1 << 1 } as const;

/** KVM_EXIT_HYPERV_*: kvm_run.hyperv.type. */
export const HypervExit = { SYNIC: 1, HCALL: 2, SYNDBG: 3 } as const;

/** KVM_EXIT_XEN_*: kvm_run.xen.type. */
export const XenExit = { HCALL: 1 } as const;

/** KVM_HC_*: what a guest can ask for with vmcall, vmmcall. */
export const Hypercall = {
  VAPIC_POLL_IRQ: 1,
  MMU_OP: 2,
  FEATURES: 3,
  PPC_MAP_MAGIC_PAGE: 4,
  KICK_CPU: 5,
  MIPS_GET_CLOCK_FREQ: 6,
  MIPS_EXIT_VM: 7,
  MIPS_CONSOLE_OUTPUT: 8,
  CLOCK_PAIRING: 9,
  SEND_IPI: 10,
  SCHED_YIELD: 11,
  MAP_GPA_RANGE: 12,
} as const;
export type Hypercall = (typeof Hypercall)[keyof typeof Hypercall];

/**
 * KVM_MAP_GPA_RANGE_*: the third argument of KVM_HC_MAP_GPA_RANGE. The low four bits give the page size the guest
 * would like; ENCRYPTED asks for private, its absence for shared.
 */
export const MapGpaRange = {
  PAGE_SZ_4K: 0,
  PAGE_SZ_2M: 1 << 0,
  PAGE_SZ_1G: 1 << 1,
  ENCRYPTED: 1 << 4,
  DECRYPTED: 0,
} as const;
export type MapGpaRange = (typeof MapGpaRange)[keyof typeof MapGpaRange];

/** KVM_E*: a failed hypercall returns one of these, negated. ENOSYS is not the system's 38. */
export const HypercallErrno = {
  ENOSYS: 1000,
  EFAULT: 14,
  EINVAL: 22,
  E2BIG: 7,
  EPERM: 1,
  EOPNOTSUPP: 95,
} as const;
export type HypercallErrno = (typeof HypercallErrno)[keyof typeof HypercallErrno];

/** KVM_EXIT_HYPERCALL_*: kvm_run.hypercall.flags on x86. */
export const HypercallFlag = { LONG_MODE: 1 << 0 } as const;

/** KVM_CPUID_FLAG_*: kvm_cpuid_entry2.flags. The first name is spelt as the kernel spells it. */
export const CpuidFlag = {
  SIGNIFCANT_INDEX: 1 << 0,
  STATEFUL_FUNC: 1 << 1,
  STATE_READ_NEXT: 1 << 2,
} as const;
export type CpuidFlag = (typeof CpuidFlag)[keyof typeof CpuidFlag];

/** KVM_CPUID_*: the leaves in which KVM shows itself to the guest. */
export const KvmCpuid = { SIGNATURE: 0x4000_0000, FEATURES: 0x4000_0001 } as const;

/** KVM_FEATURE_*: bit numbers in EAX of leaf 0x4000_0001. */
export const KvmFeature = {
  CLOCKSOURCE: 0,
  NOP_IO_DELAY: 1,
  MMU_OP: 2,
  CLOCKSOURCE2: 3,
  ASYNC_PF: 4,
  STEAL_TIME: 5,
  PV_EOI: 6,
  PV_UNHALT: 7,
  PV_TLB_FLUSH: 9,
  ASYNC_PF_VMEXIT: 10,
  PV_SEND_IPI: 11,
  POLL_CONTROL: 12,
  PV_SCHED_YIELD: 13,
  ASYNC_PF_INT: 14,
  MSI_EXT_DEST_ID: 15,
  HC_MAP_GPA_RANGE: 16,
  MIGRATION_CONTROL: 17,
  CLOCKSOURCE_STABLE_BIT: 24,
} as const;
export type KvmFeature = (typeof KvmFeature)[keyof typeof KvmFeature];

/** MSR_KVM_*: the paravirtual MSRs. */
export const KvmMsr = {
  WALL_CLOCK: 0x11,
  SYSTEM_TIME: 0x12,
  WALL_CLOCK_NEW: 0x4b56_4d00,
  SYSTEM_TIME_NEW: 0x4b56_4d01,
  ASYNC_PF_EN: 0x4b56_4d02,
  STEAL_TIME: 0x4b56_4d03,
  PV_EOI_EN: 0x4b56_4d04,
  POLL_CONTROL: 0x4b56_4d05,
  ASYNC_PF_INT: 0x4b56_4d06,
  ASYNC_PF_ACK: 0x4b56_4d07,
  MIGRATION_CONTROL: 0x4b56_4d08,
} as const;
export type KvmMsr = (typeof KvmMsr)[keyof typeof KvmMsr];

/** The exception vectors of x86 (SDM 3A, table 6-1), the kernel's *_VECTOR. */
export const Vector = {
  DE: 0,
  DB: 1,
  BP: 3,
  OF: 4,
  BR: 5,
  UD: 6,
  NM: 7,
  DF: 8,
  TS: 10,
  NP: 11,
  SS: 12,
  GP: 13,
  PF: 14,
  MF: 16,
  AC: 17,
  MC: 18,
  XM: 19,
  VE: 20,
  CP: 21,
  HV: 28,
  VC: 29,
  SX: 30,
} as const;
export type Vector = (typeof Vector)[keyof typeof Vector];

/** KVM_X86_QUIRK_*: bits of KVM_CAP_DISABLE_QUIRKS2. */
export const Quirk = {
  LINT0_REENABLED: 1 << 0,
  CD_NW_CLEARED: 1 << 1,
  LAPIC_MMIO_HOLE: 1 << 2,
  OUT_7E_INC_RIP: 1 << 3,
  MISC_ENABLE_NO_MWAIT: 1 << 4,
  FIX_HYPERCALL_INSN: 1 << 5,
  MWAIT_NEVER_UD_FAULTS: 1 << 6,
  SLOT_ZAP_ALL: 1 << 7,
  STUFF_FEATURE_MSRS: 1 << 8,
  IGNORE_GUEST_PAT: 1 << 9,
  VMCS12_ALLOW_FREEZE_IN_SMM: 1 << 10,
} as const;
export type Quirk = (typeof Quirk)[keyof typeof Quirk];

/** KVM_X86_DISABLE_EXITS_*: instructions that KVM_CAP_X86_DISABLE_EXITS lets the guest run natively. */
export const DisableExits = { MWAIT: 1 << 0, HLT: 1 << 1, PAUSE: 1 << 2, CSTATE: 1 << 3 } as const;

/** KVM_IRQCHIP_*: kvm_irqchip.chip_id. */
export const Irqchip = { PIC_MASTER: 0, PIC_SLAVE: 1, IOAPIC: 2 } as const;
export type Irqchip = (typeof Irqchip)[keyof typeof Irqchip];

/** KVM_IRQ_ROUTING_*: kvm_irq_routing_entry.type. */
export const IrqRouting = { IRQCHIP: 1, MSI: 2, S390_ADAPTER: 3, HV_SINT: 4, XEN_EVTCHN: 5 } as const;
export type IrqRouting = (typeof IrqRouting)[keyof typeof IrqRouting];

/** KVM_PIT_*. */
export const Pit = { SPEAKER_DUMMY: 1, FLAGS_HPET_LEGACY: 1 << 0, FLAGS_SPEAKER_DATA_ON: 1 << 1 } as const;

/** KVM_IRQFD_FLAG_*. */
export const IrqfdFlag = { DEASSIGN: 1 << 0, RESAMPLE: 1 << 1 } as const;

/** KVM_IOEVENTFD_FLAG_*. */
export const IoeventfdFlag = {
  DATAMATCH: 1 << 0,
  PIO: 1 << 1,
  DEASSIGN: 1 << 2,
  VIRTIO_CCW_NOTIFY: 1 << 3,
} as const;

/** KVM_MSI_*. */
export const MsiFlag = { VALID_DEVID: 1 << 0 } as const;

/** KVM_CLOCK_*: kvm_clock_data.flags. */
export const ClockFlag = { TSC_STABLE: 1 << 1, REALTIME: 1 << 2, HOST_TSC: 1 << 3 } as const;

/** KVM_DIRTY_GFN_F_*: kvm_dirty_gfn.flags. */
export const DirtyGfnFlag = { DIRTY: 1 << 0, RESET: 1 << 1 } as const;

/** KVM_DIRTY_LOG_*: arguments of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2. */
export const DirtyLog = { MANUAL_PROTECT_ENABLE: 1 << 0, INITIALLY_SET: 1 << 1 } as const;

/** KVM_X2APIC_API_*: arguments of KVM_CAP_X2APIC_API. */
export const X2apicApi = { USE_32BIT_IDS: 1 << 0, DISABLE_BROADCAST_QUIRK: 1 << 1 } as const;

/** KVM_PMU_EVENT_*: kvm_pmu_event_filter.action and flags. */
export const PmuEvent = { ALLOW: 0, DENY: 1, FLAG_MASKED_EVENTS: 1 << 0 } as const;

/** KVM_STATE_NESTED_*: kvm_nested_state.format and flags. */
export const NestedState = {
  FORMAT_VMX: 0,
  FORMAT_SVM: 1,
  GUEST_MODE: 0x001,
  RUN_PENDING: 0x002,
  EVMCS: 0x004,
  MTF_PENDING: 0x008,
  GIF_SET: 0x100,
} as const;

/** KVM_DEV_TYPE_*: kvm_create_device.type. x86 has VFIO only. */
export const DeviceType = { VFIO: 4 } as const;

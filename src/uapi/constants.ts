/**
 * The small constants of <linux/kvm.h>, <asm/kvm.h> and <linux/kvm_para.h>, one object per kernel prefix.
 * Capabilities are in cap.ts, exits in exit.ts, errnos in errno.ts.
 */

/** What KVM_GET_API_VERSION must answer; it has since 2.6.22 (api.rst, KVM_GET_API_VERSION). */
export const API_VERSION = 12;

/** KVM_CREATE_VM's argument (KVM_X86_*_VM). Which ones a host takes: the bits of KVM_CAP_VM_TYPES. */
export const VmType = {
  /** KVM_X86_DEFAULT_VM: an ordinary VM. */
  DEFAULT: 0,
  /**
   * KVM_X86_SW_PROTECTED_VM (since 6.8): private memory without hardware support, for development and tests.
   */
  SW_PROTECTED: 1,
  /** KVM_X86_SEV_VM: AMD SEV, encrypted memory. */
  SEV: 2,
  /** KVM_X86_SEV_ES_VM: AMD SEV-ES, encrypted registers as well. */
  SEV_ES: 3,
  /** KVM_X86_SNP_VM: AMD SEV-SNP, private memory with integrity. */
  SNP: 4,
  /** KVM_X86_TDX_VM: Intel TDX. */
  TDX: 5,
} as const;
/** One of the numbers in the table {@link VmType}. */
export type VmType = (typeof VmType)[keyof typeof VmType];

/** KVM_MEM_*: flags of a memory slot. */
export const MemFlag = {
  /**
   * KVM_MEM_LOG_DIRTY_PAGES: KVM_GET_DIRTY_LOG (Vm.getDirtyLog()) tells which pages were written. Not on slots with a
   * guest_memfd.
   */
  LOG_DIRTY_PAGES: 1 << 0,
  /**
   * KVM_MEM_READONLY (since 3.7): the guest's writes are Exit.MMIO. Not on slots with a guest_memfd; cannot
   * be changed.
   */
  READONLY: 1 << 1,
  /**
   * KVM_MEM_GUEST_MEMFD (since 6.8): private pages come from a guest_memfd. Such a slot cannot be changed,
   * only deleted.
   */
  GUEST_MEMFD: 1 << 2,
  /** A proposal (KVM_CAP_USERFAULT), in no released kernel. */
  USERFAULT: 1 << 3,
} as const;
/** One of the numbers in the table {@link MemFlag}. */
export type MemFlag = (typeof MemFlag)[keyof typeof MemFlag];

/** KVM_MEMORY_ATTRIBUTE_*. Bits 0 to 2 are kept for read, write and execute. */
export const MemoryAttribute = {
  /**
   * KVM_MEMORY_ATTRIBUTE_PRIVATE (since 6.8): the guest's accesses to the page go to the slot's guest_memfd.
   */
  PRIVATE: 1 << 3,
} as const;
/** One of the numbers in the table {@link MemoryAttribute}. */
export type MemoryAttribute = (typeof MemoryAttribute)[keyof typeof MemoryAttribute];

/** GUEST_MEMFD_FLAG_* (since 6.18): the file can be mapped; its pages begin as shared. */
export const GuestMemfdFlag = {
  /** GUEST_MEMFD_FLAG_MMAP: the host can map it. */
  MMAP: 1 << 0,
  /** GUEST_MEMFD_FLAG_INIT_SHARED: its pages begin as shared. Not on VMs with private memory. */
  INIT_SHARED: 1 << 1,
} as const;
/** One of the numbers in the table {@link GuestMemfdFlag}. */
export type GuestMemfdFlag = (typeof GuestMemfdFlag)[keyof typeof GuestMemfdFlag];

/** KVM_MEMORY_EXIT_FLAG_*: of a memory fault. */
export const MemoryFaultFlag = {
  /** KVM_MEMORY_EXIT_FLAG_PRIVATE: the access was to private memory. */
  PRIVATE: 1 << 3,
  /** A proposal (KVM_CAP_USERFAULT), in no released kernel. */
  USERFAULT: 1 << 4,
} as const;
/** One of the numbers in the table {@link MemoryFaultFlag}. */
export type MemoryFaultFlag = (typeof MemoryFaultFlag)[keyof typeof MemoryFaultFlag];

/** KVM_MP_STATE_*. x86 uses the first five and AP_RESET_HOLD. */
export const MpState = {
  /** It runs. */
  RUNNABLE: 0,
  /** An application processor that has had no INIT: run() gives AGAIN. */
  UNINITIALIZED: 1,
  /** It has had an INIT, and waits for a SIPI. */
  INIT_RECEIVED: 2,
  /** It has executed HLT, and waits for an interrupt. */
  HALTED: 3,
  /** It has had a SIPI, and is about to run. */
  SIPI_RECEIVED: 4,
  /** Stopped. Not x86. */
  STOPPED: 5,
  /** Check-stop. s390. */
  CHECK_STOP: 6,
  /** Running or halted. s390. */
  OPERATING: 7,
  /** To be initialized by the host. s390. */
  LOAD: 8,
  /** An SEV-ES processor in its AP reset hold. */
  AP_RESET_HOLD: 9,
  /** Waits for a wakeup. arm64. */
  SUSPENDED: 10,
} as const;
/** One of the numbers in the table {@link MpState}. */
export type MpState = (typeof MpState)[keyof typeof MpState];

/** KVM_GUESTDBG_*: kvm_guest_debug.control. */
export const GuestDebug = {
  /** Debugging is on; without it all of it is off. */
  ENABLE: 0x1,
  /** Exit.DEBUG after each instruction. */
  SINGLESTEP: 0x2,
  /** INT3 is Exit.DEBUG instead of #BP in the guest. */
  USE_SW_BP: 0x1_0000,
  /** The breakpoints in `arch.debugreg` are Exit.DEBUG. */
  USE_HW_BP: 0x2_0000,
  /** Injects #DB into the guest, once. */
  INJECT_DB: 0x4_0000,
  /** Injects #BP into the guest, once. */
  INJECT_BP: 0x8_0000,
  /** No interrupts, NMIs or SMIs are injected while single-stepping. */
  BLOCKIRQ: 0x10_0000,
} as const;
/** One of the numbers in the table {@link GuestDebug}. */
export type GuestDebug = (typeof GuestDebug)[keyof typeof GuestDebug];

/** KVM_SYNC_X86_*: kvm_run.kvmValidRegs and kvmDirtyRegs. */
export const SyncRegs = {
  /** struct kvm_regs. */
  REGS: 1 << 0,
  /** struct kvm_sregs. */
  SREGS: 1 << 1,
  /** struct kvm_vcpu_events. */
  EVENTS: 1 << 2,
} as const;
/** One of the numbers in the table {@link SyncRegs}. */
export type SyncRegs = (typeof SyncRegs)[keyof typeof SyncRegs];

/** KVM_RUN_X86_*: kvm_run.flags. */
export const RunFlag = {
  /** The vCPU was in system-management mode. */
  SMM: 1 << 0,
  /** A bus lock was detected. */
  BUS_LOCK: 1 << 1,
  /** The vCPU was in a nested guest. */
  GUEST_MODE: 1 << 2,
} as const;
/** One of the numbers in the table {@link RunFlag}. */
export type RunFlag = (typeof RunFlag)[keyof typeof RunFlag];

/** KVM_VCPUEVENT_VALID_*: which parts KVM_SET_VCPU_EVENTS takes. */
export const VcpuEventFlag = {
  /** nmi.pending. */
  NMI_PENDING: 0x01,
  /** sipiVector. */
  SIPI_VECTOR: 0x02,
  /** interrupt.shadow. */
  SHADOW: 0x04,
  /** smi. */
  SMM: 0x08,
  /** exceptionHasPayload, exceptionPayload and exception.pending (KVM_CAP_EXCEPTION_PAYLOAD). */
  PAYLOAD: 0x10,
  /** tripleFault (KVM_CAP_X86_TRIPLE_FAULT_EVENT). */
  TRIPLE_FAULT: 0x20,
} as const;
/** One of the numbers in the table {@link VcpuEventFlag}. */
export type VcpuEventFlag = (typeof VcpuEventFlag)[keyof typeof VcpuEventFlag];

/** KVM_X86_SHADOW_INT_*: kvm_vcpu_events.interrupt.shadow. */
export const InterruptShadow = {
  /** After MOV or POP to SS. */
  MOV_SS: 1,
  /** After STI. */
  STI: 2,
} as const;

/** KVM_SREGS2_FLAGS_*. */
export const Sregs2Flag = {
  /** `pdptrs` holds the page-directory pointers of PAE paging. */
  PDPTRS_VALID: 1,
} as const;

/** KVM_EXIT_IO_*: kvm_run.io.direction, as the guest sees it. */
export const IoDirection = {
  /** The guest reads a port. */
  IN: 0,
  /** The guest writes a port. */
  OUT: 1,
} as const;
/** One of the numbers in the table {@link IoDirection}. */
export type IoDirection = (typeof IoDirection)[keyof typeof IoDirection];

/** KVM_INTERNAL_ERROR_*: kvm_run.internal.suberror. */
export const InternalError = {
  /** KVM cannot emulate an instruction. */
  EMULATION: 1,
  /** Two exceptions at once that KVM cannot combine. */
  SIMUL_EX: 2,
  /** An exit while an event was being delivered, which KVM cannot resolve. */
  DELIVERY_EV: 3,
  /** The hardware gave an exit that KVM does not know. */
  UNEXPECTED_EXIT_REASON: 4,
} as const;
/** One of the numbers in the table {@link InternalError}. */
export type InternalError = (typeof InternalError)[keyof typeof InternalError];

/** KVM_INTERNAL_ERROR_EMULATION_FLAG_*. */
export const EmulationFlag = {
  /** `insnSize` and `insnBytes` are valid. */
  INSTRUCTION_BYTES: 1 << 0,
} as const;

/** KVM_SYSTEM_EVENT_*: kvm_run.system_event.type. */
export const SystemEvent = {
  /** The guest asks to be powered off. */
  SHUTDOWN: 1,
  /** The guest asks to be reset. */
  RESET: 2,
  /** The guest tells that it has crashed. */
  CRASH: 3,
  /** A suspended guest is to wake. */
  WAKEUP: 4,
  /** The guest asks to be suspended. */
  SUSPEND: 5,
  /** An SEV guest asks to be ended; data[0] tells why. */
  SEV_TERM: 6,
  /** A TDX guest reports a fatal error. */
  TDX_FATAL: 7,
} as const;
/** One of the numbers in the table {@link SystemEvent}. */
export type SystemEvent = (typeof SystemEvent)[keyof typeof SystemEvent];

/** KVM_MSR_EXIT_REASON_*: kvm_run.msr.reason; the same bits enable the exits (KVM_CAP_X86_USER_SPACE_MSR). */
export const MsrExitReason = {
  /** An access to an MSR with an invalid value or in an invalid state. */
  INVAL: 1 << 0,
  /** An MSR that KVM does not know. */
  UNKNOWN: 1 << 1,
  /** An MSR that KVM_X86_SET_MSR_FILTER denies. */
  FILTER: 1 << 2,
} as const;
/** One of the numbers in the table {@link MsrExitReason}. */
export type MsrExitReason = (typeof MsrExitReason)[keyof typeof MsrExitReason];

/** KVM_MSR_FILTER_*. */
export const MsrFilter = {
  /** A range's flag: it filters reads. */
  READ: 1 << 0,
  /** A range's flag: it filters writes. */
  WRITE: 1 << 1,
  /** A filter's flag: MSRs in no range are allowed. */
  DEFAULT_ALLOW: 0,
  /** A filter's flag: MSRs in no range are denied. */
  DEFAULT_DENY: 1 << 0,
} as const;

/** KVM_NOTIFY_*: kvm_run.notify.flags. */
export const NotifyFlag = {
  /** The vCPU's state is lost: it cannot run on. */
  CONTEXT_INVALID: 1 << 0,
} as const;

/** KVM_X86_NOTIFY_VMEXIT_*: arguments of KVM_CAP_X86_NOTIFY_VMEXIT. */
export const NotifyVmexit = {
  /** Notify VM exits are turned on. */
  ENABLED: 1 << 0,
  /** They come to userspace, as Exit.NOTIFY. */
  USER: 1 << 1,
} as const;

/** KVM_BUS_LOCK_DETECTION_*: arguments of KVM_CAP_X86_BUS_LOCK_EXIT. */
export const BusLockDetection = {
  /** Bus locks are not detected. */
  OFF: 1 << 0,
  /** Each is an exit: Exit.X86_BUS_LOCK. */
  EXIT: 1 << 1,
} as const;

/** KVM_EXIT_HYPERV_*: kvm_run.hyperv.type. */
export const HypervExit = {
  /** The guest changed a MSR of its synthetic interrupt controller. */
  SYNIC: 1,
  /** A hypercall that userspace serves. */
  HCALL: 2,
  /** The synthetic debugger. */
  SYNDBG: 3,
} as const;

/** KVM_EXIT_XEN_*: kvm_run.xen.type. */
export const XenExit = {
  /** A Xen hypercall. */
  HCALL: 1,
} as const;

/** KVM_HC_*: what a guest can ask for with vmcall, vmmcall. */
export const Hypercall = {
  /** KVM_HC_VAPIC_POLL_IRQ: leaves the guest, so that pending interrupts are seen. x86. */
  VAPIC_POLL_IRQ: 1,
  /** KVM_HC_MMU_OP: removed from KVM; gives -KVM_ENOSYS. */
  MMU_OP: 2,
  /** KVM_HC_FEATURES: which hypercalls there are. PowerPC. */
  FEATURES: 3,
  /** KVM_HC_PPC_MAP_MAGIC_PAGE: a page of registers shared with the hypervisor. PowerPC. */
  PPC_MAP_MAGIC_PAGE: 4,
  /** KVM_HC_KICK_CPU: wakes a halted vCPU, by its APIC id. x86. */
  KICK_CPU: 5,
  /** KVM_HC_MIPS_GET_CLOCK_FREQ. MIPS. */
  MIPS_GET_CLOCK_FREQ: 6,
  /** KVM_HC_MIPS_EXIT_VM. MIPS. */
  MIPS_EXIT_VM: 7,
  /** KVM_HC_MIPS_CONSOLE_OUTPUT. MIPS. */
  MIPS_CONSOLE_OUTPUT: 8,
  /** KVM_HC_CLOCK_PAIRING: host and guest clock at one instant. x86. */
  CLOCK_PAIRING: 9,
  /** KVM_HC_SEND_IPI: one interrupt to many vCPUs. x86. */
  SEND_IPI: 10,
  /** KVM_HC_SCHED_YIELD: gives the processor to a preempted vCPU. x86. */
  SCHED_YIELD: 11,
  /**
   * KVM_HC_MAP_GPA_RANGE (since 5.14): make guest pages private or shared. Arguments: guest-physical address,
   * pages, MapGpaRange bits. The VMM serves it.
   */
  MAP_GPA_RANGE: 12,
} as const;
/** One of the numbers in the table {@link Hypercall}. */
export type Hypercall = (typeof Hypercall)[keyof typeof Hypercall];

/**
 * KVM_MAP_GPA_RANGE_*: the third argument of KVM_HC_MAP_GPA_RANGE. The low four bits give the page size the guest
 * would like; ENCRYPTED asks for private, its absence for shared.
 */
export const MapGpaRange = {
  /** It would like pages of 4 KiB. */
  PAGE_SZ_4K: 0,
  /** It would like pages of 2 MiB. */
  PAGE_SZ_2M: 1 << 0,
  /** It would like pages of 1 GiB. */
  PAGE_SZ_1G: 1 << 1,
  /** Make it private. */
  ENCRYPTED: 1 << 4,
  /** Make it shared. */
  DECRYPTED: 0,
} as const;
/** One of the numbers in the table {@link MapGpaRange}. */
export type MapGpaRange = (typeof MapGpaRange)[keyof typeof MapGpaRange];

/** KVM_E*: a failed hypercall returns one of these, negated. ENOSYS is not the system's 38. */
export const HypercallErrno = {
  /** KVM_ENOSYS: no such hypercall, or it is not enabled. */
  ENOSYS: 1000,
  /** KVM_EFAULT: an address that is no memory. */
  EFAULT: 14,
  /** KVM_EINVAL: malformed arguments. */
  EINVAL: 22,
  /** KVM_E2BIG: too much. */
  E2BIG: 7,
  /** KVM_EPERM: not allowed, as from outside of privilege level 0. */
  EPERM: 1,
  /** KVM_EOPNOTSUPP: this host cannot. */
  EOPNOTSUPP: 95,
} as const;
/** One of the numbers in the table {@link HypercallErrno}. */
export type HypercallErrno = (typeof HypercallErrno)[keyof typeof HypercallErrno];

/** KVM_EXIT_HYPERCALL_*: kvm_run.hypercall.flags on x86. */
export const HypercallFlag = {
  /** The guest was in 64-bit mode. */
  LONG_MODE: 1 << 0,
} as const;

/** KVM_CPUID_FLAG_*: kvm_cpuid_entry2.flags. The first name is spelt as the kernel spells it. */
export const CpuidFlag = {
  /** The leaf has subleaves: `index` counts. */
  SIGNIFCANT_INDEX: 1 << 0,
  /** Successive executions of the leaf give successive entries. */
  STATEFUL_FUNC: 1 << 1,
  /** Of those, the entry that comes first. */
  STATE_READ_NEXT: 1 << 2,
} as const;
/** One of the numbers in the table {@link CpuidFlag}. */
export type CpuidFlag = (typeof CpuidFlag)[keyof typeof CpuidFlag];

/** KVM_CPUID_*: the leaves in which KVM shows itself to the guest. */
export const KvmCpuid = {
  /** The highest leaf in EAX, and "KVMKVMKVM" in EBX, ECX and EDX. */
  SIGNATURE: 0x4000_0000,
  /** KvmFeature bits in EAX. */
  FEATURES: 0x4000_0001,
} as const;

/** KVM_FEATURE_*: bit numbers in EAX of leaf 0x4000_0001. */
export const KvmFeature = {
  /** kvmclock by the MSRs 0x11 and 0x12. */
  CLOCKSOURCE: 0,
  /** Port I/O needs no delays. */
  NOP_IO_DELAY: 1,
  /** Deprecated: KVM_HC_MMU_OP. */
  MMU_OP: 2,
  /** kvmclock by the MSRs 0x4b564d00 and 0x4b564d01. */
  CLOCKSOURCE2: 3,
  /** Asynchronous page faults, by MSR ASYNC_PF_EN. */
  ASYNC_PF: 4,
  /** Stolen time, by MSR STEAL_TIME. */
  STEAL_TIME: 5,
  /** End of interrupt without an exit, by MSR PV_EOI_EN. */
  PV_EOI: 6,
  /** KVM_HC_KICK_CPU wakes a halted vCPU. */
  PV_UNHALT: 7,
  /** TLB flushes of preempted vCPUs may be left to the host. */
  PV_TLB_FLUSH: 9,
  /** Asynchronous page faults work for nested guests. */
  ASYNC_PF_VMEXIT: 10,
  /** KVM_HC_SEND_IPI. */
  PV_SEND_IPI: 11,
  /** The guest can turn off polling at HLT, by MSR POLL_CONTROL. */
  POLL_CONTROL: 12,
  /** KVM_HC_SCHED_YIELD. */
  PV_SCHED_YIELD: 13,
  /** "Page ready" comes as an interrupt, by MSR ASYNC_PF_INT. */
  ASYNC_PF_INT: 14,
  /** MSI addresses may hold APIC ids of 15 bits. */
  MSI_EXT_DEST_ID: 15,
  /** KVM_HC_MAP_GPA_RANGE. The VMM sets it, as it serves the calls. */
  HC_MAP_GPA_RANGE: 16,
  /** The guest can allow its migration, by MSR MIGRATION_CONTROL. */
  MIGRATION_CONTROL: 17,
  /** kvmclock does not go backwards between vCPUs. */
  CLOCKSOURCE_STABLE_BIT: 24,
} as const;
/** One of the numbers in the table {@link KvmFeature}. */
export type KvmFeature = (typeof KvmFeature)[keyof typeof KvmFeature];

/** MSR_KVM_*: the paravirtual MSRs. */
export const KvmMsr = {
  /** Deprecated: where the wall clock is written. */
  WALL_CLOCK: 0x11,
  /** Deprecated: where kvmclock is written. */
  SYSTEM_TIME: 0x12,
  /** Where the wall clock at boot is written. */
  WALL_CLOCK_NEW: 0x4b56_4d00,
  /** Where kvmclock is written, and whether. */
  SYSTEM_TIME_NEW: 0x4b56_4d01,
  /** Turns on asynchronous page faults. */
  ASYNC_PF_EN: 0x4b56_4d02,
  /** Where stolen time is written, and whether. */
  STEAL_TIME: 0x4b56_4d03,
  /** Turns on paravirtual end of interrupt. */
  PV_EOI_EN: 0x4b56_4d04,
  /** Bit 0: whether the host polls at HLT. */
  POLL_CONTROL: 0x4b56_4d05,
  /** The vector by which "page ready" comes. */
  ASYNC_PF_INT: 0x4b56_4d06,
  /** The guest has seen "page ready". */
  ASYNC_PF_ACK: 0x4b56_4d07,
  /** Bit 0: whether the guest may be migrated. */
  MIGRATION_CONTROL: 0x4b56_4d08,
} as const;
/** One of the numbers in the table {@link KvmMsr}. */
export type KvmMsr = (typeof KvmMsr)[keyof typeof KvmMsr];

/** The exception vectors of x86 (SDM 3A, table 6-1), the kernel's *_VECTOR. */
export const Vector = {
  /** Divide error, 0. */
  DE: 0,
  /** Debug, 1. */
  DB: 1,
  /** Breakpoint (INT3), 3. */
  BP: 3,
  /** Overflow (INTO), 4. */
  OF: 4,
  /** BOUND range exceeded, 5. */
  BR: 5,
  /** Invalid opcode, 6. */
  UD: 6,
  /** Device not available: no x87, 7. */
  NM: 7,
  /** Double fault, 8. */
  DF: 8,
  /** Invalid TSS, 10. */
  TS: 10,
  /** Segment not present, 11. */
  NP: 11,
  /** Stack-segment fault, 12. */
  SS: 12,
  /** General protection, 13. */
  GP: 13,
  /** Page fault, 14. */
  PF: 14,
  /** x87 floating-point error, 16. */
  MF: 16,
  /** Alignment check, 17. */
  AC: 17,
  /** Machine check, 18. */
  MC: 18,
  /** SIMD floating-point exception, 19. */
  XM: 19,
  /** Virtualization exception (Intel), 20. */
  VE: 20,
  /** Control protection, 21. */
  CP: 21,
  /** Hypervisor injection (AMD), 28. */
  HV: 28,
  /** VMM communication (AMD SEV-ES), 29. */
  VC: 29,
  /** Security exception (AMD), 30. */
  SX: 30,
} as const;
/** One of the numbers in the table {@link Vector}. */
export type Vector = (typeof Vector)[keyof typeof Vector];

/** KVM_X86_QUIRK_*: bits of KVM_CAP_DISABLE_QUIRKS2. */
export const Quirk = {
  /** LINT0 is enabled after reset, which the specification does not have. */
  LINT0_REENABLED: 1 << 0,
  /** CR0.CD and CR0.NW are cleared where the processor would keep them. */
  CD_NW_CLEARED: 1 << 1,
  /** The APIC's registers stay mapped in x2APIC mode. */
  LAPIC_MMIO_HOLE: 1 << 2,
  /** RIP is moved on before the exit of an OUT to port 0x7e. */
  OUT_7E_INC_RIP: 1 << 3,
  /** CPUID's MONITOR bit follows IA32_MISC_ENABLE. */
  MISC_ENABLE_NO_MWAIT: 1 << 4,
  /** VMMCALL and VMCALL are rewritten to the one that the processor has. */
  FIX_HYPERCALL_INSN: 1 << 5,
  /** MONITOR and MWAIT do nothing, and never raise #UD. */
  MWAIT_NEVER_UD_FAULTS: 1 << 6,
  /** Deleting or moving a slot unmaps all slots. */
  SLOT_ZAP_ALL: 1 << 7,
  /** Feature MSRs of a new vCPU begin with what KVM supports. */
  STUFF_FEATURE_MSRS: 1 << 8,
  /** The guest's PAT is ignored for memory of the host's (Intel). */
  IGNORE_GUEST_PAT: 1 << 9,
  /** A nested hypervisor may set FREEZE_IN_SMM although it is not supported. */
  VMCS12_ALLOW_FREEZE_IN_SMM: 1 << 10,
} as const;
/** One of the numbers in the table {@link Quirk}. */
export type Quirk = (typeof Quirk)[keyof typeof Quirk];

/** KVM_X86_DISABLE_EXITS_*: instructions that KVM_CAP_X86_DISABLE_EXITS lets the guest run natively. */
export const DisableExits = {
  /** MONITOR and MWAIT. */
  MWAIT: 1 << 0,
  /** HLT. */
  HLT: 1 << 1,
  /** PAUSE. */
  PAUSE: 1 << 2,
  /** The guest may read core C-state residency counters. */
  CSTATE: 1 << 3,
} as const;

/** KVM_IRQCHIP_*: kvm_irqchip.chip_id. */
export const Irqchip = {
  /** The first 8259A. */
  PIC_MASTER: 0,
  /** The second 8259A. */
  PIC_SLAVE: 1,
  /** The I/O APIC. */
  IOAPIC: 2,
} as const;
/** One of the numbers in the table {@link Irqchip}. */
export type Irqchip = (typeof Irqchip)[keyof typeof Irqchip];

/** KVM_IRQ_ROUTING_*: kvm_irq_routing_entry.type. */
export const IrqRouting = {
  /** A pin of an in-kernel interrupt controller. */
  IRQCHIP: 1,
  /** A message-signalled interrupt. */
  MSI: 2,
  /** An adapter interrupt of s390. */
  S390_ADAPTER: 3,
  /** A Hyper-V synthetic interrupt. */
  HV_SINT: 4,
  /** A Xen event channel. */
  XEN_EVTCHN: 5,
} as const;
/** One of the numbers in the table {@link IrqRouting}. */
export type IrqRouting = (typeof IrqRouting)[keyof typeof IrqRouting];

/** KVM_PIT_*. */
export const Pit = {
  /** A flag of KVM_CREATE_PIT2: port 0x61 is emulated as well. */
  SPEAKER_DUMMY: 1,
  /** The HPET has taken the PIT's interrupt. */
  FLAGS_HPET_LEGACY: 1 << 0,
  /** The speaker's data bit is set. */
  FLAGS_SPEAKER_DATA_ON: 1 << 1,
} as const;

/** KVM_IRQFD_FLAG_*. */
export const IrqfdFlag = {
  /** Takes the eventfd back. */
  DEASSIGN: 1 << 0,
  /** A level interrupt, with a `resamplefd`. */
  RESAMPLE: 1 << 1,
} as const;

/** KVM_IOEVENTFD_FLAG_*. */
export const IoeventfdFlag = {
  /** Only writes of the value `datamatch`. */
  DATAMATCH: 1 << 0,
  /** `addr` is a port. */
  PIO: 1 << 1,
  /** Takes the eventfd back. */
  DEASSIGN: 1 << 2,
  /** A virtio-ccw notification. s390. */
  VIRTIO_CCW_NOTIFY: 1 << 3,
} as const;

/** KVM_MSI_*. */
export const MsiFlag = {
  /** `devid` counts. */
  VALID_DEVID: 1 << 0,
} as const;

/** KVM_CLOCK_*: kvm_clock_data.flags. */
export const ClockFlag = {
  /** The clock is the same on all vCPUs. */
  TSC_STABLE: 1 << 1,
  /** `realtime` is valid. */
  REALTIME: 1 << 2,
  /** `hostTsc` is valid. */
  HOST_TSC: 1 << 3,
} as const;

/** KVM_DIRTY_GFN_F_*: kvm_dirty_gfn.flags. */
export const DirtyGfnFlag = {
  /** The entry names a page that was written. */
  DIRTY: 1 << 0,
  /** Userspace has collected the entry. */
  RESET: 1 << 1,
} as const;

/** KVM_DIRTY_LOG_*: arguments of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2. */
export const DirtyLog = {
  /** Pages are write-protected again by KVM_CLEAR_DIRTY_LOG, not by KVM_GET_DIRTY_LOG. */
  MANUAL_PROTECT_ENABLE: 1 << 0,
  /** Every page counts as written at first. */
  INITIALLY_SET: 1 << 1,
} as const;

/** KVM_X2APIC_API_*: arguments of KVM_CAP_X2APIC_API. */
export const X2apicApi = {
  /** Interrupt routes and KVM_GET_LAPIC, KVM_SET_LAPIC use ids of 32 bits. */
  USE_32BIT_IDS: 1 << 0,
  /** APIC id 0xff is one processor in x2APIC mode, not all. */
  DISABLE_BROADCAST_QUIRK: 1 << 1,
} as const;

/** KVM_PMU_EVENT_*: kvm_pmu_event_filter.action and flags. */
export const PmuEvent = {
  /** An action: only events of the list can be counted. */
  ALLOW: 0,
  /** An action: events of the list cannot be counted. */
  DENY: 1,
  /** A flag: events are given with masks (KVM_CAP_PMU_EVENT_MASKED_EVENTS). */
  FLAG_MASKED_EVENTS: 1 << 0,
} as const;

/** KVM_STATE_NESTED_*: kvm_nested_state.format and flags. */
export const NestedState = {
  /** A format: Intel's. */
  FORMAT_VMX: 0,
  /** A format: AMD's. */
  FORMAT_SVM: 1,
  /** A flag: the vCPU is in the nested guest. */
  GUEST_MODE: 0x001,
  /** A flag: it is about to enter the nested guest. */
  RUN_PENDING: 0x002,
  /** A flag: enlightened VMCS is on. */
  EVMCS: 0x004,
  /** A flag: a monitor-trap exit is pending. */
  MTF_PENDING: 0x008,
  /** A flag: AMD's global interrupt flag is set. */
  GIF_SET: 0x100,
} as const;

/** KVM_DEV_TYPE_*: kvm_create_device.type. x86 has VFIO only. */
export const DeviceType = {
  /** KVM_DEV_TYPE_VFIO: tells KVM of VFIO groups. */
  VFIO: 4,
} as const;

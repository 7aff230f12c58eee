/** A vCPU: how it runs, its events, its exceptions, a nested guest's state. */

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

/** KVM_STATE_NESTED_SMM_*: kvm_vmx_nested_state_hdr.smm.flags. */
export const NestedSmmFlag = {
  /** The vCPU was in the nested guest when it came into system-management mode. */
  GUEST_MODE: 1 << 0,
  /** It was in VMX operation. */
  VMXON: 1 << 1,
} as const;

/** KVM_STATE_VMX_*: kvm_vmx_nested_state_hdr.flags. */
export const NestedVmxFlag = {
  /** `preemptionTimerDeadline` is valid. */
  PREEMPTION_TIMER_DEADLINE: 1 << 0,
} as const;

/** KVM_STATE_NESTED_*_SIZE: bytes of what follows a kvm_nested_state. */
export const NestedStateSize = {
  /** A VMCS12, and a shadow VMCS12. */
  VMX_VMCS: 0x1000,
  /** A VMCB12. */
  SVM_VMCB: 0x1000,
} as const;

/** What stands in kvm_run's exit union, and what turns such exits on. */

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

/** KVM_EXIT_HYPERCALL_*: kvm_run.hypercall.flags on x86. */
export const HypercallFlag = {
  /** The guest was in 64-bit mode. */
  LONG_MODE: 1 << 0,
} as const;

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

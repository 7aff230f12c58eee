/**
 * What KVM_RUN can come back with: every KVM_EXIT_* number of include/uapi/linux/kvm.h, without the prefix, and,
 * as negative errnos, the outcomes that are no exit reason. A run's outcome is one number of this table, or an
 * exit number newer than it.
 */
export const Exit = {
  /** KVM_EXIT_UNKNOWN: a hardware exit that KVM does not know. */
  UNKNOWN: 0,
  /** KVM_EXIT_EXCEPTION: an exception that KVM intercepted and does not handle. */
  EXCEPTION: 1,
  /** KVM_EXIT_IO: port I/O, in `vcpu.io`. An IN waits for its data. */
  IO: 2,
  /**
   * KVM_EXIT_HYPERCALL: a hypercall that was handed to the VMM (KVM_CAP_EXIT_HYPERCALL), in `vcpu.hypercall`.
   * Set `ret`.
   */
  HYPERCALL: 3,
  /** KVM_EXIT_DEBUG: a single step or a breakpoint of setGuestDebug(). */
  DEBUG: 4,
  /**
   * KVM_EXIT_HLT: the guest has executed HLT. Not with an in-kernel interrupt controller, where KVM waits
   * itself.
   */
  HLT: 5,
  /**
   * KVM_EXIT_MMIO: an access to memory that no slot has, or a write to a read-only slot, in `vcpu.mmio`. A
   * read waits for its data.
   */
  MMIO: 6,
  /** KVM_EXIT_IRQ_WINDOW_OPEN: the guest can take an interrupt, as `raw.requestInterruptWindow` asked. */
  IRQ_WINDOW_OPEN: 7,
  /** KVM_EXIT_SHUTDOWN: on x86 a triple fault. */
  SHUTDOWN: 8,
  /** KVM_EXIT_FAIL_ENTRY: the hardware refused to enter the guest, mostly because of its state. */
  FAIL_ENTRY: 9,
  /** KVM_EXIT_INTR: a signal. The kernel gives it beside EINTR, for which run() gives INTERRUPTED. */
  INTR: 10,
  /**
   * KVM_EXIT_SET_TPR: the guest has lowered its task priority (CR8). Without an in-kernel interrupt
   * controller.
   */
  SET_TPR: 11,
  /** KVM_EXIT_TPR_ACCESS: an access to the APIC's task priority, as KVM_TPR_ACCESS_REPORTING asked. */
  TPR_ACCESS: 12,
  /** KVM_EXIT_S390_SIEIC. s390. */
  S390_SIEIC: 13,
  /** KVM_EXIT_S390_RESET. s390. */
  S390_RESET: 14,
  /** KVM_EXIT_DCR. PowerPC; deprecated. */
  DCR: 15,
  /** KVM_EXIT_NMI: a non-maskable interrupt. */
  NMI: 16,
  /** KVM_EXIT_INTERNAL_ERROR: KVM cannot go on; `suberror` is one of InternalError. */
  INTERNAL_ERROR: 17,
  /** KVM_EXIT_OSI. PowerPC. */
  OSI: 18,
  /** KVM_EXIT_PAPR_HCALL. PowerPC. */
  PAPR_HCALL: 19,
  /** KVM_EXIT_S390_UCONTROL. s390. */
  S390_UCONTROL: 20,
  /** KVM_EXIT_WATCHDOG. PowerPC. */
  WATCHDOG: 21,
  /** KVM_EXIT_S390_TSCH. s390. */
  S390_TSCH: 22,
  /** KVM_EXIT_EPR. PowerPC. */
  EPR: 23,
  /** KVM_EXIT_SYSTEM_EVENT: the guest asks for a shutdown, a reset and the like (SystemEvent). */
  SYSTEM_EVENT: 24,
  /** KVM_EXIT_S390_STSI. s390. */
  S390_STSI: 25,
  /** KVM_EXIT_IOAPIC_EOI: an end of interrupt for the VMM's I/O APIC, with KVM_CAP_SPLIT_IRQCHIP. */
  IOAPIC_EOI: 26,
  /** KVM_EXIT_HYPERV: Hyper-V emulation needs the VMM (HypervExit). */
  HYPERV: 27,
  /** KVM_EXIT_ARM_NISV. arm64. */
  ARM_NISV: 28,
  /** KVM_EXIT_X86_RDMSR: an RDMSR that KVM_CAP_X86_USER_SPACE_MSR hands to the VMM. */
  X86_RDMSR: 29,
  /** KVM_EXIT_X86_WRMSR: a WRMSR that KVM_CAP_X86_USER_SPACE_MSR hands to the VMM. */
  X86_WRMSR: 30,
  /** KVM_EXIT_DIRTY_RING_FULL: collect the dirty ring, and run on. */
  DIRTY_RING_FULL: 31,
  /** KVM_EXIT_AP_RESET_HOLD: an SEV-ES processor waits for its start. */
  AP_RESET_HOLD: 32,
  /** KVM_EXIT_X86_BUS_LOCK: the guest has locked the bus (KVM_CAP_X86_BUS_LOCK_EXIT). */
  X86_BUS_LOCK: 33,
  /** KVM_EXIT_XEN: Xen emulation needs the VMM (XenExit). */
  XEN: 34,
  /** KVM_EXIT_RISCV_SBI. RISC-V. */
  RISCV_SBI: 35,
  /** KVM_EXIT_RISCV_CSR. RISC-V. */
  RISCV_CSR: 36,
  /**
   * KVM_EXIT_NOTIFY: the guest kept the processor without an event window for too long
   * (KVM_CAP_X86_NOTIFY_VMEXIT).
   */
  NOTIFY: 37,
  /** KVM_EXIT_LOONGARCH_IOCSR. LoongArch. */
  LOONGARCH_IOCSR: 38,
  /**
   * KVM_EXIT_MEMORY_FAULT (since 6.8): KVM could not map a page as the guest wants it, in `vcpu.memoryFault`.
   * Its commonest cause is a private page with nothing private behind it.
   */
  MEMORY_FAULT: 39,
  // Newer than 6.12.
  /** KVM_EXIT_TDX: a TDX guest's call that the VMM serves. Newer than 6.12. */
  TDX: 40,
  /** KVM_EXIT_ARM_SEA. arm64. Newer than 6.12. */
  ARM_SEA: 41,
  /** KVM_EXIT_ARM_LDST64B. arm64. Newer than 6.12. */
  ARM_LDST64B: 42,
  /** KVM_EXIT_SNP_REQ_CERTS: an SNP guest asks for certificates. Newer than 6.12. */
  SNP_REQ_CERTS: 43,

  /** EINTR: a signal or immediate_exit ended the run; exit_reason is left from before. */
  INTERRUPTED: -4,
  /** EAGAIN: the vCPU is not runnable (KVM_MP_STATE_UNINITIALIZED); exit_reason is left from before. */
  AGAIN: -11,
  /** EFAULT without fault information, for one an access to a slot that has no mapping behind it. */
  FAULT: -14,
  /** ETIME: the deadline that run() was given has passed. Not the kernel's. */
  DEADLINE: -62,
  /** ECANCELED: stop() was called. Not the kernel's. */
  STOPPED: -125,
  /** EHWPOISON with exit_reason MEMORY_FAULT: the page of guest_memfd has a hardware memory error. */
  MEMORY_POISONED: -133,
} as const;
/** One of the numbers in the table {@link Exit}. */
export type Exit = (typeof Exit)[keyof typeof Exit];
/** The name of an outcome: a key of `Exit`. */
export type ExitName = keyof typeof Exit;

const names = new Map<number, ExitName>(
  Object.entries(Exit).map(([name, number]) => [number, name as ExitName]),
);

/** `MEMORY_FAULT`; `EXIT_99` for an exit newer than this table. */
export const exitName = (outcome: number): string => names.get(outcome) ?? `EXIT_${outcome}`;

/**
 * What KVM_RUN can come back with: every KVM_EXIT_* number of include/uapi/linux/kvm.h, without the prefix, and,
 * as negative errnos, the outcomes that are no exit reason. A run's outcome is one number of this table, or an
 * exit number newer than it.
 */
export const Exit = {
  UNKNOWN: 0,
  EXCEPTION: 1,
  IO: 2,
  HYPERCALL: 3,
  DEBUG: 4,
  HLT: 5,
  MMIO: 6,
  IRQ_WINDOW_OPEN: 7,
  SHUTDOWN: 8,
  FAIL_ENTRY: 9,
  INTR: 10,
  SET_TPR: 11,
  TPR_ACCESS: 12,
  S390_SIEIC: 13,
  S390_RESET: 14,
  DCR: 15,
  NMI: 16,
  INTERNAL_ERROR: 17,
  OSI: 18,
  PAPR_HCALL: 19,
  S390_UCONTROL: 20,
  WATCHDOG: 21,
  S390_TSCH: 22,
  EPR: 23,
  SYSTEM_EVENT: 24,
  S390_STSI: 25,
  IOAPIC_EOI: 26,
  HYPERV: 27,
  ARM_NISV: 28,
  X86_RDMSR: 29,
  X86_WRMSR: 30,
  DIRTY_RING_FULL: 31,
  AP_RESET_HOLD: 32,
  X86_BUS_LOCK: 33,
  XEN: 34,
  RISCV_SBI: 35,
  RISCV_CSR: 36,
  NOTIFY: 37,
  LOONGARCH_IOCSR: 38,
  MEMORY_FAULT: 39,
  // Newer than 6.12.
  TDX: 40,
  ARM_SEA: 41,
  SNP_REQ_CERTS: 42,

  /** EINTR: a signal or immediate_exit ended the run; exit_reason is left from before. */
  INTERRUPTED: -4,
  /** EAGAIN: the vCPU is not runnable (KVM_MP_STATE_UNINITIALIZED); exit_reason is left from before. */
  AGAIN: -11,
  /** EFAULT without fault information, for one an access to a slot that has no mapping behind it. */
  FAULT: -14,
  /** ETIME: the deadline that run() was given has passed. Not the kernel's. */
  DEADLINE: -62,
  /** EHWPOISON with exit_reason MEMORY_FAULT: the page of guest_memfd has a hardware memory error. */
  MEMORY_POISONED: -133,
} as const;
export type Exit = (typeof Exit)[keyof typeof Exit];
export type ExitName = keyof typeof Exit;

const names = new Map<number, ExitName>(
  Object.entries(Exit).map(([name, number]) => [number, name as ExitName]),
);

/** `MEMORY_FAULT`; `EXIT_99` for an exit newer than this table. */
export const exitName = (outcome: number): string => names.get(outcome) ?? `EXIT_${outcome}`;

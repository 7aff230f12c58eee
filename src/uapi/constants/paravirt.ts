/** What KVM offers a guest that knows of it: hypercalls, CPUID leaves, MSRs (<asm/kvm_para.h>, <linux/kvm_para.h>). */

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

/** KVM_HINTS_*: bit numbers in EDX of leaf 0x4000_0001. */
export const KvmHint = {
  /** The vCPUs are never preempted for long, so the guest spins where it would else give way. */
  REALTIME: 0,
} as const;

/** KVM_ASYNC_PF_*: bits of MSR ASYNC_PF_EN, and the mask of MSR ASYNC_PF_INT. */
export const AsyncPf = {
  /** On. */
  ENABLED: 1 << 0,
  /** Also at privilege level 0. */
  SEND_ALWAYS: 1 << 1,
  /** A nested guest's come to its hypervisor, as exits. */
  DELIVERY_AS_PF_VMEXIT: 1 << 2,
  /** "Page ready" comes as an interrupt. */
  DELIVERY_AS_INT: 1 << 3,
  /** Of MSR ASYNC_PF_INT: the vector. */
  VEC_MASK: 0xff,
} as const;

/** KVM_MIGRATION_*: bits of MSR MIGRATION_CONTROL. */
export const MigrationControl = {
  /** The guest can be migrated. */
  READY: 1 << 0,
} as const;

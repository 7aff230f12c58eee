/**
 * What KVM_CHECK_EXTENSION can be asked about and KVM_ENABLE_CAP can enable: every KVM_CAP_* number of
 * include/uapi/linux/kvm.h, without the prefix, all architectures. The holes in the sequence were never used or
 * were withdrawn.
 */
export const Cap = {
  /** In-kernel interrupt controllers: KVM_CREATE_IRQCHIP. */
  IRQCHIP: 0,
  /** HLT exits. Always there. */
  HLT: 1,
  /** KVM_SET_NR_MMU_PAGES. */
  MMU_SHADOW_CACHE_CONTROL: 2,
  /** KVM_SET_USER_MEMORY_REGION. */
  USER_MEMORY: 3,
  /** KVM_SET_TSS_ADDR. */
  SET_TSS_ADDR: 4,
  /** KVM_TPR_ACCESS_REPORTING and KVM_SET_VAPIC_ADDR. */
  VAPIC: 6,
  /** KVM_GET_SUPPORTED_CPUID and KVM_SET_CPUID2. */
  EXT_CPUID: 7,
  /** kvmclock for guests. */
  CLOCKSOURCE: 8,
  /** Gives the recommended number of vCPUs of a VM. */
  NR_VCPUS: 9,
  /** Gives how many memory slots a VM can have. */
  NR_MEMSLOTS: 10,
  /** An in-kernel 8254: KVM_CREATE_PIT. */
  PIT: 11,
  /** KVM_FEATURE_NOP_IO_DELAY for guests. */
  NOP_IO_DELAY: 12,
  /** Obsolete: paravirtual page tables. */
  PV_MMU: 13,
  /** KVM_GET_MP_STATE and KVM_SET_MP_STATE. */
  MP_STATE: 14,
  /** Coalesced MMIO; gives the page of its ring in a vCPU's mapping. */
  COALESCED_MMIO: 15,
  /** Changes of the host's mappings reach the guest. */
  SYNC_MMU: 16,
  /** Obsolete: device assignment with an IOMMU. */
  IOMMU: 18,
  /** Slots can be deleted. */
  DESTROY_MEMORY_REGION_WORKS: 21,
  /** KVM_NMI. */
  USER_NMI: 22,
  /** KVM_SET_GUEST_DEBUG. */
  SET_GUEST_DEBUG: 23,
  /** KVM_REINJECT_CONTROL. */
  REINJECT_CONTROL: 24,
  /** KVM_SET_GSI_ROUTING; gives the number of routes. */
  IRQ_ROUTING: 25,
  /** KVM_IRQ_LINE_STATUS. */
  IRQ_INJECT_STATUS: 26,
  /** Obsolete: interrupts of assigned devices. */
  ASSIGN_DEV_IRQ: 29,
  /** Slots can be joined by deleting and making them. */
  JOIN_MEMORY_REGIONS_WORKS: 30,
  /** Machine checks: KVM_X86_SETUP_MCE; gives the number of banks. */
  MCE: 31,
  /** KVM_IRQFD. */
  IRQFD: 32,
  /** KVM_CREATE_PIT2. */
  PIT2: 33,
  /** KVM_SET_BOOT_CPU_ID. */
  SET_BOOT_CPU_ID: 34,
  /** KVM_GET_PIT2 and KVM_SET_PIT2. */
  PIT_STATE2: 35,
  /** KVM_IOEVENTFD. */
  IOEVENTFD: 36,
  /** KVM_SET_IDENTITY_MAP_ADDR. */
  SET_IDENTITY_MAP_ADDR: 37,
  /** Xen emulation; gives the flags that KVM_XEN_HVM_CONFIG takes. */
  XEN_HVM: 38,
  /** KVM_GET_CLOCK and KVM_SET_CLOCK; gives the ClockFlag bits. */
  ADJUST_CLOCK: 39,
  /** Exit.INTERNAL_ERROR comes with data. */
  INTERNAL_ERROR_DATA: 40,
  /** KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS. */
  VCPU_EVENTS: 41,
  S390_PSW: 42,
  PPC_SEGSTATE: 43,
  /** Hyper-V emulation: its basic MSRs. */
  HYPERV: 44,
  /** Hyper-V's virtual APIC. */
  HYPERV_VAPIC: 45,
  /** Hyper-V's spinlock notification. */
  HYPERV_SPIN: 46,
  /** Obsolete: PCI segments of assigned devices. */
  PCI_SEGMENT: 47,
  PPC_PAIRED_SINGLES: 48,
  /** `interrupt.shadow` of struct kvm_vcpu_events. */
  INTR_SHADOW: 49,
  /** KVM_GET_DEBUGREGS and KVM_SET_DEBUGREGS. */
  DEBUGREGS: 50,
  /** Single-stepping works also where the guest uses RFLAGS.TF. */
  X86_ROBUST_SINGLESTEP: 51,
  PPC_OSI: 52,
  PPC_UNSET_IRQ: 53,
  /** KVM_ENABLE_CAP on a vCPU. */
  ENABLE_CAP: 54,
  /** KVM_GET_XSAVE and KVM_SET_XSAVE. */
  XSAVE: 55,
  /** KVM_GET_XCRS and KVM_SET_XCRS. */
  XCRS: 56,
  PPC_GET_PVINFO: 57,
  PPC_IRQ_LEVEL: 58,
  /** Asynchronous page faults for guests. */
  ASYNC_PF: 59,
  /** KVM_SET_TSC_KHZ. */
  TSC_CONTROL: 60,
  /** KVM_GET_TSC_KHZ. */
  GET_TSC_KHZ: 61,
  PPC_BOOKE_SREGS: 62,
  SPAPR_TCE: 63,
  PPC_SMT: 64,
  PPC_RMA: 65,
  /** Gives the largest number of vCPUs of a VM. */
  MAX_VCPUS: 66,
  PPC_HIOR: 67,
  PPC_PAPR: 68,
  /** A software TLB shared with userspace. PowerPC. */
  SW_TLB: 69,
  /** KVM_GET_ONE_REG and KVM_SET_ONE_REG. */
  ONE_REG: 70,
  S390_GMAP: 71,
  /** The APIC timer's TSC-deadline mode. */
  TSC_DEADLINE_TIMER: 72,
  S390_UCONTROL: 73,
  /** Registers in kvm_run (since 4.17 on x86); gives the SyncRegs bits. */
  SYNC_REGS: 74,
  /** Obsolete: shared interrupts of assigned PCI 2.3 devices. */
  PCI_2_3: 75,
  /** KVM_KVMCLOCK_CTRL. */
  KVMCLOCK_CTRL: 76,
  /** KVM_SIGNAL_MSI. */
  SIGNAL_MSI: 77,
  PPC_GET_SMMU_INFO: 78,
  S390_COW: 79,
  PPC_ALLOC_HTAB: 80,
  /** MemFlag.READONLY (since 3.7). */
  READONLY_MEM: 81,
  /** IrqfdFlag.RESAMPLE. */
  IRQFD_RESAMPLE: 82,
  PPC_BOOKE_WATCHDOG: 83,
  PPC_HTAB_FD: 84,
  S390_CSS_SUPPORT: 85,
  PPC_EPR: 86,
  ARM_PSCI: 87,
  ARM_SET_DEVICE_ADDR: 88,
  /** KVM_CREATE_DEVICE and the attributes of devices. */
  DEVICE_CTRL: 89,
  /** An in-kernel MPIC. PowerPC. */
  IRQ_MPIC: 90,
  PPC_RTAS: 91,
  /** An in-kernel XICS. PowerPC. */
  IRQ_XICS: 92,
  ARM_EL1_32BIT: 93,
  SPAPR_MULTITCE: 94,
  /** KVM_GET_EMULATED_CPUID. */
  EXT_EMUL_CPUID: 95,
  /** Hyper-V's reference time. */
  HYPERV_TIME: 96,
  /** The I/O APIC ignores the polarity bit of its entries. */
  IOAPIC_POLARITY_IGNORED: 97,
  /** KVM_ENABLE_CAP on a VM. */
  ENABLE_CAP_VM: 98,
  S390_IRQCHIP: 99,
  /** KVM_IOEVENTFD with length 0, and fast. */
  IOEVENTFD_NO_LENGTH: 100,
  /** KVM_SET_DEVICE_ATTR and its like on a VM. */
  VM_ATTRIBUTES: 101,
  ARM_PSCI_0_2: 102,
  PPC_FIXUP_HCALL: 103,
  PPC_ENABLE_HCALL: 104,
  /** KVM_CHECK_EXTENSION on a VM. */
  CHECK_EXTENSION_VM: 105,
  S390_USER_SIGP: 106,
  S390_VECTOR_REGISTERS: 107,
  S390_MEM_OP: 108,
  S390_USER_STSI: 109,
  S390_SKEYS: 110,
  MIPS_FPU: 111,
  MIPS_MSA: 112,
  S390_INJECT_IRQ: 113,
  S390_IRQ_STATE: 114,
  PPC_HWRNG: 115,
  /** Takes Quirk bits. Older than DISABLE_QUIRKS2. */
  DISABLE_QUIRKS: 116,
  /** System-management mode and KVM_SMI. */
  X86_SMM: 117,
  /** Gives the number of address spaces: 2 where SMM has one of its own. */
  MULTI_ADDRESS_SPACE: 118,
  /** Gives the number of hardware breakpoints. arm64. */
  GUEST_DEBUG_HW_BPS: 119,
  /** Gives the number of hardware watchpoints. arm64. */
  GUEST_DEBUG_HW_WPS: 120,
  /** Local APICs in the kernel, PIC and I/O APIC in the VMM. */
  SPLIT_IRQCHIP: 121,
  /** KVM_IOEVENTFD with length 0. */
  IOEVENTFD_ANY_LENGTH: 122,
  /** Hyper-V's synthetic interrupt controller. */
  HYPERV_SYNIC: 123,
  S390_RI: 124,
  SPAPR_TCE_64: 125,
  ARM_PMU_V3: 126,
  /** KVM_SET_DEVICE_ATTR and its like on a vCPU. */
  VCPU_ATTRIBUTES: 127,
  /** Gives the largest vCPU id, and one. */
  MAX_VCPU_ID: 128,
  /** Takes X2apicApi bits. */
  X2APIC_API: 129,
  S390_USER_INSTR0: 130,
  /** MsiFlag.VALID_DEVID. */
  MSI_DEVID: 131,
  PPC_HTM: 132,
  SPAPR_RESIZE_HPT: 133,
  PPC_MMU_RADIX: 134,
  PPC_MMU_HASH_V3: 135,
  /** kvm_run.immediate_exit (since 4.11). */
  IMMEDIATE_EXIT: 136,
  MIPS_VZ: 137,
  MIPS_TE: 138,
  MIPS_64BIT: 139,
  S390_GS: 140,
  S390_AIS: 141,
  SPAPR_TCE_VFIO: 142,
  /** Takes DisableExits bits; gives those that this host can. */
  X86_DISABLE_EXITS: 143,
  ARM_USER_IRQ: 144,
  S390_CMMA_MIGRATION: 145,
  PPC_FWNMI: 146,
  PPC_SMT_POSSIBLE: 147,
  /** As HYPERV_SYNIC, without touching the guest's memory when it is turned on. */
  HYPERV_SYNIC2: 148,
  /** The MSR HV_X64_MSR_VP_INDEX can be set. */
  HYPERV_VP_INDEX: 149,
  S390_AIS_MIGRATION: 150,
  PPC_GET_CPU_CHAR: 151,
  S390_BPB: 152,
  /** KVM_GET_MSR_FEATURE_INDEX_LIST, and KVM_GET_MSRS on /dev/kvm. */
  GET_MSR_FEATURES: 153,
  /** KVM_HYPERV_EVENTFD. */
  HYPERV_EVENTFD: 154,
  /** Hyper-V's TLB-flush hypercalls. */
  HYPERV_TLBFLUSH: 155,
  S390_HPAGE_1M: 156,
  /** KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE; gives the state's largest size in bytes. */
  NESTED_STATE: 157,
  ARM_INJECT_SERROR_ESR: 158,
  /** The guest may read MSR_PLATFORM_INFO. */
  MSR_PLATFORM_INFO: 159,
  PPC_NESTED_HV: 160,
  /** Hyper-V's IPI hypercalls. */
  HYPERV_SEND_IPI: 161,
  /** Coalesced port I/O. */
  COALESCED_PIO: 162,
  /** Enlightened VMCS for nested guests; gives its version. */
  HYPERV_ENLIGHTENED_VMCS: 163,
  /** VcpuEventFlag.PAYLOAD. */
  EXCEPTION_PAYLOAD: 164,
  ARM_VM_IPA_SIZE: 165,
  /** Withdrawn, for MANUAL_DIRTY_LOG_PROTECT2. */
  MANUAL_DIRTY_LOG_PROTECT: 166,
  /** KVM_GET_SUPPORTED_HV_CPUID on a vCPU. */
  HYPERV_CPUID: 167,
  /** KVM_CLEAR_DIRTY_LOG; takes DirtyLog bits. */
  MANUAL_DIRTY_LOG_PROTECT2: 168,
  PPC_IRQ_XIVE: 169,
  ARM_SVE: 170,
  ARM_PTRAUTH_ADDRESS: 171,
  ARM_PTRAUTH_GENERIC: 172,
  /** KVM_SET_PMU_EVENT_FILTER. */
  PMU_EVENT_FILTER: 173,
  ARM_IRQ_LINE_LAYOUT_2: 174,
  /** Nested guests' Hyper-V TLB flushes are served by KVM directly. */
  HYPERV_DIRECT_TLBFLUSH: 175,
  PPC_GUEST_DEBUG_SSTEP: 176,
  ARM_NISV_TO_USER: 177,
  ARM_INJECT_EXT_DABT: 178,
  S390_VCPU_RESETS: 179,
  S390_PROTECTED: 180,
  PPC_SECURE_GUEST: 181,
  /** Takes how long KVM polls at HLT before it sleeps, in nanoseconds. */
  HALT_POLL: 182,
  /** KVM_FEATURE_ASYNC_PF_INT for guests. */
  ASYNC_PF_INT: 183,
  /** Withdrawn. */
  LAST_CPU: 184,
  /** The guest may be told of fewer physical-address bits than the host has. */
  SMALLER_MAXPHYADDR: 185,
  S390_DIAG318: 186,
  /** Stolen time for guests. */
  STEAL_TIME: 187,
  /** Takes MsrExitReason bits: those accesses are exits (since 5.10). */
  X86_USER_SPACE_MSR: 188,
  /** KVM_X86_SET_MSR_FILTER (since 5.10). */
  X86_MSR_FILTER: 189,
  /** The guest can use only those KvmFeature bits that its CPUID has. */
  ENFORCE_PV_FEATURE_CPUID: 190,
  /** KVM_GET_SUPPORTED_HV_CPUID on /dev/kvm. */
  SYS_HYPERV_CPUID: 191,
  /** A ring of written pages; gives its largest size in bytes. */
  DIRTY_LOG_RING: 192,
  /** Takes BusLockDetection bits. */
  X86_BUS_LOCK_EXIT: 193,
  PPC_DAWR1: 194,
  /** Gives the GuestDebug bits. */
  SET_GUEST_DEBUG2: 195,
  /** Lets guests use privileged SGX attributes. */
  SGX_ATTRIBUTE: 196,
  /** Shares another VM's encryption context (SEV). */
  VM_COPY_ENC_CONTEXT_FROM: 197,
  /** A PTP clock for guests. */
  PTP_KVM: 198,
  /** The guest can use only those Hyper-V features that its CPUID has. */
  HYPERV_ENFORCE_CPUID: 199,
  /** KVM_GET_SREGS2 and KVM_SET_SREGS2 (since 5.14). */
  SREGS2: 200,
  /**
   * Takes a bit mask of Hypercall numbers that are handed to the VMM (since 5.14); gives those that can be.
   */
  EXIT_HYPERCALL: 201,
  PPC_RPT_INVALIDATE: 202,
  /** KVM_GET_STATS_FD. */
  BINARY_STATS_FD: 203,
  /** Every instruction that KVM cannot emulate is Exit.INTERNAL_ERROR. */
  EXIT_ON_EMULATION_FAILURE: 204,
  ARM_MTE: 205,
  /** Takes over another VM's encryption context (SEV). */
  VM_MOVE_ENC_CONTEXT_FROM: 206,
  /** Gives the number of guest-physical address bits. */
  VM_GPA_BITS: 207,
  /** KVM_GET_XSAVE2 (since 5.17); gives the area's size in bytes. */
  XSAVE2: 208,
  /** KVM_GET_DEVICE_ATTR and its like on /dev/kvm. */
  SYS_ATTRIBUTES: 209,
  PPC_AIL_MODE_3: 210,
  S390_MEM_OP_EXTENSION: 211,
  /** Turns off the virtual PMU. */
  PMU_CAPABILITY: 212,
  /** Takes Quirk bits; gives those that can be turned off. */
  DISABLE_QUIRKS2: 213,
  /** KVM_SET_TSC_KHZ on a VM. */
  VM_TSC_CONTROL: 214,
  /** Exit.SYSTEM_EVENT comes with `data`. */
  SYSTEM_EVENT_DATA: 215,
  ARM_SYSTEM_SUSPEND: 216,
  S390_PROTECTED_DUMP: 217,
  /** VcpuEventFlag.TRIPLE_FAULT. */
  X86_TRIPLE_FAULT_EVENT: 218,
  /** Takes NotifyVmexit bits and a window. */
  X86_NOTIFY_VMEXIT: 219,
  /** Turns off the NX mitigation for huge pages, for this VM. */
  VM_DISABLE_NX_HUGE_PAGES: 220,
  S390_ZPCI_OP: 221,
  S390_CPU_TOPOLOGY: 222,
  /** As DIRTY_LOG_RING, with acquire and release ordering. */
  DIRTY_LOG_RING_ACQ_REL: 223,
  S390_PROTECTED_ASYNC_DISABLE: 224,
  /** A dirty bitmap beside the ring. */
  DIRTY_LOG_RING_WITH_BITMAP: 225,
  /** PmuEvent.FLAG_MASKED_EVENTS. */
  PMU_EVENT_MASKED_EVENTS: 226,
  /** KVM_ARM_SET_COUNTER_OFFSET. arm64. */
  COUNTER_OFFSET: 227,
  ARM_EAGER_SPLIT_CHUNK_SIZE: 228,
  ARM_SUPPORTED_BLOCK_SIZES: 229,
  ARM_SUPPORTED_REG_MASK_RANGES: 230,
  /** KVM_SET_USER_MEMORY_REGION2 (since 6.8). */
  USER_MEMORY2: 231,
  /** Exit.MEMORY_FAULT comes with the fault (since 6.8). */
  MEMORY_FAULT_INFO: 232,
  /**
   * KVM_SET_MEMORY_ATTRIBUTES (since 6.8); gives the MemoryAttribute bits. Ask the VM: it depends on its
   * type.
   */
  MEMORY_ATTRIBUTES: 233,
  /** KVM_CREATE_GUEST_MEMFD (since 6.8). Ask the VM: it depends on its type. */
  GUEST_MEMFD: 234,
  /** Gives a bit mask of the VmType numbers (since 6.8). */
  VM_TYPES: 235,
  /** KVM_PRE_FAULT_MEMORY (since 6.11). */
  PRE_FAULT_MEMORY: 236,
  /** Takes the APIC bus's cycle, in nanoseconds. */
  X86_APIC_BUS_CYCLES_NS: 237,
  /** RunFlag.GUEST_MODE. */
  X86_GUEST_MODE: 238,
  // Newer than 6.12. A number alone does not prove a feature: KVM_CAP_USERFAULT, still a proposal, was 236, 239,
  // 240 and 243 in successive versions of its series and 245 in a vendor's kernel, all of them other capabilities
  // here. The lab's kernel `userfault` has 243. 252 and up are claimed by several unmerged series.
  ARM_WRITABLE_IMP_ID_REGS: 239,
  ARM_EL2: 240,
  ARM_EL2_E2H0: 241,
  RISCV_MP_STATE_RESET: 242,
  ARM_CACHEABLE_PFNMAP_SUPPORTED: 243,
  /** Gives the GuestMemfdFlag bits (since 6.18). */
  GUEST_MEMFD_FLAGS: 244,
  ARM_SEA_TO_USER: 245,
  S390_USER_OPEREXEC: 246,
  S390_KEYOP: 247,
  S390_VSIE_ESAMODE: 248,
  S390_HPAGE_2G: 249,
  PPC_COMPAT_CAPS: 250,
  ARM_PMU_V3_STRICT: 251,
} as const;
/** One of the numbers in the table {@link Cap}. */
export type Cap = (typeof Cap)[keyof typeof Cap];

const capNames = new Map<number, string>(Object.entries(Cap).map(([name, number]) => [number, name]));

/** `KVM_CAP_MEMORY_ATTRIBUTES`; `KVM_CAP_999` for a number without a name. */
export const capName = (cap: number): string => `KVM_CAP_${capNames.get(cap) ?? cap}`;

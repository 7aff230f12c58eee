/** What KVM_CREATE_VM makes, its memory, and what was written of it. */

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
  /** A nested guest with nested paging shares its hypervisor's PAT (AMD). Newer than 6.12. */
  NESTED_SVM_SHARED_PAT: 1 << 11,
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
  /** RDMSR of IA32_APERF and IA32_MPERF. Newer than 6.12. */
  APERFMPERF: 1 << 4,
} as const;

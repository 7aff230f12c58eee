/** What the kernel's headers have, and src/uapi has not, with the reason. */
import { leftOutIoctls } from '../../src/uapi/index.ts';

interface Rule {
  /** Of a macro, a struct, or a field with its struct. */
  readonly names: RegExp;
  readonly why: string;
  /** Only older headers than the recorded ones have such names. */
  readonly older?: true;
}

const of = (names: readonly string[]): RegExp => new RegExp(`^(${names.join('|')})(\\(\\)|\\.[\\w.]+)?$`);

export const leftOut: readonly Rule[] = [
  ...Object.entries(leftOutIoctls).map(([name, why]) => ({ names: of([name]), why })),
  { names: of(['kvm_cpuid', 'kvm_cpuid_entry']), why: 'of KVM_SET_CPUID, which is left out' },
  {
    names: of([
      'KVM_(ARM|PPC|S390|MIPS|RISCV|LOONGARCH)_\\w+',
      'KVM_VM_(TYPE_ARM|MIPS|PPC|S390)_\\w+',
      'KVM_DEV_TYPE_(ARM|FLIC|FSL|LOONGARCH|RISCV|XICS|XIVE)\\w*',
      'KVM_DEV_VFIO_GROUP_SET_SPAPR_TCE',
      'KVM_REG_(ARM|ARM64|GENERIC|IA64|LOONGARCH|MIPS|PPC|RISCV|S390)',
      'KVM_EXIT_ARM_SEA_\\w+',
      'KVM_(CREATE_SPAPR_TCE(_64)?|ALLOCATE_RMA|DIRTY_TLB|MMU_FSL_\\w+)',
      'kvm_(arm|ppc|s390)_\\w+',
      'kvm_(vfio_spapr_tce|config_tlb|dirty_tlb|irq_routing_s390_adapter)',
      'kvm_irq_routing_entry\\.u\\.adapter',
      'kvm_run\\.(dcr|osi|papr_hcall|epr|arm_nisv|arm_sea|riscv_\\w+|iocsr_io|s390_\\w+)',
    ]),
    why: "another architecture's",
  },
  {
    names: of([
      'KVM_(STEAL|PV_EOI|PV_REASON)_\\w+',
      'KVM_VCPU_(PREEMPTED|FLUSH_TLB)',
      'KVM_(MSR_ENABLED|CLOCK_PAIRING_WALLCLOCK)',
      'kvm_(steal_time|clock_pairing|vcpu_pv_apf_data)',
    ]),
    why: "between KVM and the guest's kernel in the guest's memory: a VMM neither reads nor writes it",
  },
  {
    names: of(['KVM_MMU_OP_\\w+', 'KVM_MAX_MMU_OP_BATCH', 'kvm_mmu_op_\\w+']),
    why: 'of a hypercall that KVM no longer has',
  },
  {
    names: of(['KVM_\\w+_(VALID_MASK|VALID_FIELDS|VALID_FLAG_MASK|VALID_EXITS)', 'KVM_DIRTY_GFN_F_MASK']),
    why: 'all bits that a kernel knows of a table together: each kernel has its own',
  },
  {
    names: of(['KVM_STATS_(TYPE|UNIT|BASE)_MAX', 'KVM_(SEV_NR|TDX_CMD_NR|DEV_TYPE)_MAX']),
    why: 'the end of a list, which moves with each kernel',
  },
  {
    names: of(['KVM_(REG_SIZE|X86_REG_ID|X86_REG_KVM|X86_REG_MSR|X86_KVM_REG_SIZE|X86_REG_TYPE_SIZE)']),
    why: 'a macro with arguments: regId() puts an id together',
  },
  {
    names: of(['KVM_PMU_ENCODE_MASKED_ENTRY', 'KVM_MAP_GPA_RANGE_ENC_STAT', 'HINT_UNSAFE_IN_KVM']),
    why: 'a macro with arguments: pmuMaskedEntry() and MapGpaRange have what it makes, the last is for C only',
  },
  {
    names: of(['KVMIO']),
    why: "the number that all of KVM's ioctls have: the table of ioctls has it in each",
  },
  {
    names: of(['KVM_COALESCED_MMIO_MAX', 'SYNC_REGS_SIZE_BYTES']),
    why: 'follows from the size of a page, or of kvm_run.s',
  },
  { names: of(['_fpstate_64\\.sw_reserved']), why: "of a signal's frame" },
  {
    names: of(['EWOULDBLOCK', 'EDEADLOCK', 'EFSBADCRC', 'EFSCORRUPTED']),
    why: "another errno's second name",
  },
  {
    names: of([
      'KVM_(DE)?ASSIGN_\\w+',
      'KVM_DEV_(ASSIGN|IRQ)_\\w+',
      'KVM_MAX_MSIX_PER_DEV',
      'KVM_(TRC|TRACE)_\\w+',
      'KVM_(DEBUG_GUEST|SET_MEMORY_ALIAS|SET_MEMORY_REGION)',
      '__KVM_DEPRECATED_\\w+',
      'kvm_(assigned_\\w+|breakpoint|debug_guest|memory_alias|memory_region|user_trace_setup)',
      'kvm_run\\.hypercall\\.pad',
    ]),
    why: 'gone from KVM, and from its headers since',
    older: true,
  },
  { names: of(['KVM_PV_\\w+', 'kvm_pv_cmd']), why: "s390's, in a header of its own since", older: true },
];

export const whyLeftOut = (name: string): string | undefined =>
  leftOut.find(({ names }) => names.test(name))?.why;

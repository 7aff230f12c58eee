/** struct kvm_run: the page through which KVM_RUN and its caller talk. */
import { array, bytes, over, size64, struct, u8, u16, u32, u64, union } from './layout.ts';
import { kvm_debug_exit_arch, kvm_sync_regs } from './x86.ts';

/** KVM_EXIT_HYPERV. */
export const kvm_hyperv_exit = struct('kvm_hyperv_exit', {
  type: u32,
  pad1: u32,
  u: union('kvm_hyperv_exit.u', {
    synic: struct('kvm_hyperv_exit.u.synic', {
      msr: u32,
      pad2: u32,
      control: u64,
      evtPage: u64,
      msgPage: u64,
    }),
    hcall: struct('kvm_hyperv_exit.u.hcall', { input: u64, result: u64, params: array(u64, 2) }),
    syndbg: struct('kvm_hyperv_exit.u.syndbg', {
      msr: u32,
      pad2: u32,
      control: u64,
      status: u64,
      sendPage: u64,
      recvPage: u64,
      pendingPage: u64,
    }),
  }),
});

/** KVM_EXIT_XEN. */
export const kvm_xen_exit = struct('kvm_xen_exit', {
  type: u32,
  u: union('kvm_xen_exit.u', {
    hcall: struct('kvm_xen_exit.u.hcall', {
      longmode: u32,
      cpl: u32,
      input: u64,
      result: u64,
      params: array(u64, 6),
    }),
  }),
});

/** KVM_EXIT_SNP_REQ_CERTS (newer than 6.12). `ret` takes a positive errno: ENOSPC, EAGAIN, EIO. */
export const kvm_exit_snp_req_certs = struct('kvm_exit_snp_req_certs', {
  gpa: size64,
  npages: u64,
  ret: u64,
});

/**
 * The arms of kvm_run's exit union that x86 uses, by the kernel's names. Which one holds follows from exit_reason
 * (api.rst, "The kvm_run structure").
 */
export const exitArms = {
  /** Of Exit.UNKNOWN: the hardware's own exit reason. */
  hw: struct('kvm_run.hw', { hardwareExitReason: u64 }),
  /** Of Exit.FAIL_ENTRY: the hardware's reason, and the host's CPU. */
  failEntry: struct('kvm_run.fail_entry', { hardwareEntryFailureReason: u64, cpu: u32 }),
  /** Of Exit.EXCEPTION: the vector and its error code. */
  ex: struct('kvm_run.ex', { exception: u32, errorCode: u32 }),
  /** `count` elements of `size` bytes at `dataOffset` bytes from the start of kvm_run. */
  io: struct('kvm_run.io', { direction: u8, size: u8, port: u16, count: u32, dataOffset: size64 }),
  /** Of Exit.DEBUG. */
  debug: struct('kvm_run.debug', { arch: kvm_debug_exit_arch }),
  /**
   * Of Exit.MMIO: `len` bytes of `data` at the guest-physical address. The caller writes `data` of a read.
   */
  mmio: struct('kvm_run.mmio', { physAddr: size64, data: bytes(8), len: u32, isWrite: u8 }),
  /** The caller writes `ret`. `longmode` is the older name of the low half of `flags`. */
  hypercall: struct('kvm_run.hypercall', {
    nr: u64,
    args: array(u64, 6),
    ret: u64,
    flags: size64,
    longmode: over('flags', u32),
  }),
  /** Of Exit.TPR_ACCESS. */
  tprAccess: struct('kvm_run.tpr_access', { rip: u64, isWrite: u32, pad: u32 }),
  /** Of Exit.INTERNAL_ERROR: `suberror` is one of InternalError; `ndata` words of `data` count. */
  internal: struct('kvm_run.internal', { suberror: u32, ndata: u32, data: array(u64, 16) }),
  /** `internal` of suberror EMULATION. `flags` says whether the instruction's bytes are valid. */
  emulationFailure: struct('kvm_run.emulation_failure', {
    suberror: u32,
    ndata: u32,
    flags: u64,
    insnSize: u8,
    insnBytes: bytes(15),
  }),
  /** Of Exit.SYSTEM_EVENT: `type` is one of SystemEvent. `flags` is the older name of data[0]. */
  systemEvent: struct('kvm_run.system_event', {
    type: u32,
    ndata: u32,
    flags: u64,
    data: over('flags', array(u64, 16)),
  }),
  /** Of Exit.IOAPIC_EOI: the vector whose interrupt the guest has ended. */
  eoi: struct('kvm_run.eoi', { vector: u8 }),
  /** Of Exit.HYPERV. */
  hyperv: kvm_hyperv_exit,
  /** RDMSR: the caller writes `data`. Either: a non-zero `error` injects #GP. */
  msr: struct('kvm_run.msr', { error: u8, pad: bytes(7), reason: u32, index: u32, data: u64 }),
  /** Of Exit.XEN. */
  xen: kvm_xen_exit,
  /** Of Exit.NOTIFY: NotifyFlag bits. */
  notify: struct('kvm_run.notify', { flags: u32 }),
  /** Valid only where outcomeOf() says so. The guest-physical range [gpa, gpa + size). */
  memoryFault: struct('kvm_run.memory_fault', { flags: size64, gpa: size64, size: size64 }),
  /** `nr` is the TDVMCALL's leaf; the caller writes `ret` (newer than 6.12). */
  tdx: struct('kvm_run.tdx', {
    flags: u64,
    nr: u64,
    unknown: struct('kvm_run.tdx.unknown', { ret: u64, data: array(u64, 5) }),
    getQuote: over('unknown', struct('kvm_run.tdx.get_quote', { ret: u64, gpa: u64, size: u64 })),
    getTdvmcallInfo: over(
      'unknown',
      struct('kvm_run.tdx.get_tdvmcall_info', {
        ret: u64,
        leaf: u64,
        r11: u64,
        r12: u64,
        r13: u64,
        r14: u64,
      }),
    ),
    setupEventNotify: over('unknown', struct('kvm_run.tdx.setup_event_notify', { ret: u64, vector: u64 })),
  }),
  /** Of Exit.SNP_REQ_CERTS. */
  snpReqCerts: kvm_exit_snp_req_certs,
  /** What fixes the union's size, and how an exit without an arm here is read. */
  padding: bytes(256),
};

/**
 * The start of a vCPU's mapping (api.rst, "The kvm_run structure"). In C the union is nameless; here it is `exit`.
 * The caller writes the first two fields and kvmValidRegs; KVM_RUN reads cr8, kvmDirtyRegs and `s` as well.
 */
export const kvm_run = struct('kvm_run', {
  requestInterruptWindow: u8,
  immediateExit: u8,
  padding1: bytes(6),
  exitReason: u32,
  readyForInterruptInjection: u8,
  ifFlag: u8,
  flags: u16,
  cr8: u64,
  apicBase: u64,
  exit: union('kvm_run.exit', exitArms),
  kvmValidRegs: size64,
  kvmDirtyRegs: size64,
  s: union('kvm_run.s', { regs: kvm_sync_regs, padding: bytes(2048) }),
});

/** Where the exit union begins in the page, in bytes. An arm's field lies at this plus its own offset. */
export const EXIT_OFFSET = kvm_run.fields.exit.offset;

/** Where the sync registers begin in the page, in bytes. */
export const SYNC_REGS_OFFSET = kvm_run.fields.s.offset;

/** Pages of a vCPU's mapping, counted from its start: port data, and the ring of coalesced writes. */
export const PIO_PAGE_OFFSET = 1;
/**
 * The page of the ring of coalesced writes (KVM_COALESCED_MMIO_PAGE_OFFSET), counted from the mapping's
 * start.
 */
export const COALESCED_MMIO_PAGE_OFFSET = 2;
/** The first page of the dirty ring, in the vCPU fd's file though beyond KVM_GET_VCPU_MMAP_SIZE. */
export const DIRTY_LOG_PAGE_OFFSET = 64;

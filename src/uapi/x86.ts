/** The structs of arch/x86/include/uapi/asm/kvm.h: registers, events, interrupt controllers, timers. */
import { array, bytes, i64, size64, struct, u8, u16, u32, u64, union } from './layout.ts';

/** KVM_GET_REGS, KVM_SET_REGS: the general registers. */
export const kvm_regs = struct('kvm_regs', {
  rax: u64,
  rbx: u64,
  rcx: u64,
  rdx: u64,
  rsi: u64,
  rdi: u64,
  rsp: u64,
  rbp: u64,
  r8: u64,
  r9: u64,
  r10: u64,
  r11: u64,
  r12: u64,
  r13: u64,
  r14: u64,
  r15: u64,
  rip: u64,
  rflags: u64,
});

/** A segment register with its hidden part (SDM 3A, 3.4.3). */
export const kvm_segment = struct('kvm_segment', {
  base: u64,
  limit: u32,
  selector: u16,
  type: u8,
  present: u8,
  dpl: u8,
  db: u8,
  s: u8,
  l: u8,
  g: u8,
  avl: u8,
  unusable: u8,
  padding: u8,
});

/** GDTR or IDTR. */
export const kvm_dtable = struct('kvm_dtable', { base: u64, limit: u16, padding: array(u16, 3) });

const specialRegisters = {
  cs: kvm_segment,
  ds: kvm_segment,
  es: kvm_segment,
  fs: kvm_segment,
  gs: kvm_segment,
  ss: kvm_segment,
  tr: kvm_segment,
  ldt: kvm_segment,
  gdt: kvm_dtable,
  idt: kvm_dtable,
  cr0: u64,
  cr2: u64,
  cr3: u64,
  cr4: u64,
  cr8: u64,
  efer: u64,
  apicBase: u64,
};

/** KVM_GET_SREGS, KVM_SET_SREGS. `interruptBitmap`: the one interrupt that waits for injection, if any. */
export const kvm_sregs = struct('kvm_sregs', { ...specialRegisters, interruptBitmap: array(u64, 4) });

/** KVM_GET_SREGS2, KVM_SET_SREGS2 (KVM_CAP_SREGS2): with the PDPTEs, without the interrupt bitmap. */
export const kvm_sregs2 = struct('kvm_sregs2', { ...specialRegisters, flags: size64, pdptrs: array(u64, 4) });

/** KVM_GET_FPU, KVM_SET_FPU: x87 and SSE state. `ftwx` is the tag word in FXSAVE's short form. */
export const kvm_fpu = struct('kvm_fpu', {
  fpr: array(bytes(16), 8),
  fcw: u16,
  fsw: u16,
  ftwx: u8,
  pad1: u8,
  lastOpcode: u16,
  lastIp: u64,
  lastDp: u64,
  xmm: array(bytes(16), 16),
  mxcsr: u32,
  pad2: u32,
});

/** The local APIC's registers, one in the first four of every sixteen bytes. */
export const kvm_lapic_state = struct('kvm_lapic_state', { regs: bytes(0x400) });

/** One model-specific register: its number and its 64 bits. */
export const kvm_msr_entry = struct('kvm_msr_entry', { index: u32, reserved: u32, data: u64 });
/** The head of a list of `nmsrs` kvm_msr_entry. */
export const kvm_msrs = struct('kvm_msrs', { nmsrs: u32, pad: u32 });
/** The head of a list of `nmsrs` MSR indices, each a u32. */
export const kvm_msr_list = struct('kvm_msr_list', { nmsrs: u32 });

/**
 * One leaf of CPUID: what EAX (`function`) and ECX (`index`) ask, and the four registers of the answer.
 * `flags` are CpuidFlag bits.
 */
export const kvm_cpuid_entry2 = struct('kvm_cpuid_entry2', {
  function: u32,
  index: u32,
  flags: u32,
  eax: u32,
  ebx: u32,
  ecx: u32,
  edx: u32,
  padding: array(u32, 3),
});
/** The head of a list of `nent` kvm_cpuid_entry2. */
export const kvm_cpuid2 = struct('kvm_cpuid2', { nent: u32, padding: u32 });

/** KVM_EXIT_DEBUG: which exception, where, and why (DR6). */
export const kvm_debug_exit_arch = struct('kvm_debug_exit_arch', {
  exception: u32,
  pad: u32,
  pc: u64,
  dr6: u64,
  dr7: u64,
});

/** The debug registers that KVM_SET_GUEST_DEBUG gives hardware breakpoints by, DR0 to DR7. */
export const kvm_guest_debug_arch = struct('kvm_guest_debug_arch', { debugreg: array(u64, 8) });

/** KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS: what is injected, pending or masked. */
export const kvm_vcpu_events = struct('kvm_vcpu_events', {
  exception: struct('kvm_vcpu_events.exception', {
    injected: u8,
    nr: u8,
    hasErrorCode: u8,
    pending: u8,
    errorCode: u32,
  }),
  interrupt: struct('kvm_vcpu_events.interrupt', { injected: u8, nr: u8, soft: u8, shadow: u8 }),
  nmi: struct('kvm_vcpu_events.nmi', { injected: u8, pending: u8, masked: u8, pad: u8 }),
  sipiVector: u32,
  flags: u32,
  smi: struct('kvm_vcpu_events.smi', { smm: u8, pending: u8, smmInsideNmi: u8, latchedInit: u8 }),
  tripleFault: struct('kvm_vcpu_events.triple_fault', { pending: u8 }),
  reserved: bytes(26),
  exceptionHasPayload: u8,
  exceptionPayload: u64,
});

/** KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS. */
export const kvm_debugregs = struct('kvm_debugregs', {
  db: array(u64, 4),
  dr6: u64,
  dr7: u64,
  flags: size64,
  reserved: array(u64, 9),
});

/** The XSAVE area in standard form. KVM_GET_XSAVE2 gives more than these 4096 bytes when AMX is enabled. */
export const kvm_xsave = struct('kvm_xsave', { region: array(u32, 1024) });

/** One extended control register: its number and value. */
export const kvm_xcr = struct('kvm_xcr', { xcr: u32, reserved: u32, value: u64 });
/** KVM_GET_XCRS, KVM_SET_XCRS: the first `nrXcrs` elements count. XCR0 is number 0. */
export const kvm_xcrs = struct('kvm_xcrs', {
  nrXcrs: u32,
  flags: u32,
  xcrs: array(kvm_xcr, 16),
  padding: array(u64, 16),
});

/** What kvm_run.s holds: registers that KVM_RUN takes in and gives back without further ioctls. */
export const kvm_sync_regs = struct('kvm_sync_regs', {
  regs: kvm_regs,
  sregs: kvm_sregs,
  events: kvm_vcpu_events,
});

/** The 8259A. */
export const kvm_pic_state = struct('kvm_pic_state', {
  lastIrr: u8,
  irr: u8,
  imr: u8,
  isr: u8,
  priorityAdd: u8,
  irqBase: u8,
  readRegSelect: u8,
  poll: u8,
  specialMask: u8,
  initState: u8,
  autoEoi: u8,
  rotateOnAutoEoi: u8,
  specialFullyNestedMode: u8,
  init4: u8,
  elcr: u8,
  elcrMask: u8,
});

/** The I/O APIC. Each of the 24 redirection entries is one 64-bit word (82093AA, 3.2.4). */
export const kvm_ioapic_state = struct('kvm_ioapic_state', {
  baseAddress: size64,
  ioregsel: u32,
  id: u32,
  irr: u32,
  pad: u32,
  redirtbl: array(u64, 24),
});

/** KVM_GET_IRQCHIP, KVM_SET_IRQCHIP: `chipId` says which arm holds. */
export const kvm_irqchip = struct('kvm_irqchip', {
  chipId: u32,
  pad: u32,
  chip: union('kvm_irqchip.chip', { dummy: bytes(512), pic: kvm_pic_state, ioapic: kvm_ioapic_state }),
});

/** One channel of the 8254. `count` may be 65536. */
export const kvm_pit_channel_state = struct('kvm_pit_channel_state', {
  count: u32,
  latchedCount: u16,
  countLatched: u8,
  statusLatched: u8,
  status: u8,
  readState: u8,
  writeState: u8,
  writeLatch: u8,
  rwMode: u8,
  mode: u8,
  bcd: u8,
  gate: u8,
  countLoadTime: i64,
});
/** KVM_GET_PIT, KVM_SET_PIT: the three channels of the 8254. */
export const kvm_pit_state = struct('kvm_pit_state', { channels: array(kvm_pit_channel_state, 3) });
/** KVM_GET_PIT2, KVM_SET_PIT2: the same, with `flags` (Pit.FLAGS_*). */
export const kvm_pit_state2 = struct('kvm_pit_state2', {
  channels: array(kvm_pit_channel_state, 3),
  flags: u32,
  reserved: array(u32, 9),
});
/** KVM_REINJECT_CONTROL: whether the PIT makes up for interrupts that the guest missed. */
export const kvm_reinject_control = struct('kvm_reinject_control', { pitReinject: u8, reserved: bytes(31) });

/** KVM_X86_SET_MCE. */
export const kvm_x86_mce = struct('kvm_x86_mce', {
  status: u64,
  addr: u64,
  misc: u64,
  mcgStatus: u64,
  bank: u8,
  pad1: bytes(7),
  pad2: array(u64, 3),
});

/** `bitmap` is a pointer: one bit per MSR from `base` on, 1 allows. */
export const kvm_msr_filter_range = struct('kvm_msr_filter_range', {
  flags: u32,
  nmsrs: u32,
  base: u32,
  bitmap: u64,
});
/**
 * KVM_X86_SET_MSR_FILTER (KVM_CAP_X86_MSR_FILTER): up to 16 ranges; `flags` says what holds for MSRs in none
 * (MsrFilter.DEFAULT_*).
 */
export const kvm_msr_filter = struct('kvm_msr_filter', {
  flags: u32,
  ranges: array(kvm_msr_filter_range, 16),
});

/** The head of a list of `nevents` events, each a u64. */
export const kvm_pmu_event_filter = struct('kvm_pmu_event_filter', {
  action: u32,
  nevents: u32,
  fixedCounterBitmap: u32,
  flags: u32,
  pad: array(u32, 4),
});

/** The VMX part of kvm_nested_state: guest-physical addresses of the VMXON region and the current VMCS. */
export const kvm_vmx_nested_state_hdr = struct('kvm_vmx_nested_state_hdr', {
  vmxonPa: u64,
  vmcs12Pa: u64,
  smm: struct('kvm_vmx_nested_state_hdr.smm', { flags: u16 }),
  pad: u16,
  flags: u32,
  preemptionTimerDeadline: u64,
});
/**
 * The SVM part of kvm_nested_state: the guest-physical address of the current VMCB. `gpat` is the nested guest's PAT,
 * without Quirk.NESTED_SVM_SHARED_PAT; kernels without that quirk have padding in its place.
 */
export const kvm_svm_nested_state_hdr = struct('kvm_svm_nested_state_hdr', { vmcbPa: u64, gpat: u64 });
/** What follows a kvm_nested_state of format VMX. */
export const kvm_vmx_nested_state_data = struct('kvm_vmx_nested_state_data', {
  vmcs12: bytes(0x1000),
  shadowVmcs12: bytes(0x1000),
});
/** What follows a kvm_nested_state of format SVM. */
export const kvm_svm_nested_state_data = struct('kvm_svm_nested_state_data', { vmcb12: bytes(0x1000) });
/** The header of a nested guest's state; VMCS12s or a VMCB12 follow, up to `size` bytes in all. */
export const kvm_nested_state = struct('kvm_nested_state', {
  flags: u16,
  format: u16,
  size: u32,
  hdr: union('kvm_nested_state.hdr', {
    vmx: kvm_vmx_nested_state_hdr,
    svm: kvm_svm_nested_state_hdr,
    pad: bytes(120),
  }),
});

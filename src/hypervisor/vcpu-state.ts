/** A vCPU's state: registers, events and clocks, read and written by ioctls. */
import { Cap } from '../uapi/cap.ts';
import { ioctls } from '../uapi/ioctls.ts';
import type { Input, Value } from '../uapi/layout.ts';
import type { kvm_enable_cap, kvm_guest_debug, kvm_translation } from '../uapi/structs.ts';
import type {
  kvm_cpuid_entry2,
  kvm_debugregs,
  kvm_fpu,
  kvm_lapic_state,
  kvm_msr_entry,
  kvm_sregs,
  kvm_sregs2,
  kvm_vcpu_events,
  kvm_x86_mce,
  kvm_xcrs,
} from '../uapi/x86.ts';
import { type Integer, integer, u32 } from './args.ts';
import { type EnabledCap, EnabledCaps } from './enabled-caps.ts';
import { outOfRange, wrongType } from './errors.ts';
import type { Fd } from './fd.ts';
import { type LiveRegs, liveRegs } from './live-regs.ts';
import { type Regs, readRegs, writeRegs } from './regs.ts';
import { type Stats, statsOf } from './stats.ts';
import { Unsaved } from './unsaved.ts';

/** Segments, descriptor tables, control registers, EFER and the APIC base (struct kvm_sregs). */
export type Sregs = Value<typeof kvm_sregs>;
/** As Sregs, with the page-directory pointers of PAE paging (struct kvm_sregs2, since 5.14). */
export type Sregs2 = Value<typeof kvm_sregs2>;
/** Exceptions, interrupts, NMIs and SMIs that are pending or injected (struct kvm_vcpu_events). */
export type VcpuEvents = Value<typeof kvm_vcpu_events>;
/** DR0 to DR3, DR6 and DR7 (struct kvm_debugregs). */
export type DebugRegs = Value<typeof kvm_debugregs>;
/** One leaf of CPUID, with its subleaf (struct kvm_cpuid_entry2). */
export type CpuidEntry = Value<typeof kvm_cpuid_entry2>;
/** What a virtual address leads to, and whether it is valid, writable and the user's (struct kvm_translation). */
export type Translation = Value<typeof kvm_translation>;
/** A model-specific register: its number and its 64 bits. */
export type Msr = {
  /** Its number, as RDMSR takes it in ECX. */
  readonly index: number;
  /** Its contents, 64 bits. */
  readonly data: Integer;
};
/** What was done to a vCPU that the kernel cannot be asked for. */
export interface VcpuSetup {
  /** What enableCap() was given, in that order, each once. */
  readonly caps: readonly EnabledCap[];
  /** What it has that no snapshot carries, as a phrase each. */
  readonly unsaved: readonly string[];
}

/** The part of a Vcpu that is about its state. */
export abstract class VcpuState {
  protected readonly fd: Fd;
  protected readonly checkExtension: (cap: number) => number;
  /** Phrases, as VcpuSetup has them. */
  protected readonly unsaved = new Unsaved();
  readonly #caps = new EnabledCaps();
  #regs: LiveRegs | undefined;

  constructor(fd: Fd, checkExtension: (cap: number) => number) {
    this.fd = fd;
    this.checkExtension = checkExtension;
  }

  /**
   * The general registers in place, for who reads or writes a few of them at each exit: `regs.load()`, then `regs.rax`, then
   * `regs.store()`. Where KVM copies registers with each run there is no ioctl at all: `syncRegs`.
   * @example
   * ```ts
   * import { flatImage, Machine, openHypervisor } from 'vmexit';
   *
   * const machine = new Machine(openHypervisor(), { memory: 0x10_0000 });
   * machine.load(flatImage(Uint8Array.of(0x40, 0xf4), 'real'), { rax: 41 }); // inc ax; hlt
   * const { regs } = machine.vcpu;
   * machine.vcpu.run(5000);
   * regs.load();
   * console.log(regs.rax);
   * regs.rax = 7n;
   * regs.store();
   * console.log(machine.vcpu.getRegs().rax);
   * machine.close();
   * // prints: 42n
   * // prints: 7n
   * ```
   */
  get regs(): LiveRegs {
    this.#regs ??= liveRegs(this.fd);
    return this.#regs;
  }
  /** KVM_GET_REGS. */
  getRegs(): Regs {
    return this.fd.read(ioctls.KVM_GET_REGS, readRegs);
  }
  /**
   * KVM_SET_REGS. All of them: a register that is left out becomes 0. Cancels a pending exception. After an exit, call
   * complete() first: the instruction that was interrupted would overwrite rip.
   * @throws TypeError, RangeError ERR_KVM_INVALID_ARG, which names the field
   */
  setRegs(regs: Input<Regs>): void {
    this.fd.write(ioctls.KVM_SET_REGS, regs, writeRegs);
  }
  /** KVM_GET_SREGS. */
  getSregs(): Sregs {
    return this.fd.read(ioctls.KVM_GET_SREGS);
  }
  /** KVM_SET_SREGS: what is left out becomes 0. @throws KvmError EINVAL for a state no processor can be in */
  setSregs(sregs: Input<Sregs>): void {
    this.fd.write(ioctls.KVM_SET_SREGS, sregs);
  }
  /** KVM_GET_SREGS and KVM_SET_SREGS: what is left out stays as it is, in each segment too. @throws as setSregs() */
  changeSregs(sregs: Input<Sregs>): void {
    this.fd.change(ioctls.KVM_GET_SREGS, ioctls.KVM_SET_SREGS, sregs);
  }
  /** KVM_GET_SREGS2 (since 5.14). */
  getSregs2(): Sregs2 {
    return this.fd.read(ioctls.KVM_GET_SREGS2);
  }
  /** KVM_SET_SREGS2 (since 5.14): what is left out becomes 0. @throws as setSregs() */
  setSregs2(sregs: Input<Sregs2>): void {
    this.fd.write(ioctls.KVM_SET_SREGS2, sregs);
  }
  /** KVM_GET_FPU: x87 and SSE registers. `mxcsr` is always 0, for Linux leaves it out: XsaveArea has it. */
  getFpu(): Value<typeof kvm_fpu> {
    return this.fd.read(ioctls.KVM_GET_FPU);
  }
  /**
   * KVM_SET_FPU: what is left out becomes 0, but for `mxcsr`, which Linux does not look at. On KVM it has no effect while the guest
   * has not used the x87: Linux does not mark the x87 as used. setXsave() has one.
   */
  setFpu(fpu: Input<Value<typeof kvm_fpu>>): void {
    this.fd.write(ioctls.KVM_SET_FPU, fpu);
  }
  /** KVM_GET_XSAVE2 where KVM has it (since 5.17), else KVM_GET_XSAVE: the area's bytes, for an XsaveArea. */
  getXsave(): Uint8Array<ArrayBuffer> {
    const size = this.checkExtension(Cap.XSAVE2);
    if (size > 0) return this.fd.readSized(ioctls.KVM_GET_XSAVE2, size);
    const area = new Uint8Array(ioctls.KVM_GET_XSAVE.struct.size);
    this.fd.call(ioctls.KVM_GET_XSAVE, area);
    return area;
  }
  /**
   * KVM_SET_XSAVE.
   * @param area what getXsave() gave
   * @throws KvmError EINVAL for state components that this host does not have; TypeError ERR_KVM_INVALID_ARG
   */
  setXsave(area: Uint8Array): void {
    if (!(area instanceof Uint8Array)) throw wrongType('area', area, 'a Uint8Array from getXsave()');
    this.fd.call(ioctls.KVM_SET_XSAVE, area);
  }
  /** KVM_GET_XCRS: extended control registers, XCR0 among them. */
  getXcrs(): Value<typeof kvm_xcrs> {
    return this.fd.read(ioctls.KVM_GET_XCRS);
  }
  /** KVM_SET_XCRS. @throws KvmError EINVAL for state components that this host does not have */
  setXcrs(xcrs: Input<Value<typeof kvm_xcrs>>): void {
    this.fd.write(ioctls.KVM_SET_XCRS, xcrs);
  }
  /**
   * KVM_GET_NESTED_STATE (since 4.19, on AMD's processors 5.8): what KVM knows of this vCPU's own guest, where it is a hypervisor: a
   * kvm_nested_state (`vmexit/uapi`) and what follows it, as bytes.
   * @throws KvmError EINVAL where the host does not nest, ENOTTY in the simulator
   */
  getNestedState(): Uint8Array<ArrayBuffer> {
    const row = ioctls.KVM_GET_NESTED_STATE;
    const data = this.fd.readSized(row, this.checkExtension(Cap.NESTED_STATE));
    return data.slice(0, row.struct.decode(data).size);
  }
  /**
   * KVM_SET_NESTED_STATE (since 4.19, on AMD's processors 5.8). After setCpuid2(), setSregs() and setMsrs(), which decide what a nested guest may have.
   * @param state what getNestedState() gave
   * @throws KvmError EINVAL for a state that this vCPU cannot be in, or of the other vendor; TypeError, RangeError
   *   ERR_KVM_INVALID_ARG for bytes that are no such state
   */
  setNestedState(state: Uint8Array): void {
    const row = ioctls.KVM_SET_NESTED_STATE;
    if (!(state instanceof Uint8Array)) throw wrongType('state', state, 'a Uint8Array from getNestedState()');
    if (state.length < row.least || state.length > row.most)
      throw outOfRange("state's length", state.length, `${row.least} to ${row.most} bytes`);
    const { size } = row.struct.decode(state);
    if (size > state.length) throw outOfRange('state.size', size, `at most the ${state.length} bytes given`);
    this.fd.call(row, state);
  }
  /** KVM_GET_LAPIC. @throws KvmError EINVAL without an in-kernel interrupt controller, ENOTTY in the simulator */
  getLapic(): Value<typeof kvm_lapic_state> {
    return this.fd.read(ioctls.KVM_GET_LAPIC);
  }
  /** KVM_SET_LAPIC. @throws as getLapic() */
  setLapic(lapic: Input<Value<typeof kvm_lapic_state>>): void {
    this.fd.write(ioctls.KVM_SET_LAPIC, lapic);
  }
  /** KVM_GET_DEBUGREGS: the guest's own debug registers. */
  getDebugRegs(): DebugRegs {
    return this.fd.read(ioctls.KVM_GET_DEBUGREGS);
  }
  /** KVM_SET_DEBUGREGS. @throws KvmError EINVAL for flags, and for bits of DR6 and DR7 above 31 */
  setDebugRegs(regs: Input<DebugRegs>): void {
    this.fd.write(ioctls.KVM_SET_DEBUGREGS, regs);
  }
  /** KVM_GET_VCPU_EVENTS: pending and injected exceptions, interrupts, NMIs. */
  getVcpuEvents(): VcpuEvents {
    return this.fd.read(ioctls.KVM_GET_VCPU_EVENTS);
  }
  /**
   * KVM_SET_VCPU_EVENTS: what is left out becomes 0. `flags` (VcpuEventFlag) says which parts count.
   * @throws KvmError EINVAL for flags that this KVM does not have, and for events that cannot be
   */
  setVcpuEvents(events: Input<VcpuEvents>): void {
    this.fd.write(ioctls.KVM_SET_VCPU_EVENTS, events);
  }
  /** KVM_GET_MP_STATE: one of MpState. */
  getMpState(): number {
    return this.fd.read(ioctls.KVM_GET_MP_STATE).mpState;
  }
  /** KVM_SET_MP_STATE. @throws KvmError EINVAL without an in-kernel interrupt controller, but for RUNNABLE */
  setMpState(mpState: number): void {
    this.fd.write(ioctls.KVM_SET_MP_STATE, { mpState });
  }

  /**
   * KVM_SET_CPUID2: the CPUID that the guest sees, mostly what Hypervisor.getSupportedCpuid() gave. Before the first
   * run.
   * @param entries at most 256
   * @throws KvmError EINVAL for other entries once the vCPU has run; RangeError ERR_KVM_INVALID_ARG
   */
  setCpuid2(entries: readonly Input<CpuidEntry>[]): void {
    this.fd.exchangeList(ioctls.KVM_SET_CPUID2, entries);
  }
  /** KVM_GET_CPUID2: what setCpuid2() was given; empty without it. */
  getCpuid2(): CpuidEntry[] {
    return this.fd.readList(ioctls.KVM_GET_CPUID2);
  }
  /**
   * KVM_GET_MSRS.
   * @param indices register numbers, at most 256
   * @returns those that KVM could read: the first that it cannot ends the list
   */
  getMsrs(indices: readonly number[]): Value<typeof kvm_msr_entry>[] {
    if (!Array.isArray(indices)) throw wrongType('indices', indices, 'an array of MSR numbers');
    const wanted = indices.map((index) => ({ index: u32('index', index) }));
    const { result, elements } = this.fd.exchangeList(ioctls.KVM_GET_MSRS, wanted);
    return elements.slice(0, result);
  }
  /** KVM_SET_MSRS. @returns how many were set: the first that KVM refuses ends it */
  setMsrs(msrs: readonly Msr[]): number {
    return this.fd.exchangeList(ioctls.KVM_SET_MSRS, msrs).result;
  }

  /**
   * KVM_TRANSLATE: walks the guest's page tables.
   * @param linearAddress a virtual address of 64 bits
   * @returns the guest-physical address; `valid` is 0 where nothing is mapped
   */
  translate(linearAddress: Integer): Translation {
    return this.fd.exchange(ioctls.KVM_TRANSLATE, { linearAddress });
  }
  /**
   * KVM_SET_GUEST_DEBUG: single-step (Exit.DEBUG after each instruction), breakpoints.
   * @param debug `control` is GuestDebug bits; 0 ends it
   * @throws KvmError EBUSY when an exception is to be injected and one is pending already
   */
  setGuestDebug(debug: Input<Value<typeof kvm_guest_debug>>): void {
    this.fd.write(ioctls.KVM_SET_GUEST_DEBUG, debug);
  }
  /**
   * KVM_INTERRUPT: injects an external interrupt; only without an in-kernel interrupt controller, and only when
   * `raw.readyForInterruptInjection` is set: ask for that with `raw.requestInterruptWindow`.
   * @param vector 0 to 255
   * @throws KvmError ENXIO after Vm.createIrqchip(); RangeError ERR_KVM_INVALID_ARG
   */
  interrupt(vector: number): void {
    this.fd.write(ioctls.KVM_INTERRUPT, { irq: integer('vector', vector, 255) });
  }
  /** KVM_NMI: a non-maskable interrupt. */
  nmi(): void {
    this.fd.call(ioctls.KVM_NMI);
  }
  /**
   * KVM_SMI: a system-management interrupt (KVM_CAP_X86_SMM). The guest is then in address space 1 of the VM: without a slot
   * there with its handler's memory, the next run() is a KvmError EIO, and the VM is of no more use.
   * @throws KvmError ENOTTY where there is no SMM
   */
  smi(): void {
    this.fd.call(ioctls.KVM_SMI);
  }
  /**
   * KVM_X86_SETUP_MCE: what IA32_MCG_CAP tells the guest of its banks of machine-check registers, whose contents it clears.
   * @param mcgCap 64 bits: the number of banks, 1 to 32, in the low eight, and bits of Hypervisor.getMceCapSupported()
   * @throws KvmError EINVAL for others; ENOTTY in the simulator
   */
  setupMce(mcgCap: Integer): void {
    this.fd.write(ioctls.KVM_X86_SETUP_MCE, mcgCap);
    this.unsaved.add('banks of machine checks of its own (setupMce())');
  }
  /**
   * KVM_X86_SET_MCE: a machine check in bank `bank`. One that is uncorrected (bit 61 of `status`) is #MC for the guest, or a triple fault where
   * the guest has CR4.MCE 0 or is in another (SDM volume 3, 16.3). One without is only logged in the bank.
   * @param mce `status` has its valid bit (63); what is left out becomes 0
   * @throws KvmError EINVAL for a bank that there is not, and without the valid bit; ENOTTY in the simulator
   */
  setMce(mce: Input<Value<typeof kvm_x86_mce>>): void {
    this.fd.write(ioctls.KVM_X86_SET_MCE, mce);
    this.unsaved.add('a machine check (setMce())');
  }
  /**
   * KVM_TPR_ACCESS_REPORTING: whether an access of the guest's to the task priority register of the local APIC ends run()
   * with Exit.TPR_ACCESS. Only Intel's processors without virtual TPR know of such accesses.
   * @returns whether it was on
   * @throws KvmError EINVAL without an in-kernel interrupt controller, ENOTTY in the simulator
   */
  tprAccessReporting(enabled: boolean): boolean {
    const request = { enabled: enabled ? 1 : 0 };
    const wasOn = this.fd.exchange(ioctls.KVM_TPR_ACCESS_REPORTING, request).enabled !== 0;
    this.unsaved.note('reports of TPR accesses', enabled);
    return wasOn;
  }
  /**
   * KVM_SET_VAPIC_ADDR: four bytes of guest memory in which KVM keeps the task priority and what waits below it, for a guest
   * whose accesses to the APIC are patched to go there.
   * @param address guest-physical, in bytes; 0 ends it
   * @throws KvmError EINVAL without an in-kernel interrupt controller, and where no slot is; ENOTTY in the simulator
   */
  setVapicAddr(address: Integer): void {
    this.fd.write(ioctls.KVM_SET_VAPIC_ADDR, { vapicAddr: address });
    this.unsaved.note('a task priority in its memory (setVapicAddr())', BigInt(address) !== 0n);
  }
  /**
   * KVM_GET_SUPPORTED_HV_CPUID for this vCPU (since 5.0; since 5.11 see Hypervisor.getSupportedHvCpuid()): it tells of
   * enlightened VMCSs only where they are enabled.
   * @throws KvmError ENOTTY in the simulator
   */
  getSupportedHvCpuid(): CpuidEntry[] {
    return this.fd.readList(ioctls.KVM_GET_SUPPORTED_HV_CPUID);
  }
  /**
   * KVM_GET_STATS_FD (since 5.14): this vCPU's statistics. Close what it gives, or use `using`.
   * @throws KvmError ENOTTY in the simulator
   */
  getStatsFd(): Stats {
    return statsOf(this.fd, ioctls.KVM_GET_STATS_FD);
  }
  /** KVM_GET_TSC_KHZ: the rate of the guest's time-stamp counter, in kHz. */
  getTscKhz(): number {
    return this.fd.call(ioctls.KVM_GET_TSC_KHZ);
  }
  /**
   * KVM_SET_TSC_KHZ: the rate of the guest's time-stamp counter.
   * @param khz thousands of cycles a second; below the host's own rate only with KVM_CAP_TSC_CONTROL
   * @throws KvmError EINVAL for a rate that cannot be had, ENOTTY in the simulator
   */
  setTscKhz(khz: number): void {
    this.fd.call(ioctls.KVM_SET_TSC_KHZ, u32('khz', khz));
  }
  /**
   * KVM_KVMCLOCK_CTRL: tells the guest's watchdog that it was paused.
   * @throws KvmError EINVAL when the guest has no kvmclock, ENOTTY in the simulator
   */
  kvmclockCtrl(): void {
    this.fd.call(ioctls.KVM_KVMCLOCK_CTRL);
  }
  /** KVM_ENABLE_CAP for this vCPU. @throws KvmError EINVAL for a capability that cannot be enabled for one */
  enableCap(cap: Input<Value<typeof kvm_enable_cap>>): void {
    this.#caps.enable(this.fd, cap);
  }
  /** What this Vcpu's ioctls have made of it. */
  get setup(): VcpuSetup {
    return { caps: this.#caps.list, unsaved: [...this.unsaved] };
  }

  /**
   * KVM_PRE_FAULT_MEMORY (since 6.11): maps guest memory before the guest touches it. A failing call writes
   * kvm_run's exit union: read the exit first.
   * @param gpa bytes, a multiple of 4096
   * @param size bytes, a multiple of 4096 above 0
   * @returns bytes that were not mapped, from the end of the range: 0 when all are
   * @throws KvmError when nothing was mapped: ENOENT (no slot), EINVAL, EAGAIN, EINTR
   */
  preFaultMemory(gpa: number, size: number): number {
    return this.fd.exchange(ioctls.KVM_PRE_FAULT_MEMORY, {
      gpa: integer('gpa', gpa),
      size: integer('size', size),
    }).size;
  }
}

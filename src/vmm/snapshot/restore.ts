/**
 * A machine made anew from its state, in steps: the VM with empty memory, then the contents of memory, or somebody who
 * brings them on demand, and then the registers. So neither a file nor a socket is known here.
 */

import { KvmError, VmexitError } from '../../hypervisor/errors.ts';
import { routeOf } from '../../hypervisor/gsi-routing.ts';
import type { GuestMemfd } from '../../hypervisor/guest-memfd.ts';
import type { GuestMemory } from '../../hypervisor/guest-memory.ts';
import type { Hypervisor } from '../../hypervisor/hypervisor.ts';
import type { Vcpu } from '../../hypervisor/vcpu.ts';
import type { CpuidEntry } from '../../hypervisor/vcpu-state.ts';
import type { Vm } from '../../hypervisor/vm.ts';
import { Cap } from '../../uapi/cap.ts';
import { Irqchip } from '../../uapi/constants.ts';
import type { Value } from '../../uapi/layout.ts';
import { kvm_irq_routing_entry } from '../../uapi/structs.ts';
import {
  kvm_cpuid_entry2,
  kvm_debugregs,
  kvm_ioapic_state,
  kvm_lapic_state,
  kvm_msr_entry,
  kvm_pic_state,
  kvm_pit_state2,
  kvm_regs,
  kvm_sregs,
  kvm_sregs2,
  kvm_vcpu_events,
  kvm_xcrs,
  kvm_xsave,
} from '../../uapi/x86.ts';
import { lackingFeatures } from './cpuid.ts';
import { fromHex, type MachineState, unpack, unpackAll, type VcpuState } from './schema.ts';
import { MAX_MSRS } from './state.ts';

/** What is to be other than it was saved. */
export interface RestoreOptions {
  /**
   * The CPUID that the guest sees from now on, instead of the one that was saved. A guest that has found features does
   * not ask again, so this is for one that uses none that are missing here.
   */
  readonly cpuid?: readonly CpuidEntry[];
}

/**
 * MSRs that tell of the host and hold nothing of the guest's: where they cannot be set they stay what they are here.
 * Of arch/x86/kvm/x86.c the feature MSRs, and what only tunes the hypervisor.
 */
const HOST_MSRS: ReadonlyMap<number, string> = new Map([
  [0x8b, 'IA32_BIOS_SIGN_ID'],
  [0xce, 'MSR_PLATFORM_INFO'],
  [0xcf, 'IA32_CORE_CAPABILITIES'],
  [0x10a, 'IA32_ARCH_CAPABILITIES'],
  [0x1a0, 'IA32_MISC_ENABLE'],
  [0x345, 'IA32_PERF_CAPABILITIES'],
  ...Array.from({ length: 0x12 }, (_, i): [number, string] => [0x480 + i, 'IA32_VMX_*']),
  [0xc001_1029, 'MSR_AMD64_DE_CFG'],
  [0x4000_0002, 'HV_X64_MSR_VP_INDEX'],
  [0x4000_0010, 'HV_X64_MSR_VP_RUNTIME'],
  [0x4000_0020, 'HV_X64_MSR_TIME_REF_COUNT'],
  [0x4000_0022, 'HV_X64_MSR_TSC_FREQUENCY'],
  [0x4000_0023, 'HV_X64_MSR_APIC_FREQUENCY'],
  [0x4b56_4d05, 'MSR_KVM_POLL_CONTROL'],
]);

/** MSRs of the guest that are not 0 after reset: IA32_SMBASE (SDM 3, SMM) and MSR_AMD64_TSC_RATIO (APM 2, SVM). */
const RESET_MSRS: ReadonlyMap<number, bigint> = new Map([
  [0x9e, 0x3_0000n],
  [0xc000_0104, 1n << 32n],
]);

/** Kernel and hardware scale time-stamp counters that differ by more than this (KVM's tsc_tolerance_ppm). */
const TSC_TOLERANCE = 250e-6;

/** Offsets in an XSAVE area (SDM volume 1, 13.4). */
const XSTATE_BV = 512;
const EXTENDED_AREA = 576;
const X87_AND_SSE = 3;

/** CPUID.1:ECX, which KVM_GET_SUPPORTED_CPUID leaves to KVM_CAP_TSC_DEADLINE_TIMER (api.rst). */
const TSC_DEADLINE = 1 << 24;

/** What not every host has in the kernel: whether a machine has it, the capability, and what it is called. */
const inKernel: readonly (readonly [(vm: MachineState['vm']) => boolean, cap: number, name: string])[] = [
  [({ irqchip }) => irqchip !== null, Cap.IRQCHIP, 'interrupt controllers'],
  [({ caps }) => caps.some(({ cap }) => cap === Cap.SPLIT_IRQCHIP), Cap.SPLIT_IRQCHIP, 'local APICs'],
  [({ pit }) => pit !== null, Cap.PIT2, 'a timer'],
  [({ gsiRouting }) => gsiRouting !== null, Cap.IRQ_ROUTING, 'routes of interrupts'],
  [({ bootCpuId }) => bootCpuId !== null, Cap.SET_BOOT_CPU_ID, 'a boot processor of its choice'],
];

const unfit = (what: string, options?: ErrorOptions) => new VmexitError('ERR_KVM_SNAPSHOT', what, options);
const shown = (value: number | bigint) => `0x${value.toString(16)}`;

/**
 * A machine made anew from its state: the VM, its vCPUs and memories. It owns them: close() closes all.
 * Registers are set by begin(), once memory is there or a pager brings it; restoreSnapshot() does all of it.
 */
export class RestoredMachine implements Disposable {
  /** The VM, of the type that was saved. */
  readonly vm: Vm;
  /** Its vCPUs, in the order of the state. */
  readonly vcpus: readonly Vcpu[];
  /** In the order of the state's sizes; zero until somebody fills them. */
  readonly memories: readonly GuestMemory[];
  /** What is other here than where the state was saved, and the guest could notice: a line each. */
  readonly differences: readonly string[];
  readonly #differences: string[] = [];
  readonly #state: MachineState;
  readonly #opened: Disposable[] = [];

  /**
   * The VM with its memory, slots, attributes and vCPUs, of which no register is set.
   * @throws VmexitError ERR_KVM_SNAPSHOT when the guest was told of processor features that are not here, or the VM had in
   *   the kernel what is not here: the simulator has no interrupt controllers; KvmError
   *   where the kernel refuses what it is told to make. Nothing stays open then
   */
  constructor(hv: Hypervisor, state: MachineState, { cpuid }: RestoreOptions = {}) {
    this.#state = state;
    this.differences = this.#differences;
    const saved = state.vm;
    this.#checkInKernel(hv);
    try {
      const vm = this.#open(hv.createVm({ type: saved.type }));
      this.vm = vm;
      // Before the capabilities, of which some ask for it; all of it before the first vCPU.
      if (saved.irqchip !== null) vm.createIrqchip();
      for (const { args, ...cap } of saved.caps) vm.enableCap({ ...cap, args: args.map(BigInt) });
      if (saved.bootCpuId !== null) vm.setBootCpuId(saved.bootCpuId);
      if (saved.pit !== null) vm.createPit2(saved.pit.flags);
      if (saved.gsiRouting !== null) {
        const entries = unpackAll(kvm_irq_routing_entry, saved.gsiRouting.routes);
        vm.setGsiRouting(entries.map(routeOf), saved.gsiRouting.flags);
      }
      if (saved.tssAddress !== null) vm.setTssAddr(saved.tssAddress);
      if (saved.identityMapAddress !== null) vm.setIdentityMapAddr(saved.identityMapAddress);
      this.memories = saved.memories.map((size) => this.#open(vm.allocate(size)));
      this.#placeSlots(saved.guestMemfds.map((size) => this.#open(vm.createGuestMemfd(size))));
      for (const { start, end, attributes } of saved.attributes)
        vm.setMemoryAttributes({ address: start, size: end - start, attributes });
      this.vcpus = state.vcpus.map((vcpu) => this.#createVcpu(hv, vcpu, cpuid));
    } catch (error) {
      this.close();
      throw error;
    }
  }

  #open<T extends Disposable>(object: T): T {
    this.#opened.push(object);
    return object;
  }

  #checkInKernel(hv: Hypervisor): void {
    const { vm, backend } = this.#state;
    const lacking = inKernel.filter(([has, cap]) => has(vm) && hv.checkExtension(cap) === 0);
    if (lacking.length === 0) return;
    const names = lacking.map(([, , name]) => name).join(', ');
    const here = hv.backend === 'sim' ? 'the simulator' : "this host's KVM";
    const there = backend === 'sim' ? 'the simulator' : 'KVM';
    throw unfit(
      `the machine has ${names} in the kernel, which ${here} lacks: go on where it was saved (on ${there})`,
    );
  }

  #placeSlots(guestMemfds: readonly GuestMemfd[]): void {
    const { memories, vm } = this;
    for (const { start, size, memory, guestMemfd, guestMemfdOffset, ...slot } of this.#state.vm.slots) {
      const region = {
        ...slot,
        guestPhysAddr: start,
        memorySize: size,
        memory: memory === null ? undefined : memories[memory],
      };
      if (guestMemfd === null) vm.setUserMemoryRegion(region);
      else vm.setUserMemoryRegion2({ ...region, guestMemfd: guestMemfds[guestMemfd], guestMemfdOffset });
    }
  }

  #createVcpu(hv: Hypervisor, saved: VcpuState, cpuid: readonly CpuidEntry[] | undefined): Vcpu {
    if (saved.nested !== null && this.vm.checkExtension(Cap.NESTED_STATE) === 0)
      throw unfit(
        `the guest is a hypervisor itself, and ${hv.backend === 'sim' ? 'the simulator has' : "this host's KVM has"} no nested guests: go on where it was saved`,
      );
    const vcpu = this.#open(this.vm.createVcpu(saved.id));
    const wanted = cpuid ?? unpackAll(kvm_cpuid_entry2, saved.cpuid);
    // KVM tells the guest more than KVM_GET_SUPPORTED_CPUID on some hosts: what a vCPU has then is supported too.
    const supported = hv.getSupportedCpuid();
    vcpu.setCpuid2(supported);
    const has = [...supported, ...vcpu.getCpuid2()];
    if (saved.lapic !== null && hv.checkExtension(Cap.TSC_DEADLINE_TIMER) > 0)
      has.push({ ...has.find((leaf) => leaf.function === 1)!, ecx: TSC_DEADLINE });
    const lacking = lackingFeatures(wanted, has);
    if (lacking.length > 0) {
      const from = `it was saved on ${this.#state.backend === 'sim' ? 'the simulator' : 'KVM'}`;
      throw unfit(
        `the guest was told of processor features that ${hv.backend === 'sim' ? 'the simulator' : "this host's KVM"} lacks: ${lacking.join(', ')} (${from}; go on there, or begin with a CPUID that both have)`,
      );
    }
    vcpu.setCpuid2(wanted);
    for (const { args, ...cap } of saved.caps) vcpu.enableCap({ ...cap, args: args.map(BigInt) });
    return vcpu;
  }

  /**
   * Sets all registers and pending events: the guest is then where it was. Memory must have its contents, or a pager
   * that serves what KVM itself reads: setting CR3 reads the page-directory-pointers of a guest with PAE.
   * @throws VmexitError ERR_KVM_SNAPSHOT for an MSR that is refused here; KvmError
   */
  begin(): void {
    for (const [i, saved] of this.#state.vcpus.entries()) this.#setRegisters(this.vcpus[i]!, saved);
    this.#setInterruptControllers();
    const { clock } = this.#state.vm;
    // kvm_run is then as KVM_RUN leaves it: whether an interrupt can be injected, for one.
    for (const vcpu of this.vcpus) vcpu.complete(() => {});
    if (clock !== null && this.vm.checkExtension(Cap.ADJUST_CLOCK) > 0)
      this.vm.setClock({ clock: BigInt(clock) });
  }

  /** After the local APICs: what is pending here is delivered to them. */
  #setInterruptControllers(): void {
    const { irqchip, pit } = this.#state.vm;
    if (irqchip !== null) {
      const { vm } = this;
      vm.setIrqchip({ chipId: Irqchip.PIC_MASTER, pic: unpack(kvm_pic_state, irqchip.master) });
      vm.setIrqchip({ chipId: Irqchip.PIC_SLAVE, pic: unpack(kvm_pic_state, irqchip.slave) });
      vm.setIrqchip({ chipId: Irqchip.IOAPIC, ioapic: unpack(kvm_ioapic_state, irqchip.ioapic) });
    }
    if (pit === null) return;
    const state = unpack(kvm_pit_state2, pit.state);
    this.vm.setPit2(state);
    // Channel 0 counts from now on, by this host's clock; that of another may be ahead, and no count can be in the future.
    const now = this.vm.getPit2().channels[0]!.countLoadTime;
    const earliest = (time: bigint) => (time < now ? time : now);
    const channels = state.channels.map((channel) => ({
      ...channel,
      countLoadTime: earliest(channel.countLoadTime),
    }));
    this.vm.setPit2({ ...state, channels });
    if (!pit.reinject) this.vm.reinjectControl(false);
  }

  /**
   * In this order each ioctl keeps what those before it have set (api.rst; KVM_SET_REGS cancels exceptions). The local APIC's
   * mode is in its base, of the special registers; its timer's deadline is an MSR that counts in the timer's mode alone.
   */
  #setRegisters(vcpu: Vcpu, saved: VcpuState): void {
    this.#setTscKhz(vcpu, saved.tscKhz);
    const sregs = saved.sregs2 === null ? unpack(kvm_sregs, saved.sregs!) : unpack(kvm_sregs2, saved.sregs2);
    if ('pdptrs' in sregs) vcpu.setSregs2(sregs);
    else vcpu.setSregs(sregs);
    // Without interrupt controllers in the kernel KVM_RUN takes CR8 from here.
    vcpu.raw.cr8 = sregs.cr8;
    if (saved.lapic !== null) vcpu.setLapic(unpack(kvm_lapic_state, saved.lapic));
    vcpu.setRegs(unpack(kvm_regs, saved.regs));
    if (saved.xcrs !== null) this.#setXcrs(vcpu, unpack(kvm_xcrs, saved.xcrs));
    vcpu.setXsave(this.#xsave(saved.xsave));
    vcpu.setDebugRegs(unpack(kvm_debugregs, saved.debugRegs));
    this.#setMsrs(vcpu, unpackAll(kvm_msr_entry, saved.msrs));
    // What it may be follows from EFER, CR4 and the MSRs; the registers so far are then the nested guest's.
    if (saved.nested !== null) vcpu.setNestedState(fromHex(saved.nested));
    vcpu.setVcpuEvents(unpack(kvm_vcpu_events, saved.events));
    vcpu.setMpState(saved.mpState);
  }

  /** Without KVM_CAP_TSC_CONTROL KVM takes its own rate, and any above it: the counter then catches up at each exit. */
  #setTscKhz(vcpu: Vcpu, khz: number): void {
    const here = vcpu.getTscKhz();
    if (khz === 0 || Math.abs(here - khz) <= khz * TSC_TOLERANCE) return;
    try {
      vcpu.setTscKhz(khz);
    } catch (error) {
      if (!(error instanceof KvmError)) throw error;
      this.#differences.push(
        `vCPU ${vcpu.id}: the time-stamp counter runs at ${here} kHz, and ran at ${khz} kHz`,
      );
    }
  }

  /** A processor without XSAVE has XCR0 as after reset, and nothing that could set it. */
  #setXcrs(vcpu: Vcpu, xcrs: Value<typeof kvm_xcrs>): void {
    if (this.vm.checkExtension(Cap.XCRS) > 0 && vcpu.getXcrs().nrXcrs > 0) vcpu.setXcrs(xcrs);
    else if (xcrs.xcrs[0]!.value !== 1n)
      throw unfit(
        `XCR0 is ${shown(xcrs.xcrs[0]!.value)}, and this host has no XSAVE: go on where it was saved`,
      );
  }

  /** As large as this host has it; what it has no room for must not be in use. */
  #xsave(hex: string): Uint8Array {
    const size = Math.max(kvm_xsave.size, this.vm.checkExtension(Cap.XSAVE2));
    const saved = fromHex(hex);
    if (saved.length > size)
      throw unfit(`the guest's extended registers take ${saved.length} bytes, and this host has ${size}`);
    const area = new Uint8Array(size);
    area.set(saved);
    // Every component but the first two begins as zeroes: XSTATE_BV of a host that has more is then none of here.
    if (saved.length <= EXTENDED_AREA) {
      area[XSTATE_BV]! &= X87_AND_SSE;
      area.fill(0, XSTATE_BV + 1, XSTATE_BV + 8);
    }
    return area;
  }

  /** The first that is refused ends KVM_SET_MSRS: it is looked at, and the rest set again. */
  #setMsrs(vcpu: Vcpu, msrs: readonly Value<typeof kvm_msr_entry>[]): void {
    for (let at = 0; at < msrs.length; ) {
      const batch = msrs.slice(at, at + MAX_MSRS);
      const done = vcpu.setMsrs(batch);
      at += done;
      if (done < batch.length) this.#refused(vcpu, msrs[at++]!);
    }
  }

  #refused(vcpu: Vcpu, { index, data }: Value<typeof kvm_msr_entry>): void {
    const here = vcpu.getMsrs([index])[0]?.data;
    // Either it is so already, or the guest has not used what is not here.
    if (here === data || (here === undefined && data === (RESET_MSRS.get(index) ?? 0n))) return;
    const is = here === undefined ? 'is not there' : `is ${shown(here)}`;
    const name = HOST_MSRS.get(index);
    if (name === undefined)
      throw unfit(
        `MSR ${shown(index)} was ${shown(data)}, and this host refuses it: go on where it was saved`,
      );
    this.#differences.push(`vCPU ${vcpu.id}: ${name} (MSR ${shown(index)}) ${is}, and was ${shown(data)}`);
  }

  /** Idempotent. */
  close(): void {
    for (const object of this.#opened.splice(0).reverse()) object[Symbol.dispose]();
  }

  /** As close(): for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}

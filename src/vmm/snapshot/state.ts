/**
 * A machine's state as plain data: all that its guest could notice but the contents of its memory. Not in it: what is
 * the VMM's own, such as KVM_SET_GUEST_DEBUG, an interrupt window that was asked for, logs of dirty pages, and with a split irqchip the
 * I/O APIC.
 */

import type { EnabledCap } from '../../hypervisor/enabled-caps.ts';
import { VmexitError } from '../../hypervisor/errors.ts';
import { routingEntry } from '../../hypervisor/gsi-routing.ts';
import type { GuestMemory } from '../../hypervisor/guest-memory.ts';
import type { Hypervisor } from '../../hypervisor/hypervisor.ts';
import type { Slot } from '../../hypervisor/memory-map.ts';
import type { Vcpu } from '../../hypervisor/vcpu.ts';
import type { Vm } from '../../hypervisor/vm.ts';
import { Cap } from '../../uapi/cap.ts';
import { Irqchip, MemFlag, MemoryAttribute, RunFlag } from '../../uapi/constants.ts';
import { exitName } from '../../uapi/exit.ts';
import type { Type, Value } from '../../uapi/layout.ts';
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
} from '../../uapi/x86.ts';
import {
  type MachineState,
  pack,
  packAll,
  type SlotState,
  STATE_VERSION,
  toHex,
  type VcpuState,
} from './schema.ts';

/** What captureState() needs besides the machine. */
export interface CaptureOptions {
  /**
   * Answers the exits that finishing an instruction takes, as after Vcpu.run(): the write of a read-modify-write of
   * memory-mapped I/O is one. Without it such an exit ends the capture with ERR_KVM_NOT_SAVABLE; the exit is still to
   * be served then, and the capture can be tried again.
   */
  readonly service?: (vcpu: Vcpu, exit: number) => void;
  /** The state of the VMM's own devices, by name. */
  readonly devices?: Readonly<Record<string, Uint8Array>>;
}

/** What captureState() gives: the state, and the memories that it speaks of by number. */
export interface Capture {
  /** The machine as plain data. */
  readonly state: MachineState;
  /** The memories that `state.vm.memories` gives the sizes of, in that order. */
  readonly memories: readonly GuestMemory[];
}

const notSavable = (what: string) => new VmexitError('ERR_KVM_NOT_SAVABLE', what);
const address = (value: number | bigint) => `0x${value.toString(16)}`;

/** How the VMM is told of dirty pages: that is its own, as the flag of the slots is. */
const VMM_CAPS: ReadonlySet<number> = new Set([
  Cap.DIRTY_LOG_RING,
  Cap.DIRTY_LOG_RING_ACQ_REL,
  Cap.MANUAL_DIRTY_LOG_PROTECT2,
]);

/** The last guest-physical address that x86 can have, and one. */
const END = 2 ** 52;

/** CR4.VMXE (SDM volume 3, 2.5) and EFER.SVME (APM volume 2, 3.1.7): the guest is a hypervisor itself. */
const CR4_VMXE = 1n << 13n;
const EFER_SVME = 1n << 12n;

/**
 * The state of a machine whose vCPUs do not run. Instructions that an exit has interrupted are finished first. Nothing
 * else changes, and the machine may run on.
 * @param vcpus all that the VM has
 * @throws VmexitError ERR_KVM_NOT_SAVABLE for a VM with private pages (the range is named: the host cannot read them),
 *   pages that have not arrived, a guest that is a hypervisor where KVM does not tell of its guest, or what `unsaved` of VmSetup and
 *   VcpuSetup names; KvmError
 */
export function captureState(
  hv: Hypervisor,
  vm: Vm,
  vcpus: readonly Vcpu[],
  { service, devices = {} }: CaptureOptions = {},
): Capture {
  const all = [...vm.memoryMap.slots, ...vm.memoryMap.otherSlots];
  checkSavable(vm, vcpus, all);
  for (const vcpu of vcpus) {
    vcpu.complete((exit) => {
      if (service === undefined)
        throw notSavable(
          `vCPU ${vcpu.id} is in an instruction that needs ${exitName(exit)} served: give \`service\``,
        );
      service(vcpu, exit);
    });
  }
  // By then the guest may have shared memory, or made it private.
  checkSavable(vm, vcpus, all);
  const memories = distinct(all.map(({ memory }) => memory));
  const guestMemfds = distinct(all.map(({ guestMemfd }) => guestMemfd));
  const slots = all.map(
    (slot): SlotState => ({
      slot: slot.slot,
      addressSpace: slot.addressSpace,
      flags: slot.flags & MemFlag.READONLY,
      start: slot.start,
      size: slot.end - slot.start,
      memory: slot.memory === undefined ? null : memories.indexOf(slot.memory),
      memoryOffset: slot.memory === undefined ? 0 : slot.memoryOffset,
      guestMemfd: slot.guestMemfd === undefined ? null : guestMemfds.indexOf(slot.guestMemfd),
      guestMemfdOffset: slot.guestMemfdOffset,
    }),
  );
  const msrs = [...new Set([...hv.getMsrIndexList(), ...MEMORY_TYPES])];
  const { caps, tssAddress, identityMapAddress, bootCpuId } = vm.setup;
  // What the kernel's timer raises while this goes on is in the local APICs, which are read after what it passes first.
  const interrupts = interruptState(vm);
  const state: MachineState = {
    version: STATE_VERSION,
    backend: hv.backend,
    vm: {
      type: vm.type,
      caps: caps.filter(({ cap }) => !VMM_CAPS.has(cap)).map(capState),
      tssAddress: tssAddress ?? null,
      identityMapAddress: identityMapAddress ?? null,
      bootCpuId: bootCpuId ?? null,
      ...interrupts,
      memories: memories.map(({ size }) => size),
      guestMemfds: guestMemfds.map(({ size }) => size),
      slots,
      attributes: [...vm.memoryMap.attributesWithin(0, END)]
        .filter(({ value }) => value !== 0)
        .map(({ start, end, value }) => ({ start, end, attributes: value })),
      clock: vm.checkExtension(Cap.ADJUST_CLOCK) > 0 ? vm.getClock().clock.toString() : null,
    },
    vcpus: vcpus.map((vcpu) => vcpuState(vm, vcpu, msrs)),
    devices: Object.fromEntries(Object.entries(devices).map(([name, bytes]) => [name, toHex(bytes)])),
  };
  return { state, memories };
}

const distinct = <T>(values: readonly (T | undefined)[]): T[] => [
  ...new Set(values.filter((value) => value !== undefined)),
];

const capState = ({ cap, flags, args }: EnabledCap) => ({ cap, flags, args: args.map(String) });

/** The interrupt controllers that all vCPUs share, the timer, and where GSIs lead. */
function interruptState(vm: Vm): Pick<MachineState['vm'], 'irqchip' | 'pit' | 'gsiRouting'> {
  const { irqchip, pit, gsiRouting } = vm.setup;
  const picState = (chipId: typeof Irqchip.PIC_MASTER | typeof Irqchip.PIC_SLAVE) =>
    pack(kvm_pic_state, vm.getIrqchip(chipId).pic);
  return {
    irqchip:
      irqchip !== 'kernel'
        ? null
        : {
            master: picState(Irqchip.PIC_MASTER),
            slave: picState(Irqchip.PIC_SLAVE),
            ioapic: pack(kvm_ioapic_state, vm.getIrqchip(Irqchip.IOAPIC).ioapic),
          },
    pit: pit === undefined ? null : { ...pit, state: pack(kvm_pit_state2, vm.getPit2()) },
    gsiRouting:
      gsiRouting === undefined
        ? null
        : {
            flags: gsiRouting.flags,
            routes: packAll<unknown>(kvm_irq_routing_entry as Type, gsiRouting.routes.map(routingEntry)),
          },
  };
}

/** Capabilities whose argument is a file descriptor of this process. */
const OF_THIS_PROCESS: readonly number[] = [
  Cap.SGX_ATTRIBUTE,
  Cap.VM_COPY_ENC_CONTEXT_FROM,
  Cap.VM_MOVE_ENC_CONTEXT_FROM,
];

function checkSavable(vm: Vm, vcpus: readonly Vcpu[], slots: readonly Slot[]): void {
  for (const { start, end, value } of vm.memoryMap.attributesWithin(0, END)) {
    if ((value & MemoryAttribute.PRIVATE) === 0) continue;
    const range = `${address(start)} to ${address(end - 1)}`;
    throw notSavable(
      `guest memory from ${range} is private: the host cannot read it. Share it, or take it from the guest first`,
    );
  }
  for (const { slot, flags, memory, guestMemfd } of slots) {
    if (memory?.closed)
      throw notSavable(`the memory of slot ${slot} was closed, so it cannot be read: save before that`);
    if (guestMemfd !== undefined && guestMemfd.flags !== 0)
      throw notSavable(
        `slot ${slot} is a guest_memfd that the host maps, which no snapshot knows: use Vm.allocate()`,
      );
    if ((flags & MemFlag.USERFAULT) !== 0 || memory?.demand !== undefined)
      throw notSavable(`pages of slot ${slot} may not have arrived yet: wait until the pager is complete`);
  }
  for (const [owner, { caps, unsaved }] of [
    ['the VM', vm.setup] as const,
    ...vcpus.map((vcpu) => [`vCPU ${vcpu.id}`, vcpu.setup] as const),
  ]) {
    const [what] = unsaved;
    if (what !== undefined) throw notSavable(`${owner} has ${what}, which no snapshot carries`);
    const own = caps.find(({ cap }) => OF_THIS_PROCESS.includes(cap));
    if (own !== undefined)
      throw notSavable(
        `${owner} has capability ${own.cap} by a file descriptor of this process, which no snapshot carries`,
      );
  }
}

function vcpuState(vm: Vm, vcpu: Vcpu, msrs: readonly number[]): VcpuState {
  // An INIT or a SIPI that has arrived is taken by this, and changes the registers (kvm_apic_accept_events()).
  const mpState = vcpu.getMpState();
  const two = vm.checkExtension(Cap.SREGS2) > 0;
  const sregs = two ? vcpu.getSregs2() : vcpu.getSregs();
  const nested = nestedState(vm, vcpu, (sregs.cr4 & CR4_VMXE) !== 0n || (sregs.efer & EFER_SVME) !== 0n);
  const xcrs = vm.checkExtension(Cap.XCRS) > 0 ? vcpu.getXcrs() : undefined;
  const { caps } = vcpu.setup;
  const hasSynic = caps.some(({ cap }) => cap === Cap.HYPERV_SYNIC || cap === Cap.HYPERV_SYNIC2);
  const { values, unreadable } = readMsrs(vcpu, hasSynic ? [...new Set([...msrs, ...SYNIC])] : msrs);
  const xsave = vcpu.getXsave();
  return {
    id: vcpu.id,
    caps: caps.map(capState),
    cpuid: packAll(kvm_cpuid_entry2, vcpu.getCpuid2()),
    regs: pack(kvm_regs, vcpu.getRegs()),
    sregs2: two ? pack(kvm_sregs2, sregs as Value<typeof kvm_sregs2>) : null,
    sregs: two ? null : pack(kvm_sregs, sregs as Value<typeof kvm_sregs>),
    xsave: toHex(xsave.subarray(0, xsave.findLastIndex((byte) => byte !== 0) + 1)),
    xcrs: xcrs === undefined || xcrs.nrXcrs === 0 ? null : pack(kvm_xcrs, xcrs),
    msrs: packAll(kvm_msr_entry, values),
    unreadableMsrs: unreadable,
    events: pack(kvm_vcpu_events, vcpu.getVcpuEvents()),
    debugRegs: pack(kvm_debugregs, vcpu.getDebugRegs()),
    mpState,
    lapic: vm.setup.irqchip === undefined ? null : pack(kvm_lapic_state, vcpu.getLapic()),
    tscKhz: vcpu.getTscKhz(),
    nested,
  };
}

/** In its own guest the registers may be that guest's, which need not be a hypervisor itself. */
function nestedState(vm: Vm, vcpu: Vcpu, isHypervisor: boolean): string | null {
  const known = vm.checkExtension(Cap.NESTED_STATE) > 0;
  if (!known && isHypervisor)
    throw notSavable(
      `the guest of vCPU ${vcpu.id} is a hypervisor itself (CR4.VMXE, EFER.SVME), and KVM does not tell of its guest here (KVM_CAP_NESTED_STATE is 0)`,
    );
  if (!known || (!isHypervisor && (vcpu.raw.flags & RunFlag.GUEST_MODE) === 0)) return null;
  return toHex(vcpu.getNestedState());
}
const from = (first: number, count: number) => Array.from({ length: count }, (_, i) => first + i);

// What KVM_GET_MSR_INDEX_LIST leaves out (arch/x86/kvm/x86.c): the memory type range registers (SDM volume 4, table 2-2),
// and Hyper-V's synthetic interrupt controller and timers (TLFS, chapters 11 and 12).
const MEMORY_TYPES = [...from(0x200, 16), 0x250, 0x258, 0x259, ...from(0x268, 8), 0x2ff];
const SYNIC = [...from(0x4000_0080, 4), ...from(0x4000_0090, 16), ...from(0x4000_00b0, 8)];

/** What one KVM_GET_MSRS takes at most (arch/x86/kvm/x86.c, MAX_IO_MSRS). */
export const MAX_MSRS = 256;

/** A list ends at the first that cannot be read: it is left out, and the rest asked for again. */
function readMsrs(vcpu: Vcpu, indices: readonly number[]) {
  const values: Value<typeof kvm_msr_entry>[] = [];
  const unreadable: number[] = [];
  for (let at = 0; at < indices.length; ) {
    const wanted = indices.slice(at, at + MAX_MSRS);
    const got = vcpu.getMsrs(wanted);
    values.push(...got);
    at += got.length;
    if (got.length < wanted.length) unreadable.push(indices[at++]!);
  }
  return { values, unreadable };
}

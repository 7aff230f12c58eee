/**
 * A machine's state as plain data: all that its guest could notice but the contents of its memory. Not in it: what is
 * the VMM's own, such as KVM_SET_GUEST_DEBUG, an interrupt window that was asked for, and MSR filters.
 */

import { VmexitError } from '../../hypervisor/errors.ts';
import type { GuestMemory } from '../../hypervisor/guest-memory.ts';
import type { Hypervisor } from '../../hypervisor/hypervisor.ts';
import type { Slot } from '../../hypervisor/memory-map.ts';
import type { Vcpu } from '../../hypervisor/vcpu.ts';
import type { Vm } from '../../hypervisor/vm.ts';
import { Cap } from '../../uapi/cap.ts';
import { MemFlag, MemoryAttribute } from '../../uapi/constants.ts';
import { exitName } from '../../uapi/exit.ts';
import type { Value } from '../../uapi/layout.ts';
import {
  kvm_cpuid_entry2,
  kvm_debugregs,
  kvm_msr_entry,
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
 *   pages that have not arrived, interrupt controllers in the kernel, or a guest that is a hypervisor; KvmError
 */
export function captureState(
  hv: Hypervisor,
  vm: Vm,
  vcpus: readonly Vcpu[],
  { service, devices = {} }: CaptureOptions = {},
): Capture {
  const all = [...vm.memoryMap.slots, ...vm.memoryMap.otherSlots];
  checkSavable(vm, all);
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
  checkSavable(vm, all);
  const memories = distinct(all.map(({ memory }) => memory));
  const guestMemfds = distinct(all.map(({ guestMemfd }) => guestMemfd));
  const slots = all.map(
    (slot): SlotState => ({
      slot: slot.slot,
      addressSpace: slot.addressSpace,
      flags: slot.flags & (MemFlag.READONLY | MemFlag.LOG_DIRTY_PAGES),
      start: slot.start,
      size: slot.end - slot.start,
      memory: slot.memory === undefined ? null : memories.indexOf(slot.memory),
      memoryOffset: slot.memory === undefined ? 0 : slot.memoryOffset,
      guestMemfd: slot.guestMemfd === undefined ? null : guestMemfds.indexOf(slot.guestMemfd),
      guestMemfdOffset: slot.guestMemfdOffset,
    }),
  );
  const msrs = hv.getMsrIndexList();
  const { caps, tssAddress, identityMapAddress } = vm.setup;
  const state: MachineState = {
    version: STATE_VERSION,
    backend: hv.backend,
    vm: {
      type: vm.type,
      caps: [...caps.values()].map(({ cap = 0, flags = 0, args = [] }) => ({
        cap: Number(cap),
        flags: Number(flags),
        args: args.map((arg) => BigInt.asUintN(64, BigInt(arg)).toString()),
      })),
      tssAddress: tssAddress ?? null,
      identityMapAddress: identityMapAddress ?? null,
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

function checkSavable(vm: Vm, slots: readonly Slot[]): void {
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
  if (vm.setup.irqchip !== undefined)
    throw notSavable('the VM has interrupt controllers in the kernel, whose state no snapshot has');
}

function vcpuState(vm: Vm, vcpu: Vcpu, msrs: readonly number[]): VcpuState {
  const two = vm.checkExtension(Cap.SREGS2) > 0;
  const sregs = two ? vcpu.getSregs2() : vcpu.getSregs();
  if ((sregs.cr4 & CR4_VMXE) !== 0n || (sregs.efer & EFER_SVME) !== 0n)
    throw notSavable(
      `the guest of vCPU ${vcpu.id} is a hypervisor itself (CR4.VMXE, EFER.SVME), which no snapshot knows`,
    );
  const xcrs = vm.checkExtension(Cap.XCRS) > 0 ? vcpu.getXcrs() : undefined;
  const { values, unreadable } = readMsrs(vcpu, msrs);
  const xsave = vcpu.getXsave();
  return {
    id: vcpu.id,
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
    mpState: vcpu.getMpState(),
    tscKhz: vcpu.getTscKhz(),
  };
}

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

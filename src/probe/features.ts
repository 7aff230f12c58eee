/**
 * What a VMM can need of a hypervisor, by name. Each is tried on a scratch VM rather than asked for: capability
 * numbers depend on the scope, several have been given to other things in kernels that people run, and what is
 * claimed does not always work.
 */

import { readHost } from '../host.ts';
import { PAGE_SIZE } from '../hypervisor/args.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { Cap } from '../uapi/cap.ts';
import {
  GuestDebug,
  GuestMemfdFlag,
  Hypercall,
  MemFlag,
  MemoryAttribute,
  MemoryFaultFlag,
  SyncRegs,
  VmType,
} from '../uapi/constants.ts';
import { Exit } from '../uapi/exit.ts';
import { halts16, halts64, hypercall, spins, steps, writesAbove, writesBelow } from './guests.ts';
import { type Needs, swProtected, whyNot } from './host.ts';
import { expectExit, type Verdict, verdictOf, withGuest, withVm } from './scratch.ts';

interface Row extends Needs {
  /** What a VMM gets by it. */
  readonly summary: string;
  readonly try: (hv: Hypervisor) => Verdict;
}

/** Where the guests write. */
const BELOW = 0x8000;
const ABOVE = 0x10_0000;

const asked =
  (cap: number): Row['try'] =>
  (hv) =>
    hv.checkExtension(cap) > 0 ? undefined : 'KVM_CHECK_EXTENSION gives 0';

const rows = {
  'real-mode': {
    summary: 'runs a guest in 16-bit real mode',
    try: (hv) => withGuest(hv, halts16, ({ vcpu }) => expectExit(vcpu, Exit.HLT)),
  },
  'long-mode': {
    summary: 'runs a guest in 64-bit mode',
    try: (hv) =>
      withGuest(hv, halts64, ({ vcpu }) => {
        const verdict = expectExit(vcpu, Exit.HLT);
        return (
          verdict ?? (vcpu.getRegs().rax === 0x8000_0001n << 32n ? undefined : 'it is not in 64-bit mode')
        );
      }),
  },
  'private-memory': {
    ...swProtected,
    summary: 'pages that the guest has and the host does not see',
    try: (hv) =>
      withGuest(
        hv,
        writesBelow,
        ({ vm, vcpu, memory }) => {
          vm.setMemoryAttributes({ address: BELOW, size: PAGE_SIZE, attributes: MemoryAttribute.PRIVATE });
          const verdict = expectExit(vcpu, Exit.HLT);
          return (
            verdict ??
            (memory.bytes[BELOW] === 0 ? undefined : 'the host sees what the guest wrote in private')
          );
        },
        { privateMemory: true },
      ),
  },
  'memory-fault': {
    ...swProtected,
    summary: 'a private access with nothing behind it ends the run with KVM_EXIT_MEMORY_FAULT',
    try: (hv) =>
      withGuest(
        hv,
        writesBelow,
        ({ vm, vcpu }) => {
          vm.setMemoryAttributes({ address: BELOW, size: PAGE_SIZE, attributes: MemoryAttribute.PRIVATE });
          return expectExit(vcpu, Exit.MEMORY_FAULT);
        },
        { type: VmType.SW_PROTECTED },
      ),
  },
  'map-gpa-range': {
    summary: 'a guest can ask for conversions by the hypercall KVM_HC_MAP_GPA_RANGE',
    since: '5.14',
    try: (hv) =>
      withGuest(hv, hypercall, ({ vm, vcpu }) => {
        if ((vm.checkExtension(Cap.EXIT_HYPERCALL) & (1 << Hypercall.MAP_GPA_RANGE)) === 0) {
          return 'KVM_CAP_EXIT_HYPERCALL lacks KVM_HC_MAP_GPA_RANGE';
        }
        vm.enableCap({ cap: Cap.EXIT_HYPERCALL, args: [1 << Hypercall.MAP_GPA_RANGE] });
        const verdict = expectExit(vcpu, Exit.HYPERCALL);
        if (verdict !== undefined) return verdict;
        vcpu.hypercall.ret = 0;
        return expectExit(vcpu, Exit.HLT);
      }),
  },
  'pre-fault': {
    summary: 'guest memory can be mapped before the guest touches it',
    since: '6.11',
    parameters: ['kvm_intel.ept', 'kvm_amd.npt'],
    try: (hv) =>
      withGuest(hv, halts16, ({ vcpu }) =>
        vcpu.preFaultMemory(0, PAGE_SIZE) === 0 ? undefined : 'KVM_PRE_FAULT_MEMORY maps nothing',
      ),
  },
  'guest-memfd-mmap': {
    summary: 'a guest_memfd with a host view, on a VM without private memory',
    since: '6.18',
    config: 'CONFIG_KVM_GUEST_MEMFD',
    try: (hv) =>
      withGuest(hv, writesAbove, ({ vm, vcpu }) => {
        using file = vm.createGuestMemfd(PAGE_SIZE, GuestMemfdFlag.MMAP | GuestMemfdFlag.INIT_SHARED);
        using view = file.map();
        vm.setUserMemoryRegion2({ slot: 1, guestPhysAddr: ABOVE, memory: view, guestMemfd: file });
        const verdict = expectExit(vcpu, Exit.HLT);
        return verdict ?? (view.bytes[0] === 0x5a ? undefined : 'the host does not see what the guest wrote');
      }),
  },
  userfault: {
    // The capability's number has meant five things, and the flag's bit was others' too: only an exit tells.
    summary: 'faults by a bitmap of the VMM (KVM_MEM_USERFAULT): a proposal, in no released kernel',
    try: (hv) =>
      withGuest(hv, writesAbove, ({ vm, vcpu }) => {
        using memory = vm.allocate(PAGE_SIZE);
        using userfaultBitmap = vm.createUserfaultBitmap(1);
        userfaultBitmap.set(0);
        const taken = verdictOf(() => {
          vm.setUserMemoryRegion2({ slot: 1, guestPhysAddr: ABOVE, memory, userfaultBitmap });
          return undefined;
        });
        if (taken !== undefined) return 'this kernel refuses the flag';
        const verdict = expectExit(vcpu, Exit.MEMORY_FAULT);
        if (verdict !== undefined) return verdict;
        if ((vcpu.memoryFault.flags & MemoryFaultFlag.USERFAULT) === 0)
          return 'the fault does not tell of it';
        userfaultBitmap.release(0);
        return expectExit(vcpu, Exit.HLT);
      }),
  },
  userfaultfd: {
    // It is tried with the faults of the kernel's own, which is what needs a privilege.
    summary: 'faults on missing pages of guest memory are served by another thread, those of the kernel too',
    since: '4.11',
    try: (hv) =>
      withVm(hv, VmType.DEFAULT, (vm) => {
        using memory = vm.allocate(PAGE_SIZE);
        using faults = memory.userfaultfd();
        faults.copy(0, new Uint8Array(PAGE_SIZE).fill(0x5a));
        return memory.bytes[0] === 0x5a ? undefined : 'UFFDIO_COPY copies nothing';
      }),
  },
  'user-memory2': {
    summary: 'KVM_SET_USER_MEMORY_REGION2',
    since: '6.8',
    try: (hv) =>
      withVm(hv, VmType.DEFAULT, (vm) => {
        using memory = vm.allocate(PAGE_SIZE);
        vm.setUserMemoryRegion2({ slot: 0, guestPhysAddr: 0, memory });
        return undefined;
      }),
  },
  'memory-fault-info': {
    summary: 'KVM says that it fills in memory_fault where it can',
    since: '6.8',
    try: asked(Cap.MEMORY_FAULT_INFO),
  },
  'unbacked-fault': {
    summary: 'a slot with nothing mapped behind it ends the run with EFAULT, not with MMIO',
    try: (hv) =>
      withGuest(hv, writesAbove, ({ vm, vcpu }) => {
        vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: ABOVE, memorySize: PAGE_SIZE });
        return expectExit(vcpu, Exit.FAULT);
      }),
  },
  'readonly-memory': {
    summary: 'writes to a read-only slot end the run with MMIO',
    since: '3.7',
    try: (hv) =>
      withGuest(hv, writesAbove, ({ vm, vcpu }) => {
        using rom = vm.allocate(PAGE_SIZE);
        vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: ABOVE, memory: rom, flags: MemFlag.READONLY });
        return expectExit(vcpu, Exit.MMIO);
      }),
  },
  'dirty-log': {
    summary: 'a log of the pages of a slot that the guest has written (KVM_GET_DIRTY_LOG)',
    try: (hv) =>
      withGuest(hv, writesBelow, ({ vm, vcpu, memory }) => {
        vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory, flags: MemFlag.LOG_DIRTY_PAGES });
        const verdict = expectExit(vcpu, Exit.HLT);
        if (verdict !== undefined) return verdict;
        const page = BELOW / PAGE_SIZE;
        const isLogged = (vm.getDirtyLog(0)[page >> 3]! & (1 << (page & 7))) !== 0;
        return isLogged ? undefined : 'the log does not tell of the page that was written';
      }),
  },
  'immediate-exit': {
    summary: 'the VMM can finish an instruction without starting the next',
    since: '4.11',
    try: (hv) =>
      withGuest(hv, halts16, ({ vcpu }) => {
        vcpu.immediateExit = true;
        return expectExit(vcpu, Exit.INTERRUPTED);
      }),
  },
  'sync-regs': {
    summary: 'registers come with the exit, without an ioctl',
    since: '4.17',
    try: (hv) =>
      withGuest(hv, halts16, ({ vcpu }) => {
        vcpu.syncRegs.valid = SyncRegs.REGS;
        const verdict = expectExit(vcpu, Exit.HLT);
        if (verdict !== undefined) return verdict;
        return vcpu.syncRegs.regs.rip === vcpu.getRegs().rip ? undefined : 'KVM_RUN leaves them unset';
      }),
  },
  'single-step': {
    summary: 'KVM_SET_GUEST_DEBUG ends the run after each instruction',
    try: (hv) =>
      withGuest(hv, steps, ({ vcpu }) => {
        vcpu.setGuestDebug({ control: GuestDebug.ENABLE | GuestDebug.SINGLESTEP });
        return expectExit(vcpu, Exit.DEBUG);
      }),
  },
  'interrupt-window': {
    summary: 'the VMM is told when the guest can take an interrupt',
    try: (hv) =>
      withGuest(hv, spins, ({ vcpu }) => {
        vcpu.raw.requestInterruptWindow = true;
        return expectExit(vcpu, Exit.IRQ_WINDOW_OPEN);
      }),
  },
  irqchip: {
    summary: 'interrupt controllers in the kernel',
    try: (hv) =>
      withVm(hv, VmType.DEFAULT, (vm) => {
        vm.createIrqchip();
        return undefined;
      }),
  },
} as const satisfies { readonly [name: string]: Row };

/**
 * The name of something that a VMM can need of a hypervisor: a key of `features`.
 *
 * | name | what the hypervisor can do | Linux |
 * | --- | --- | --- |
 * | `real-mode` | runs a guest in 16-bit real mode |  |
 * | `long-mode` | runs a guest in 64-bit mode |  |
 * | `private-memory` | pages that the guest has and the host does not see | 6.8 |
 * | `memory-fault` | a private access with nothing behind it ends the run with KVM_EXIT_MEMORY_FAULT | 6.8 |
 * | `map-gpa-range` | a guest can ask for conversions by the hypercall KVM_HC_MAP_GPA_RANGE | 5.14 |
 * | `pre-fault` | guest memory can be mapped before the guest touches it | 6.11 |
 * | `guest-memfd-mmap` | a guest_memfd with a host view, on a VM without private memory | 6.18 |
 * | `userfault` | faults by a bitmap of the VMM (KVM_MEM_USERFAULT): a proposal, in no released kernel |  |
 * | `userfaultfd` | faults on missing pages of guest memory are served by another thread, those of the kernel too | 4.11 |
 * | `user-memory2` | KVM_SET_USER_MEMORY_REGION2 | 6.8 |
 * | `memory-fault-info` | KVM says that it fills in memory_fault where it can | 6.8 |
 * | `unbacked-fault` | a slot with nothing mapped behind it ends the run with EFAULT, not with MMIO |  |
 * | `readonly-memory` | writes to a read-only slot end the run with MMIO | 3.7 |
 * | `dirty-log` | a log of the pages of a slot that the guest has written (KVM_GET_DIRTY_LOG) |  |
 * | `immediate-exit` | the VMM can finish an instruction without starting the next | 4.11 |
 * | `sync-regs` | registers come with the exit, without an ioctl | 4.17 |
 * | `single-step` | KVM_SET_GUEST_DEBUG ends the run after each instruction |  |
 * | `interrupt-window` | the VMM is told when the guest can take an interrupt |  |
 * | `irqchip` | interrupt controllers in the kernel |  |
 */
export type Feature = keyof typeof rows;

/** What each feature is, for people. */
export const summaries = Object.fromEntries(
  Object.entries(rows).map(([name, { summary }]) => [name, summary]),
) as { readonly [F in Feature]: string };

/**
 * By name: tries the feature and gives why this host lacks it, for a person to read, or undefined when it is there.
 * Runs guests: some milliseconds, a second where one hangs.
 */
export const features = Object.fromEntries(
  Object.entries(rows).map(([name, row]: [string, Row]) => [
    name,
    (hv: Hypervisor): Verdict => {
      const verdict = row.try(hv);
      if (verdict === undefined || hv.backend !== 'kvm') return verdict;
      const reasons = whyNot(row, readHost());
      // What the host itself tells is better than the errno's general remedy.
      return reasons.length === 0 ? verdict : `${verdict.split(': ')[0]}: ${reasons.join('; ')}`;
    },
  ]),
) as { readonly [F in Feature]: (hv: Hypervisor) => Verdict };

/** Those of the needed features that are missing, each with the reason. */
export function missing(hv: Hypervisor, needs: readonly Feature[]): { feature: Feature; reason: string }[] {
  return needs.flatMap((feature) => {
    const reason = features[feature](hv);
    return reason === undefined ? [] : [{ feature, reason }];
  });
}

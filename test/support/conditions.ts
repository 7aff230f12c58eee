/** What a case can need of its host: the package's own features, and a few of the suite's, each tried. */
import { readFileSync } from 'node:fs';
import { release } from 'node:os';
import {
  Cap,
  Exit,
  exitName,
  type Feature,
  features,
  type Hypervisor,
  MemFlag,
  missing,
  VmType,
  XenHvmConfigFlag,
} from '../../src/index.ts';
import { Quirk } from '../../src/uapi/index.ts';
import { Agent, breakAt, Layout } from './agent.ts';
import { noPoison } from './hwpoison.ts';
import { message, nextVector, servicing, waitingGuest } from './interrupts.ts';
import { inLab } from './limits.ts';
import { errnoOf } from './run.ts';
import { loadsOne, nops } from './snippets.ts';
import { Tap } from './tap.ts';

/** KVM_CAP_TEST_PRIVATE_ACCESS, of the lab's kernel `userfault`: attributes say what the guest's page tables would. */
export const CAP_TEST_PRIVATE_ACCESS = 0x1_0001;

/** Undefined when the host has it, else why not. */
type Try = (hv: Hypervisor) => string | undefined;

/** The last four letters of AuthenticAMD. */
const AMD_ECX = 0x444d_4163;

const others = {
  /** Without a second stage KVM walks the guest's page tables itself, and takes other ways on a fault. */
  'two-dimensional-paging': (hv) =>
    hv.checkExtension(Cap.PRE_FAULT_MEMORY) > 0
      ? undefined
      : 'KVM pages guests without a second stage (KVM_CAP_PRE_FAULT_MEMORY is 0)',
  /** Without it (PVM) KVM executes what the guest does at privilege 0 in its emulator, between two looks at what is pending. */
  'hardware-virtualization'(hv) {
    using agent = Agent.boot(hv);
    return agent.beginCode(loadsOne) === Exit.INTERNAL_ERROR
      ? "this KVM executes privilege 0 in its emulator: PVM, without the processor's virtualization"
      : undefined;
  },
  /** No processor of QEMU's raises #AC. */
  'alignment-checks': (hv) =>
    hv.backend === 'kvm' && inLab
      ? 'the processor under this KVM is emulated, by QEMU, which checks no alignment'
      : undefined,
  'interrupts-in-service'(hv) {
    using agent = waitingGuest(hv);
    agent.vm.signalMsi(message(0x71));
    const vector = nextVector(agent);
    return servicing(agent.vcpu, vector)
      ? undefined
      : 'this KVM ends an interrupt of the local APIC when it delivers it (PVM)';
  },
  'instruction-fetch': (hv) =>
    hv.backend === 'kvm' && / decodeassists /.test(readFileSync('/proc/cpuinfo', 'utf8'))
      ? 'this processor gives KVM the bytes of an instruction that it must emulate (decodeassists)'
      : undefined,
  'hardware-breakpoint'(hv) {
    using agent = Agent.boot(hv);
    agent.vcpu.setGuestDebug(breakAt(Layout.snippet));
    const outcome = agent.beginCode(nops);
    return outcome === Exit.DEBUG
      ? undefined
      : `a debug register's breakpoint is passed over: ${exitName(outcome)}`;
  },
  'msrs-of-amd-6.12'(hv) {
    const kernel = hv.backend === 'sim' ? '6.12' : release();
    const [leaf] = hv.getSupportedCpuid().filter((entry) => entry.function === 0);
    if (leaf?.ecx === AMD_ECX && kernel.startsWith('6.12')) return undefined;
    return `kernels and vendors differ: the table is Linux 6.12's on AMD's processors, and this is ${kernel}`;
  },
  'hwpoison-injection': noPoison,
  files: (hv) =>
    hv.backend === 'kvm' ? undefined : "what the simulator opens are no file descriptors of this process's",
  'test-private-access': (hv) =>
    hv.checkExtension(CAP_TEST_PRIVATE_ACCESS) > 0
      ? undefined
      : "only the lab's kernel `userfault` has the stand-in for guests that choose (lab/kernel/patches)",
  hyperv: (hv) =>
    hv.checkExtension(Cap.SYS_HYPERV_CPUID) > 0
      ? undefined
      : 'this KVM has no Hyper-V for guests (KVM_CAP_SYS_HYPERV_CPUID is 0: CONFIG_KVM_HYPERV)',
  xen: (hv) =>
    (hv.checkExtension(Cap.XEN_HVM) & XenHvmConfigFlag.INTERCEPT_HCALL) !== 0
      ? undefined
      : 'this KVM has no Xen for guests (KVM_CAP_XEN_HVM lacks INTERCEPT_HCALL: CONFIG_KVM_XEN)',
  'xen-hva': (hv) =>
    (hv.checkExtension(Cap.XEN_HVM) & XenHvmConfigFlag.SHARED_INFO_HVA) !== 0
      ? undefined
      : 'KVM_CAP_XEN_HVM lacks SHARED_INFO_HVA (since 6.9)',
  'dirty-ring': (hv) =>
    hv.checkExtension(Cap.DIRTY_LOG_RING_ACQ_REL) > 0
      ? undefined
      : 'KVM_CAP_DIRTY_LOG_RING_ACQ_REL is 0 (since 6.1)',
  'slot-zap-quirk'(hv) {
    using vm = hv.createVm();
    return (vm.checkExtension(Cap.DISABLE_QUIRKS2) & Quirk.SLOT_ZAP_ALL) !== 0
      ? undefined
      : 'KVM_CAP_DISABLE_QUIRKS2 lacks SLOT_ZAP_ALL (since 6.12)';
  },
  'guest-memfd'(hv) {
    using vm = hv.createVm();
    const errno = errnoOf(() => vm.createGuestMemfd(4096).close());
    return errno === 'ok' ? undefined : `KVM_CREATE_GUEST_MEMFD gives ${errno} (since 6.8)`;
  },
  'guest-memfd-slots': (hv) =>
    bindableType(hv) === undefined
      ? 'no VM type here can bind a guest_memfd (KVM_CAP_GUEST_MEMFD is 0)'
      : undefined,
  'guest-memfd-bounds': (hv) =>
    bindAt(hv, (1n << 63n) - 4096n) === 'EINVAL'
      ? undefined
      : 'this kernel binds a slot beyond the end of its guest_memfd where offset and size wrap (mended after 6.18)',
} as const satisfies { readonly [name: string]: Try };

/** Binds one page of a guest_memfd of one page at any offset of 64 bits: the errno, or `ok`. */
export function bindAt(hv: Hypervisor, guestMemfdOffset: bigint): string {
  using tap = new Tap(hv.backend);
  using vm = tap.hv.createVm({ type: bindableType(hv)! });
  using ram = vm.allocate(4096);
  using secret = vm.createGuestMemfd(4096);
  const region = { flags: MemFlag.GUEST_MEMFD, memorySize: 4096, guestMemfdOffset };
  return tap.setRegion(region, ram, secret.fd.handle);
}

/** The VM types that the host makes, the default first. */
export function typesOf(hv: Hypervisor): number[] {
  const types = hv.checkExtension(Cap.VM_TYPES) | (1 << VmType.DEFAULT);
  return Object.values(VmType).filter((type) => (types & (1 << type)) !== 0);
}

/** A VM type whose slots can have a guest_memfd: SW_PROTECTED, or else (since 6.18) the default. */
export const bindableType = (hv: Hypervisor): number | undefined =>
  typesOf(hv)
    .filter((type) => type === VmType.SW_PROTECTED || type === VmType.DEFAULT)
    .reverse()
    .find((type) => {
      using vm = hv.createVm({ type });
      return vm.checkExtension(Cap.GUEST_MEMFD) > 0;
    });

export type Condition = Feature | keyof typeof others;

const tried = new Map<string, string | undefined>();

/** Why the host has not got it, or undefined if it has. Tried once per process. */
export function lacking(hv: Hypervisor, condition: Condition): string | undefined {
  const key = `${hv.backend} ${condition}`;
  if (!tried.has(key)) {
    tried.set(
      key,
      condition in features
        ? missing(hv, [condition as Feature])[0]?.reason
        : others[condition as keyof typeof others](hv),
    );
  }
  return tried.get(key);
}

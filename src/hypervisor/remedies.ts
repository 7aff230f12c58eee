/**
 * What an errno of the kernel's most likely means, by request. Looked up only after a call has failed: the kernel
 * decides what is allowed, this explains its answer. From the order of the checks in virt/kvm and arch/x86/kvm.
 */
import { IoeventfdFlag, MemFlag, MemoryAttribute } from '../uapi/constants.ts';
import { Errno, errnoName } from '../uapi/errno.ts';
import type { IoctlName } from '../uapi/ioctls.ts';
import { type Value, viewOf } from '../uapi/layout.ts';
import {
  kvm_create_guest_memfd,
  kvm_ioeventfd,
  kvm_irq_routing,
  kvm_memory_attributes,
  kvm_pre_fault_memory,
  kvm_userspace_memory_region2,
} from '../uapi/structs.ts';
import { kvm_cpuid_entry2, kvm_cpuid2 } from '../uapi/x86.ts';
import { type Integer, PAGE_SIZE } from './args.ts';
import type { BackendName } from './backend.ts';

type Explain = (argument: Integer | Uint8Array | undefined) => string | undefined;

const hex = (value: number) => `0x${value.toString(16)}`;
const unaligned = (value: number) => value % PAGE_SIZE !== 0;

/** The first rule that fits the value. */
const firstOf =
  <T>(
    read: (data: Uint8Array) => T,
    rules: readonly [(value: T) => boolean, (value: T) => string][],
  ): Explain =>
  (argument) => {
    if (!(argument instanceof Uint8Array)) return undefined;
    const value = read(argument);
    return rules.find(([fits]) => fits(value))?.[1](value);
  };

/** The first version of the struct is a prefix of the second. */
const region = (data: Uint8Array): Value<typeof kvm_userspace_memory_region2> => {
  const whole = new Uint8Array(kvm_userspace_memory_region2.size);
  whole.set(data);
  return kvm_userspace_memory_region2.get(viewOf(whole), 0);
};

const regionInvalid = firstOf(region, [
  [
    (r) => unaligned(r.memorySize),
    (r) => `memorySize ${hex(r.memorySize)} is not a multiple of ${PAGE_SIZE}`,
  ],
  [
    (r) => unaligned(r.guestPhysAddr),
    (r) => `guestPhysAddr ${hex(r.guestPhysAddr)} is not a multiple of ${PAGE_SIZE}`,
  ],
  [
    (r) => unaligned(r.guestMemfdOffset),
    (r) => `guestMemfdOffset ${hex(r.guestMemfdOffset)} is not a multiple of ${PAGE_SIZE}`,
  ],
  [(r) => r.memorySize === 0, (r) => `there is no slot ${r.slot} to delete`],
  [
    (r) =>
      (r.flags & MemFlag.GUEST_MEMFD) !== 0 && (r.flags & (MemFlag.LOG_DIRTY_PAGES | MemFlag.READONLY)) !== 0,
    () => 'a slot with guest_memfd can be neither READONLY nor LOG_DIRTY_PAGES',
  ],
  [
    (r) => (r.flags & MemFlag.USERFAULT) !== 0,
    (r) =>
      `slot ${r.slot} with USERFAULT, a proposal: this KVM has none (\`vmexit probe\` tells), or it was given by ` +
      'setUserMemoryRegion(), or the slot has it already with another bitmap (turn it off in between); and of a slot ' +
      'with guest_memfd nothing else can change',
  ],
  [
    (r) => (r.flags & MemFlag.GUEST_MEMFD) !== 0,
    (r) =>
      `slot ${r.slot} and its guest_memfd do not go together: the file must be of this VM and reach to ` +
      `${hex(r.guestMemfdOffset + r.memorySize)}, no other slot may be bound to that part of it, the VM's type must ` +
      'have private memory, and a bound slot can only be deleted, or have USERFAULT toggled',
  ],
  [
    () => true,
    (r) =>
      `slot ${r.slot}, flags ${hex(r.flags)}: an existing slot keeps its size, memory and READONLY (delete it first), ` +
      'slots are numbered below KVM_CAP_NR_MEMSLOTS, and flags must be known to this kernel',
  ],
]);

const regionExists = firstOf(region, [
  [
    () => true,
    (r) =>
      `guest memory [${hex(r.guestPhysAddr)}, ${hex(r.guestPhysAddr + r.memorySize)}) overlaps another slot's`,
  ],
]);

const attributesInvalid = firstOf(
  (data) => kvm_memory_attributes.get(viewOf(data), 0),
  [
    [(a) => a.flags !== 0, (a) => `flags is ${hex(a.flags)}; it must be 0`],
    [(a) => a.size === 0, () => 'size is 0'],
    [(a) => unaligned(a.address), (a) => `address ${hex(a.address)} is not a multiple of ${PAGE_SIZE}`],
    [(a) => unaligned(a.size), (a) => `size ${hex(a.size)} is not a multiple of ${PAGE_SIZE}`],
    [
      (a) => (a.attributes & ~MemoryAttribute.PRIVATE) !== 0,
      (a) => `attributes ${hex(a.attributes)} has bits that this kernel does not know`,
    ],
    [() => true, () => 'this VM has no private memory: create it with VmType.SW_PROTECTED'],
  ],
);

/** kvm_check_cpuid(): how many bits a linear address has must be what KVM knows; what else it refuses is a change. */
const cpuidInvalid: Explain = (argument) => {
  if (!(argument instanceof Uint8Array)) return undefined;
  const view = viewOf(argument);
  const [head, size] = [kvm_cpuid2.size, kvm_cpuid_entry2.size];
  for (let at = head; at + size <= argument.length; at += size) {
    const { function: leaf, eax } = kvm_cpuid_entry2.get(view, at);
    const bits = (eax >>> 8) & 0xff;
    if (leaf === ADDRESS_SIZES && !LINEAR_BITS.includes(bits))
      return `leaf ${hex(leaf)} tells of linear addresses of ${bits} bits; there are 48 and 57`;
  }
  return (
    'a vCPU that has run keeps its CPUID, and this one differs from it: give it before the first run(), or to a new vCPU ' +
    '(of a new id, or of a new VM)'
  );
};
const ADDRESS_SIZES = 0x8000_0008;
/** 0 where the leaf does not tell. */
const LINEAR_BITS: readonly number[] = [0, 48, 57];

const ioeventfd = (data: Uint8Array): Value<typeof kvm_ioeventfd> => kvm_ioeventfd.get(viewOf(data), 0);
const placeOf = ({ addr, flags }: Value<typeof kvm_ioeventfd>): string =>
  `${(flags & IoeventfdFlag.PIO) !== 0 ? 'port' : 'address'} ${hex(addr)}`;

const noIrqchip: Explain = () =>
  'there are no interrupt controllers in the kernel: vm.createIrqchip(), before the first vCPU';

const noPit: Explain = () => 'there is no timer in the kernel: vm.createPit2(), after vm.createIrqchip()';

const routingInvalid = firstOf(
  (data) => kvm_irq_routing.get(viewOf(data), 0),
  [
    [(r) => r.flags !== 0, (r) => `flags is ${hex(r.flags)}; it must be 0`],
    [
      () => true,
      () =>
        'there must be interrupt controllers in the kernel (vm.createIrqchip(), or Cap.SPLIT_IRQCHIP, with which no route ' +
        'leads to one), a GSI and a pin that there is, and for each GSI one route, or one to a PIC and one to the I/O APIC',
    ],
  ],
);

const wantsSwProtected: Explain = () =>
  'this KVM has no memory attributes; they need a kernel with CONFIG_KVM_SW_PROTECTED_VM, SEV-SNP or TDX';

/** Of the ioctls about a slot's log: both structs begin with its number. */
const noLog: { readonly [errno: string]: Explain } = {
  ENOENT: (data) => {
    const slot = data instanceof Uint8Array ? viewOf(data).getUint16(0, true) : data;
    return `slot ${slot} is not there, or is not set with MemFlag.LOG_DIRTY_PAGES`;
  },
  ENXIO: () => 'this VM has rings instead of logs: Vcpu.dirtyRing',
};

const table: { readonly [R in IoctlName]?: { readonly [errno: string]: Explain } } = {
  KVM_CREATE_VM: {
    EINVAL: (type) =>
      `this KVM refuses VM type ${type}; KVM_CAP_VM_TYPES tells which it takes (SW_PROTECTED needs a kernel with ` +
      'CONFIG_KVM_SW_PROTECTED_VM and two-dimensional paging)',
    ENOMEM: () => 'the host has no memory for another VM',
  },
  KVM_RUN: {
    ENOMEM: () =>
      'the host has no memory, or no more threads or pending signals for this user (RLIMIT_NPROC, RLIMIT_SIGPENDING)',
  },
  KVM_CREATE_VCPU: {
    EEXIST: (id) => `there is a vCPU ${id} already`,
    EINVAL: (id) =>
      `vCPU id ${id} is beyond KVM_CAP_MAX_VCPU_ID, or the VM has KVM_CAP_MAX_VCPUS vCPUs already`,
  },
  KVM_SET_USER_MEMORY_REGION: { EINVAL: regionInvalid, EEXIST: regionExists },
  KVM_SET_USER_MEMORY_REGION2: {
    EINVAL: regionInvalid,
    EEXIST: regionExists,
    EBADF: () => 'flags has GUEST_MEMFD: give a guestMemfd',
    ENOTTY: () => 'this kernel is older than 6.8; use setUserMemoryRegion()',
  },
  KVM_GET_DIRTY_LOG: noLog,
  KVM_CLEAR_DIRTY_LOG: {
    ...noLog,
    EINVAL: () =>
      'first and count are multiples of 64 (count may also reach the end of the slot), within the slot',
  },
  KVM_RESET_DIRTY_RINGS: {
    EINVAL: () => 'this VM has no rings: enable Cap.DIRTY_LOG_RING_ACQ_REL before its first vCPU',
  },
  KVM_SET_MEMORY_ATTRIBUTES: { EINVAL: attributesInvalid, ENOTTY: wantsSwProtected },
  KVM_CREATE_GUEST_MEMFD: {
    EINVAL: firstOf(
      (data) => kvm_create_guest_memfd.get(viewOf(data), 0),
      [
        [
          (g) => g.size === 0 || unaligned(g.size),
          (g) => `size ${hex(g.size)} is not a multiple of ${PAGE_SIZE} above 0`,
        ],
        [
          () => true,
          (g) => `flags ${hex(g.flags)} are not among those that KVM_CAP_GUEST_MEMFD_FLAGS tells for this VM`,
        ],
      ],
    ),
    ENOTTY: () => 'this kernel has no guest_memfd (since 6.8, where private memory is configured)',
  },
  KVM_PRE_FAULT_MEMORY: {
    EINVAL: firstOf(
      (data) => kvm_pre_fault_memory.get(viewOf(data), 0),
      [
        [(p) => p.size === 0, () => 'size is 0'],
        [
          (p) => unaligned(p.gpa) || unaligned(p.size),
          (p) => `[${hex(p.gpa)}, +${hex(p.size)}) is not made of whole pages`,
        ],
      ],
    ),
    ENOENT: firstOf(
      (data) => kvm_pre_fault_memory.get(viewOf(data), 0),
      [[() => true, (p) => `no slot has guest memory at ${hex(p.gpa)}`]],
    ),
    ENOTTY: () => 'this kernel cannot pre-fault (since 6.11, with two-dimensional paging)',
    EOPNOTSUPP: () => 'this host pages guests without a second stage, so there is nothing to pre-fault',
  },
  KVM_SET_SREGS: {
    EINVAL: () =>
      'no processor like the one that KVM_SET_CPUID2 describes can be in this state; set its CPUID first ' +
      '(vcpu.setCpuid2(hv.getSupportedCpuid())), for without it there is no long mode',
  },
  KVM_ENABLE_CAP: { EINVAL: () => 'this capability cannot be enabled here, or not with these args' },
  KVM_SET_CPUID2: { EINVAL: cpuidInvalid },
  KVM_CREATE_IRQCHIP: {
    EEXIST: () => 'there are interrupt controllers in the kernel already',
    EINVAL: () => 'the VM has a vCPU already: call createIrqchip() before the first',
  },
  KVM_GET_IRQCHIP: { ENXIO: noIrqchip },
  KVM_SET_IRQCHIP: { ENXIO: noIrqchip },
  KVM_CREATE_PIT2: { EEXIST: () => 'there is a timer in the kernel already', ENOENT: noIrqchip },
  KVM_GET_PIT2: { ENXIO: noPit },
  KVM_SET_PIT2: { ENXIO: noPit },
  KVM_REINJECT_CONTROL: { ENXIO: noPit },
  KVM_SET_BOOT_CPU_ID: { EBUSY: () => 'the VM has a vCPU already: call setBootCpuId() before the first' },
  KVM_SET_GSI_ROUTING: { EINVAL: routingInvalid },
  KVM_IRQ_LINE: { ENXIO: noIrqchip },
  KVM_IRQ_LINE_STATUS: { ENXIO: noIrqchip },
  KVM_SIGNAL_MSI: { EINVAL: noIrqchip },
  KVM_IRQFD: {
    EINVAL: () =>
      'there are no interrupt controllers in the kernel that can take it: vm.createIrqchip(), before the first vCPU; with ' +
      '`resample` a split irqchip cannot',
    EBUSY: () => 'this EventFd has an interrupt of this VM already: give each its own',
  },
  KVM_IOEVENTFD: {
    EEXIST: firstOf(ioeventfd, [
      [
        () => true,
        (e) =>
          `another ioeventfd answers to writes to ${placeOf(e)}: of one address they differ by a length above 0, or by ` +
          'datamatch',
      ],
    ]),
    EINVAL: firstOf(ioeventfd, [
      [(e) => ![0, 1, 2, 4, 8].includes(e.len), (e) => `length is ${e.len}; it must be 0, 1, 2, 4 or 8`],
      [
        (e) => e.len === 0 && (e.flags & IoeventfdFlag.DATAMATCH) !== 0,
        () => 'datamatch needs the length of its value: length is 0',
      ],
    ]),
    ENOENT: firstOf(ioeventfd, [
      [() => true, (e) => `there is none at ${placeOf(e)} with this EventFd, length and datamatch`],
    ]),
  },
  KVM_GET_LAPIC: { EINVAL: noIrqchip },
  KVM_SET_LAPIC: { EINVAL: noIrqchip },
  KVM_SET_MP_STATE: { EINVAL: noIrqchip },
  KVM_INTERRUPT: {
    ENXIO: () => 'interrupt controllers in the kernel deliver interrupts: vm.irqLine() or vm.signalMsi()',
  },
  KVM_SET_IDENTITY_MAP_ADDR: { EINVAL: () => 'the VM has a vCPU already: call it before the first' },
  KVM_SET_TSS_ADDR: {
    EINVAL: (address) => `three pages from ${hex(Number(address))} on do not end below 4 GiB`,
  },
  KVM_SET_GUEST_DEBUG: { EBUSY: () => 'an exception is to be injected, and another is pending' },
  KVM_KVMCLOCK_CTRL: { EINVAL: () => 'the guest has set up no kvmclock' },
};

const noController =
  'the simulator has no interrupt controllers and no timers: the VMM injects interrupts (vcpu.interrupt())';
const noClock = 'the simulator has no kvmclock: its time is counted in instructions';
/** What is behind -ENOTTY in the simulator, where more can be said than that it is not there. */
const notSimulated: { readonly [R in IoctlName]?: string } = {
  KVM_CREATE_IRQCHIP: noController,
  KVM_CREATE_PIT2: noController,
  KVM_GET_IRQCHIP: noController,
  KVM_SET_IRQCHIP: noController,
  KVM_GET_PIT2: noController,
  KVM_SET_PIT2: noController,
  KVM_REINJECT_CONTROL: noController,
  KVM_SET_GSI_ROUTING: noController,
  KVM_IRQ_LINE: noController,
  KVM_IRQ_LINE_STATUS: noController,
  KVM_SIGNAL_MSI: noController,
  KVM_IRQFD: noController,
  KVM_GET_LAPIC: noController,
  KVM_SET_LAPIC: noController,
  KVM_GET_CLOCK: noClock,
  KVM_SET_CLOCK: noClock,
  KVM_KVMCLOCK_CTRL: noClock,
  KVM_SET_TSC_KHZ: 'the time-stamp counter of the simulator counts instructions',
  KVM_SET_BOOT_CPU_ID: "the simulator's boot processor is vCPU 0",
  KVM_SMI: 'the simulator has no system-management mode',
};

/** A sentence about the failed call, or undefined where nothing is known. `result` is a negated errno. */
export function remedy(
  request: string,
  result: number,
  argument?: Integer | Uint8Array,
  backend?: BackendName,
): string | undefined {
  const explain = table[request as IoctlName]?.[errnoName(-result)];
  if (explain !== undefined || result !== -Errno.ENOTTY) return explain?.(argument);
  if (backend === 'kvm') return 'this KVM does not have it';
  return backend && (notSimulated[request as IoctlName] ?? 'the simulator does not have it');
}

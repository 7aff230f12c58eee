/**
 * What an errno of the kernel's most likely means, by request. Looked up only after a call has failed: the kernel
 * decides what is allowed, this explains its answer. From the order of the checks in virt/kvm and arch/x86/kvm.
 */
import { MemFlag, MemoryAttribute } from '../uapi/constants.ts';
import { errnoName } from '../uapi/errno.ts';
import type { IoctlName } from '../uapi/ioctls.ts';
import { type Value, viewOf } from '../uapi/layout.ts';
import {
  kvm_create_guest_memfd,
  kvm_memory_attributes,
  kvm_pre_fault_memory,
  kvm_userspace_memory_region2,
} from '../uapi/structs.ts';
import { type Integer, PAGE_SIZE } from './args.ts';

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

const wantsSwProtected: Explain = () =>
  'this KVM has no memory attributes; they need a kernel with CONFIG_KVM_SW_PROTECTED_VM, SEV-SNP or TDX';

const table: { readonly [R in IoctlName]?: { readonly [errno: string]: Explain } } = {
  KVM_CREATE_VM: {
    EINVAL: (type) =>
      `this KVM refuses VM type ${type}; KVM_CAP_VM_TYPES tells which it takes (SW_PROTECTED needs a kernel with ` +
      'CONFIG_KVM_SW_PROTECTED_VM and two-dimensional paging)',
    ENOMEM: () => 'the host has no memory for another VM',
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
};

/** A sentence about the failed call, or undefined where nothing is known. `result` is a negated errno. */
export function remedy(request: string, result: number, argument?: Integer | Uint8Array): string | undefined {
  const byErrno = table[request as IoctlName];
  return byErrno?.[errnoName(-result)]?.(argument);
}

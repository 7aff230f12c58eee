/**
 * The ioctls of KVM as one table: a row per request says on which fds it is known, how its argument travels and
 * what the argument is. A backend needs nothing else to issue one; adding an ioctl is adding a row.
 */
import { Cap } from './cap.ts';
import { kvm_sev_cmd } from './encryption.ts';
import { type Struct, size64, type Type, u32, u64 } from './layout.ts';
import * as g from './structs.ts';
import * as x86 from './x86.ts';
import * as xen from './xen.ts';

/** What an ioctl is issued on: /dev/kvm (`system`), a VM, a vCPU, a guest_memfd, or an in-kernel device. */
export type FdKind = 'system' | 'vm' | 'vcpu' | 'gmem' | 'device';

/** Which way the kernel copies the argument: `write` into the kernel, `read` out of it. */
export type Direction = 'none' | 'read' | 'write' | 'readwrite';

// biome-ignore lint/suspicious/noExplicitAny: stands for a type of any value, in both directions.
type AnyType = Type<any>;
// biome-ignore lint/suspicious/noExplicitAny: a struct of any fields.
type AnyStruct = Struct<any>;

interface Row {
  /** The kernel's name; the key in the table. */
  readonly name: string;
  /** The whole number of _IO(), _IOR(), _IOW(), _IOWR(), unsigned. */
  readonly request: number;
  readonly on: readonly FdKind[];
  readonly dir: Direction;
  /** What a result that is not negative means. A fd belongs to the caller, who closes it. */
  readonly returns: 'value' | 'fd';
}

/** No argument: the kernel wants 0. */
export interface NoneRow extends Row {
  /** It takes no argument. */
  readonly kind: 'none';
}

/** The argument is a number, passed by value. */
export interface IntegerRow extends Row {
  /** It takes a number. */
  readonly kind: 'integer';
}

/** The argument points to one value of fixed size. */
export interface StructRow<T extends AnyType = AnyType> extends Row {
  /** It takes a struct. */
  readonly kind: 'struct';
  /** The layout of what the argument points to. */
  readonly struct: T;
}

/** A head, in whose field `count` the number of elements stands that follow it; at most `max`. */
export interface ArrayRow<S extends AnyStruct = AnyStruct, E extends AnyType = AnyType> extends Row {
  /** It takes a list. */
  readonly kind: 'array';
  /** The layout of the head. */
  readonly struct: S;
  /** The layout of one element. */
  readonly element: E;
  /** The head's field that counts the elements. */
  readonly count: keyof S['fields'] & string;
  /** The most elements that this package asks for or gives. */
  readonly max: number;
}

/** A struct of as many bytes as KVM_CHECK_EXTENSION(`cap`) says, and never fewer than `least`. */
export interface SizedRow<S extends AnyStruct = AnyStruct> extends Row {
  /** It takes a struct whose size the kernel tells. */
  readonly kind: 'sized';
  /** The layout of the struct's fixed part. */
  readonly struct: S;
  /** The capability that tells its size in bytes. */
  readonly cap: Cap;
  /** The fewest bytes that it can have. */
  readonly least: number;
  /** The most bytes that it can have. */
  readonly most: number;
  /** The struct's field that says how many it has: never more than the argument's. Undefined where it has none. */
  readonly count: (keyof S['fields'] & string) | undefined;
}

/** A struct that holds pointers or file descriptors: its caller gives what they stand for, and the backend fills them in. */
export interface PointersRow<S extends AnyStruct = AnyStruct> extends Row {
  /** It takes a struct with pointers or file descriptors in it. */
  readonly kind: 'pointers';
  /** The layout of what the argument points to. */
  readonly struct: S;
  /** What the struct refers to, by its fields' names, in the order in which it is given to a backend. */
  readonly references: readonly string[];
}

/** A row of `ioctls`; `kind` says how its argument travels. */
export type Ioctl = NoneRow | IntegerRow | StructRow | ArrayRow | SizedRow | PointersRow;

const KVMIO = 0xae;
const iocBits = { none: 0, write: 1, read: 2, readwrite: 3 } as const;

/** asm-generic/ioctl.h: direction in bits 30-31, size in 16-29, type in 8-15, number in 0-7. */
const ioc = (dir: Direction, number: number, size: number): number =>
  ((iocBits[dir] << 30) | (size << 16) | (KVMIO << 8) | number) >>> 0;

type Nameless<R> = Omit<R, 'name'>;

const none = (
  on: readonly FdKind[],
  number: number,
  returns: Row['returns'] = 'value',
): Nameless<NoneRow> => ({
  kind: 'none',
  on,
  request: ioc('none', number, 0),
  dir: 'none',
  returns,
});

const integer = (
  on: readonly FdKind[],
  number: number,
  returns: Row['returns'] = 'value',
): Nameless<IntegerRow> => ({
  kind: 'integer',
  on,
  request: ioc('none', number, 0),
  dir: 'none',
  returns,
});

/** `encoded`: the direction in the request number, where the kernel's header gives another than the true one. */
const fixed =
  (dir: Direction) =>
  <T extends AnyType>(
    on: readonly FdKind[],
    number: number,
    type: T,
    encoded: Direction = dir,
  ): Nameless<StructRow<T>> => ({
    kind: 'struct',
    on,
    request: ioc(encoded, number, encoded === 'none' ? 0 : type.size),
    dir,
    returns: 'value',
    struct: type,
  });
const read = fixed('read');
const write = fixed('write');
const readwrite = fixed('readwrite');

const list = <S extends AnyStruct, E extends AnyType>(
  on: readonly FdKind[],
  dir: Direction,
  number: number,
  head: S,
  element: E,
  count: keyof S['fields'] & string,
  max: number,
): Nameless<ArrayRow<S, E>> => ({
  kind: 'array',
  on,
  request: ioc(dir, number, head.size),
  dir,
  returns: 'value',
  struct: head,
  element,
  count,
  max,
});

const sized = <S extends AnyStruct>(
  on: readonly FdKind[],
  dir: Direction,
  number: number,
  type: S,
  cap: Cap,
  most: number,
  count?: keyof S['fields'] & string,
): Nameless<SizedRow<S>> => ({
  kind: 'sized',
  least: type.size,
  most,
  count,
  on,
  request: ioc(dir, number, type.size),
  dir,
  returns: 'value',
  struct: type,
  cap,
});

const pointers = <S extends AnyStruct>(
  on: readonly FdKind[],
  dir: Direction,
  number: number,
  type: S,
  references: readonly string[],
  encoded: Direction = dir,
): Nameless<PointersRow<S>> => ({
  kind: 'pointers',
  on,
  request: ioc(encoded, number, type.size),
  dir,
  returns: 'value',
  struct: type,
  references,
});

const returningFd = <R extends { returns: Row['returns'] }>(row: R): R => ({ ...row, returns: 'fd' });

type Named<T> = { readonly [K in keyof T]: T[K] & { readonly name: K } };

const table = <T extends Record<string, Nameless<Ioctl>>>(rows: T): Named<T> =>
  Object.fromEntries(Object.entries(rows).map(([name, row]) => [name, { name, ...row }])) as Named<T>;

// The limits of arch/x86/kvm: KVM_MAX_CPUID_ENTRIES, MAX_IO_MSRS, KVM_MAX_IRQ_ROUTES,
// KVM_PMU_EVENT_FILTER_MAX_EVENTS. The kernel sets none for its own lists; these have room for any of today's.
const MAX_CPUID = 256;
const MAX_MSRS = 256;
const MAX_ROUTES = 4096;
const MAX_PMU_EVENTS = 300;
const MAX_INDICES = 1024;

// All components of XCR0 take less than 16 KiB (SDM volume 1, 13.5); a nested guest has two VMCS12s at most.
const MAX_XSAVE = 65_536;
const MAX_NESTED = 16_384;

/** Numbered by the size of a pointer. kvm_sev_cmd and kvm_tdx_cmd, of which the VM's type says one, have the same. */
const ENCRYPT_OP = ioc('readwrite', 0xba, 8);

/**
 * The table of ioctls, by the kernel's names. An ioctl that is not here cannot be issued. Each row is one of
 * `Ioctl`.
 */
export const ioctls = table({
  // /dev/kvm
  KVM_GET_API_VERSION: none(['system'], 0x00),
  KVM_CREATE_VM: integer(['system'], 0x01, 'fd'),
  KVM_GET_MSR_INDEX_LIST: list(['system'], 'readwrite', 0x02, x86.kvm_msr_list, u32, 'nmsrs', MAX_INDICES),
  KVM_CHECK_EXTENSION: integer(['system', 'vm'], 0x03),
  KVM_GET_VCPU_MMAP_SIZE: none(['system'], 0x04),
  KVM_GET_SUPPORTED_CPUID: cpuid(['system'], 'readwrite', 0x05),
  KVM_GET_EMULATED_CPUID: cpuid(['system'], 'readwrite', 0x09),
  KVM_GET_MSR_FEATURE_INDEX_LIST: list(
    ['system'],
    'readwrite',
    0x0a,
    x86.kvm_msr_list,
    u32,
    'nmsrs',
    MAX_INDICES,
  ),
  KVM_X86_GET_MCE_CAP_SUPPORTED: read(['system'], 0x9d, u64),

  // A VM
  KVM_CREATE_VCPU: integer(['vm'], 0x41, 'fd'),
  KVM_GET_DIRTY_LOG: pointers(['vm'], 'write', 0x42, g.kvm_dirty_log, ['dirtyBitmap']),
  KVM_SET_NR_MMU_PAGES: integer(['vm'], 0x44),
  KVM_SET_USER_MEMORY_REGION: pointers(['vm'], 'write', 0x46, g.kvm_userspace_memory_region, [
    'userspaceAddr',
  ]),
  KVM_SET_TSS_ADDR: integer(['vm'], 0x47),
  KVM_SET_IDENTITY_MAP_ADDR: write(['vm'], 0x48, size64),
  KVM_SET_USER_MEMORY_REGION2: pointers(['vm'], 'write', 0x49, g.kvm_userspace_memory_region2, [
    'userspaceAddr',
    'guestMemfd',
    'userfaultBitmap',
  ]),
  KVM_CREATE_IRQCHIP: none(['vm'], 0x60),
  KVM_IRQ_LINE: write(['vm'], 0x61, g.kvm_irq_level),
  KVM_GET_IRQCHIP: readwrite(['vm'], 0x62, x86.kvm_irqchip),
  KVM_SET_IRQCHIP: write(['vm'], 0x63, x86.kvm_irqchip, 'read'),
  KVM_CREATE_PIT: none(['vm'], 0x64),
  KVM_GET_PIT: readwrite(['vm'], 0x65, x86.kvm_pit_state),
  KVM_SET_PIT: write(['vm'], 0x66, x86.kvm_pit_state, 'read'),
  KVM_IRQ_LINE_STATUS: readwrite(['vm'], 0x67, g.kvm_irq_level),
  KVM_REGISTER_COALESCED_MMIO: write(['vm'], 0x67, g.kvm_coalesced_mmio_zone),
  KVM_UNREGISTER_COALESCED_MMIO: write(['vm'], 0x68, g.kvm_coalesced_mmio_zone),
  KVM_SET_GSI_ROUTING: list(
    ['vm'],
    'write',
    0x6a,
    g.kvm_irq_routing,
    g.kvm_irq_routing_entry,
    'nr',
    MAX_ROUTES,
  ),
  KVM_REINJECT_CONTROL: write(['vm'], 0x71, x86.kvm_reinject_control, 'none'),
  KVM_IRQFD: pointers(['vm'], 'write', 0x76, g.kvm_irqfd, ['fd', 'resamplefd']),
  KVM_CREATE_PIT2: write(['vm'], 0x77, g.kvm_pit_config),
  KVM_SET_BOOT_CPU_ID: integer(['vm'], 0x78),
  KVM_IOEVENTFD: pointers(['vm'], 'write', 0x79, g.kvm_ioeventfd, ['fd']),
  KVM_XEN_HVM_CONFIG: pointers(['vm'], 'write', 0x7a, xen.kvm_xen_hvm_config, ['blobAddr32', 'blobAddr64']),
  KVM_SET_CLOCK: write(['vm'], 0x7b, g.kvm_clock_data),
  KVM_GET_CLOCK: read(['vm'], 0x7c, g.kvm_clock_data),
  KVM_GET_PIT2: read(['vm'], 0x9f, x86.kvm_pit_state2),
  KVM_SET_PIT2: write(['vm'], 0xa0, x86.kvm_pit_state2),
  KVM_SIGNAL_MSI: write(['vm'], 0xa5, g.kvm_msi),
  KVM_SET_PMU_EVENT_FILTER: list(
    ['vm'],
    'write',
    0xb2,
    x86.kvm_pmu_event_filter,
    u64,
    'nevents',
    MAX_PMU_EVENTS,
  ),
  KVM_MEMORY_ENCRYPT_OP: {
    ...pointers(['vm', 'vcpu'], 'readwrite', 0xba, kvm_sev_cmd, ['data']),
    request: ENCRYPT_OP,
  },
  KVM_MEMORY_ENCRYPT_REG_REGION: pointers(['vm'], 'write', 0xbb, g.kvm_enc_region, ['addr'], 'read'),
  KVM_MEMORY_ENCRYPT_UNREG_REGION: pointers(['vm'], 'write', 0xbc, g.kvm_enc_region, ['addr'], 'read'),
  KVM_HYPERV_EVENTFD: pointers(['vm'], 'write', 0xbd, xen.kvm_hyperv_eventfd, ['fd']),
  KVM_CLEAR_DIRTY_LOG: pointers(['vm'], 'readwrite', 0xc0, g.kvm_clear_dirty_log, ['dirtyBitmap']),
  KVM_X86_SET_MSR_FILTER: pointers(
    ['vm'],
    'write',
    0xc6,
    x86.kvm_msr_filter,
    Array<string>(16).fill('bitmap'),
  ),
  KVM_RESET_DIRTY_RINGS: none(['vm'], 0xc7),
  /** `sharedInfoHva` with SHARED_INFO_HVA alone, `evtchnFd` with EVTCHN of an interdomain channel without a port. */
  KVM_XEN_HVM_GET_ATTR: pointers(['vm'], 'readwrite', 0xc8, xen.kvm_xen_hvm_attr, [
    'sharedInfoHva',
    'evtchnFd',
  ]),
  KVM_XEN_HVM_SET_ATTR: pointers(['vm'], 'write', 0xc9, xen.kvm_xen_hvm_attr, ['sharedInfoHva', 'evtchnFd']),
  KVM_XEN_HVM_EVTCHN_SEND: write(['vm'], 0xd0, g.kvm_irq_routing_xen_evtchn),
  KVM_SET_MEMORY_ATTRIBUTES: write(['vm'], 0xd2, g.kvm_memory_attributes),
  KVM_CREATE_GUEST_MEMFD: returningFd(write(['vm'], 0xd4, g.kvm_create_guest_memfd, 'readwrite')),
  KVM_CREATE_DEVICE: returningFd(readwrite(['vm'], 0xe0, g.kvm_create_device)),

  // A vCPU
  KVM_RUN: none(['vcpu'], 0x80),
  KVM_GET_REGS: read(['vcpu'], 0x81, x86.kvm_regs),
  KVM_SET_REGS: write(['vcpu'], 0x82, x86.kvm_regs),
  KVM_GET_SREGS: read(['vcpu'], 0x83, x86.kvm_sregs),
  KVM_SET_SREGS: write(['vcpu'], 0x84, x86.kvm_sregs),
  KVM_TRANSLATE: readwrite(['vcpu'], 0x85, g.kvm_translation),
  KVM_INTERRUPT: write(['vcpu'], 0x86, g.kvm_interrupt),
  /** On the system fd: the feature MSRs. Returns how many it read; the first it could not ends it. */
  KVM_GET_MSRS: list(
    ['system', 'vcpu'],
    'readwrite',
    0x88,
    x86.kvm_msrs,
    x86.kvm_msr_entry,
    'nmsrs',
    MAX_MSRS,
  ),
  /** Returns how many it wrote; the first it could not ends it. */
  KVM_SET_MSRS: list(['vcpu'], 'write', 0x89, x86.kvm_msrs, x86.kvm_msr_entry, 'nmsrs', MAX_MSRS),
  KVM_SET_SIGNAL_MASK: pointers(['vcpu'], 'write', 0x8b, g.kvm_signal_mask, []),
  KVM_GET_FPU: read(['vcpu'], 0x8c, x86.kvm_fpu),
  KVM_SET_FPU: write(['vcpu'], 0x8d, x86.kvm_fpu),
  KVM_GET_LAPIC: read(['vcpu'], 0x8e, x86.kvm_lapic_state),
  KVM_SET_LAPIC: write(['vcpu'], 0x8f, x86.kvm_lapic_state),
  KVM_SET_CPUID2: cpuid(['vcpu'], 'write', 0x90),
  KVM_GET_CPUID2: cpuid(['vcpu'], 'readwrite', 0x91),
  KVM_TPR_ACCESS_REPORTING: readwrite(['vcpu'], 0x92, g.kvm_tpr_access_ctl),
  KVM_SET_VAPIC_ADDR: write(['vcpu'], 0x93, g.kvm_vapic_addr),
  KVM_GET_MP_STATE: read(['vcpu'], 0x98, g.kvm_mp_state),
  KVM_SET_MP_STATE: write(['vcpu'], 0x99, g.kvm_mp_state),
  KVM_NMI: none(['vcpu'], 0x9a),
  KVM_SET_GUEST_DEBUG: write(['vcpu'], 0x9b, g.kvm_guest_debug),
  KVM_X86_SETUP_MCE: write(['vcpu'], 0x9c, u64),
  KVM_X86_SET_MCE: write(['vcpu'], 0x9e, x86.kvm_x86_mce),
  KVM_GET_VCPU_EVENTS: read(['vcpu'], 0x9f, x86.kvm_vcpu_events),
  KVM_SET_VCPU_EVENTS: write(['vcpu'], 0xa0, x86.kvm_vcpu_events),
  KVM_GET_DEBUGREGS: read(['vcpu'], 0xa1, x86.kvm_debugregs),
  KVM_SET_DEBUGREGS: write(['vcpu'], 0xa2, x86.kvm_debugregs),
  KVM_SET_TSC_KHZ: integer(['vcpu', 'vm'], 0xa2),
  KVM_GET_TSC_KHZ: none(['vcpu', 'vm'], 0xa3),
  /** `evmcsVersion` with HYPERV_ENLIGHTENED_VMCS alone, `sourceVm` with VM_COPY_ENC_CONTEXT_FROM and VM_MOVE_ENC_CONTEXT_FROM. */
  KVM_ENABLE_CAP: pointers(['vm', 'vcpu'], 'write', 0xa3, g.kvm_enable_cap, ['evmcsVersion', 'sourceVm']),
  KVM_GET_XSAVE: read(['vcpu'], 0xa4, x86.kvm_xsave),
  KVM_SET_XSAVE: sized(['vcpu'], 'write', 0xa5, x86.kvm_xsave, Cap.XSAVE2, MAX_XSAVE),
  KVM_GET_XCRS: read(['vcpu'], 0xa6, x86.kvm_xcrs),
  KVM_SET_XCRS: write(['vcpu'], 0xa7, x86.kvm_xcrs),
  KVM_GET_ONE_REG: pointers(['vcpu'], 'write', 0xab, g.kvm_one_reg, ['addr']),
  KVM_SET_ONE_REG: pointers(['vcpu'], 'write', 0xac, g.kvm_one_reg, ['addr']),
  KVM_KVMCLOCK_CTRL: none(['vcpu'], 0xad),
  KVM_GET_REG_LIST: list(['vcpu'], 'readwrite', 0xb0, g.kvm_reg_list, u64, 'n', MAX_INDICES),
  KVM_SMI: none(['vcpu'], 0xb7),
  KVM_GET_NESTED_STATE: sized(
    ['vcpu'],
    'readwrite',
    0xbe,
    x86.kvm_nested_state,
    Cap.NESTED_STATE,
    MAX_NESTED,
    'size',
  ),
  KVM_SET_NESTED_STATE: sized(
    ['vcpu'],
    'write',
    0xbf,
    x86.kvm_nested_state,
    Cap.NESTED_STATE,
    MAX_NESTED,
    'size',
  ),
  KVM_GET_SUPPORTED_HV_CPUID: cpuid(['system', 'vcpu'], 'readwrite', 0xc1),
  /** `vcpuInfoHva` with VCPU_INFO_HVA alone. */
  KVM_XEN_VCPU_GET_ATTR: pointers(['vcpu'], 'readwrite', 0xca, xen.kvm_xen_vcpu_attr, ['vcpuInfoHva']),
  KVM_XEN_VCPU_SET_ATTR: pointers(['vcpu'], 'write', 0xcb, xen.kvm_xen_vcpu_attr, ['vcpuInfoHva']),
  KVM_GET_SREGS2: read(['vcpu'], 0xcc, x86.kvm_sregs2),
  KVM_SET_SREGS2: write(['vcpu'], 0xcd, x86.kvm_sregs2),
  KVM_GET_XSAVE2: sized(['vcpu'], 'read', 0xcf, x86.kvm_xsave, Cap.XSAVE2, MAX_XSAVE),
  KVM_PRE_FAULT_MEMORY: readwrite(['vcpu'], 0xd5, g.kvm_pre_fault_memory),

  // Both, and devices
  KVM_GET_STATS_FD: none(['vm', 'vcpu'], 0xce, 'fd'),
  KVM_SET_DEVICE_ATTR: pointers(['system', 'vm', 'vcpu', 'device'], 'write', 0xe1, g.kvm_device_attr, [
    'addr',
  ]),
  KVM_GET_DEVICE_ATTR: pointers(['system', 'vm', 'vcpu', 'device'], 'write', 0xe2, g.kvm_device_attr, [
    'addr',
  ]),
  KVM_HAS_DEVICE_ATTR: write(['system', 'vm', 'vcpu', 'device'], 0xe3, g.kvm_device_attr),
});

/** The ioctls of x86 that no method issues and none will, by the kernel's names, with the reason. */
export const leftOutIoctls: Readonly<Record<string, string>> = {
  KVM_SET_SIGNAL_MASK: 'it would let the signals wait by which kicks and deadlines end a run',
  KVM_SET_CPUID: 'KVM_SET_CPUID2 sets subleaves too, and is as old as any KVM that this package runs on',
  KVM_CREATE_PIT: 'KVM_CREATE_PIT2 with no flags does the same',
  KVM_GET_PIT: 'KVM_GET_PIT2 gives the flags as well',
  KVM_SET_PIT: 'KVM_SET_PIT2 takes the flags as well',
  KVM_SET_NR_MMU_PAGES: 'deprecated: a limit of shadow page tables, which two-dimensional paging has not',
  KVM_GET_NR_MMU_PAGES: 'deprecated, as KVM_SET_NR_MMU_PAGES',
};

/** The kernel's name of an ioctl: a key of `ioctls`. */
export type IoctlName = keyof typeof ioctls;

function cpuid(on: readonly FdKind[], dir: Direction, number: number) {
  return list(on, dir, number, x86.kvm_cpuid2, x86.kvm_cpuid_entry2, 'nent', MAX_CPUID);
}

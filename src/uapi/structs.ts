/** The structs of include/uapi/linux/kvm.h that every architecture shares, but kvm_run (see kvm-run.ts). */
import { array, bytes, i16, i32, over, size64, struct, u8, u16, u32, u64, union } from './layout.ts';
import { kvm_guest_debug_arch } from './x86.ts';

/** KVM_SET_USER_MEMORY_REGION. Sizes and addresses in bytes; `userspaceAddr` is a pointer. */
export const kvm_userspace_memory_region = struct('kvm_userspace_memory_region', {
  slot: u32,
  flags: u32,
  guestPhysAddr: size64,
  memorySize: size64,
  userspaceAddr: u64,
});

/**
 * KVM_SET_USER_MEMORY_REGION2 (KVM_CAP_USER_MEMORY2, since 6.8). `userfaultBitmap`, a pointer, is of the proposed
 * KVM_MEM_USERFAULT, which takes the first word of the padding.
 */
export const kvm_userspace_memory_region2 = struct('kvm_userspace_memory_region2', {
  slot: u32,
  flags: u32,
  guestPhysAddr: size64,
  memorySize: size64,
  userspaceAddr: u64,
  guestMemfdOffset: size64,
  guestMemfd: u32,
  pad1: u32,
  pad2: array(u64, 14),
  userfaultBitmap: over('pad2', u64),
});

/** KVM_SET_MEMORY_ATTRIBUTES (KVM_CAP_MEMORY_ATTRIBUTES, since 6.8). Bytes; both a multiple of the page size. */
export const kvm_memory_attributes = struct('kvm_memory_attributes', {
  address: size64,
  size: size64,
  attributes: size64,
  flags: size64,
});

/** KVM_CREATE_GUEST_MEMFD (KVM_CAP_GUEST_MEMFD, since 6.8). Bytes, a multiple of the page size. */
export const kvm_create_guest_memfd = struct('kvm_create_guest_memfd', {
  size: size64,
  flags: size64,
  reserved: array(u64, 6),
});

/** KVM_PRE_FAULT_MEMORY (KVM_CAP_PRE_FAULT_MEMORY, since 6.11). The kernel moves `gpa` on and counts `size` down. */
export const kvm_pre_fault_memory = struct('kvm_pre_fault_memory', {
  gpa: size64,
  size: size64,
  flags: size64,
  padding: array(u64, 5),
});

/** KVM_IRQ_LINE; KVM_IRQ_LINE_STATUS answers in `status`. */
export const kvm_irq_level = struct('kvm_irq_level', { irq: u32, status: over('irq', i32), level: u32 });

/** KVM_CREATE_PIT2. */
export const kvm_pit_config = struct('kvm_pit_config', { flags: u32, pad: array(u32, 15) });

/** KVM_REGISTER_COALESCED_MMIO. */
export const kvm_coalesced_mmio_zone = struct('kvm_coalesced_mmio_zone', {
  addr: size64,
  size: u32,
  pad: u32,
  pio: over('pad', u32),
});
/** One write that KVM put into the ring instead of exiting. */
export const kvm_coalesced_mmio = struct('kvm_coalesced_mmio', {
  physAddr: size64,
  len: u32,
  pad: u32,
  pio: over('pad', u32),
  data: bytes(8),
});
/** The head of the ring in the page KVM_COALESCED_MMIO_PAGE_OFFSET of the vCPU's mapping. */
export const kvm_coalesced_mmio_ring = struct('kvm_coalesced_mmio_ring', { first: u32, last: u32 });

/** KVM_TRANSLATE: the guest's page tables walked by the kernel. */
export const kvm_translation = struct('kvm_translation', {
  linearAddress: u64,
  physicalAddress: u64,
  valid: u8,
  writeable: u8,
  usermode: u8,
  pad: bytes(5),
});

/** KVM_INTERRUPT: the vector, without an in-kernel APIC. */
export const kvm_interrupt = struct('kvm_interrupt', { irq: u32 });

/** KVM_GET_DIRTY_LOG. `dirtyBitmap` is a pointer: one bit per page. */
export const kvm_dirty_log = struct('kvm_dirty_log', {
  slot: u32,
  padding1: u32,
  dirtyBitmap: u64,
  padding2: over('dirtyBitmap', u64),
});
/** KVM_CLEAR_DIRTY_LOG. Pages, both a multiple of 64 but at the slot's end. */
export const kvm_clear_dirty_log = struct('kvm_clear_dirty_log', {
  slot: u32,
  numPages: u32,
  firstPage: size64,
  dirtyBitmap: u64,
  padding2: over('dirtyBitmap', u64),
});
/** An entry of the dirty ring. */
export const kvm_dirty_gfn = struct('kvm_dirty_gfn', { flags: u32, slot: u32, offset: size64 });

/** The head of a signal mask of `len` bytes; the kernel takes 8 (its own sigset_t, not libc's). */
export const kvm_signal_mask = struct('kvm_signal_mask', { len: u32 });

/**
 * KVM_TPR_ACCESS_REPORTING: `enabled` 1 makes accesses to the APIC's task priority exits (Exit.TPR_ACCESS).
 */
export const kvm_tpr_access_ctl = struct('kvm_tpr_access_ctl', {
  enabled: u32,
  flags: u32,
  reserved: array(u32, 8),
});
/** KVM_SET_VAPIC_ADDR: the guest-physical address of the page that shadows the task priority. */
export const kvm_vapic_addr = struct('kvm_vapic_addr', { vapicAddr: u64 });
/** KVM_GET_MP_STATE, KVM_SET_MP_STATE: one of MpState. */
export const kvm_mp_state = struct('kvm_mp_state', { mpState: u32 });

/** KVM_SET_GUEST_DEBUG: single-step and breakpoints. */
export const kvm_guest_debug = struct('kvm_guest_debug', {
  control: u32,
  pad: u32,
  arch: kvm_guest_debug_arch,
});

/**
 * KVM_IOEVENTFD: guest writes of `len` bytes (0, 1, 2, 4 or 8) to `addr` signal the eventfd `fd` instead of
 * exiting. `flags` are IoeventfdFlag bits; with DATAMATCH only a write of `datamatch`.
 */
export const kvm_ioeventfd = struct('kvm_ioeventfd', {
  datamatch: u64,
  addr: size64,
  len: u32,
  fd: i32,
  flags: u32,
  pad: bytes(36),
});

/**
 * KVM_IRQFD: the eventfd `fd` raises interrupt `gsi`. `flags` are IrqfdFlag bits; `resamplefd` is signalled
 * at the guest's end of interrupt.
 */
export const kvm_irqfd = struct('kvm_irqfd', {
  fd: u32,
  gsi: u32,
  flags: u32,
  resamplefd: u32,
  pad: bytes(16),
});

/** KVM_ENABLE_CAP. */
export const kvm_enable_cap = struct('kvm_enable_cap', {
  cap: u32,
  flags: u32,
  args: array(u64, 4),
  pad: bytes(64),
});

/** A route to a pin of an in-kernel interrupt controller: `irqchip` is one of Irqchip. */
export const kvm_irq_routing_irqchip = struct('kvm_irq_routing_irqchip', { irqchip: u32, pin: u32 });
/** A route to a message-signalled interrupt: where it is written, and what. */
export const kvm_irq_routing_msi = struct('kvm_irq_routing_msi', {
  addressLo: u32,
  addressHi: u32,
  data: u32,
  pad: u32,
  devid: over('pad', u32),
});
/** A route to a Hyper-V synthetic interrupt source of a vCPU. */
export const kvm_irq_routing_hv_sint = struct('kvm_irq_routing_hv_sint', { vcpu: u32, sint: u32 });
/** A route to a Xen event channel; also the argument of KVM_XEN_HVM_EVTCHN_SEND. */
export const kvm_irq_routing_xen_evtchn = struct('kvm_irq_routing_xen_evtchn', {
  port: u32,
  vcpu: u32,
  priority: u32,
});
/** One GSI's route; `type` says which arm of `u` holds. */
export const kvm_irq_routing_entry = struct('kvm_irq_routing_entry', {
  gsi: u32,
  type: u32,
  flags: u32,
  pad: u32,
  u: union('kvm_irq_routing_entry.u', {
    irqchip: kvm_irq_routing_irqchip,
    msi: kvm_irq_routing_msi,
    hvSint: kvm_irq_routing_hv_sint,
    xenEvtchn: kvm_irq_routing_xen_evtchn,
    pad: array(u32, 8),
  }),
});
/** The head of a list of `nr` kvm_irq_routing_entry. */
export const kvm_irq_routing = struct('kvm_irq_routing', { nr: u32, flags: u32 });

/**
 * KVM_SIGNAL_MSI: a message-signalled interrupt. `flags` are MsiFlag bits; `devid` counts with VALID_DEVID.
 */
export const kvm_msi = struct('kvm_msi', {
  addressLo: u32,
  addressHi: u32,
  data: u32,
  flags: u32,
  devid: u32,
  pad: bytes(12),
});

/** KVM_GET_CLOCK, KVM_SET_CLOCK. Nanoseconds; `hostTsc` in cycles. */
export const kvm_clock_data = struct('kvm_clock_data', {
  clock: u64,
  flags: u32,
  pad0: u32,
  realtime: u64,
  hostTsc: u64,
  pad: array(u32, 4),
});

/** The head of a list of `n` register ids, each a u64. */
export const kvm_reg_list = struct('kvm_reg_list', { n: size64 });
/** `addr` is a pointer to the value. */
export const kvm_one_reg = struct('kvm_one_reg', { id: u64, addr: u64 });

/** KVM_CREATE_DEVICE: `type` is one of DeviceType. The kernel answers in `fd`. */
export const kvm_create_device = struct('kvm_create_device', { type: u32, fd: u32, flags: u32 });
/** `addr` is a pointer to the attribute's value. */
export const kvm_device_attr = struct('kvm_device_attr', { flags: u32, group: u32, attr: u64, addr: u64 });

/**
 * KVM_MEMORY_ENCRYPT_REG_REGION, KVM_MEMORY_ENCRYPT_UNREG_REGION: a range of bytes, whose `addr` is a pointer
 * in mainline and a guest-physical address in the dialect `v9`.
 */
export const kvm_enc_region = struct('kvm_enc_region', { addr: u64, size: size64 });

/** What a statistics fd begins with. All offsets in bytes from its start. */
export const kvm_stats_header = struct('kvm_stats_header', {
  flags: u32,
  nameSize: u32,
  numDesc: u32,
  idOffset: u32,
  descOffset: u32,
  dataOffset: u32,
});
/** One statistic; its name follows in `nameSize` bytes. `size` counts u64 values. */
export const kvm_stats_desc = struct('kvm_stats_desc', {
  flags: u32,
  exponent: i16,
  size: u16,
  offset: u32,
  bucketSize: u32,
});

/** Interrupt controllers, routes, eventfds, timers and the clock. */

/** KVM_IRQCHIP_*: kvm_irqchip.chip_id. */
export const Irqchip = {
  /** The first 8259A. */
  PIC_MASTER: 0,
  /** The second 8259A. */
  PIC_SLAVE: 1,
  /** The I/O APIC. */
  IOAPIC: 2,
} as const;
/** One of the numbers in the table {@link Irqchip}. */
export type Irqchip = (typeof Irqchip)[keyof typeof Irqchip];

/** KVM_IRQ_ROUTING_*: kvm_irq_routing_entry.type. */
export const IrqRouting = {
  /** A pin of an in-kernel interrupt controller. */
  IRQCHIP: 1,
  /** A message-signalled interrupt. */
  MSI: 2,
  /** An adapter interrupt of s390. */
  S390_ADAPTER: 3,
  /** A Hyper-V synthetic interrupt. */
  HV_SINT: 4,
  /** A Xen event channel. */
  XEN_EVTCHN: 5,
} as const;
/** One of the numbers in the table {@link IrqRouting}. */
export type IrqRouting = (typeof IrqRouting)[keyof typeof IrqRouting];

/** KVM_PIT_*. */
export const Pit = {
  /** A flag of KVM_CREATE_PIT2: port 0x61 is emulated as well. */
  SPEAKER_DUMMY: 1,
  /** The HPET has taken the PIT's interrupt. */
  FLAGS_HPET_LEGACY: 1 << 0,
  /** The speaker's data bit is set. */
  FLAGS_SPEAKER_DATA_ON: 1 << 1,
} as const;

/** KVM_IRQFD_FLAG_*. */
export const IrqfdFlag = {
  /** Takes the eventfd back. */
  DEASSIGN: 1 << 0,
  /** A level interrupt, with a `resamplefd`. */
  RESAMPLE: 1 << 1,
} as const;

/** KVM_IOEVENTFD_FLAG_*. */
export const IoeventfdFlag = {
  /** Only writes of the value `datamatch`. */
  DATAMATCH: 1 << 0,
  /** `addr` is a port. */
  PIO: 1 << 1,
  /** Takes the eventfd back. */
  DEASSIGN: 1 << 2,
  /** A virtio-ccw notification. s390. */
  VIRTIO_CCW_NOTIFY: 1 << 3,
} as const;

/** KVM_MSI_*. */
export const MsiFlag = {
  /** `devid` counts. */
  VALID_DEVID: 1 << 0,
} as const;

/** KVM_CLOCK_*: kvm_clock_data.flags. */
export const ClockFlag = {
  /** The clock is the same on all vCPUs. */
  TSC_STABLE: 1 << 1,
  /** `realtime` is valid. */
  REALTIME: 1 << 2,
  /** `hostTsc` is valid. */
  HOST_TSC: 1 << 3,
} as const;

/** KVM_X2APIC_API_*: arguments of KVM_CAP_X2APIC_API. */
export const X2apicApi = {
  /** Interrupt routes and KVM_GET_LAPIC, KVM_SET_LAPIC use ids of 32 bits. */
  USE_32BIT_IDS: 1 << 0,
  /** APIC id 0xff is one processor in x2APIC mode, not all. */
  DISABLE_BROADCAST_QUIRK: 1 << 1,
  /**
   * KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST: the guest can suppress Exit.IOAPIC_EOI. With a split irqchip only, and not
   * with the next. Newer than 6.12.
   */
  ENABLE_SUPPRESS_EOI_BROADCAST: 1 << 2,
  /** KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST: the local APIC does not show that it could. Newer than 6.12. */
  DISABLE_SUPPRESS_EOI_BROADCAST: 1 << 3,
} as const;

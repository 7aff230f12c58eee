/** Xen's and Hyper-V's interfaces, which KVM has for guests that expect them. */

/** KVM_XEN_HVM_CONFIG_*: kvm_xen_hvm_config.flags, and what KVM_CAP_XEN_HVM gives. */
export const XenHvmConfigFlag = {
  /** An MSR by which the guest has its page of hypercalls filled. */
  HYPERCALL_MSR: 1 << 0,
  /** Hypercalls that KVM does not serve are Exit.XEN. */
  INTERCEPT_HCALL: 1 << 1,
  /** The attributes SHARED_INFO, VCPU_INFO and their like (since 5.12). */
  SHARED_INFO: 1 << 2,
  /** The attributes RUNSTATE_* (since 5.12). */
  RUNSTATE: 1 << 3,
  /** IrqRouting.XEN_EVTCHN (since 5.17). */
  EVTCHN_2LEVEL: 1 << 4,
  /** KVM serves EVTCHNOP_send and timers; KVM_XEN_HVM_EVTCHN_SEND (since 5.19). */
  EVTCHN_SEND: 1 << 5,
  /** The attribute RUNSTATE_UPDATE_FLAG (since 6.2). */
  RUNSTATE_UPDATE_FLAG: 1 << 6,
  /** Xen's clock is never told to be stable (since 6.8). */
  PVCLOCK_TSC_UNSTABLE: 1 << 7,
  /** The attributes SHARED_INFO_HVA and VCPU_INFO_HVA (since 6.9). */
  SHARED_INFO_HVA: 1 << 8,
} as const;
/** One of the numbers in the table {@link XenHvmConfigFlag}. */
export type XenHvmConfigFlag = (typeof XenHvmConfigFlag)[keyof typeof XenHvmConfigFlag];

/** KVM_XEN_ATTR_TYPE_*: kvm_xen_hvm_attr.type, which says the arm of `u` that holds. */
export const XenAttr = {
  /** `longMode`: whether the guest's structures are those of 64 bits. */
  LONG_MODE: 0,
  /** `sharedInfo.gfn`: where the shared info page is. */
  SHARED_INFO: 1,
  /** `vector`: by which all vCPUs are told of events. */
  UPCALL_VECTOR: 2,
  /** `evtchn`: what an event channel that the guest sends to does. */
  EVTCHN: 3,
  /** `xenVersion`: what XENVER_version gives. */
  XEN_VERSION: 4,
  /** `runstateUpdateFlag`: the guest sees when its run state is being written. */
  RUNSTATE_UPDATE_FLAG: 5,
  /** `sharedInfo.hva`: the same page by its address in the VMM. */
  SHARED_INFO_HVA: 6,
} as const;
/** One of the numbers in the table {@link XenAttr}. */
export type XenAttr = (typeof XenAttr)[keyof typeof XenAttr];

/** KVM_XEN_VCPU_ATTR_TYPE_*: kvm_xen_vcpu_attr.type, which says the arm of `u` that holds. */
export const XenVcpuAttr = {
  /** `gpa`: where the vCPU's info is. */
  VCPU_INFO: 0,
  /** `gpa`: where its time info is. */
  VCPU_TIME_INFO: 1,
  /** `gpa`: where its run state is written. */
  RUNSTATE_ADDR: 2,
  /** `runstate.state`: its state now. */
  RUNSTATE_CURRENT: 3,
  /** `runstate`: all of it. */
  RUNSTATE_DATA: 4,
  /** `runstate`: what is added to its times. */
  RUNSTATE_ADJUST: 5,
  /** `vcpuId`: the number that Xen's hypercalls know it by. */
  VCPU_ID: 6,
  /** `timer`: its one-shot timer. */
  TIMER: 7,
  /** `vector`: by which this vCPU is told of events. */
  UPCALL_VECTOR: 8,
  /** `hva`: its info, by its address in the VMM. */
  VCPU_INFO_HVA: 9,
} as const;
/** One of the numbers in the table {@link XenVcpuAttr}. */
export type XenVcpuAttr = (typeof XenVcpuAttr)[keyof typeof XenVcpuAttr];

/** KVM_XEN_EVTCHN_*: kvm_xen_hvm_attr.u.evtchn.flags. */
export const XenEvtchnFlag = {
  /** The channel is taken back. */
  DEASSIGN: 1 << 0,
  /** A channel that is there is changed. */
  UPDATE: 1 << 1,
  /** All channels are taken back. */
  RESET: 1 << 2,
} as const;

/** KVM_XEN_*: single numbers of Xen's interface. The first two are bigints. */
export const Xen = {
  /** The guest frame number of a shared info page that there is not. */
  INVALID_GFN: 0xffff_ffff_ffff_ffffn,
  /** The address of a structure that there is not. */
  INVALID_GPA: 0xffff_ffff_ffff_ffffn,
  /** The lowest MSR that kvm_xen_hvm_config takes (newer than 6.12). */
  MSR_MIN_INDEX: 0x4000_0000,
  /** The highest. */
  MSR_MAX_INDEX: 0x4fff_ffff,
  /** KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL: the priority of every event channel today. */
  EVTCHN_PRIO_2LEVEL: 0xffff_ffff,
} as const;

/** KVM_HYPERV_*: of kvm_hyperv_eventfd. */
export const HypervEventfd = {
  /** A flag: takes the eventfd back. */
  EVENTFD_DEASSIGN: 1 << 0,
  /** The bits that a connection's id can have. */
  CONN_ID_MASK: 0x00ff_ffff,
} as const;

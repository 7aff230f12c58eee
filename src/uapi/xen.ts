/** The structs by which KVM is told what a guest of Xen or Hyper-V expects. */
import { array, bytes, i32, struct, u8, u16, u32, u64, union } from './layout.ts';

/** KVM_XEN_HVM_CONFIG. `blobAddr*` are pointers, `blobSize*` count pages. */
export const kvm_xen_hvm_config = struct('kvm_xen_hvm_config', {
  flags: u32,
  msr: u32,
  blobAddr32: u64,
  blobAddr64: u64,
  blobSize32: u8,
  blobSize64: u8,
  pad2: bytes(30),
});

/** KVM_XEN_HVM_GET_ATTR, KVM_XEN_HVM_SET_ATTR (since 5.12): `type` is one of XenAttr. */
export const kvm_xen_hvm_attr = struct('kvm_xen_hvm_attr', {
  type: u16,
  pad: array(u16, 3),
  u: union('kvm_xen_hvm_attr.u', {
    longMode: u8,
    vector: u8,
    runstateUpdateFlag: u8,
    sharedInfo: union('kvm_xen_hvm_attr.u.shared_info', { gfn: u64, hva: u64 }),
    evtchn: struct('kvm_xen_hvm_attr.u.evtchn', {
      sendPort: u32,
      type: u32,
      flags: u32,
      deliver: union('kvm_xen_hvm_attr.u.evtchn.deliver', {
        port: struct('kvm_xen_hvm_attr.u.evtchn.deliver.port', { port: u32, vcpu: u32, priority: u32 }),
        eventfd: struct('kvm_xen_hvm_attr.u.evtchn.deliver.eventfd', { port: u32, fd: i32 }),
        padding: array(u32, 4),
      }),
    }),
    xenVersion: u32,
    pad: array(u64, 8),
  }),
});

/** KVM_XEN_VCPU_GET_ATTR, KVM_XEN_VCPU_SET_ATTR (since 5.12): `type` is one of XenVcpuAttr. Times in nanoseconds. */
export const kvm_xen_vcpu_attr = struct('kvm_xen_vcpu_attr', {
  type: u16,
  pad: array(u16, 3),
  u: union('kvm_xen_vcpu_attr.u', {
    gpa: u64,
    hva: u64,
    pad: array(u64, 8),
    runstate: struct('kvm_xen_vcpu_attr.u.runstate', {
      state: u64,
      stateEntryTime: u64,
      timeRunning: u64,
      timeRunnable: u64,
      timeBlocked: u64,
      timeOffline: u64,
    }),
    vcpuId: u32,
    timer: struct('kvm_xen_vcpu_attr.u.timer', { port: u32, priority: u32, expiresNs: u64 }),
    vector: u8,
  }),
});

/** KVM_HYPERV_EVENTFD: the eventfd that HVCALL_SIGNAL_EVENT of a connection signals. `flags`: see HypervEventfd. */
export const kvm_hyperv_eventfd = struct('kvm_hyperv_eventfd', {
  connId: u32,
  fd: i32,
  flags: u32,
  padding: array(u32, 3),
});

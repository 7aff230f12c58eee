/** What a VM's guest finds of Hyper-V, Xen and performance counters. */
import { HypervEventfd, PmuEvent } from '../uapi/constants.ts';
import { ioctls } from '../uapi/ioctls.ts';
import type { Input, Value } from '../uapi/layout.ts';
import type { kvm_irq_routing_xen_evtchn } from '../uapi/structs.ts';
import type { kvm_xen_hvm_attr, kvm_xen_hvm_config } from '../uapi/xen.ts';
import { type Integer, integer, object, u32 } from './args.ts';
import { wrongType } from './errors.ts';
import type { Fd } from './fd.ts';
import { type GuestPlace, placeOf } from './guest-place.ts';
import { VmDevices } from './vm-devices.ts';

/** An eventfd of this package. */
export interface EventFdLike {
  /** The open file, for this package's own classes. */
  readonly fd: Fd;
}

/** KVM_HYPERV_EVENTFD: which connection of a Hyper-V guest signals which eventfd. */
export interface HypervEventfdOptions {
  /** The connection's id: HypervEventfd.CONN_ID_MASK has its bits. */
  readonly connId: number;
  /** What HVCALL_SIGNAL_EVENT of the connection signals. Without it the connection's is taken back. */
  readonly eventFd?: EventFdLike | undefined;
}

/** KVM_SET_PMU_EVENT_FILTER: which events a guest's counters may count. */
export interface PmuEventFilter {
  /** PmuEvent.ALLOW or DENY. */
  readonly action: number;
  /** 0, or PmuEvent.FLAG_MASKED_EVENTS (since 6.3). */
  readonly flags?: number;
  /** A bit for each fixed counter: those that can be used with ALLOW, those that cannot with DENY. */
  readonly fixedCounterBitmap?: number;
  /** What pmuEvent() gives, or with FLAG_MASKED_EVENTS pmuMaskedEntry(); at most 300. */
  readonly events: readonly Integer[];
}

/** An attribute of a Xen guest (struct kvm_xen_hvm_attr): `type` says which arm of `u` holds. */
export type XenHvmAttribute = Value<typeof kvm_xen_hvm_attr>;

/** What the fields of KVM_XEN_HVM_CONFIG and its like refer to. */
export interface XenReferences {
  /** Of SHARED_INFO_HVA (since 6.9): where the shared info page is, in place of `sharedInfo.hva`; a whole page of it. */
  readonly place?: GuestPlace | undefined;
  /** Of EVTCHN: what sending to the channel signals, in place of `deliver.eventfd.fd`. */
  readonly eventFd?: EventFdLike | undefined;
}

/** The part of a Vm that is about Hyper-V, Xen and performance counters. */
export abstract class VmParavirt extends VmDevices {
  /**
   * KVM_SET_PMU_EVENT_FILTER (KVM_CAP_PMU_EVENT_FILTER, since 5.3): which events the guest's counters may count. It is for
   * counters that are programmed from now on. A VM without counters: enableCap() with Cap.PMU_CAPABILITY.
   * @throws KvmError EINVAL for an action, a flag or an event that KVM does not know, E2BIG for more than 300 events, ENOTTY
   *   in the simulator; RangeError ERR_KVM_INVALID_ARG
   */
  setPmuEventFilter(filter: PmuEventFilter): void {
    const { action, flags = 0, fixedCounterBitmap = 0, events } = object('filter', filter);
    this.fd.exchangeList(ioctls.KVM_SET_PMU_EVENT_FILTER, events, {
      action: integer('action', action, PmuEvent.DENY),
      flags: u32('flags', flags),
      fixedCounterBitmap: u32('fixedCounterBitmap', fixedCounterBitmap),
    });
    this.unsaved.add('a filter of PMU events');
  }

  /**
   * KVM_HYPERV_EVENTFD (KVM_CAP_HYPERV_EVENTFD, since 4.17): HVCALL_SIGNAL_EVENT of a connection signals an eventfd, and is
   * no exit.
   * @throws KvmError EEXIST when the connection has one, ENOENT when there is none to take back, EINVAL for an id that cannot
   *   be or where KVM has no Hyper-V (CONFIG_KVM_HYPERV), ENOTTY in the simulator
   */
  hypervEventfd(options: HypervEventfdOptions): void {
    const { connId, eventFd } = object('options', options);
    const flags = eventFd === undefined ? HypervEventfd.EVENTFD_DEASSIGN : 0;
    this.fd.refer(ioctls.KVM_HYPERV_EVENTFD, { connId: u32('connId', connId), flags }, [
      handleOf('eventFd', eventFd),
    ]);
    this.unsaved.note(`an eventfd of Hyper-V's connection ${connId}`, eventFd !== undefined);
  }

  /**
   * KVM_XEN_HVM_CONFIG (KVM_CAP_XEN_HVM, since 2.6.32; its flags since 5.12): makes the guest one of Xen's. A guest that
   * writes `msr` with an address has its page of hypercalls filled there: with XenHvmConfigFlag.INTERCEPT_HCALL by KVM, and
   * its hypercalls are Exit.XEN or served by KVM; else with a page of the blob for its mode.
   * @param blobs the pages for guests of 32 and of 64 bits, in place of `blobAddr32` and `blobAddr64`; `blobSize*` count
   *   pages. The memory stays mapped as long as KVM may read it
   * @throws KvmError EINVAL for flags that KVM does not know and for blobs beside INTERCEPT_HCALL, ENOTTY where KVM has no Xen
   *   (CONFIG_KVM_XEN) and in the simulator
   */
  xenHvmConfig(
    config: Input<Value<typeof kvm_xen_hvm_config>>,
    blobs: { readonly blob32?: GuestPlace; readonly blob64?: GuestPlace } = {},
  ): void {
    object('config', config);
    const { blob32, blob64 } = object('blobs', blobs);
    this.fd.refer(ioctls.KVM_XEN_HVM_CONFIG, config, [placeOf('blob32', blob32), placeOf('blob64', blob64)]);
    this.unsaved.add('a configuration of Xen');
  }
  /**
   * KVM_XEN_HVM_GET_ATTR (since 5.12). Addresses in this process are not told: `sharedInfo.hva` is 0.
   * @param type XenAttr, which says the arm of `u` that holds
   * @throws KvmError ENOENT for a type that cannot be read, ENOTTY as xenHvmConfig()
   */
  getXenHvmAttr(type: number): XenHvmAttribute {
    return this.fd.ask(ioctls.KVM_XEN_HVM_GET_ATTR, { type });
  }
  /**
   * KVM_XEN_HVM_SET_ATTR (since 5.12).
   * @param attr `type` is one of XenAttr; the arm of `u` that it names
   * @param references what the arm refers to. Memory stays mapped as long as KVM may use it
   * @throws KvmError EINVAL for a value that cannot be, ENOENT for an unknown type, EEXIST for an event channel that is there,
   *   ENOTTY as xenHvmConfig()
   */
  setXenHvmAttr(attr: Input<XenHvmAttribute>, references: XenReferences = {}): void {
    object('attr', attr);
    const { place, eventFd } = object('references', references);
    this.fd.refer(ioctls.KVM_XEN_HVM_SET_ATTR, attr, [placeOf('place', place), handleOf('eventFd', eventFd)]);
    this.unsaved.add('attributes of Xen');
  }
  /**
   * KVM_XEN_HVM_EVTCHN_SEND (XenHvmConfigFlag.EVTCHN_SEND, since 5.19): an event of a channel for the guest.
   * @param channel `port`, `vcpu` (the number that Xen knows it by) and `priority`, Xen.EVTCHN_PRIO_2LEVEL
   * @throws KvmError EINVAL for a port or a priority that cannot be, ENOTTY as xenHvmConfig()
   */
  xenHvmEvtchnSend(channel: Input<Value<typeof kvm_irq_routing_xen_evtchn>>): void {
    this.fd.write(ioctls.KVM_XEN_HVM_EVTCHN_SEND, object('channel', channel));
  }
}

function handleOf(name: string, eventFd: EventFdLike | undefined) {
  if (eventFd === undefined) return null;
  const { fd } = object(name, eventFd);
  if (typeof fd !== 'object' || fd === null) throw wrongType(name, eventFd, 'an eventfd of this package');
  return fd.handle;
}

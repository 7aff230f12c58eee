/** A virtual machine: its memory, its vCPUs, its capabilities. One thread owns it. */
import { Cap } from '../uapi/cap.ts';
import { MemoryAttribute, VmType } from '../uapi/constants.ts';
import { ioctls } from '../uapi/ioctls.ts';
import type { Input, Value } from '../uapi/layout.ts';
import type { kvm_clock_data, kvm_coalesced_mmio_zone, kvm_enable_cap } from '../uapi/structs.ts';
import { hex, nameOf } from '../uapi/text.ts';
import { u32 } from './args.ts';
import type { SharedVm } from './backend.ts';
import { type EnabledCap, EnabledCaps } from './enabled-caps.ts';
import { KvmError } from './errors.ts';
import { Fd } from './fd.ts';
import { type Inspect, inspect, shown, text } from './inspect.ts';
import { describeSlot } from './memory-map.ts';
import { type MsrFilterOptions, msrFilter } from './msr-filter.ts';
import { type Stats, statsOf } from './stats.ts';
import { Vcpu } from './vcpu.ts';
import { VmEncryption } from './vm-encryption.ts';
import type { InterruptSetup } from './vm-interrupts.ts';

/** Guest-physical addresses have at most 52 bits (SDM volume 3, 4.1.4). */
const MAX_ADDRESS = 2 ** 52;

/** What was done to a VM that the kernel cannot be asked for: with MemoryMap, what it takes to make another like it. */
export interface VmSetup extends InterruptSetup {
  /** What enableCap() was given, in that order, each once. */
  readonly caps: readonly EnabledCap[];
  /** What setTssAddr() was given, if it was called. */
  readonly tssAddress: number | undefined;
  /** What setIdentityMapAddr() was given, if it was called. */
  readonly identityMapAddress: number | undefined;
  /** How many there are that irqfd() has made. */
  readonly irqfds: number;
  /** How many there are that ioeventfd() has made. */
  readonly ioeventfds: number;
  /** What it has that no snapshot carries, as a phrase each: `a filter of MSRs`. */
  readonly unsaved: readonly string[];
}

/** A VM of one thread that another may open: what Vm.share() gives. Plain data, for postMessage(). */
export interface VmToken extends SharedVm {
  /** Vm.type. */
  readonly type: number;
}

/**
 * A virtual machine: its memory, its vCPUs, and the devices that the kernel has for it. Made by
 * Hypervisor.createVm().
 */
export class Vm extends VmEncryption implements Disposable {
  /** VmType: what it was created as. */
  readonly type: number;
  readonly #caps = new EnabledCaps();
  #tssAddress: number | undefined;
  #identityMapAddress: number | undefined;

  /** Made by Hypervisor.createVm(). */
  constructor(fd: Fd, type: number) {
    super(fd);
    this.type = type;
  }

  /** Whether close() was called. */
  get closed(): boolean {
    return this.fd.closed;
  }

  /**
   * What another thread of this process opens this VM by (Hypervisor.openVm()). This thread owns its memory and its setup.
   * @throws VmexitError ERR_KVM_CLOSED, ERR_KVM_NOT_OWNER; KvmError ENOMEM in the simulator
   */
  share(): VmToken {
    this.fd.owned('share()');
    const shared = this.fd.backend.shareVm(this.fd.handle);
    if (typeof shared === 'number') throw new KvmError(shared, 'share');
    return { ...shared, type: this.type };
  }

  /** What this Vm's other ioctls have made of it. */
  get setup(): VmSetup {
    this.fd.owned('setup');
    const { eventFds } = this;
    return {
      ...this.interrupts,
      caps: this.#caps.list,
      tssAddress: this.#tssAddress,
      identityMapAddress: this.#identityMapAddress,
      ...eventFds,
      unsaved: [...this.unsaved, ...describeEventFds(eventFds)],
    };
  }

  /** KVM_CHECK_EXTENSION for this VM: capabilities depend on its type. 0 for an unknown one. */
  checkExtension(cap: number): number {
    return this.fd.call(ioctls.KVM_CHECK_EXTENSION, u32('cap', cap));
  }

  /**
   * KVM_ENABLE_CAP: turns a capability on for this VM. Some must be enabled before the first vCPU.
   * @param cap `cap` is one of Cap; `args` (four of 64 bits) and `flags` are 0 without them
   * @throws KvmError EINVAL for a capability that cannot be enabled, or not with these arguments
   */
  enableCap(cap: Input<Value<typeof kvm_enable_cap>>): void {
    const enabled = this.#caps.enable(this.fd, cap);
    if (enabled.cap === Cap.SPLIT_IRQCHIP) this.interrupts = { ...this.interrupts, irqchip: 'split' };
  }

  /**
   * KVM_CREATE_VCPU. On x86 vCPU 0 is the boot processor, unless setBootCpuId() says otherwise.
   * @param id from 0 to below KVM_CAP_MAX_VCPU_ID; 0 without it. On x86 it is the initial APIC id
   * @throws KvmError EEXIST when there is one of this id, EINVAL for an id or a number of vCPUs beyond KVM's limits
   */
  createVcpu(id = 0): Vcpu {
    const handle = this.fd.create(ioctls.KVM_CREATE_VCPU, u32('id', id));
    const fd = new Fd(this.fd.backend, handle, 'vCPU', `vCPU ${id}`);
    return new Vcpu(fd, id, (cap) => this.checkExtension(cap));
  }

  /**
   * KVM_SET_TSS_ADDR: three pages of guest-physical memory that Intel hosts need, clear of slots and of MMIO.
   * @param address bytes; the pages end at or below 4 GiB
   * @throws KvmError EINVAL when they do not; RangeError ERR_KVM_INVALID_ARG from 4 GiB on
   */
  setTssAddr(address: number): void {
    this.fd.call(ioctls.KVM_SET_TSS_ADDR, u32('address', address));
    this.#tssAddress = address;
  }
  /**
   * KVM_SET_IDENTITY_MAP_ADDR: one page of guest-physical memory that Intel hosts need; before the first vCPU.
   * @param address bytes, below 4 GiB; 0 is KVM's default
   * @throws KvmError EINVAL once there is a vCPU
   */
  setIdentityMapAddr(address: number): void {
    this.fd.write(ioctls.KVM_SET_IDENTITY_MAP_ADDR, u32('address', address));
    this.#identityMapAddress = address;
  }

  /**
   * KVM_GET_TSC_KHZ at VM scope (since 5.16): the rate of the time-stamp counter that new vCPUs
   * begin with, in kHz.
   */
  getTscKhz(): number {
    return this.fd.call(ioctls.KVM_GET_TSC_KHZ);
  }
  /**
   * KVM_SET_TSC_KHZ at VM scope (since 5.16): before the first vCPU.
   * @param khz thousands of cycles a second; 0 is the host's own rate
   * @throws KvmError EINVAL once there is a vCPU, and for a rate that cannot be had; ENOTTY in the simulator
   */
  setTscKhz(khz: number): void {
    this.fd.call(ioctls.KVM_SET_TSC_KHZ, u32('khz', khz));
  }
  /**
   * KVM_GET_STATS_FD (since 5.14): this VM's statistics. Close what it gives, or use `using`.
   * @throws KvmError ENOTTY in the simulator
   */
  getStatsFd(): Stats {
    return statsOf(this.fd, ioctls.KVM_GET_STATS_FD);
  }
  /**
   * KVM_X86_SET_MSR_FILTER (KVM_CAP_X86_MSR_FILTER, since 5.10): which MSRs the VM's guests may read and write. An access that
   * is denied is #GP(0) for the guest, or Exit.X86_RDMSR or X86_WRMSR with reason FILTER where KVM_CAP_X86_USER_SPACE_MSR
   * asks for that. It takes the place of the last one; `{}` allows everything. It does not concern x2APIC's registers (0x800
   * to 0x8ff), nor what the VMM reads and writes.
   * @throws KvmError EINVAL for unknown flags, a range without any, and DEFAULT_DENY without ranges; TypeError, RangeError
   *   ERR_KVM_INVALID_ARG, which names the range
   */
  setMsrFilter(filter: MsrFilterOptions): void {
    const { fields, bitmaps } = msrFilter(filter);
    this.fd.refer(ioctls.KVM_X86_SET_MSR_FILTER, fields, bitmaps);
    this.unsaved.note('a filter of MSRs', Number(fields.flags) !== 0 || bitmaps.length > 0);
  }
  /**
   * KVM_REGISTER_COALESCED_MMIO: writes to the zone wait in Vcpu.coalescedRing instead of ending run(); reads still end it.
   * @param zone `addr` and `size` in bytes, guest-physical; or ports, with `pio` 1 (KVM_CAP_COALESCED_PIO, since 4.19)
   * @throws KvmError EINVAL for another `pio`, ENOSPC; ENOTTY in the simulator
   */
  registerCoalescedMmio(zone: Input<Value<typeof kvm_coalesced_mmio_zone>>): void {
    this.fd.write(ioctls.KVM_REGISTER_COALESCED_MMIO, zone);
    this.unsaved.add(describeZone(zone));
  }
  /** KVM_UNREGISTER_COALESCED_MMIO: of each zone in which this one lies. What is in the ring stays. @throws as for registering */
  unregisterCoalescedMmio(zone: Input<Value<typeof kvm_coalesced_mmio_zone>>): void {
    this.fd.write(ioctls.KVM_UNREGISTER_COALESCED_MMIO, zone);
    this.unsaved.delete(describeZone(zone));
  }

  /**
   * KVM_GET_CLOCK: the guest's kvmclock, in nanoseconds. `flags` (ClockFlag) says what else was read at the same instant (since
   * 5.16): `realtime`, the host's time of day in nanoseconds since 1970, and `hostTsc`.
   * @throws KvmError ENOTTY in the simulator, which has none
   */
  getClock(): Value<typeof kvm_clock_data> {
    return this.fd.read(ioctls.KVM_GET_CLOCK);
  }
  /**
   * KVM_SET_CLOCK. With ClockFlag.REALTIME in `flags` (since 5.16) it goes on from `clock` by as much as the host's time of day is
   * ahead of `realtime` now: the time in which the guest was saved counts.
   * @throws KvmError as getClock(); EINVAL for flags that cannot be set
   */
  setClock(clock: Input<Value<typeof kvm_clock_data>>): void {
    this.fd.write(ioctls.KVM_SET_CLOCK, clock);
  }

  /** What Node shows of it in a terminal: its type, its slots, and which memory is private. */
  [inspect](depth: number, options: unknown, nodes: Inspect): string {
    if (this.closed) return 'Vm { closed }';
    const type = text(nameOf(VmType, this.type));
    if (!this.fd.isOwned('memoryMap')) return shown('Vm', { type, opened: true }, depth, options, nodes);
    const { slots, otherSlots } = this.memoryMap;
    const { irqchip, pit } = this.interrupts;
    const ranges = [...this.memoryMap.attributesWithin(0, MAX_ADDRESS)].filter(
      ({ value }) => (value & MemoryAttribute.PRIVATE) !== 0,
    );
    const fields = {
      type,
      slots: [...slots, ...otherSlots].map((slot) => text(describeSlot(slot))),
      ...(ranges.length > 0 && {
        private: ranges.map(({ start, end }) => text(hex.range(start, end - start))),
      }),
      ...(irqchip !== undefined && { irqchip: text(irqchip) }),
      ...(pit !== undefined && { pit }),
    };
    return shown('Vm', fields, depth, options, nodes);
  }

  /** Idempotent. Its vCPUs and guest_memfds stay open, and the kernel keeps the VM until they are closed too. */
  close(): void {
    this.fd.close();
  }

  /** As close(): for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}

const describeEventFds = ({ irqfds, ioeventfds }: Pick<VmSetup, 'irqfds' | 'ioeventfds'>): string[] =>
  irqfds + ioeventfds > 0 ? [`eventfds (irqfd: ${irqfds}, ioeventfd: ${ioeventfds})`] : [];

const describeZone = ({
  addr = 0,
  size = 0,
  pio = 0,
}: Input<Value<typeof kvm_coalesced_mmio_zone>>): string =>
  `coalesced writes to ${pio ? 'ports ' : ''}${hex.range(addr, size)}`;

/** A virtual machine: its memory, its vCPUs, its capabilities. One thread owns it. */
import { Cap } from '../uapi/cap.ts';
import { MemoryAttribute, VmType } from '../uapi/constants.ts';
import { ioctls } from '../uapi/ioctls.ts';
import type { Input, Value } from '../uapi/layout.ts';
import type { kvm_clock_data, kvm_enable_cap } from '../uapi/structs.ts';
import { hex, nameOf } from '../uapi/text.ts';
import { u32 } from './args.ts';
import { type EnabledCap, EnabledCaps } from './enabled-caps.ts';
import { Fd } from './fd.ts';
import { type Inspect, inspect, shown, text } from './inspect.ts';
import { describeSlot } from './memory-map.ts';
import { Vcpu } from './vcpu.ts';
import { type InterruptSetup, VmInterrupts } from './vm-interrupts.ts';

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
  /** What it has that no snapshot carries, as a phrase each: `an irqfd at GSI 5`. */
  readonly unsaved: readonly string[];
}

/**
 * A virtual machine: its memory, its vCPUs, and the devices that the kernel has for it. Made by
 * Hypervisor.createVm().
 */
export class Vm extends VmInterrupts implements Disposable {
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

  /** What this Vm's other ioctls have made of it. */
  get setup(): VmSetup {
    return {
      ...this.interrupts,
      caps: this.#caps.list,
      tssAddress: this.#tssAddress,
      identityMapAddress: this.#identityMapAddress,
      unsaved: [...this.unsaved],
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

  /** KVM_GET_CLOCK: the guest's kvmclock, in nanoseconds. @throws KvmError ENOTTY in the simulator, which has none */
  getClock(): Value<typeof kvm_clock_data> {
    return this.fd.read(ioctls.KVM_GET_CLOCK);
  }
  /** KVM_SET_CLOCK. @throws KvmError as getClock(); EINVAL for flags that cannot be set */
  setClock(clock: Input<Value<typeof kvm_clock_data>>): void {
    this.fd.write(ioctls.KVM_SET_CLOCK, clock);
  }

  /** What Node shows of it in a terminal: its type, its slots, and which memory is private. */
  [inspect](depth: number, options: unknown, nodes: Inspect): string {
    if (this.closed) return 'Vm { closed }';
    const { slots, otherSlots } = this.memoryMap;
    const { irqchip, pit } = this.interrupts;
    const ranges = [...this.memoryMap.attributesWithin(0, MAX_ADDRESS)].filter(
      ({ value }) => (value & MemoryAttribute.PRIVATE) !== 0,
    );
    const fields = {
      type: text(nameOf(VmType, this.type)),
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

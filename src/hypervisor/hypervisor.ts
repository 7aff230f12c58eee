/** KVM itself, or the simulator in its place: what /dev/kvm offers. */
import { ioctls } from '../uapi/ioctls.ts';
import type { Value } from '../uapi/layout.ts';
import type { kvm_msr_entry } from '../uapi/x86.ts';
import { type Integer, integer, object, u32 } from './args.ts';
import {
  type Backend,
  type BackendName,
  type EventFdToken,
  type Handle,
  isHandle,
  type MemoryToken,
  type UserfaultfdToken,
} from './backend.ts';
import { kick, pause, resume, stop } from './controls.ts';
import { type DeviceAttr, getAttr64, hasAttr, setAttr } from './device-attributes.ts';
import { KvmError, outOfRange, wrongType } from './errors.ts';
import { EventFd, type EventFdOptions } from './event-fd.ts';
import { Fd } from './fd.ts';
import { GuestMemory } from './guest-memory.ts';
import { type Inspect, inspect, shown } from './inspect.ts';
import { bitmapPages, UserfaultBitmap } from './userfault-bitmap.ts';
import { Userfaultfd } from './userfaultfd.ts';
import { Vcpu } from './vcpu.ts';
import type { CpuidEntry } from './vcpu-state.ts';
import type { VcpuToken } from './vcpu-threads.ts';
import { Vm, type VmToken } from './vm.ts';
import { refuseToOthers } from './vm-owner.ts';

/**
 * An open /dev/kvm, or the simulator in its place: what the host can do, and new VMs. Made by
 * openHypervisor().
 */
export class Hypervisor implements Disposable {
  /** Which backend this is: `kvm` or `sim`. */
  readonly backend: BackendName;
  /** Why it is not the one that `auto` prefers; undefined when it is. */
  readonly fallback: string | undefined;
  readonly #fd: Fd;

  /** Made by openHypervisor(). @throws UnavailableError */
  constructor(backend: Backend, fallback?: string) {
    this.backend = backend.name;
    this.fallback = fallback;
    this.#fd = new Fd(backend, backend.open(), 'hypervisor', 'KVM');
  }

  /** Whether close() was called. */
  get closed(): boolean {
    return this.#fd.closed;
  }

  /** KVM_GET_API_VERSION: 12 since 2.6.22. */
  getApiVersion(): number {
    return this.#fd.call(ioctls.KVM_GET_API_VERSION);
  }

  /** KVM_CHECK_EXTENSION: what KVM can do at all; a VM of some type may do less. 0 for an unknown one. */
  checkExtension(cap: number): number {
    return this.#fd.call(ioctls.KVM_CHECK_EXTENSION, u32('cap', cap));
  }

  /**
   * KVM_CREATE_VM.
   * @param options.type VmType; 0 without it. KVM_CAP_VM_TYPES (since 6.8) is a bitmap of those that exist
   * @throws KvmError EINVAL for a type that this host does not have
   * @example
   * ```ts
   * import { openHypervisor, VmType } from 'vmexit';
   *
   * const hv = openHypervisor({ needs: ['private-memory'] });
   * const vm = hv.createVm({ type: VmType.SW_PROTECTED });
   * const secret = vm.createGuestMemfd(64 * 1024);
   * console.log(`${secret.size} bytes that the host cannot see`);
   * for (const opened of [secret, vm, hv]) opened.close();
   * // prints: 65536 bytes that the host cannot see
   * ```
   */
  createVm(options: { readonly type?: number } = {}): Vm {
    const { type = 0 } = object('options', options);
    const handle = this.#fd.create(ioctls.KVM_CREATE_VM, integer('type', type));
    return new Vm(new Fd(this.#fd.backend, handle, 'VM'), type);
  }

  /**
   * KVM_GET_SUPPORTED_CPUID: what setCpuid2() may be given. It is the same for every type of VM: on AMD's processors leaf
   * 0x8000_001F may claim SEV, and only a VM of such a type should be shown that (`Machine` leaves it out elsewhere).
   */
  getSupportedCpuid(): CpuidEntry[] {
    return this.#fd.readList(ioctls.KVM_GET_SUPPORTED_CPUID);
  }
  /** KVM_GET_EMULATED_CPUID: what KVM emulates although the processor lacks it. */
  getEmulatedCpuid(): CpuidEntry[] {
    return this.#fd.readList(ioctls.KVM_GET_EMULATED_CPUID);
  }
  /**
   * KVM_GET_SUPPORTED_HV_CPUID on /dev/kvm (KVM_CAP_SYS_HYPERV_CPUID, since 5.11): the leaves by which a guest sees
   * Hyper-V, to be given to Vcpu.setCpuid2() with the others.
   * @throws KvmError ENOTTY in the simulator
   */
  getSupportedHvCpuid(): CpuidEntry[] {
    return this.#fd.readList(ioctls.KVM_GET_SUPPORTED_HV_CPUID);
  }
  /**
   * KVM_X86_GET_MCE_CAP_SUPPORTED: the bits of IA32_MCG_CAP that Vcpu.setupMce() may set, and in the low eight the most banks.
   * @throws KvmError ENOTTY in the simulator
   */
  getMceCapSupported(): bigint {
    return this.#fd.read(ioctls.KVM_X86_GET_MCE_CAP_SUPPORTED);
  }
  /** KVM_GET_MSR_INDEX_LIST: the MSRs that a snapshot needs. */
  getMsrIndexList(): number[] {
    return this.#fd.readList(ioctls.KVM_GET_MSR_INDEX_LIST);
  }
  /** KVM_GET_MSR_FEATURE_INDEX_LIST: the MSRs that tell features of the host. */
  getMsrFeatureIndexList(): number[] {
    return this.#fd.readList(ioctls.KVM_GET_MSR_FEATURE_INDEX_LIST);
  }
  /** KVM_GET_MSRS for feature MSRs. @returns those that KVM could read, up to the first that it cannot */
  getFeatureMsrs(indices: readonly number[]): Value<typeof kvm_msr_entry>[] {
    if (!Array.isArray(indices)) throw wrongType('indices', indices, 'an array of MSR numbers');
    const wanted = indices.map((index) => ({ index: u32('index', index) }));
    const { result, elements } = this.#fd.exchangeList(ioctls.KVM_GET_MSRS, wanted);
    return elements.slice(0, result);
  }

  /**
   * KVM_GET_DEVICE_ATTR on /dev/kvm (KVM_CAP_SYS_ATTRIBUTES, since 5.17), of 64 bits. SystemAttr.XCOMP_GUEST_SUPP: the
   * XSAVE components that guests may have.
   * @throws KvmError ENXIO for an attribute that is none, ENOTTY in the simulator
   */
  getDeviceAttr(attr: DeviceAttr): bigint {
    return getAttr64(this.#fd, attr);
  }
  /** KVM_HAS_DEVICE_ATTR on /dev/kvm (since 5.17). @throws KvmError ENOTTY in the simulator */
  hasDeviceAttr(attr: DeviceAttr): boolean {
    return hasAttr(this.#fd, attr);
  }
  /**
   * KVM_SET_DEVICE_ATTR on /dev/kvm. No released kernel has an attribute there that can be set.
   * @param value bytes, at most 65,536; a number stands for 64 bits
   * @throws KvmError ENOTTY, EINVAL
   */
  setDeviceAttr(attr: DeviceAttr, value: Integer | Uint8Array): void {
    setAttr(this.#fd, attr, value);
  }

  /**
   * Opens guest memory that another thread of this process shares: the same pages in a view of this thread's own.
   * @throws KvmError ESTALE or EBADF when it was closed meanwhile
   */
  openMemory(token: MemoryToken): GuestMemory {
    this.#checkToken(token);
    integer('token.fd', token.fd, 0x7fff_ffff);
    integer('token.inode', token.inode);
    const memory = this.#fd.backend.openMemory(token);
    if (!isHandle(memory)) throw new KvmError(memory, 'mmap', undefined, 'the shared memory was closed');
    return new GuestMemory(this.#fd.backend, memory, this.#fd.backend.bytes(memory).byteLength, 'opened');
  }

  /**
   * Opens a userfault bitmap that another thread of this process shares, to set and release bits in this one.
   * @param pages what it was made with; no more than its memory has bits for
   * @throws KvmError ESTALE or EBADF when it was closed meanwhile; TypeError, RangeError ERR_KVM_INVALID_ARG
   */
  openUserfaultBitmap(token: MemoryToken, pages: number): UserfaultBitmap {
    const wanted = bitmapPages(pages);
    const memory = this.openMemory(token);
    if (wanted <= memory.size * 8) return new UserfaultBitmap(memory, wanted);
    memory.close();
    throw outOfRange('pages', pages, `at most the ${memory.size * 8} bits of the shared memory`);
  }

  /**
   * Opens a userfaultfd that another thread of this process shares: that which serves its faults.
   * @throws KvmError ESTALE or EBADF when it was closed meanwhile, ENOSYS in the simulator
   */
  openUserfaultfd(token: UserfaultfdToken): Userfaultfd {
    return Userfaultfd.open(this.#fd.backend, token);
  }

  /**
   * A counter for Vm.irqfd() and Vm.ioeventfd(), or for threads among themselves (eventfd(2)).
   * @throws KvmError EMFILE, ENFILE when too many files are open; TypeError, RangeError ERR_KVM_INVALID_ARG; VmexitError
   *   ERR_KVM_CLOSED
   */
  createEventFd(options: EventFdOptions = {}): EventFd {
    this.#fd.handle;
    return EventFd.create(this.#fd.backend, options);
  }

  /**
   * Opens an EventFd that another thread of this process shares: the same counter.
   * @throws KvmError ESTALE when it was closed meanwhile, EBADF in the simulator for what is no token of its own; TypeError,
   *   RangeError ERR_KVM_INVALID_ARG
   */
  openEventFd(token: EventFdToken): EventFd {
    return EventFd.open(this.#fd.backend, token);
  }

  /**
   * Interrupts a vCPU of any thread: the run in progress, or else the next one, gives INTERRUPTED. The simulator reaches the
   * threads that were started after this package was imported where they were started.
   * @param kickId Vcpu.kickId
   * @returns whether there is such a vCPU
   * @throws RangeError ERR_KVM_INVALID_ARG for a vCPU of the simulator that this thread cannot reach
   */
  kick(kickId: number): boolean {
    return kick(this.#fd.backend, kickId);
  }
  /**
   * Vcpu.pause() of a vCPU of any thread.
   * @param kickId Vcpu.kickId
   * @returns whether there is such a vCPU: once it stands still
   * @throws as kick(); KvmError EMFILE
   */
  pause(kickId: number): Promise<boolean> {
    return pause(this.#fd.backend, kickId);
  }
  /** Vcpu.resume() of a vCPU of any thread. @returns whether there is such a vCPU. @throws as kick(); KvmError EINVAL */
  resume(kickId: number): boolean {
    return resume(this.#fd.backend, kickId);
  }
  /** Vcpu.stop() of a vCPU of any thread. @returns whether there is such a vCPU. @throws as kick() */
  stop(kickId: number): boolean {
    return stop(this.#fd.backend, kickId);
  }

  /**
   * Opens a VM that another thread of this process has made, for what concerns its running: interrupts, clocks, statistics.
   * What makes its memory and its setup stays with that thread, which keeps the record of them: here it throws VmexitError
   * ERR_KVM_NOT_OWNER.
   * @param token what Vm.share() gave
   * @throws KvmError ESTALE when it was closed meanwhile, EBADF for what is no token of this backend's; TypeError, RangeError
   *   ERR_KVM_INVALID_ARG
   */
  openVm(token: VmToken): Vm {
    this.#checkToken(token);
    const type = integer('token.type', token.type);
    integer('token.number', token.number);
    const handle = this.#opened(this.#fd.backend.openVm(token), 'VM');
    return new Vm(new Fd(this.#fd.backend, handle, 'VM', 'VM', refuseToOthers), type);
  }

  /**
   * Opens a vCPU of another thread of this process: to run it in this one, or to look at it while it stands still.
   * @param token what Vcpu.share() gave
   * @throws as openVm()
   */
  openVcpu(token: VcpuToken): Vcpu {
    this.#checkToken(token);
    const id = integer('token.id', token.id);
    integer('token.kickId', token.kickId);
    const handle = this.#opened(this.#fd.backend.openVcpu(token), 'vCPU');
    const fd = new Fd(this.#fd.backend, handle, 'vCPU', `vCPU ${id}`);
    return new Vcpu(fd, id, (cap) => this.checkExtension(cap));
  }

  #checkToken(token: { readonly backend: BackendName }): void {
    const { backend } = object('token', token);
    if (backend !== this.backend) throw outOfRange('token.backend', backend, `'${this.backend}'`);
  }
  #opened(result: Handle | number, what: string): Handle {
    if (isHandle(result)) return result;
    throw new KvmError(result, 'open', undefined, `the ${what} that was shared is closed, or never was`);
  }

  /**
   * What a VMM takes from elsewhere than from its guest: a clock, a file, what somebody types. It is what `read` gives; in a
   * recording it is kept, and in a replay it is what was kept, and `read` is not called. See openReplay() of vmexit.
   * @param name tells inputs apart: a replay whose VMM asks for another one has diverged
   * @param read gives numbers, bigints, strings, bytes, and arrays and plain objects of them; it must not use this package
   */
  input<T>(name: string, read: () => T): T {
    if (typeof name !== 'string') throw wrongType('name', name, 'a string');
    if (typeof read !== 'function') throw wrongType('read', read, 'a function');
    const { backend } = this.#fd;
    return backend.input === undefined ? read() : backend.input(name, read);
  }

  /** What Node shows of it in a terminal: its backend, and why it is not the other one. */
  [inspect](depth: number, options: unknown, nodes: Inspect): string {
    const { backend, fallback, closed } = this;
    const fields = { backend, ...(fallback !== undefined && { fallback }), ...(closed && { closed }) };
    return shown('Hypervisor', fields, depth, options, nodes);
  }

  /** Idempotent. VMs stay open. */
  close(): void {
    this.#fd.close();
  }

  /** As close(): for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}

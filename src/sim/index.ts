/**
 * The simulator as a backend: KVM's ioctls, answered by a model of the kernel over a model of the processor, with the
 * kernel's own structs and errnos.
 *
 * What differs from the kernel: memory lies in one SharedArrayBuffer of at most 4 GiB, which no close can detach, so a
 * view that was taken before a memory was closed shows whatever lies there next. The bytes of SNP and TDX guests'
 * registers are not hidden, their MMIO needs no #VC or #VE, and launching them is not modelled (ENOTTY): their first
 * private pages come by populate().
 */
import type {
  Backend,
  EventFds,
  Handle,
  MemoryToken,
  Observer,
  Reference,
  SharedVcpu,
  SharedVm,
  Starter,
} from '../hypervisor/backend.ts';
import { closed, KvmError, outOfRange, wrongType } from '../hypervisor/errors.ts';
import { Errno } from '../uapi/errno.ts';
import { ioctls } from '../uapi/ioctls.ts';
import { Arena, PAGE } from './arena.ts';
import { type Argument, type Given, PlaceOf, type Table } from './kernel/abi/dispatch.ts';
import { Host, type SimOptions } from './kernel/host/host.ts';
import { systemCreates, systemIoctls } from './kernel/ioctls/system.ts';
import { vcpuIoctls } from './kernel/ioctls/vcpu.ts';
import { vmCreates, vmIoctls } from './kernel/ioctls/vm.ts';
import { EventFdFile } from './kernel/threads/eventfd.ts';
import { KvmVcpu } from './kernel/vcpu/vcpu.ts';
import { KvmVm } from './kernel/vm/vm.ts';
import { DirtyRing } from './memory/dirty.ts';
import { GuestMemfdFile } from './memory/guest-memfd.ts';
import { checkFallocate, Falloc, Mapping } from './memory/host-memory.ts';
import { RamFile } from './memory/ram.ts';
import { SharedFile } from './memory/sharing.ts';

export { Prepared } from './cpu/translate/prepared.ts';
export type { SimOptions, SimulatedHost } from './kernel/host/host.ts';
export { type KickTable, makeKickTable } from './kernel/threads/kicks.ts';

/** What a handle stands for: /dev/kvm is the host itself. */
type Opened = Host | KvmVm | KvmVcpu | GuestMemfdFile | Mapping | DirtyRing | EventFdFile;

class OpenHandle {
  readonly object: Opened;
  closed = false;
  constructor(object: Opened) {
    this.object = object;
  }
}

/** A backend with what only a simulator can do. */
export interface SimBackend extends Backend {
  /**
   * Makes a page of a guest_memfd fail until it is punched: with EHWPOISON, as after a hardware memory error, or with
   * ENOMEM, which KVM_RUN gives beside a memory fault that is none (exit_reason is KVM_EXIT_MEMORY_FAULT).
   * @param offset bytes, in the file
   */
  poison(guestMemfd: Handle, offset: number, errno?: 'EHWPOISON' | 'ENOMEM'): void;
  /**
   * Puts bytes into a guest_memfd, as launching an SNP or TDX guest does (KVM_SEV_SNP_LAUNCH_UPDATE,
   * KVM_TDX_INIT_MEM_REGION), without measuring them.
   * @param offset bytes, in the file
   * @throws KvmError ENOMEM
   */
  populate(guestMemfd: Handle, offset: number, bytes: Uint8Array): void;
}

/** madvise(2)'s numbers that lose at most contents, as the addon allows them. */
const MADV_REMOVE = 9;
const ADVICE = new Set([0, 1, 2, 3, 4, MADV_REMOVE, 14, 15, 16, 17, 22, 23]);

/** @throws RangeError ERR_KVM_INVALID_ARG for options that no host can have */
export function simBackend(options: SimOptions): SimBackend {
  arena ??= new Arena();
  return new Simulator(new Host(options, arena));
}

/** One for all simulated hosts of a thread: each takes addresses for 4 GiB and more, which only a collection gives back. */
let arena: Arena | undefined;

/**
 * What was not closed is closed when nobody can use it any more, as the addon does it. Not memory: its views are of
 * the whole arena's buffer, so nothing tells that the last of them is gone.
 */
const forgotten = new FinalizationRegistry<Opened>(release);

function release(object: Opened): void {
  if (object instanceof KvmVcpu) object.close();
  else if ('release' in object) object.release();
}

// biome-ignore lint/suspicious/noExplicitAny: a class of any constructor.
type Class<T> = abstract new (...args: any[]) => T;

function wrap(object: Opened): Handle {
  const handle = new OpenHandle(object);
  if (!(object instanceof Mapping)) forgotten.register(handle, object, handle);
  return handle as unknown as Handle;
}

/** What an open handle stands for. @throws VmexitError ERR_KVM_CLOSED, TypeError ERR_KVM_INVALID_ARG */
function open(handle: Handle, name = 'handle'): Opened {
  const opened = handle as unknown;
  if (!(opened instanceof OpenHandle)) throw wrongType(name, handle, 'a handle that this backend made');
  if (opened.closed) throw closed(name);
  return opened.object;
}
function as<T extends Opened>(type: Class<T>, handle: Handle, name: string): T {
  const object = open(handle, name);
  if (object instanceof type) return object;
  throw wrongType(name, handle, 'a handle of another kind');
}

/** @throws VmexitError ERR_KVM_CLOSED, TypeError, RangeError ERR_KVM_INVALID_ARG */
function given(reference: Reference): Given {
  if (reference === null || reference instanceof Uint8Array) return reference;
  if (!('memory' in reference)) return open(reference, 'reference');
  const { memory, offset } = reference;
  if (!Number.isSafeInteger(offset) || offset < 0)
    throw outOfRange('offset', offset, 'a whole number from 0');
  return new PlaceOf(open(memory, 'memory'), offset);
}

// biome-ignore lint/suspicious/noExplicitAny: each table serves its own class.
type Tables = readonly [ioctls: Table<any>, creates?: Table<any, any>];
const tables: ReadonlyMap<unknown, Tables> = new Map<unknown, Tables>([
  [Host, [systemIoctls, systemCreates]],
  [KvmVm, [vmIoctls, vmCreates]],
  [KvmVcpu, [vcpuIoctls]],
]);

/** What a copy of a VM answers: all else is its owner's to ask. */
const OWN: ReadonlySet<number> = new Set([
  ioctls.KVM_CHECK_EXTENSION.request,
  ioctls.KVM_GET_TSC_KHZ.request,
]);
/** What of a VM is neither memory nor vCPUs is set by these. */
const CONFIGURING: ReadonlySet<number> = new Set([
  ioctls.KVM_ENABLE_CAP.request,
  ioctls.KVM_X86_SET_MSR_FILTER.request,
  ioctls.KVM_IOEVENTFD.request,
]);

/** A call that no other thread's vCPU of the VM sees half done. */
function locked<T>(vm: object, call: () => T): T {
  if (!(vm instanceof KvmVm) || vm.share === undefined) return call();
  vm.enter();
  try {
    return call();
  } finally {
    vm.leave();
  }
}

/** An ioctl: VCPU_RUNNING while another thread runs the vCPU, -EPERM where the VM is another thread's. */
function serialized<T>(object: Opened, request: number, call: () => T): T | number {
  if (object instanceof KvmVcpu) return object.use(call);
  if (!(object instanceof KvmVm) || object.share === undefined) return call();
  if (object.isCopy && !OWN.has(request)) return -Errno.EPERM;
  return locked(object, () => {
    const result = call();
    if (CONFIGURING.has(request)) object.share!.tellConfig();
    return result;
  });
}

class Simulator implements SimBackend {
  readonly name = 'sim';
  readonly dialect;
  readonly #host: Host;

  constructor(host: Host) {
    this.#host = host;
    this.dialect = host.dialect.name;
  }

  readonly open = (): Handle => wrap(this.#host);

  readonly ioctl = (
    handle: Handle,
    request: number,
    argument?: Argument,
    references?: readonly Reference[],
  ): number => {
    const object = open(handle);
    if (object instanceof KvmVm) this.#host.arena.host.writes++; // what is in a page may be another page's now
    const table = tables.get(object.constructor)?.[0];
    return serialized(
      object,
      request,
      () => table?.call(object, request, argument, references?.map(given)) ?? -Errno.ENOTTY,
    );
  };

  readonly create = (
    handle: Handle,
    request: number,
    argument: Argument,
    references?: readonly Reference[],
  ): Handle | number => {
    const object = open(handle);
    const table = tables.get(object.constructor)?.[1];
    const made: Opened | number = serialized(
      object,
      request,
      () => table?.call(object, request, argument, references?.map(given)) ?? -Errno.ENOTTY,
    );
    return typeof made === 'number' ? made : wrap(made);
  };

  readonly allocate = (size: number): Handle | number => {
    if (!(size > 0 && size <= MAX_MEMORY && size % PAGE === 0)) {
      throw wrongType('size', size, 'a multiple of 4096 above 0 and at most 4 GiB');
    }
    const file = RamFile.create(this.#host.arena, this.#host.sharing, size);
    return file === undefined ? -Errno.ENOMEM : wrap(new Mapping(file, size));
  };

  readonly reserve = (size: number): Handle => wrap(new Mapping(undefined, size));

  readonly mapGuestMemfd = (guestMemfd: Handle): Handle | number => {
    const file = as(GuestMemfdFile, guestMemfd, 'guestMemfd');
    // Without INIT_SHARED the kernel maps it all the same, and the first touch is a SIGBUS.
    if (!file.hasHostView) return -Errno.ENODEV;
    if (file.size > MAX_MEMORY) return -Errno.EFBIG;
    return file.base === undefined ? -Errno.ENOMEM : wrap(new Mapping(file.retain(), file.size));
  };

  readonly mapDirtyRing = (vcpu: Handle): Handle | number => {
    const { ring } = as(KvmVcpu, vcpu, 'vcpu');
    return ring === undefined ? -Errno.ENXIO : wrap(ring);
  };

  readonly share = (memory: Handle): MemoryToken => {
    const { file } = as(Mapping, memory, 'memory');
    if (!(file instanceof RamFile)) throw wrongType('memory', memory, 'guest memory that allocate() gave');
    const token = file.share();
    this.#host.arena.host.isUnseen = true;
    if (token === undefined) throw new KvmError(-Errno.ENOMEM, 'share');
    return token;
  };

  readonly openMemory = (token: MemoryToken): Handle | number => {
    const file = SharedFile.open(token);
    return typeof file === 'number' ? file : wrap(new Mapping(file, file.size));
  };

  readonly bytes = (handle: Handle): Uint8Array => {
    const bytes = this.#view(handle);
    if ((handle as unknown as OpenHandle).object instanceof Mapping) this.#host.arena.host.isUnseen = true;
    return bytes;
  };
  #view(handle: Handle): Uint8Array {
    const opened = handle as unknown;
    if (opened instanceof OpenHandle && opened.closed) return new Uint8Array(0);
    const object = open(handle);
    if (object instanceof KvmVcpu) return object.run.bytes;
    if (object instanceof DirtyRing) return object.bytes;
    if (object instanceof Mapping) {
      const { file, base, size } = object;
      if (file instanceof SharedFile) return file.bytes;
      if (base !== undefined) return this.#host.arena.views.u8.subarray(base, base + size);
    }
    throw wrongType('memory', handle, 'memory with a host view');
  }

  readonly write = (memory: Handle, offset: number, bytes: Uint8Array): void => {
    this.#host.arena.host.writes++;
    this.#view(memory).set(bytes, offset);
  };
  readonly read = (memory: Handle, offset: number, into: Uint8Array): void => {
    into.set(this.#view(memory).subarray(offset, offset + into.length));
  };

  readonly ownAccesses = (memory: Handle, serve: ((offset: number) => void) | undefined): void => {
    as(Mapping, memory, 'memory').onOwnAccess = serve;
  };

  readonly fallocate = (handle: Handle, mode: number, offset: number, size: number): number => {
    this.#host.arena.host.writes++;
    const object = open(handle);
    const file = object instanceof Mapping ? object.file : object;
    if (file instanceof GuestMemfdFile) return locked(file.owner, () => file.fallocate(mode, offset, size));
    if (file !== undefined && 'fallocate' in file) return file.fallocate(mode, offset, size);
    throw wrongType('memory', handle, 'guest memory or a guest_memfd');
  };

  /** Its memory has no holes that it knows of. */
  readonly seek = (): number => -Errno.EINVAL;

  readonly madvise = (memory: Handle, advice: number, offset: number, size: number): number => {
    if (!ADVICE.has(advice)) throw outOfRange('advice', advice, 'one that loses at most contents');
    const { file, size: mapped } = as(Mapping, memory, 'memory');
    if (offset % PAGE !== 0 || offset + size > mapped) return -Errno.EINVAL;
    this.#host.arena.host.writes++;
    if (advice !== MADV_REMOVE || size === 0) return 0;
    const mode = Falloc.PUNCH_HOLE | Falloc.KEEP_SIZE;
    return checkFallocate(mode, offset, size) || (file?.fallocate(mode, offset, size) ?? -Errno.EINVAL);
  };

  readonly eventFds: EventFds = {
    create: (initial, semaphore) => {
      const file = EventFdFile.create(this.#host.kicks, initial, semaphore);
      return typeof file === 'number' ? file : wrap(file);
    },
    share: (eventFd) => as(EventFdFile, eventFd, 'eventFd').share(),
    open(token) {
      const file = EventFdFile.open(token);
      return typeof file === 'number' ? file : wrap(file);
    },
    signal: (eventFd, count) => as(EventFdFile, eventFd, 'eventFd').write(count),
    drain: (eventFd) => as(EventFdFile, eventFd, 'eventFd').read(),
    watch: (eventFd, callback) => as(EventFdFile, eventFd, 'eventFd').watch(callback),
  };

  readonly runner = (vcpu: Handle): ((timeoutMs?: number) => number) => as(KvmVcpu, vcpu, 'vcpu').runs.run;
  readonly starter = (vcpu: Handle, done: (result: number) => void): Starter =>
    as(KvmVcpu, vcpu, 'vcpu').runs.starter(done);
  readonly shareVm = (vm: Handle): SharedVm | number => as(KvmVm, vm, 'vm').token();
  readonly openVm = (token: SharedVm): Handle | number => {
    const vm = KvmVm.open(this.#host, token);
    return typeof vm === 'number' ? vm : wrap(vm);
  };
  readonly shareVcpu = (vcpu: Handle): SharedVcpu | number => as(KvmVcpu, vcpu, 'vcpu').token();
  readonly openVcpu = (token: SharedVcpu): Handle | number => {
    const vcpu = KvmVcpu.open(this.#host, token);
    return typeof vcpu === 'number' ? vcpu : wrap(vcpu);
  };
  readonly kickId = (vcpu: Handle): number => as(KvmVcpu, vcpu, 'vcpu').kick.id;
  readonly completed = (vcpu: Handle): bigint => as(KvmVcpu, vcpu, 'vcpu').completed;
  readonly observe = (vcpu: Handle, observer: Observer | undefined): void =>
    as(KvmVcpu, vcpu, 'vcpu').cpu.observe(observer);
  readonly kick = (id: number): boolean | undefined => this.#host.kicks.kick(id);
  readonly stop = (id: number): boolean | undefined => this.#host.kicks.stop(id);
  readonly resume = (id: number): number | undefined => this.#host.kicks.resume(id);
  readonly pause = (id: number, acknowledged?: Handle): number | undefined => {
    const { kicks } = this.#host;
    if (acknowledged === undefined) return kicks.pause(id);
    const { number, table } = as(EventFdFile, acknowledged, 'acknowledged');
    if (table !== kicks.table.buffer)
      throw wrongType(
        'acknowledged',
        acknowledged,
        'an eventfd of the threads that this one shares numbers with',
      );
    return kicks.pause(id, number);
  };

  readonly close = (handle: Handle): void => {
    const opened = handle as unknown;
    if (!(opened instanceof OpenHandle)) throw wrongType('handle', handle, 'one that this backend made');
    if (opened.closed) return;
    opened.closed = true;
    forgotten.unregister(opened);
    release(opened.object);
  };

  readonly poison = (
    guestMemfd: Handle,
    offset: number,
    errno: 'EHWPOISON' | 'ENOMEM' = 'EHWPOISON',
  ): void => {
    const file = as(GuestMemfdFile, guestMemfd, 'guestMemfd');
    if (!(offset >= 0 && offset < file.size)) throw wrongType('offset', offset, `below ${file.size}`);
    if (errno !== 'EHWPOISON' && errno !== 'ENOMEM')
      throw wrongType('errno', errno, "'EHWPOISON' or 'ENOMEM'");
    locked(file.owner, () => file.fail(offset - (offset % PAGE), Errno[errno]));
  };

  readonly populate = (guestMemfd: Handle, offset: number, bytes: Uint8Array): void => {
    const file = as(GuestMemfdFile, guestMemfd, 'guestMemfd');
    if (!(offset >= 0 && offset + bytes.length <= file.size)) {
      throw wrongType('offset', offset, `at most ${file.size - bytes.length}`);
    }
    this.#host.arena.host.writes++;
    for (let done = 0; done < bytes.length; ) {
      const within = (offset + done) % PAGE;
      const part = bytes.subarray(done, done + PAGE - within);
      const page = locked(file.owner, () => file.page(offset + done - within));
      if (page < 0) throw new KvmError(page, 'populate');
      this.#host.arena.views.u8.set(part, page + within);
      done += part.length;
    }
  };
}

/** What one memory can have, in bytes. */
const MAX_MEMORY = 2 ** 32;

/** Guest RAM that the host sees: ordinary pages, and with it the shared side of every page of a confidential VM. */
import { Errno } from '../uapi/errno.ts';
import { integer, pages } from './args.ts';
import { type Backend, type Handle, isHandle, type MemoryToken } from './backend.ts';
import { closed, KvmError, outOfRange, wrongType } from './errors.ts';
import { type Inspect, inspect, inUnits, shown, text } from './inspect.ts';
import { Userfaultfd } from './userfaultfd.ts';

/** FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE (fallocate(2)). */
export const PUNCH_HOLE = 0x03;
/** FALLOC_FL_KEEP_SIZE. */
export const KEEP_SIZE = 0x01;

/** Of lseek(2). */
const Seek = { DATA: 3, HOLE: 4 } as const;

/** Of madvise(2): as discard(). */
const MADV_REMOVE = 9;

const discardRemedies: { readonly [errno: number]: string } = {
  [Errno.EBUSY]: "some of these pages are on their way from a pager's source, which does not answer",
};

/** What one GuestMemory can hold, in bytes; larger guests use several. */
export const MAX_MEMORY = 4 * 2 ** 30;

/** Who brings the pages of a memory, while not all of them are there. */
export interface Demand {
  /** Resolves when these bytes are there. */
  ensure(offset: number, size: number): Promise<void>;
  /** Returns when these bytes are there. Throws when they will not come. */
  bring(offset: number, size: number): void;
  /** Pages that have not come stay zeroes from now on. False when one of them is on its way and does not arrive. */
  forget(offset: number, size: number): boolean;
  /** Marks what has come since it was asked last: GuestMemory.markDirty(). */
  tell(): void;
}

/** Who is told which bytes of a memory were written here, by whom KVM knows nothing of. */
export type DirtyListener = (offset: number, size: number) => void;

/**
 * Memory that host and guest both see: a memfd, mapped once (in the simulator, a part of its own memory).
 * Made by Vm.allocate(); a slot gives it a guest-physical address.
 */
export class GuestMemory implements Disposable {
  /** Bytes. */
  readonly size: number;
  readonly #backend: Backend;
  readonly #kind: 'ram' | 'guest_memfd' | 'opened';
  #bytes: Uint8Array | undefined;
  #handle: Handle | undefined;
  #listeners: Set<DirtyListener> | undefined;
  #exposed = false;

  /** Made by Vm.allocate(), Hypervisor.openMemory() and GuestMemfd.map(). */
  constructor(
    backend: Backend,
    handle: Handle,
    size: number,
    kind: 'ram' | 'guest_memfd' | 'opened' = 'ram',
  ) {
    this.#backend = backend;
    this.#handle = handle;
    this.#kind = kind;
    this.size = size;
  }

  /**
   * The memory itself, not a copy: what the guest writes is there at once. Untouched pages cost nothing. The first use
   * makes the view, and V8 takes one of 64 MiB or more as a reason to collect garbage (milliseconds); write() and
   * read() need none.
   * Who writes there while DirtyPages keeps account says so: markDirty().
   * @throws VmexitError ERR_KVM_CLOSED. A view taken before close() has length 0 after it.
   */
  get bytes(): Uint8Array {
    const handle = this.handle;
    this.#exposed = true;
    this.#bytes ??= this.#backend.bytes(handle);
    return this.#bytes;
  }

  /**
   * Copies bytes into the memory. Where a pager has yet to bring a page, this waits for it, and the bytes are there after it.
   * What is written by `bytes` to such a page may be lost: ensure() it first.
   * @param offset bytes, from 0
   * @param bytes no more than the memory has from there on
   * @throws TypeError, RangeError ERR_KVM_INVALID_ARG; VmexitError ERR_KVM_CLOSED; ERR_KVM_SOURCE, ERR_KVM_PAGER when a page
   *   will not come. Nothing is written then
   */
  write(offset: number, bytes: Uint8Array): void {
    const from = integer('offset', offset, this.size);
    if (!(bytes instanceof Uint8Array)) throw wrongType('bytes', bytes, 'a Uint8Array');
    integer("bytes' length", bytes.length, this.size - from);
    const handle = this.handle;
    if (bytes.length > 0) this.demand?.bring(from, bytes.length);
    this.#backend.write(handle, from, bytes);
    this.#mark(from, bytes.length);
  }

  /** As write(), unchecked, to pages that a pager brings with it. */
  place(offset: number, bytes: Uint8Array): void {
    this.#backend.write(this.handle, offset, bytes);
    this.#mark(offset, bytes.length);
  }

  /**
   * Says that bytes were written by a way that nobody sees: a view (`bytes`), another thread, a device with direct access.
   * write(), discard() and a pager mark by themselves, and KVM logs what the guest does. DirtyPages is told.
   * @param offset bytes, from 0
   * @param size bytes, up to the end of the memory
   * @throws TypeError, RangeError ERR_KVM_INVALID_ARG
   */
  markDirty(offset: number, size: number): void {
    const from = integer('offset', offset, this.size);
    const length = integer('size', size, this.size - from);
    this.#backend.mark?.(this.handle, from, length);
    this.#mark(from, length);
  }
  #mark(offset: number, size: number): void {
    if (this.#listeners === undefined || size === 0) return;
    for (const listener of this.#listeners) listener(offset, size);
  }

  /**
   * Tells of what is written here from now on, but by the guest: see markDirty(). DirtyPages is built on it.
   * @returns what ends it
   */
  onDirty(listener: DirtyListener): () => void {
    if (typeof listener !== 'function') throw wrongType('listener', listener, 'a function');
    this.#listeners ??= new Set();
    const listeners = this.#listeners.add(listener);
    return () => {
      listeners.delete(listener);
      if (listeners.size === 0 && this.#listeners === listeners) this.#listeners = undefined;
    };
  }

  /**
   * Whether somebody may write to it unseen: `bytes` or share() was used. What it holds then is known only to who trusts
   * them to call markDirty().
   */
  get exposed(): boolean {
    return this.#exposed || this.#kind !== 'ram';
  }

  /**
   * A copy of a part of the memory.
   * @param offset bytes, from 0
   * @param length bytes, up to the end of the memory
   * @throws TypeError, RangeError ERR_KVM_INVALID_ARG; VmexitError ERR_KVM_CLOSED
   */
  read(offset: number, length: number): Uint8Array<ArrayBuffer> {
    const from = integer('offset', offset, this.size);
    const copy = new Uint8Array(integer('length', length, this.size - from));
    this.#backend.read(this.handle, from, copy);
    return copy;
  }

  /**
   * As read(), but what nobody has written is not touched: it reads as zeroes, takes no memory of the host's by it (as
   * read() makes it do on KVM), and a userfaultfd is not told. lseek(2), SEEK_DATA and SEEK_HOLE.
   * @throws TypeError, RangeError ERR_KVM_INVALID_ARG; VmexitError ERR_KVM_CLOSED
   */
  readSparse(offset: number, length: number): Uint8Array<ArrayBuffer> {
    const from = integer('offset', offset, this.size);
    const copy = new Uint8Array(integer('length', length, this.size - from));
    const end = from + copy.length;
    for (let at = this.#seek(from, Seek.DATA); at < end; at = this.#seek(at, Seek.DATA)) {
      const stop = Math.min(this.#seek(at, Seek.HOLE), end);
      this.#backend.read(this.handle, at, copy.subarray(at - from, stop - from));
      at = stop;
    }
    return copy;
  }
  /** Where there is no such call, all is data. ENXIO: there is no more. */
  #seek(offset: number, whence: number): number {
    const found = this.#backend.seek(this.handle, offset, whence);
    if (found >= 0) return Math.min(found, this.size);
    return found === -Errno.ENXIO || whence === Seek.HOLE ? this.size : offset;
  }

  /** Set by a pager: who brings pages that are not there yet. */
  demand: Demand | undefined;

  /**
   * Resolves when these bytes are there to be read, at once where nobody pages them in. A page that is missing reads as
   * zeroes, or keeps its reader waiting for ever, so who may meet one asks first.
   * @param offset bytes, from 0
   * @param size bytes, up to the end of the memory
   * @throws VmexitError ERR_KVM_SOURCE, ERR_KVM_PAGER when they will not come; RangeError ERR_KVM_INVALID_ARG
   */
  async ensure(offset = 0, size?: number): Promise<void> {
    const from = integer('offset', offset, this.size);
    const length = integer('size', size ?? this.size - from, this.size - from);
    if (length > 0) await this.demand?.ensure(from, length);
  }

  /** Whether close() was called. */
  get closed(): boolean {
    return this.#handle === undefined;
  }

  /** The backend's handle, for this package's own classes. @throws VmexitError ERR_KVM_CLOSED */
  get handle(): Handle {
    if (this.#handle === undefined) throw closed('guest memory');
    return this.#handle;
  }

  /**
   * Gives the pages back to the host: they read as zero afterwards, in the guest too. Punches the file, for
   * MADV_DONTNEED on a shared mapping would keep the contents. A page that a pager has not brought yet is not fetched any
   * more; for one that is on its way this waits.
   * @param offset bytes, a multiple of 4096, from 0
   * @param size bytes, a multiple of 4096, up to the end of the memory
   * @throws KvmError with the errno of fallocate(2), EBUSY when a pager's source does not answer; RangeError
   *   ERR_KVM_INVALID_ARG
   */
  discard(offset: number, size: number): void {
    const from = pages('offset', offset, this.size);
    const length = pages('size', size, this.size - from);
    const result = length > 0 ? this.tryDiscard(from, length) : 0;
    if (result < 0) throw new KvmError(result, 'fallocate', undefined, discardRemedies[-result]);
  }

  /** As discard(), unchecked, giving 0 or a negated errno. */
  tryDiscard(offset: number, size: number): number {
    // First: what arrived after the hole is made would fill it again.
    if (this.demand?.forget(offset, size) === false) return -Errno.EBUSY;
    const result = this.#backend.fallocate(this.handle, PUNCH_HOLE, offset, size);
    if (result === 0) this.#mark(offset, size);
    return result;
  }

  /**
   * madvise(2) on a part of the memory.
   * @param advice a number of <sys/mman.h> that loses at most contents: MADV_HUGEPAGE is 14
   * @throws KvmError with the errno; RangeError ERR_KVM_INVALID_ARG for other advice
   */
  advise(advice: number, offset = 0, size?: number): void {
    integer('advice', advice, 0xff);
    const from = pages('offset', offset, this.size);
    const length = pages('size', size ?? this.size - from, this.size - from);
    const result = this.#backend.madvise(this.handle, advice, from, length);
    if (result < 0) throw new KvmError(result, 'madvise');
    if (advice === MADV_REMOVE) this.#mark(from, length);
  }

  /**
   * Calls before KVM itself, and no vCPU, touches a page of this memory in a slot: when it emulates an instruction. No
   * userfault bitmap stops that; on Linux a userfaultfd does, and in the simulator this. Without an argument, nobody is
   * called any more.
   * @param serve is given the page's offset in bytes, inside vcpu.run(); what it throws ends that
   * @returns whether this backend tells of such accesses
   */
  onOwnAccess(serve?: (offset: number) => void): boolean {
    if (serve !== undefined && typeof serve !== 'function') throw wrongType('serve', serve, 'a function');
    this.#backend.ownAccesses?.(this.handle, serve);
    return this.#backend.ownAccesses !== undefined;
  }

  /**
   * A token that another thread of this process gives to Hypervisor.openMemory(). The memory must stay open until
   * it has.
   * @param isMarked what that thread writes is told here, by markDirty()
   */
  share(isMarked = false): MemoryToken {
    if (this.#kind === 'guest_memfd') {
      throw outOfRange('share(): the memory', 'a view of a guest_memfd', 'made by Vm.allocate()');
    }
    if (!isMarked) this.#exposed = true;
    return this.#backend.share(this.handle);
  }

  /**
   * From now on, whoever touches a page of this memory that was never touched waits for Userfaultfd.copy(), which
   * must come from another thread: this one too waits if it touches one (userfaultfd(2), since 4.11 for such memory).
   * @throws KvmError EPERM without the privilege that faults of the kernel's own need (the message names three ways
   *   to it), ENOSYS without CONFIG_USERFAULTFD and in the simulator, EBUSY when there is one already
   */
  userfaultfd(): Userfaultfd {
    return Userfaultfd.create(this.#backend, this.handle, this.size, (offset, size) =>
      this.#mark(offset, size),
    );
  }

  /** Idempotent. Views become empty; a slot that uses the memory keeps it until the slot or the VM is gone. */
  close(): void {
    if (this.#handle === undefined) return;
    this.#backend.close(this.#handle);
    this.#handle = undefined;
  }

  /** What Node shows of it in a terminal: its size, and nothing of its bytes. */
  [inspect](depth: number, options: unknown, nodes: Inspect): string {
    const fields = {
      size: text(inUnits(this.size)),
      ...(this.#kind === 'guest_memfd' && { of: text('a guest_memfd') }),
      ...(this.closed && { closed: true }),
    };
    return shown('GuestMemory', fields, depth, options, nodes);
  }

  /** As close(): for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  /**
   * What Vm.allocate() calls.
   * @param size bytes, a multiple of 4096 above 0, at most MAX_MEMORY
   * @throws RangeError ERR_KVM_INVALID_ARG; KvmError with the errno of memfd_create(2) or mmap(2)
   */
  static allocate(backend: Backend, size: number): GuestMemory {
    const length = pages('size', size, MAX_MEMORY, 4096);
    const handle = backend.allocate(length);
    if (!isHandle(handle)) {
      const files = handle === -Errno.EMFILE || handle === -Errno.ENFILE;
      const why = files ? 'too many files are open (ulimit -n)' : `the host cannot map ${size} bytes`;
      throw new KvmError(handle, files ? 'memfd_create' : 'mmap', undefined, why);
    }
    return new GuestMemory(backend, handle, length);
  }
}

/** The argument if it is guest memory. */
export function guestMemory(name: string, value: GuestMemory): GuestMemory {
  if (!(value instanceof GuestMemory)) throw wrongType(name, value, 'guest memory, from Vm.allocate()');
  return value;
}

/** userfaultfd(2): the host's own demand paging, under everything that touches guest memory. */
import { Errno } from '../uapi/errno.ts';
import { integer, object, PAGE_SIZE, pages } from './args.ts';
import {
  type Backend,
  type BackendName,
  type Handle,
  isHandle,
  type UserfaultfdToken,
  type Userfaults,
} from './backend.ts';
import { closed, KvmError, outOfRange, wrongType } from './errors.ts';

const remedies: { readonly [errno: number]: string } = {
  [Errno.EPERM]:
    "most faults on guest memory are the kernel's own, which needs a privilege: set the sysctl " +
    'vm.unprivileged_userfaultfd to 1, or give this process CAP_SYS_PTRACE, or (since Linux 6.1) the right to open ' +
    '/dev/userfaultfd',
  [Errno.ENOSYS]: 'this kernel was built without CONFIG_USERFAULTFD',
  [Errno.EBUSY]: 'this memory has a userfaultfd already',
  [Errno.EINVAL]:
    'this kernel has no userfaultfd for shared memory (since 4.11), or a page size other than 4096',
  [Errno.EMFILE]: 'too many files are open (ulimit -n)',
};
const NONE = 'the simulator has no userfaultfd';

const refused = (result: number, remedy = remedies[-result]): KvmError =>
  new KvmError(result, 'userfaultfd', undefined, remedy);

function calls(backend: Backend): Userfaults {
  if (backend.userfaults === undefined) throw refused(-Errno.ENOSYS, NONE);
  return backend.userfaults;
}

/**
 * Faults on the missing pages of one GuestMemory, which wait until copy() or zero() brings the page: accesses by this
 * process, by the vCPUs of slots that use this memory, and by the kernel for either (userfaultfd(2), mode MISSING, on
 * shared memory since 4.11).
 *
 * Missing is what was never touched, and what discard() gave back. What touches the memory waits, and the thread with
 * it: whoever serves the faults must be another thread, and must touch none of this memory itself. A run() that waits
 * ends by its deadline or by a kick, as any other. Not caught are accesses by another way to the same pages:
 * Hypervisor.openMemory() maps them once more, and what it touches first is zero for all.
 */
export class Userfaultfd implements Disposable {
  /** Of the memory, in bytes. */
  readonly size: number;
  readonly #calls: Userfaults;
  readonly #backend: Backend;
  readonly #mark: ((offset: number, size: number) => void) | undefined;
  #handle: Handle | undefined;

  /** Made by GuestMemory.userfaultfd() and Hypervisor.openUserfaultfd(). */
  private constructor(
    backend: Backend,
    handle: Handle,
    size: number,
    mark?: (offset: number, size: number) => void,
  ) {
    this.#backend = backend;
    this.#calls = calls(backend);
    this.#handle = handle;
    this.#mark = mark;
    this.size = size;
  }

  /** Whether close() was called. */
  get closed(): boolean {
    return this.#handle === undefined;
  }

  get #open(): Handle {
    if (this.#handle === undefined) throw closed('userfaultfd');
    return this.#handle;
  }

  /**
   * Brings missing pages, and wakes who waits for them (UFFDIO_COPY). The bytes are there before anybody sees the
   * page.
   * @param offset bytes, a multiple of 4096, from 0
   * @param bytes whole pages, one at least, up to the end of the memory; not of this memory itself
   * @returns 0 or a negated errno. -EEXIST: a page is there already, the pages before it were copied, and it and those
   *   after it are as they were. -ENOENT: the memory is mapped no more. -ESRCH, -ENOMEM
   * @throws TypeError, RangeError ERR_KVM_INVALID_ARG; VmexitError ERR_KVM_CLOSED
   */
  copy(offset: number, bytes: Uint8Array): number {
    const from = pages('offset', offset, this.size - PAGE_SIZE);
    if (!(bytes instanceof Uint8Array)) throw wrongType('bytes', bytes, 'a Uint8Array');
    pages("bytes' length", bytes.length, this.size - from, PAGE_SIZE);
    const result = this.#calls.fill(this.#open, from, bytes);
    this.#mark?.(from, bytes.length);
    return result;
  }

  /**
   * Brings missing pages that are zero (UFFDIO_ZEROPAGE).
   * @param offset bytes, a multiple of 4096, from 0
   * @param size bytes, a multiple of 4096 above 0, up to the end of the memory
   * @returns as copy()
   * @throws TypeError, RangeError ERR_KVM_INVALID_ARG; VmexitError ERR_KVM_CLOSED
   */
  zero(offset: number, size: number): number {
    const from = pages('offset', offset, this.size - PAGE_SIZE);
    return this.#calls.zero(this.#open, from, pages('size', size, this.size - from, PAGE_SIZE));
  }

  /**
   * Lets who waits for pages of a range try again (UFFDIO_WAKE): they wait anew for what is still missing. copy() and
   * zero() wake by themselves.
   * @returns 0 or a negated errno
   * @throws TypeError, RangeError ERR_KVM_INVALID_ARG; VmexitError ERR_KVM_CLOSED
   */
  wake(offset: number, size: number): number {
    const from = pages('offset', offset, this.size - PAGE_SIZE);
    return this.#calls.wake(this.#open, from, pages('size', size, this.size - from, PAGE_SIZE));
  }

  /**
   * The pages that somebody has begun to wait for since the last read (read(2) of UFFD_EVENT_PAGEFAULT): their
   * offsets in bytes, 64 at most, none when there are none. Never blocks. One page comes as often as there are
   * threads that want it, and each fault comes once to whoever reads first.
   * @throws KvmError with the errno of read(2); VmexitError ERR_KVM_CLOSED
   */
  read(): number[] {
    const offsets = this.#calls.read(this.#open);
    if (typeof offsets === 'number') throw new KvmError(offsets, 'read');
    return offsets;
  }

  /**
   * Calls back from this thread's event loop when read() would give something, and again until it was read. A watch
   * keeps the loop alive, as a server's socket does, until it is taken back with undefined or this is closed. What
   * the callback throws is an uncaught exception.
   * @throws TypeError ERR_KVM_INVALID_ARG; KvmError with the errno of epoll_ctl(2); VmexitError ERR_KVM_CLOSED
   */
  watch(callback: (() => void) | undefined): void {
    if (callback !== undefined && typeof callback !== 'function') {
      throw wrongType('callback', callback, 'a function or undefined');
    }
    const result = this.#calls.watch(this.#open, callback);
    if (result < 0) throw new KvmError(result, 'epoll_ctl');
  }

  /**
   * A token that another thread of this process gives to Hypervisor.openUserfaultfd(). This must stay open until it
   * has.
   */
  share(): UserfaultfdToken {
    const token = this.#calls.share(this.#open);
    if (typeof token === 'number') throw new KvmError(token, 'fstat');
    return token;
  }

  /**
   * Idempotent. Pages stay as they are. When it is the last of those that threads have opened, the kernel wakes all
   * who wait, and every missing page is an ordinary one from then on: zero for who touches it. So end the runs that
   * must not see that before.
   */
  close(): void {
    if (this.#handle === undefined) return;
    this.#backend.close(this.#handle);
    this.#handle = undefined;
  }

  /** As close(): for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** What GuestMemory.userfaultfd() calls. @throws KvmError as that says */
  static create(
    backend: Backend,
    memory: Handle,
    size: number,
    mark: (offset: number, size: number) => void,
  ): Userfaultfd {
    const handle = calls(backend).create(memory);
    if (!isHandle(handle)) throw refused(handle);
    return new Userfaultfd(backend, handle, size, mark);
  }

  /** What Hypervisor.openUserfaultfd() calls. @throws KvmError as that says */
  static open(backend: Backend, token: UserfaultfdToken): Userfaultfd {
    const name: BackendName = object('token', token).backend;
    if (name !== backend.name) throw outOfRange('token.backend', name, `'${backend.name}'`);
    integer('token.fd', token.fd, 0x7fff_ffff);
    integer('token.inode', token.inode);
    if (typeof token.base !== 'bigint') throw wrongType('token.base', token.base, 'a bigint');
    if (token.base < 0n || token.base >= 1n << 47n)
      throw outOfRange('token.base', token.base, 'a user address');
    const size = pages('token.size', token.size, undefined, PAGE_SIZE);
    const handle = calls(backend).open(token);
    if (!isHandle(handle)) throw refused(handle, 'the shared userfaultfd was closed');
    return new Userfaultfd(backend, handle, size);
  }
}

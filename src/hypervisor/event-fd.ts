/** eventfd(2): a counter by which the kernel, a guest and threads tell one another that something has happened. */
import { Errno } from '../uapi/errno.ts';
import type { AbortSignalLike } from './abort.ts';
import { integer, object, u32 } from './args.ts';
import { type Backend, type EventFdToken, type Handle, isHandle } from './backend.ts';
import { KvmError, outOfRange, wrongType } from './errors.ts';
import { Fd } from './fd.ts';

/** What an EventFd begins with. */
export interface EventFdOptions {
  /** The counter, from 0 to 2^32 - 1; 0 without it. */
  readonly initial?: number;
  /** Each drain() takes 1, and not the whole count (a semaphore of eventfd(2)). */
  readonly semaphore?: boolean;
}

/** How long EventFd.wait() waits. */
export interface EventFdWait {
  /** Milliseconds, from 0 to 2^31 - 1; without it as long as it takes. */
  readonly timeoutMs?: number;
  /** Ends the waiting: it rejects with the signal's reason. */
  readonly signal?: AbortSignalLike | undefined;
}

const MAX_TIMEOUT = 2 ** 31 - 1;

const remedies: { readonly [errno: number]: string } = {
  [Errno.EMFILE]: 'too many files are open (ulimit -n)',
  [Errno.ESTALE]: 'the shared EventFd was closed',
  [Errno.EBADF]: 'the token is not what EventFd.share() of this process gave',
};
const refused = (result: number, syscall: string, remedy = remedies[-result]): KvmError =>
  new KvmError(result, syscall, undefined, remedy);

/**
 * A counter: signal() adds to it, as KVM does where Vm.ioeventfd() says so, and drain() takes what is there, as KVM does
 * where Vm.irqfd() says so. Made by Hypervisor.createEventFd().
 *
 * Nothing here blocks. wait() and watch() are for the event loop, and keep it alive, as a server's socket does; an EventFd
 * that nobody waits for keeps nothing alive. Each count is given once: to the wait() that began first, or else to watch()'s
 * callback, or to whoever drains it in another thread.
 * @example
 * ```ts
 * import { openHypervisor } from 'vmexit';
 *
 * const hv = openHypervisor();
 * const bell = hv.createEventFd();
 * setTimeout(() => bell.signal(2), 10);
 * console.log(`rung ${await bell.wait()} times`);
 * bell.close();
 * hv.close();
 * // prints: rung 2 times
 * ```
 */
export class EventFd implements Disposable, AsyncIterable<number> {
  /** The open file description, for the Vm's ioctls. */
  readonly fd: Fd;
  readonly #backend: Backend;
  /** Who waits, in the order in which they came; undefined tells them that it was closed. */
  readonly #waiting = new Set<(count: number | undefined) => void>();
  #callback: ((count: number) => void) | undefined;
  #watched = false;
  #shared: boolean;

  /** Made by Hypervisor.createEventFd() and Hypervisor.openEventFd(). */
  private constructor(backend: Backend, handle: Handle, shared: boolean) {
    this.#backend = backend;
    this.#shared = shared;
    this.fd = new Fd(backend, handle, 'EventFd');
  }

  /** Whether close() was called. */
  get closed(): boolean {
    return this.fd.closed;
  }

  /** Whether there may be others of the same counter: it was opened by a token, or gave one. */
  get shared(): boolean {
    return this.#shared;
  }

  /**
   * Adds to the counter (write(2)); whoever waits is told.
   * @param count from 1 to 2^53 - 1; 1 without it
   * @throws KvmError EAGAIN where the counter would pass 2^64 - 2; RangeError, TypeError ERR_KVM_INVALID_ARG; VmexitError
   *   ERR_KVM_CLOSED
   */
  signal(count = 1): void {
    const added = integer('count', count, Number.MAX_SAFE_INTEGER, 1);
    const result = this.#backend.eventFds.signal(this.fd.handle, added);
    if (result < 0) throw refused(result, 'write', 'the counter is full: drain() it');
  }

  /**
   * Takes the count, and leaves 0; of a semaphore it takes 1 (read(2)).
   * @returns the count, exact up to 2^53; undefined where it is 0
   * @throws VmexitError ERR_KVM_CLOSED
   */
  drain(): number | undefined {
    const count = this.#backend.eventFds.drain(this.fd.handle);
    if (count >= 0) return count;
    if (count === -Errno.EAGAIN) return undefined;
    throw refused(count, 'read');
  }

  /**
   * Waits in the event loop for a count, and takes it.
   * @returns the count; undefined when the time has passed, or when this was closed meanwhile
   * @throws what the signal was aborted with; TypeError, RangeError ERR_KVM_INVALID_ARG; VmexitError ERR_KVM_CLOSED; KvmError
   *   with the errno of epoll_ctl(2), and ENOSYS in a browser that cannot wait for shared memory
   */
  async wait(options: EventFdWait = {}): Promise<number | undefined> {
    const { timeoutMs, signal } = object('options', options);
    const limit = timeoutMs === undefined ? undefined : integer('timeoutMs', timeoutMs, MAX_TIMEOUT);
    signal?.throwIfAborted();
    // Those that wait already come first.
    const count = this.#waiting.size === 0 ? this.drain() : undefined;
    if (count !== undefined) return count;
    this.fd.handle;
    return new Promise((resolve, reject) => {
      const settle = (count: number | undefined): void => {
        this.#waiting.delete(settle);
        clearTimeout(timer);
        signal?.removeEventListener('abort', abort);
        resolve(count);
        this.#watch();
      };
      const abort = (): void => {
        reject(signal!.reason);
        settle(undefined);
      };
      const timer = limit === undefined ? undefined : setTimeout(settle, limit, undefined);
      signal?.addEventListener('abort', abort);
      this.#waiting.add(settle);
      try {
        this.#watch();
      } catch (error) {
        this.#waiting.delete(settle);
        reject(error);
        settle(undefined);
      }
    });
  }

  /**
   * Calls back from this thread's event loop with each count, which it takes, until it is taken back with undefined or this
   * is closed. What the callback throws is an uncaught exception.
   * @throws TypeError ERR_KVM_INVALID_ARG; VmexitError ERR_KVM_CLOSED; KvmError as wait()
   */
  watch(callback: ((count: number) => void) | undefined): void {
    if (callback !== undefined && typeof callback !== 'function')
      throw wrongType('callback', callback, 'a function or undefined');
    this.fd.handle;
    this.#callback = callback;
    this.#watch();
  }

  /** The event loop looks at it as long as somebody waits. */
  #watch(): void {
    const wanted = this.#callback !== undefined || this.#waiting.size > 0;
    if (this.closed || wanted === this.#watched) return;
    const result = this.#backend.eventFds.watch(this.fd.handle, wanted ? this.#tell : undefined);
    if (result < 0) throw refused(result, 'epoll_ctl');
    this.#watched = wanted;
  }

  readonly #tell = (): void => {
    const count = this.closed ? undefined : this.drain();
    if (count === undefined) return; // another thread has taken it
    const [first = this.#callback] = this.#waiting;
    first?.(count);
  };

  /**
   * Each count in turn, until this is closed: `for await (const count of eventFd)`.
   * @throws as wait()
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<number, void, undefined> {
    while (!this.closed) {
      const count = await this.wait();
      if (count !== undefined) yield count;
    }
  }

  /**
   * A token that another thread of this process gives to Hypervisor.openEventFd(). This must stay open until it has. In the
   * simulator it needs structured cloning, as by postMessage().
   */
  share(): EventFdToken {
    const token = this.#backend.eventFds.share(this.fd.handle);
    this.#shared = true;
    return token;
  }

  /**
   * Idempotent. What waits is told; others of the same counter stay open, and so does what a Vm.ioeventfd() signals. With
   * the last EventFd of its counter a Vm.irqfd() ends.
   */
  close(): void {
    this.fd.close();
    this.#callback = undefined;
    for (const settle of this.#waiting) settle(undefined);
  }

  /** As close(): for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** What Hypervisor.createEventFd() calls. @throws as that says */
  static create(backend: Backend, options: EventFdOptions): EventFd {
    const { initial = 0, semaphore = false } = object('options', options);
    if (typeof semaphore !== 'boolean') throw wrongType('semaphore', semaphore, 'true or false');
    const handle = backend.eventFds.create(u32('initial', initial), semaphore);
    if (!isHandle(handle)) throw refused(handle, 'eventfd');
    return new EventFd(backend, handle, false);
  }

  /** What Hypervisor.openEventFd() calls. @throws as that says */
  static open(backend: Backend, token: EventFdToken): EventFd {
    const { backend: name } = object('token', token);
    if (name !== backend.name) throw outOfRange('token.backend', name, `'${backend.name}'`);
    integer('token.number', token.number, Number.MAX_SAFE_INTEGER, 1);
    const handle = backend.eventFds.open(token);
    if (!isHandle(handle)) throw refused(handle, 'dup');
    return new EventFd(backend, handle, true);
  }
}

/** Private memory: a guest_memfd, whose pages the guest can be given and the host cannot see. */
import { GuestMemfdFlag } from '../uapi/constants.ts';
import { flagNames } from '../uapi/text.ts';
import { integer } from './args.ts';
import { isHandle } from './backend.ts';
import { KvmError, VmexitError } from './errors.ts';
import type { Fd } from './fd.ts';
import { GuestMemory, KEEP_SIZE, PUNCH_HOLE } from './guest-memory.ts';
import { type Inspect, inspect, inUnits, shown, text } from './inspect.ts';

/**
 * A guest_memfd (KVM_CREATE_GUEST_MEMFD, since 6.8). There is no `bytes`: only one made with MMAP and INIT_SHARED
 * has a host view, by map(). Closing it unbinds it from every slot and drops its pages.
 */
export class GuestMemfd implements Disposable {
  /** Bytes. */
  readonly size: number;
  /** GUEST_MEMFD_FLAG_*. */
  readonly flags: number;
  /** The open file, for this package's own classes. */
  readonly fd: Fd;

  /** Made by Vm.createGuestMemfd(). */
  constructor(fd: Fd, size: number, flags: number) {
    this.fd = fd;
    this.size = size;
    this.flags = flags;
  }

  /** Whether close() was called. */
  get closed(): boolean {
    return this.fd.closed;
  }

  /**
   * Allocates pages ahead of the guest's first touch.
   * @param offset bytes, a multiple of 4096
   * @param size bytes, a multiple of 4096; the range ends within the file
   * @throws KvmError EINVAL for other values, ENOMEM
   */
  allocate(offset = 0, size?: number): void {
    const from = integer('offset', offset, this.size);
    this.fallocate(KEEP_SIZE, from, size ?? this.size - from);
  }

  /**
   * Drops pages and whatever maps them: the guest reads zero there afterwards.
   * @param offset bytes, a multiple of 4096; may lie beyond the file's end
   * @param size bytes, a multiple of 4096
   * @throws KvmError EINVAL for other values
   */
  punchHole(offset: number, size: number): void {
    this.fallocate(PUNCH_HOLE, offset, size);
  }

  /** fallocate(2) with any mode; a guest_memfd knows KEEP_SIZE and PUNCH_HOLE|KEEP_SIZE. */
  fallocate(mode: number, offset: number, size: number): void {
    const range = [integer('mode', mode, 0xffff), integer('offset', offset), integer('size', size)] as const;
    const result = this.fd.backend.fallocate(this.fd.handle, ...range);
    if (result < 0) {
      throw new KvmError(result, 'fallocate', undefined, `mode ${mode}, offset ${offset}, size ${size}`);
    }
  }

  /** As punchHole(), unchecked, giving 0 or a negated errno. */
  tryPunchHole(offset: number, size: number): number {
    return this.fd.backend.fallocate(this.fd.handle, PUNCH_HOLE, offset, size);
  }

  /**
   * The host's view of a guest_memfd made with MMAP and INIT_SHARED (since 6.18); of one made otherwise the first
   * touch would be a SIGBUS.
   * @throws VmexitError ERR_KVM_REFUSED without both flags; KvmError with the errno of mmap(2)
   */
  map(): GuestMemory {
    const needed = GuestMemfdFlag.MMAP | GuestMemfdFlag.INIT_SHARED;
    if ((this.flags & needed) !== needed) {
      throw new VmexitError(
        'ERR_KVM_REFUSED',
        'this guest_memfd is private memory and has no host view; create it with the flags MMAP and INIT_SHARED for one',
      );
    }
    const handle = this.fd.backend.mapGuestMemfd(this.fd.handle);
    if (!isHandle(handle)) throw new KvmError(handle, 'mmap');
    return new GuestMemory(this.fd.backend, handle, this.size, 'guest_memfd');
  }

  /**
   * Idempotent. Unbinds the file from its slots: private accesses there are memory faults from now on, and
   * the pages are lost.
   */
  close(): void {
    this.fd.close();
  }

  /** What Node shows of it in a terminal: its size and flags. */
  [inspect](depth: number, options: unknown, nodes: Inspect): string {
    const fields = {
      size: text(inUnits(this.size)),
      flags: text(flagNames(GuestMemfdFlag, this.flags)),
      ...(this.closed && { closed: true }),
    };
    return shown('GuestMemfd', fields, depth, options, nodes);
  }

  /** As close(): for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}

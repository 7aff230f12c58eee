/**
 * The narrow waist: everything above it is written once, everything below it is the kernel or a model of it.
 * A backend speaks in ioctls, with the kernel's own structs and errnos; it holds no policy and checks no more than
 * keeps the process alive.
 */

import type { DialectName } from '../uapi/dialects.ts';

/** A file descriptor or a mapping of the backend's: opaque, used only with the backend that made it. */
export type Handle = { readonly __handle: unique symbol };

/** Guest memory, from an offset on. */
export interface Place {
  /** Guest RAM, or a reservation where an ioctl takes one. */
  readonly memory: Handle;
  /** Bytes from its beginning. */
  readonly offset: number;
}

/**
 * What a backend puts into an argument where the kernel's struct has a pointer or a file descriptor; null for none. Of
 * bytes the kernel sees a copy, and what it writes is copied back.
 */
export type Reference = Handle | Place | Uint8Array | null;

/** An ioctl that is made again and again: its argument stays where it is. */
export interface Prepared {
  /** The argument: what the kernel reads and writes. As large as the struct. */
  readonly bytes: Uint8Array;
  /** The kernel's result, or a negated errno: EBADF once the handle is closed. */
  issue(): number;
}

/** Runs of a vCPU on a thread of its own, one at a time. */
export interface Starter {
  /**
   * Begins a run: 0, or a negated errno where nothing has begun.
   * @param ends as if end() were called before the guest is entered
   */
  start(timeoutMs?: number, ends?: boolean): number;
  /** The run in progress completes its access and gives -ECANCELED; without one, nothing, and nothing is left for the next. */
  end(): void;
}

/** `kvm`: the kernel's KVM. `sim`: the simulator. */
export type BackendName = 'kvm' | 'sim';

/** Guest memory of one thread that another may open: what GuestMemory.share() gives. */
export interface MemoryToken {
  /** Which backend made the memory: only that one can open it. */
  readonly backend: BackendName;
  /** The file descriptor in this process. */
  readonly fd: number;
  /**
   * The inode behind it. It tells a descriptor that was closed and used again from the one that was shared.
   */
  readonly inode: number;
}

/** A userfaultfd of one thread that another may open: what Userfaultfd.share() gives. */
export interface UserfaultfdToken {
  /** Which backend made it: only that one can open it. */
  readonly backend: BackendName;
  /** The file descriptor in this process. */
  readonly fd: number;
  /** The inode behind it, to recognize a descriptor that was closed and used again. */
  readonly inode: number;
  /** Where the memory lies in this process. */
  readonly base: bigint;
  /** Of the memory, in bytes. */
  readonly size: number;
}

/** An eventfd of one thread that another may open: what EventFd.share() gives. */
export interface EventFdToken {
  /** Which backend made it: only that one can open it. */
  readonly backend: BackendName;
  /** Its own in this process, and never given again. */
  readonly number: number;
}

/** What another thread opens a VM by. */
export interface SharedVm {
  /** Which backend made it: only that one can open it. */
  readonly backend: BackendName;
  /** Its own in this process, and never given again. */
  readonly number: number;
}

/** What another thread opens a vCPU by. */
export interface SharedVcpu {
  /** Which backend made it: only that one can open it. */
  readonly backend: BackendName;
  /** By which it is kicked: its own in this process, and never given again. */
  readonly kickId: number;
}

/**
 * What a call on a vCPU gives while another thread runs it, where the kernel would let it wait for the end of that run.
 * Below all errnos (MAX_ERRNO).
 */
export const VCPU_RUNNING = -4096;

/** eventfd(2), non-blocking. */
export interface EventFds {
  /** @param semaphore EFD_SEMAPHORE: drain() takes 1 */
  create(initial: number, semaphore: boolean): Handle | number;
  share(eventFd: Handle): EventFdToken;
  open(token: EventFdToken): Handle | number;
  /** write(2): -EAGAIN where the counter would overflow. */
  signal(eventFd: Handle, count: number): number;
  /** read(2): the count, above 0; -EAGAIN where it is 0. */
  drain(eventFd: Handle): number;
  /** Called from the thread's event loop while the count is above 0. */
  watch(eventFd: Handle, callback: (() => void) | undefined): number;
}

/** userfaultfd(2) over guest memory; ranges are of whole pages and lie inside the memory. */
export interface Userfaults {
  /** Over all of a memory, mode MISSING. */
  create(memory: Handle): Handle | number;
  share(userfaultfd: Handle): UserfaultfdToken | number;
  open(token: UserfaultfdToken): Handle | number;
  fill(userfaultfd: Handle, offset: number, bytes: Uint8Array): number;
  zero(userfaultfd: Handle, offset: number, size: number): number;
  wake(userfaultfd: Handle, offset: number, size: number): number;
  /** Offsets of pages that somebody waits for, 64 at most; never blocks. */
  read(userfaultfd: Handle): number[] | number;
  /** Called from the thread's event loop while there is something to read. */
  watch(userfaultfd: Handle, callback: (() => void) | undefined): number;
}

/**
 * An access for which the second stage of translation had nothing yet: an EPT violation, a nested page fault. Not one
 * of memory-mapped I/O, which is an exit.
 */
export interface SecondStageEvent {
  /** Of the page, in bytes. */
  readonly gpa: number;
  /** What the guest did there: read, wrote, or fetched an instruction. */
  readonly access: 'read' | 'write' | 'fetch';
  /** The kind of memory that it is to. */
  readonly wants: 'private' | 'shared';
  /** The slot that has the address. */
  readonly slot: number | undefined;
  /** What is mapped there now. */
  readonly mapped: 'memory' | 'guest_memfd' | undefined;
  /** Why nothing is. */
  readonly why: string | undefined;
}

/**
 * Who is told what a guest does between its exits. It only looks: the vCPU is in KVM_RUN meanwhile, and run() of it is
 * refused with EBUSY; in secondStage(), where an instruction is in the middle, that of any vCPU of this thread.
 */
export interface Observer {
  /** An instruction begins; one that has exited with a memory fault, each time that it is tried. */
  instruction?(rip: bigint, bytes: Uint8Array, bits: 16 | 32 | 64): void;
  /**
   * An access found nothing mapped in the second stage of translation; KVM is about to resolve it or to exit.
   */
  secondStage?(event: SecondStageEvent): void;
  /**
   * The guest raises an exception: a fault, a trap, INT3, INTO or INT1, and not INT n. Also what is raised while an
   * exception is delivered, so that before Exit.SHUTDOWN one sees what led to the triple fault. One whose delivery
   * ended in an exit, each time that it is tried.
   * @param vector from 0 to 31
   * @param errorCode what is pushed for the handler; undefined for an exception that has none
   * @param rip where its handler returns to: of a fault the instruction itself, of a trap the one behind it
   * @param address of a page fault: what becomes of CR2
   */
  exception?(vector: number, errorCode: number | undefined, rip: bigint, address: bigint | undefined): void;
  /** The guest wants what the simulated processor lacks: an instruction by iced-x86's name, which raises #UD. */
  lacking?(what: string): void;
}

/**
 * Where a call can fail, it gives a negated errno instead of its result. `request` is the full number of the ioctl;
 * `argument` is a number where the kernel takes an integer and the struct's bytes where it takes a pointer, into
 * which the kernel's answer is written; `references` are what the struct refers to, in the order of the row's
 * `references`, and those at its end that are null may be left out.
 */
export interface Backend {
  /** Which backend this is. */
  readonly name: BackendName;
  /** The ABI by which KVM_RUN tells of memory faults; mainline's without it. Only the simulator speaks others. */
  readonly dialect?: DialectName;
  /** Opens the KVM device. @throws UnavailableError */
  open(): Handle;
  /** ioctl(2) on a handle. Gives what the kernel returns: 0 or more, or a negated errno. */
  ioctl(
    handle: Handle,
    request: number,
    argument?: number | bigint | Uint8Array,
    references?: readonly Reference[],
  ): number;
  /** An ioctl that makes a file descriptor; 0 where it has succeeded and made none (KVM_CREATE_DEVICE_TEST). */
  create(
    handle: Handle,
    request: number,
    argument: number | bigint | Uint8Array,
    references?: readonly Reference[],
  ): Handle | number;
  /** An ioctl whose struct refers to nothing, made ready: where that is cheaper than ioctl(). Or a negated errno. */
  prepare?(handle: Handle, request: number): Prepared | number;

  /** pread(2) of what KVM_GET_STATS_FD gave: bytes that were read, or a negated errno. Where there is such a thing. */
  readStats?(stats: Handle, offset: number, bytes: Uint8Array): number;
  /** Guest RAM, zero, untouched until used. */
  allocate(size: number): Handle | number;
  /** Address space with nothing behind it, for a slot without backing. */
  reserve(size: number): Handle | number;
  /** Maps a guest_memfd made with MMAP (mmap(2), MAP_SHARED). */
  mapGuestMemfd(guestMemfd: Handle): Handle | number;
  /**
   * The vCPU's ring of dirty pages (mmap(2) of the vCPU at KVM_DIRTY_LOG_PAGE_OFFSET), of the size that
   * KVM_CAP_DIRTY_LOG_RING was enabled with; -ENXIO without one.
   */
  mapDirtyRing(vcpu: Handle): Handle | number;
  /** Names guest RAM so that another thread of this process can open it with openMemory(). */
  share(memory: Handle): MemoryToken;
  /** Guest RAM that another thread shares, mapped for this one; -ESTALE or -EBADF when it was closed. */
  openMemory(token: MemoryToken): Handle | number;
  /** Guest RAM, a vCPU's kvm_run with the pages after it, or its ring. Of length 0 once the handle is closed. */
  bytes(handle: Handle): Uint8Array;
  /** Copies between guest RAM, from the offset on, and bytes of JS's, in a range that lies inside the memory. */
  write(memory: Handle, offset: number, bytes: Uint8Array): void;
  /** Copies guest RAM, from `offset` bytes on, into `into`. The range lies inside the memory. */
  read(memory: Handle, offset: number, into: Uint8Array): void;
  /** fallocate(2) on guest RAM or a guest_memfd. Offset and size in bytes. 0 or a negated errno. */
  fallocate(handle: Handle, mode: number, offset: number, size: number): number;
  /** lseek(2) with SEEK_DATA (3) or SEEK_HOLE (4) on guest RAM: a negated errno where it has no such thing. */
  seek(memory: Handle, offset: number, whence: number): number;
  /** madvise(2) on a part of guest RAM. Offset and size in bytes. 0 or a negated errno. */
  madvise(memory: Handle, advice: number, offset: number, size: number): number;

  /** Where the host has such a thing: not in the simulator. */
  readonly userfaults?: Userfaults;
  /** Counters of eventfd(2). */
  readonly eventFds: EventFds;

  /** Names a VM so that another thread of this process can open it. */
  shareVm(vm: Handle): SharedVm | number;
  /** A VM that another thread shares; -ESTALE when all its handles are closed, -EBADF for what is no token. */
  openVm(shared: SharedVm): Handle | number;
  /** Names a vCPU so that another thread of this process can open it. */
  shareVcpu(vcpu: Handle): SharedVcpu | number;
  /** A vCPU that another thread shares, with the same kvm_run; errnos as openVm(). */
  openVcpu(shared: SharedVcpu): Handle | number;

  /**
   * KVM_RUN as a function: gives the exit reason or a negated errno (-ETIME: `timeoutMs` has passed; -ECANCELED: stop()).
   * While the vCPU is paused it waits, with the pending access completed; an access that exits again on the way is its result.
   */
  runner(vcpu: Handle): (timeoutMs?: number) => number;
  /**
   * KVM_RUN on a thread of the vCPU's own. `done` is called from the event loop with what a runner would give: -EBADF when the
   * vCPU was closed meanwhile. A run in progress keeps the event loop alive.
   */
  starter(vcpu: Handle, done: (result: number) => void): Starter;
  /** The number by which kick() and others find this vCPU, the same in every thread of the process. */
  kickId(vcpu: Handle): number;
  /** Interrupts the run in progress, or the next one; from any thread. Gives whether there is such a vCPU. */
  kick(id: number): boolean | undefined;
  /**
   * Until resume() was called as often, no run enters the guest. Gives 0 when the vCPU stands still: it is in no run and
   * its last exit waits for no answer of userspace's; 1 when that is still to come, and the eventfd, if there is one, will be
   * signalled; -ESRCH without such a vCPU.
   */
  pause(id: number, acknowledged?: Handle): number | undefined;
  /** Undoes one pause(): 0; -EINVAL when there is none, -ESRCH without such a vCPU. */
  resume(id: number): number | undefined;
  /** The run in progress, or the next one, completes its access and gives -ECANCELED. Gives whether there is such a vCPU. */
  stop(id: number): boolean | undefined;
  /** Instructions that the guest has completed, where they are counted: in the simulator. */
  completed?(vcpu: Handle): bigint;
  /** Tells the observer from now on, or nobody. Where each instruction is known: in the simulator. */
  observe?(vcpu: Handle, observer: Observer | undefined): void;
  /** Calls before the kernel itself touches a page of this memory, with its offset: in the simulator. */
  ownAccesses?(memory: Handle, serve: ((offset: number) => void) | undefined): void;
  /** Bytes of a memory were written by a way that no call here shows. Where that is kept: in a recording. */
  mark?(memory: Handle, offset: number, size: number): void;
  /** What a VMM takes from elsewhere: kept in a recording, and given back by its replay. Hypervisor.input() is this. */
  input?<T>(name: string, read: () => T): T;
  /** Idempotent. */
  close(handle: Handle): void;
}

/** The handle, or the error that came instead. */
export const isHandle = (result: Handle | number): result is Handle => typeof result !== 'number';

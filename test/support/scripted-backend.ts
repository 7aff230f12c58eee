/**
 * A backend that does nothing but remember: system calls succeed (or give the errno that the test sets), and KVM_RUN
 * plays a script. For what no host here can show on purpose: guests that choose, poison, calls that fail.
 */
import type { Backend, Handle, Starter } from '../../src/hypervisor/backend.ts';
import { Errno } from '../../src/uapi/errno.ts';
import { Exit } from '../../src/uapi/exit.ts';
import { type IoctlName, ioctls } from '../../src/uapi/ioctls.ts';
import { EXIT_OFFSET, exitArms, kvm_run } from '../../src/uapi/kvm-run.ts';
import { viewOf } from '../../src/uapi/layout.ts';

/** What one KVM_RUN does to the page, and what it returns. */
export type Step = (page: DataView) => number;

export interface Call {
  readonly name: IoctlName | 'fallocate';
  /** The struct's bytes, or fallocate's mode, offset and size. */
  readonly argument: unknown;
}

const PAGES = 3 * 4096;
const names = new Map(Object.values(ioctls).map(({ request, name }) => [request, name as IoctlName]));

export class ScriptedBackend implements Backend {
  readonly name = 'sim';
  readonly calls: Call[] = [];
  /** Negated errnos that calls give from now on. */
  readonly results: { [name in IoctlName | 'fallocate']?: number } = {};
  readonly script: Step[] = [];
  readonly #memory = new WeakMap<Handle, Uint8Array>();

  #handle(size = 0): Handle {
    const handle = {} as Handle;
    this.#memory.set(handle, new Uint8Array(size));
    return handle;
  }

  open(): Handle {
    return this.#handle();
  }
  ioctl(_: Handle, request: number, argument?: unknown): number {
    const name = names.get(request)!;
    this.calls.push({ name, argument: argument instanceof Uint8Array ? argument.slice() : argument });
    return this.results[name] ?? 0;
  }
  create(_: Handle, request: number): Handle | number {
    return (
      this.results[names.get(request)!] ??
      this.#handle(request === ioctls.KVM_CREATE_VCPU.request ? PAGES : 0)
    );
  }
  allocate(size: number): Handle {
    return this.#handle(size);
  }
  reserve(): Handle {
    return this.#handle();
  }
  mapDirtyRing(): number {
    return -Errno.ENXIO;
  }
  mapGuestMemfd(): Handle {
    return this.#handle();
  }
  share(): never {
    throw new Error('not scripted');
  }
  openMemory(): number {
    return -Errno.EBADF;
  }
  bytes(handle: Handle): Uint8Array {
    return this.#memory.get(handle)!;
  }
  write(memory: Handle, offset: number, bytes: Uint8Array): void {
    this.bytes(memory).set(bytes, offset);
  }
  read(memory: Handle, offset: number, into: Uint8Array): void {
    into.set(this.bytes(memory).subarray(offset, offset + into.length));
  }
  fallocate(_: Handle, mode: number, offset: number, size: number): number {
    this.calls.push({ name: 'fallocate', argument: { mode, offset, size } });
    return this.results.fallocate ?? 0;
  }
  seek(): number {
    return -Errno.EINVAL;
  }
  madvise(): number {
    return 0;
  }
  runner(vcpu: Handle): () => number {
    const page = viewOf(this.bytes(vcpu));
    return () => (this.script.shift() ?? (() => -Errno.EINTR))(page);
  }
  get eventFds(): never {
    throw new Error('not scripted');
  }
  kickId(): number {
    return 1;
  }
  kick(): boolean {
    return true;
  }
  shareVm(): number {
    return -Errno.ENOMEM;
  }
  openVm(): number {
    return -Errno.EBADF;
  }
  shareVcpu(): number {
    return -Errno.ENOMEM;
  }
  openVcpu(): number {
    return -Errno.EBADF;
  }
  /** As run(), from the event loop. */
  starter(vcpu: Handle, done: (result: number) => void): Starter {
    const run = this.runner(vcpu);
    const start = () => {
      setImmediate(() => done(run()));
      return 0;
    };
    return { start, end() {} };
  }
  pause(): number {
    return 0;
  }
  resume(): number {
    return 0;
  }
  stop(): boolean {
    return true;
  }
  close(): void {}
}

const setReason = (page: DataView, reason: number) =>
  page.setUint32(kvm_run.fields.exitReason.offset, reason, true);

/** KVM_EXIT_MEMORY_FAULT, with EFAULT unless told otherwise. */
export const memoryFault =
  (fault: { gpa: number; size?: number; flags?: number }, errno: number = Errno.EFAULT): Step =>
  (page) => {
    setReason(page, Exit.MEMORY_FAULT);
    exitArms.memoryFault.set(page, EXIT_OFFSET, { size: 4096, flags: 0, ...fault });
    return -errno;
  };

/** KVM_EXIT_HYPERCALL for KVM_HC_MAP_GPA_RANGE. */
export const mapGpaRange =
  (gpa: bigint, pages: bigint, attributes: bigint): Step =>
  (page) => {
    setReason(page, Exit.HYPERCALL);
    const args = [gpa, pages, attributes, 0n, 0n, 0n];
    exitArms.hypercall.set(page, EXIT_OFFSET, { nr: 12n, args, ret: 0xdeadn, flags: 1, longmode: 1 });
    return Exit.HYPERCALL;
  };

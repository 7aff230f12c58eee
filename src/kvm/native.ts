/** The addon's functions as TypeScript sees them, and how it is found. Loaded only when a KVM backend is opened. */
import { existsSync, readFileSync } from 'node:fs';
import type { Handle, Reference, Starter, UserfaultfdToken } from '../hypervisor/backend.ts';
import { UnavailableError } from '../hypervisor/errors.ts';
import { packageRequire, packageRoot, setupCommand } from '../package.ts';

/** What a row of the addon's table refers to. */
export interface NativeReference {
  readonly name: string;
  /** 0 a file descriptor, 1 a place in memory, 2 bytes. */
  readonly is: number;
  /** Of bytes: 1 the kernel reads them, 2 it writes them. */
  readonly way: number;
  /** Of handles, as in `on`; 32 memory, 64 a reservation, 256 an eventfd. */
  readonly kinds: number;
  /** Where the field is in the struct, and how many bytes it has. */
  readonly offset: number;
  readonly size: number;
  readonly inside: readonly NativeCommand[];
}

/** A command of a row whose bytes are a struct with references of its own. */
export interface NativeCommand {
  readonly id: number;
  /** `Sev`, `TdxVm` or `TdxVcpu`: of what it is a command. */
  readonly family: string;
  /** Of the struct; 0 for none, 65,535 for one that ends in a list. */
  readonly size: number;
  readonly references: readonly Omit<NativeReference, 'kinds' | 'size' | 'inside'>[];
}

/** A row of the addon's own table. */
export interface NativeRow {
  readonly name: string;
  readonly request: number;
  /** Bits: 1 system, 2 VM, 4 vCPU, 8 guest_memfd, 16 device, 512 statistics. */
  readonly on: number;
  /** 0 none, 1 integer, 2 struct, 3 array, 4 sized. */
  readonly arg: number;
  /** The kind of fd that it returns, as in `on`; 0 for none. */
  readonly makes: number;
  /** Of an array: where in its head the count is, the bytes of an element, and how many there may be. */
  readonly count: number;
  readonly element: number;
  readonly max: number;
  /** Bytes of the count, of an array, or of a struct that says its own size; 0 where there is none. */
  readonly countSize: number;
  /** Of a sized struct: how many bytes it can have. */
  readonly least: number;
  readonly most: number;
  /** In the order in which they are given. */
  readonly references: readonly NativeReference[];
}

/** Results are handles, or values from 0, or negated errnos. Wrong arguments throw a TypeError. */
export interface Native {
  /** The file that it was loaded from; `bindings` puts it there. */
  readonly path: string;
  open(path: string): Handle | number;
  ioctl(
    handle: Handle,
    request: number,
    argument?: number | bigint | Uint8Array,
    references?: readonly Reference[],
  ): number;
  create(
    handle: Handle,
    request: number,
    argument: number | bigint | Uint8Array,
    references?: readonly Reference[],
  ): Handle | number;
  prepare(handle: Handle, request: number): { buffer: ArrayBuffer; issue(): number } | number;
  requests(): NativeRow[];
  allocate(size: number): Handle | number;
  reserve(size: number): Handle | number;
  openMemory(fd: number, inode: number): Handle | number;
  mapGuestMemfd(guestMemfd: Handle): Handle | number;
  mapDirtyRing(vcpu: Handle): Handle | number;
  inode(handle: Handle): number;
  fallocate(handle: Handle, mode: number, offset: number, size: number): number;
  seek(memory: Handle, offset: number, whence: number): number;
  madvise(memory: Handle, advice: number, offset: number, size: number): number;
  write(memory: Handle, offset: number, bytes: Uint8Array): void;
  read(memory: Handle, offset: number, into: Uint8Array): void;
  buffer(handle: Handle): ArrayBuffer;
  fd(handle: Handle): number;
  close(handle: Handle): void;
  shareVm(vm: Handle): number;
  openVm(number: number): Handle | number;
  openVcpu(kickId: number): Handle | number;
  runner(vcpu: Handle): (timeoutMs?: number) => number;
  starter(vcpu: Handle, done: (result: number) => void): Starter;
  kickId(vcpu: Handle): number;
  kick(id: number): boolean;
  pause(id: number, acknowledged?: Handle): number;
  resume(id: number): number;
  stop(id: number): boolean;
  userfaultfd(memory: Handle): Handle | number;
  shareUserfaultfd(userfaultfd: Handle): Omit<UserfaultfdToken, 'backend'> | number;
  openUserfaultfd(fd: number, inode: number, base: bigint, size: number): Handle | number;
  fillPages(userfaultfd: Handle, offset: number, bytes: Uint8Array): number;
  zeroPages(userfaultfd: Handle, offset: number, size: number): number;
  wakePages(userfaultfd: Handle, offset: number, size: number): number;
  readFaults(userfaultfd: Handle): number[] | number;
  readStats(stats: Handle, offset: number, bytes: Uint8Array): number;
  eventfd(initial: number, semaphore: boolean): Handle | number;
  shareEventfd(eventfd: Handle): number;
  openEventfd(number: number): Handle | number;
  signalEventfd(eventfd: Handle, count: number): number;
  drainEventfd(eventfd: Handle): number;
  watch(handle: Handle, callback: (() => void) | undefined): number;
}

let loaded: Native | undefined;

/** The addon, loaded once. @throws UnavailableError when this platform has no KVM, or no addon is there that loads */
export function loadNative(): Native {
  loaded ??= load();
  return loaded;
}

/** What was built here serves here; what the package brings serves where nothing was built. */
const places: readonly (() => readonly string[])[] = [
  () => ['build', 'Release'],
  () => ['prebuilds', `linux-x64-${isMusl() ? 'musl' : 'glibc'}`],
];

/** Whether this process runs on musl, as on Alpine. A Debian may have its loader, too. */
const isMusl = (): boolean =>
  existsSync('/lib/ld-musl-x86_64.so.1') &&
  !/\/libc(\.so\.6|-2[^/]*\.so)$/m.test(readFileSync('/proc/self/maps', 'latin1'));

function load(): Native {
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    throw new UnavailableError(
      'platform',
      `KVM needs Linux on x86-64, and this is ${process.platform} on ${process.arch}`,
    );
  }
  const bindings = packageRequire('bindings') as (options: object) => Native;
  const tries: string[] = [];
  let broken: Error | undefined;
  for (const place of places) {
    try {
      // With module_root given, bindings does not walk stack traces to find it.
      return bindings({
        bindings: 'vmexit',
        module_root: packageRoot(),
        try: [['module_root', ...place(), 'bindings']],
      });
    } catch (error) {
      const { tries: missing } = error as { tries?: string[] };
      if (missing) tries.push(...missing);
      else broken ??= error as Error;
    }
  }
  const what = broken ? `does not load: ${broken.message}` : `is not built (looked for ${tries.join(', ')})`;
  throw new UnavailableError(
    'addon',
    `the addon ${what}; ${setupCommand()} builds it, with g++, make and python3`,
    { cause: broken },
  );
}

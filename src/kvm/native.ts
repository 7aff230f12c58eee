/** The addon's functions as TypeScript sees them, and how it is found. Loaded only when a KVM backend is opened. */
import type { Handle, UserfaultfdToken } from '../hypervisor/backend.ts';
import { UnavailableError } from '../hypervisor/errors.ts';
import { packageRequire, packageRoot } from '../package.ts';

/** A row of the addon's own table. */
export interface NativeRow {
  readonly name: string;
  readonly request: number;
  /** Bits: 1 system, 2 VM, 4 vCPU, 8 guest_memfd, 16 device. */
  readonly on: number;
  /** 0 none, 1 integer, 2 struct, 3 array, 4 sized, 5 memory region. */
  readonly arg: number;
  /** The kind of fd that it returns, as in `on`; 0 for none. */
  readonly makes: number;
  /** Of an array: where in its head the count is, the bytes of an element, and how many there may be. */
  readonly count: number;
  readonly element: number;
  readonly max: number;
}

/** Results are handles, or values from 0, or negated errnos. Wrong arguments throw a TypeError. */
export interface Native {
  open(path: string): Handle | number;
  ioctl(handle: Handle, request: number, argument?: number | bigint | Uint8Array): number;
  create(handle: Handle, request: number, argument: number | bigint | Uint8Array): Handle | number;
  setMemoryRegion(
    vm: Handle,
    request: number,
    region: Uint8Array,
    memory: Handle | null,
    memoryOffset: number,
    guestMemfd: Handle | null,
    bitmap: Handle | null,
  ): number;
  requests(): NativeRow[];
  allocate(size: number): Handle | number;
  reserve(size: number): Handle | number;
  openMemory(fd: number, inode: number): Handle | number;
  mapGuestMemfd(guestMemfd: Handle): Handle | number;
  inode(handle: Handle): number;
  fallocate(handle: Handle, mode: number, offset: number, size: number): number;
  seek(memory: Handle, offset: number, whence: number): number;
  madvise(memory: Handle, advice: number, offset: number, size: number): number;
  write(memory: Handle, offset: number, bytes: Uint8Array): void;
  read(memory: Handle, offset: number, into: Uint8Array): void;
  buffer(handle: Handle): ArrayBuffer;
  fd(handle: Handle): number;
  close(handle: Handle): void;
  runner(vcpu: Handle): (timeoutMs?: number) => number;
  kickId(vcpu: Handle): number;
  kick(id: number): boolean;
  userfaultfd(memory: Handle): Handle | number;
  shareUserfaultfd(userfaultfd: Handle): Omit<UserfaultfdToken, 'backend'> | number;
  openUserfaultfd(fd: number, inode: number, base: bigint, size: number): Handle | number;
  fillPages(userfaultfd: Handle, offset: number, bytes: Uint8Array): number;
  zeroPages(userfaultfd: Handle, offset: number, size: number): number;
  wakePages(userfaultfd: Handle, offset: number, size: number): number;
  readFaults(userfaultfd: Handle): number[] | number;
  watchFaults(userfaultfd: Handle, callback: (() => void) | undefined): number;
}

let loaded: Native | undefined;

/** The addon, loaded once. @throws UnavailableError when this platform has no KVM, or the addon is not built or does not load */
export function loadNative(): Native {
  loaded ??= load();
  return loaded;
}

function load(): Native {
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    throw new UnavailableError(
      'platform',
      `KVM needs Linux on x86-64, and this is ${process.platform} on ${process.arch}`,
    );
  }
  const bindings = packageRequire('bindings') as (options: object) => Native;
  try {
    // With module_root given, bindings does not walk stack traces to find it.
    return bindings({
      bindings: 'vmexit',
      module_root: packageRoot,
      try: [['module_root', 'build', 'Release', 'bindings']],
    });
  } catch (cause) {
    const { tries, message } = cause as Error & { tries?: string[] };
    throw new UnavailableError(
      'addon',
      tries
        ? `the addon is not built (looked for ${tries.join(', ')}); npm run setup builds it, with g++ and make`
        : `the addon is built and does not load: ${message}`,
      { cause },
    );
  }
}

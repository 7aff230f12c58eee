/** KVM's statistics of a VM or a vCPU: what KVM_GET_STATS_FD gives, read and put into words. */
import { StatsBase, StatsType, StatsUnit } from '../uapi/constants.ts';
import type { ioctls } from '../uapi/ioctls.ts';
import { viewOf } from '../uapi/layout.ts';
import { kvm_stats_desc, kvm_stats_header } from '../uapi/structs.ts';
import { KvmError, UnavailableError } from './errors.ts';
import { Fd } from './fd.ts';

const TYPES = ['CUMULATIVE', 'INSTANT', 'PEAK', 'LINEAR_HIST', 'LOG_HIST'] as const;
const UNITS = ['NONE', 'BYTES', 'SECONDS', 'CYCLES', 'BOOLEAN'] as const;
const BASES = [10, 2] as const;

/** One of KVM's statistics, with its values at one time. */
export interface Statistic {
  /** The kernel's name, such as `exits` or `remote_tlb_flush`. */
  readonly name: string;
  /** How it goes on: see StatsType. Undefined for a kind that is newer than this package: see `flags`. */
  readonly type: (typeof TYPES)[number] | undefined;
  /** What it counts: see StatsUnit. Undefined for a unit that is newer than this package. */
  readonly unit: (typeof UNITS)[number] | undefined;
  /** A value counts units times `base` to the `exponent`: nanoseconds are SECONDS, 10 and -9. */
  readonly base: (typeof BASES)[number] | undefined;
  /** See `base`. */
  readonly exponent: number;
  /** Of a linear histogram, how much a bucket spans; 0 of others. */
  readonly bucketSize: number;
  /** kvm_stats_desc.flags: the three above as the kernel has them. */
  readonly flags: number;
  /** One value, or a histogram's buckets. */
  readonly values: readonly bigint[];
}

type Descriptor = Omit<Statistic, 'values'> & { readonly offset: number; readonly size: number };

/** Far more than any kernel has: what a header says must not be reserved unseen. */
const MOST = { name: 256, descriptors: 4096, values: 4096 } as const;
const WORD = 8;

/**
 * The statistics of a VM or a vCPU (KVM_GET_STATS_FD, since 5.14; api.rst, 4.133), made by `getStatsFd()`. Each read()
 * gives what they are then. It stays valid after its VM or vCPU is closed, which the kernel keeps until this is closed.
 */
export class Stats implements Disposable {
  /** What it is of, as the kernel names it: `kvm-1234`, `kvm-1234/vcpu-0`. */
  readonly id: string;
  readonly #fd: Fd;
  readonly #descriptors: readonly Descriptor[];
  readonly #data: Uint8Array<ArrayBuffer>;
  readonly #dataOffset: number;

  /** Made by getStatsFd(). */
  constructor(fd: Fd) {
    this.#fd = fd;
    const header = kvm_stats_header.decode(this.#pread(0, kvm_stats_header.size));
    const { nameSize, numDesc, idOffset, descOffset, dataOffset } = header;
    within('name_size', nameSize, MOST.name);
    within('num_desc', numDesc, MOST.descriptors);
    this.id = textOf(this.#pread(idOffset, nameSize));
    const step = kvm_stats_desc.size + nameSize;
    const bytes = this.#pread(descOffset, step * numDesc);
    this.#descriptors = Array.from({ length: numDesc }, (_, i) =>
      describe(bytes.subarray(i * step), nameSize),
    );
    const end = this.#descriptors.reduce((most, { offset, size }) => Math.max(most, offset + size * WORD), 0);
    within('the values', end, MOST.descriptors * MOST.values);
    this.#data = new Uint8Array(end);
    this.#dataOffset = dataOffset;
  }

  /** Whether close() was called. */
  get closed(): boolean {
    return this.#fd.closed;
  }

  /** Every statistic by its name, with its values now. @throws VmexitError ERR_KVM_CLOSED */
  read(): ReadonlyMap<string, Statistic> {
    this.#fill(this.#dataOffset, this.#data);
    const view = viewOf(this.#data);
    return new Map(
      this.#descriptors.map(({ offset, size, ...rest }) => [
        rest.name,
        {
          ...rest,
          values: Array.from({ length: size }, (_, i) => view.getBigUint64(offset + i * WORD, true)),
        },
      ]),
    );
  }

  #pread(offset: number, size: number): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(size);
    this.#fill(offset, bytes);
    return bytes;
  }
  #fill(offset: number, bytes: Uint8Array): void {
    const { backend, handle } = this.#fd;
    if (backend.readStats === undefined)
      throw new UnavailableError('feature', 'this backend has no statistics');
    const done = backend.readStats(handle, offset, bytes);
    if (done < 0) throw new KvmError(done, 'pread');
    if (done < bytes.length) throw unexpected(`${bytes.length} bytes at ${offset}`, done);
  }

  /** Idempotent. */
  close(): void {
    this.#fd.close();
  }
  /** As close(): for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/** The statistics of a VM or a vCPU. */
export function statsOf(of: Fd, row: typeof ioctls.KVM_GET_STATS_FD): Stats {
  const fd = new Fd(of.backend, of.create(row, 0), 'Stats');
  try {
    return new Stats(fd);
  } catch (error) {
    fd.close();
    throw error;
  }
}

const unexpected = (what: string, value: number) =>
  new UnavailableError('feature', `KVM's statistics are in no known form: ${what}: ${value}`);

function within(what: string, value: number, most: number): void {
  if (value > most) throw unexpected(what, value);
}

const textOf = (bytes: Uint8Array): string => {
  const end = bytes.indexOf(0);
  return String.fromCharCode(...bytes.subarray(0, end < 0 ? bytes.length : end));
};

function describe(bytes: Uint8Array, nameSize: number): Descriptor {
  const { flags, exponent, size, offset, bucketSize } = kvm_stats_desc.decode(bytes);
  within('size', size, MOST.values);
  return {
    name: textOf(bytes.subarray(kvm_stats_desc.size, kvm_stats_desc.size + nameSize)),
    type: TYPES[(flags & StatsType.MASK) >>> StatsType.SHIFT],
    unit: UNITS[(flags & StatsUnit.MASK) >>> StatsUnit.SHIFT],
    base: BASES[(flags & StatsBase.MASK) >>> StatsBase.SHIFT],
    exponent,
    bucketSize,
    flags,
    offset,
    size,
  };
}

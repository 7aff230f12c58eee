/** KVM_IOEVENTFD: writes of the guest's that signal an eventfd (virt/kvm/eventfd.c). */
import { wrongType } from '../../../hypervisor/errors.ts';
import { IoeventfdFlag } from '../../../uapi/constants.ts';
import { Errno } from '../../../uapi/errno.ts';
import type { kvm_ioeventfd } from '../../../uapi/structs.ts';
import type { Stop } from '../../cpu/processor/stage.ts';
import type { Given, StructArgument } from '../abi/dispatch.ts';
import { EventFdFile } from '../threads/eventfd.ts';

interface Ioeventfd {
  readonly eventFd: EventFdFile;
  readonly pio: boolean;
  readonly address: bigint;
  /** Bytes; 0 for any. */
  readonly length: number;
  /** Undefined for any value. */
  readonly datamatch: bigint | undefined;
}

const { DATAMATCH, PIO, DEASSIGN } = IoeventfdFlag;
const LENGTHS: readonly number[] = [0, 1, 2, 4, 8];
const ADDRESSES = 2n ** 64n;

const numberOf = (data: Uint8Array): bigint =>
  data.reduceRight((value, byte) => (value << 8n) | BigInt(byte), 0n);

/** A VM's, on both of its buses. */
export class Ioeventfds {
  readonly #all: Ioeventfd[] = [];

  /** kvm_ioeventfd(). */
  set(argument: StructArgument<typeof kvm_ioeventfd>, [file = null]: readonly Given[]): number {
    const { len, flags } = argument.value;
    const address = argument.raw('addr');
    const assigns = (flags & DEASSIGN) === 0;
    if (assigns) {
      if (!LENGTHS.includes(len) || address + BigInt(len) >= ADDRESSES) return -Errno.EINVAL;
      if ((flags & ~(DATAMATCH | PIO | DEASSIGN)) !== 0) return -Errno.EINVAL;
      if (len === 0 && (flags & DATAMATCH) !== 0) return -Errno.EINVAL;
    }
    if (file === null) return -Errno.EBADF;
    if (!(file instanceof EventFdFile)) throw wrongType('fd', file, 'an eventfd');
    const datamatch = (flags & DATAMATCH) !== 0 ? argument.raw('datamatch') : undefined;
    const wanted = { eventFd: file, pio: (flags & PIO) !== 0, address, length: len, datamatch };
    return assigns ? this.#assign(wanted) : this.#deassign(wanted);
  }

  /** ioeventfd_check_collision(): some write would be for both. */
  #assign(wanted: Ioeventfd): number {
    const either = <T>(a: T, b: T, any: T) => a === any || b === any || a === b;
    const collides = this.#all.some(
      ({ pio, address, length, datamatch }) =>
        pio === wanted.pio &&
        address === wanted.address &&
        either(length, wanted.length, 0) &&
        (length !== wanted.length || either(datamatch, wanted.datamatch, undefined)),
    );
    if (collides) return -Errno.EEXIST;
    this.#all.push({ ...wanted, eventFd: wanted.eventFd.retain() });
    return 0;
  }

  #deassign(wanted: Ioeventfd): number {
    const index = this.#all.findIndex(
      ({ eventFd, pio, address, length, datamatch }) =>
        eventFd.is(wanted.eventFd) &&
        pio === wanted.pio &&
        address === wanted.address &&
        length === wanted.length &&
        datamatch === wanted.datamatch,
    );
    if (index < 0) return -Errno.ENOENT;
    for (const { eventFd } of this.#all.splice(index, 1)) eventFd.release();
    return 0;
  }

  /** What another thread makes the same of. */
  get entry(): unknown {
    return this.#all.map(({ eventFd, ...rest }) => ({ ...rest, eventFd: eventFd.number }));
  }
  /** In a copy: whoever owns the VM keeps the eventfds. @param table where they are */
  copy(entry: unknown, table: ArrayBufferLike): void {
    const all = entry as (Omit<Ioeventfd, 'eventFd'> & { eventFd: number })[];
    const copies = all.map((one) => ({ ...one, eventFd: EventFdFile.at(table, one.eventFd) }));
    this.#all.splice(0, this.#all.length, ...copies);
  }

  /** The VM is gone. */
  clear(): void {
    for (const { eventFd } of this.#all.splice(0)) eventFd.release();
  }

  /** ioeventfd_in_range(): gives whether the write was for one of them, and is done. */
  readonly write = (stop: Stop): boolean => {
    if (this.#all.length === 0 || (stop.kind !== 'io' && stop.kind !== 'mmio') || !stop.write) return false;
    const pio = stop.kind === 'io';
    const address = BigInt(pio ? stop.port : stop.gpa);
    const found = this.#all.find(
      (one) =>
        one.pio === pio &&
        one.address === address &&
        (one.length === 0 || one.length === stop.data.length) &&
        (one.datamatch === undefined || one.datamatch === numberOf(stop.data)),
    );
    found?.eventFd.signal();
    return found !== undefined;
  };
}

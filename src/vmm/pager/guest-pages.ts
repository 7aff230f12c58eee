/** The pages of guest memory as both of the pager's threads see them: where a page lies, and how it gets there. */

import { PAGE_SIZE as PAGE } from '../../hypervisor/args.ts';
import { KvmError } from '../../hypervisor/errors.ts';
import type { GuestMemory } from '../../hypervisor/guest-memory.ts';
import type { UserfaultBitmap } from '../../hypervisor/userfault-bitmap.ts';
import { Userfaultfd } from '../../hypervisor/userfaultfd.ts';
import { Errno } from '../../uapi/errno.ts';

/** One memory. Pages are numbered through all of them. */
export interface Area {
  /** The number of its first page. */
  readonly first: number;
  readonly pages: number;
  /** By which contents get there: with a userfaultfd the memory itself must not be touched. */
  readonly into: GuestMemory | Userfaultfd;
}

/** One slot's bitmap. */
export interface Armed {
  /** The number of the page that bit 0 is for. */
  readonly first: number;
  readonly bitmap: UserfaultBitmap;
}

export class GuestPages {
  readonly areas: readonly Area[];
  readonly #armed: readonly Armed[];

  constructor(areas: readonly Area[], armed: readonly Armed[]) {
    this.areas = areas;
    this.#armed = armed;
  }

  /** Puts contents into guest memory, and only then lets vCPUs see them (spec of userfault_bitmap: store-release). */
  put(first: number, bytes: Uint8Array): void {
    const end = first + bytes.length / PAGE;
    for (const { first: start, pages, into } of this.areas) {
      const from = Math.max(first, start);
      const to = Math.min(end, start + pages);
      if (from >= to) continue;
      const all = from === first && to === end;
      const part = all ? bytes : bytes.subarray((from - first) * PAGE, (to - first) * PAGE);
      const offset = (from - start) * PAGE;
      if (into instanceof Userfaultfd) copy(into, offset, part);
      else into.place(offset, part);
    }
    this.release(first, end - first);
  }

  /** Leaves fresh pages as they are, zeroes, and lets who waits for them go on. */
  zero(first: number, count: number): void {
    for (const { first: start, pages, into } of this.areas) {
      if (!(into instanceof Userfaultfd)) continue;
      const end = Math.min(first + count, start + pages);
      for (let page = Math.max(first, start); page < end; page++) zeroPage(into, (page - start) * PAGE);
    }
    this.release(first, count);
  }

  /** Their bits, wherever a slot shows them. */
  release(first: number, count: number): void {
    for (const { first: start, bitmap } of this.#armed) {
      const from = Math.max(first, start);
      const to = Math.min(first + count, start + bitmap.pages);
      if (from < to) bitmap.release(from - start, to - from);
    }
  }
}

/** One that needs no contents, or is there already. */
export function zeroPage(userfaultfd: Userfaultfd, offset: number): void {
  if (userfaultfd.zero(offset, PAGE) !== 0) userfaultfd.wake(offset, PAGE);
}

/** Page by page where one is there already: what somebody has written before the pager came is newer. */
function copy(userfaultfd: Userfaultfd, offset: number, bytes: Uint8Array): void {
  const result = userfaultfd.copy(offset, bytes);
  if (result === 0) return;
  if (result !== -Errno.EEXIST) throw new KvmError(result, 'ioctl', 'UFFDIO_COPY');
  if (bytes.length === PAGE) {
    userfaultfd.wake(offset, PAGE);
    return;
  }
  for (let at = 0; at < bytes.length; at += PAGE)
    copy(userfaultfd, offset + at, bytes.subarray(at, at + PAGE));
}

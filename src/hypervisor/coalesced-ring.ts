/** The ring into which KVM puts a guest's writes to coalesced zones instead of exiting for each. */
import { viewOf } from '../uapi/layout.ts';
import { kvm_coalesced_mmio, kvm_coalesced_mmio_ring } from '../uapi/structs.ts';
import { PAGE_SIZE } from './args.ts';

const { first, last } = kvm_coalesced_mmio_ring.fields;
/** KVM_COALESCED_MMIO_MAX. One place stays free, so that a full ring is told from an empty one. */
const PLACES = Math.floor((PAGE_SIZE - kvm_coalesced_mmio_ring.size) / kvm_coalesced_mmio.size);
const DATA_SIZE = kvm_coalesced_mmio.fields.data.type.size;

/** A guest's write that KVM kept for later. */
export interface CoalescedAccess {
  /** A guest-physical address in bytes, or a port. */
  readonly address: number;
  /** Bytes, 1 to 8. */
  readonly size: number;
  /** The `size` bytes that were written: a copy. */
  readonly data: Uint8Array;
  /** Whether it was an OUT to a port. */
  readonly pio: boolean;
}

/** What the ring needs of a vCPU: the page, as long as it is open. */
interface Page {
  readonly bytes: Uint8Array;
}

/**
 * The writes to zones of Vm.registerCoalescedMmio() in the order in which the guest made them: `for (const access of ring)`
 * takes each out. There is one ring in a VM, which the mapping of each of its vCPUs shows: read it by one, in one thread.
 * It has 169 places; a write that finds it full is a normal exit, as is a read of the zone, and then what is in the ring
 * came first. Look into it after every run().
 */
export class CoalescedRing implements Iterable<CoalescedAccess> {
  readonly #page: Page;
  readonly #at: number;

  /** Made by Vcpu.coalescedRing. @param page number of the ring's page in the mapping */
  constructor(page: Page, number: number) {
    this.#page = page;
    this.#at = number * PAGE_SIZE;
  }

  /** How many writes wait in it. @throws VmexitError ERR_KVM_CLOSED */
  get length(): number {
    const view = this.#view();
    return (this.#index(view, last.offset) - this.#index(view, first.offset) + PLACES) % PLACES;
  }

  /** Takes the writes out, each when it is given. @throws VmexitError ERR_KVM_CLOSED */
  *[Symbol.iterator](): Generator<CoalescedAccess, void> {
    for (;;) {
      const view = this.#view();
      const index = this.#index(view, first.offset);
      if (index === this.#index(view, last.offset)) return;
      const entry = kvm_coalesced_mmio.get(
        view,
        kvm_coalesced_mmio_ring.size + index * kvm_coalesced_mmio.size,
      );
      first.type.set(view, first.offset, (index + 1) % PLACES);
      const size = Math.min(entry.len, DATA_SIZE);
      yield { address: entry.physAddr, size, data: entry.data.slice(0, size), pio: entry.pio !== 0 };
    }
  }

  #view(): DataView {
    return viewOf(this.#page.bytes.subarray(this.#at, this.#at + PAGE_SIZE));
  }
  /** The page can be written by whoever has it: an index that none is counts as 0, and KVM sees it so too. */
  #index(view: DataView, offset: number): number {
    const index = view.getUint32(offset, true);
    if (index < PLACES) return index;
    view.setUint32(offset, 0, true);
    return 0;
  }
}

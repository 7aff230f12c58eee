/** A vCPU's ring of dirty pages: what the kernel writes into it, and how it is taken out. */
import { DirtyGfnFlag } from '../uapi/constants.ts';
import { Errno } from '../uapi/errno.ts';
import { size64, viewOf } from '../uapi/layout.ts';
import { kvm_dirty_gfn } from '../uapi/structs.ts';
import { type Backend, type Handle, isHandle } from './backend.ts';
import { closed, KvmError, wrongType } from './errors.ts';

const { flags, slot, offset } = kvm_dirty_gfn.fields;
const SIZE = kvm_dirty_gfn.size;

/**
 * The pages that one vCPU has written, in the order of its first writes to them (KVM_CAP_DIRTY_LOG_RING, since 5.11): it
 * takes the place of KVM_GET_DIRTY_LOG for the whole VM, and costs as much as there are dirty pages. A vCPU whose ring is
 * nearly full exits with Exit.DIRTY_RING_FULL. Got by Vcpu.dirtyRing.
 */
export class DirtyRing {
  /** How many entries it has. The vCPU stops some before they are used up: 64, and 512 more on Intel's processors. */
  readonly entries: number;
  readonly #backend: Backend;
  readonly #handle: Handle;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #closed = false;
  /** The entry that comes next. */
  #next = 0;

  private constructor(backend: Backend, handle: Handle) {
    this.#backend = backend;
    this.#handle = handle;
    this.#bytes = backend.bytes(handle);
    this.#view = viewOf(this.#bytes);
    this.entries = this.#bytes.length / SIZE;
  }

  /**
   * Takes out what is in it, and marks it as taken: Vm.resetDirtyRings() then write-protects those pages again, and gives
   * the entries back to the kernel. What the guest writes to a page before that is not told again, so read a page's
   * contents after it. In the thread that runs the vCPU, or while it does not run.
   * @param visit is told each page: its slot, its address space, and its number in the slot
   * @returns how many there were
   * @throws TypeError ERR_KVM_INVALID_ARG; VmexitError ERR_KVM_CLOSED once its vCPU was closed
   */
  harvest(visit: (slot: number, addressSpace: number, page: number) => void): number {
    if (typeof visit !== 'function') throw wrongType('visit', visit, 'a function');
    if (this.#closed) throw closed('vCPU');
    let count = 0;
    // The kernel writes an entry first and its flag afterwards; what follows an atomic load comes after it.
    for (; count < this.entries; count++) {
      const at = this.#next * SIZE;
      const state = Atomics.load(this.#bytes, at + flags.offset);
      if ((state & (DirtyGfnFlag.DIRTY | DirtyGfnFlag.RESET)) !== DirtyGfnFlag.DIRTY) break;
      const id = this.#view.getUint32(at + slot.offset, true);
      visit(id & 0xffff, id >>> 16, size64.get(this.#view, at + offset.offset));
      Atomics.store(this.#bytes, at + flags.offset, state | DirtyGfnFlag.RESET);
      this.#next = (this.#next + 1) % this.entries;
    }
    return count;
  }

  /** Its vCPU's close() calls it. Idempotent. */
  close(): void {
    this.#closed = true;
    this.#backend.close(this.#handle);
  }

  /** What Vcpu.dirtyRing calls: undefined where there is none. @throws KvmError with the errno of mmap(2) */
  static of(backend: Backend, vcpu: Handle): DirtyRing | undefined {
    const handle = backend.mapDirtyRing(vcpu);
    if (isHandle(handle)) return new DirtyRing(backend, handle);
    if (handle === -Errno.ENXIO) return undefined;
    throw new KvmError(handle, 'mmap');
  }
}

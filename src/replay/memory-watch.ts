/**
 * Which pages of guest memory have changed, for a recorder: by the kernel's log or rings where the VMM has a view of the
 * memory, and by comparison where it only copies. The VMM's own logging finds all that it would find without.
 */
import { PAGE_SIZE as PAGE } from '../hypervisor/args.ts';
import type { Backend, Handle, Reference } from '../hypervisor/backend.ts';
import { Cap } from '../uapi/cap.ts';
import { DirtyLog, MemFlag } from '../uapi/constants.ts';
import { Errno } from '../uapi/errno.ts';
import { type Ioctl, ioctls } from '../uapi/ioctls.ts';
import { viewOf } from '../uapi/layout.ts';
import { kvm_clear_dirty_log, kvm_dirty_log, kvm_enable_cap } from '../uapi/structs.ts';
import type { Value } from './codec.ts';
import { PageModel } from './page-model.ts';

const LOGGED = MemFlag.LOG_DIRTY_PAGES;
const RINGS: readonly number[] = [Cap.DIRTY_LOG_RING, Cap.DIRTY_LOG_RING_ACQ_REL];
/** lseek(2). */
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const CHUNK = 2 ** 20;
/** struct kvm_userspace_memory_region; the other one begins as it does. */
const REGION = { SLOT: 0, FLAGS: 4, SIZE: 16 } as const;

/** A guest memory. */
export interface Watched {
  readonly id: number;
  readonly handle: Handle;
  readonly size: number;
  readonly model: PageModel;
  /** The VMM has a view of it: what it does there no call tells. */
  exposed: boolean;
  /** Another thread writes there, and no log tells. */
  shared: boolean;
  /** To be looked at: the log that told of them is empty by now. */
  readonly pending: Set<number>;
}

/** What a slot has its pages in, and from where on. */
export interface Behind {
  readonly memory: Watched;
  readonly offset: number;
}

interface WatchedSlot {
  readonly vm: WatchedVm;
  readonly request: number;
  readonly argument: Uint8Array;
  readonly references: readonly Reference[];
  readonly memory: Watched;
  /** Of its first page, in its memory. */
  readonly firstPage: number;
  readonly pages: number;
  readonly readOnly: boolean;
  /** The VMM has asked for a log itself. */
  readonly asked: boolean;
  logged: boolean;
  /** What was read of its log here, and the VMM has not had yet. */
  readonly owed: Uint8Array;
}

export interface WatchedVm {
  readonly handle: Handle;
  readonly slots: Map<number, WatchedSlot>;
  rings: boolean;
  /** KVM_GET_DIRTY_LOG only reads. */
  manual: boolean;
}

/** Where a vCPU's ring is read to, beside its VMM. */
export interface WatchedRing {
  readonly handle: Handle;
  readonly vm: WatchedVm;
  readonly words: Int32Array;
  at: number;
}

export class MemoryWatch {
  readonly #backend: Backend;
  readonly #memories = new Map<number, Watched>();
  readonly #vms = new Set<WatchedVm>();
  readonly #page = new Uint8Array(PAGE);
  readonly #words = new Int32Array(this.#page.buffer);

  constructor(backend: Backend) {
    this.#backend = backend;
  }

  addMemory(id: number, handle: Handle, size: number): Watched {
    const memory: Watched = {
      id,
      handle,
      size,
      model: new PageModel(),
      exposed: false,
      shared: false,
      pending: new Set(),
    };
    this.#memories.set(id, memory);
    return memory;
  }
  /** The guest may keep it: nobody here can look any more. */
  dropMemory({ id }: Watched): void {
    this.#memories.delete(id);
    for (const vm of this.#vms)
      for (const [number, { memory }] of vm.slots) if (memory.id === id) vm.slots.delete(number);
  }
  addVm(handle: Handle): WatchedVm {
    const vm = { handle, slots: new Map(), rings: false, manual: false };
    this.#vms.add(vm);
    return vm;
  }
  dropVm(vm: WatchedVm): void {
    this.#vms.delete(vm);
  }

  /** From now on each change is to be found. Gives what differs already. */
  expose(memory: Watched): Value[] {
    if (memory.exposed) return [];
    memory.exposed = true;
    for (const vm of this.#vms)
      for (const slot of vm.slots.values()) if (slot.memory === memory) this.#log(slot);
    return this.#tell(memory, this.#differing(memory), false);
  }

  #log(slot: WatchedSlot): void {
    if (slot.logged || slot.vm.rings || slot.readOnly) return;
    const argument = slot.argument.slice();
    const view = viewOf(argument);
    view.setUint32(REGION.FLAGS, view.getUint32(REGION.FLAGS, true) | LOGGED, true);
    slot.logged = this.#backend.ioctl(slot.vm.handle, slot.request, argument, slot.references) === 0;
  }

  /** An ioctl of the VMM's. Where there are others of this one's, it finds what it would find without. */
  issue(
    vm: WatchedVm,
    row: Ioctl | undefined,
    request: number,
    argument: Uint8Array,
    references: readonly Reference[],
    behind: Behind | undefined,
  ): number {
    const [bitmap] = references;
    switch (row) {
      case ioctls.KVM_SET_USER_MEMORY_REGION:
      case ioctls.KVM_SET_USER_MEMORY_REGION2:
        return this.#setRegion(vm, request, argument, references, behind);
      case ioctls.KVM_GET_DIRTY_LOG:
        if (bitmap instanceof Uint8Array) return this.#getLog(vm, argument, bitmap);
        break;
      case ioctls.KVM_CLEAR_DIRTY_LOG:
        if (bitmap instanceof Uint8Array) return this.#clearLog(vm, argument, bitmap);
    }
    const result = this.#backend.ioctl(vm.handle, request, argument, references);
    if (row === ioctls.KVM_ENABLE_CAP && result >= 0) this.#enabled(vm, argument);
    return result;
  }

  #setRegion(
    vm: WatchedVm,
    request: number,
    argument: Uint8Array,
    references: readonly Reference[],
    behind: Behind | undefined,
  ): number {
    const view = viewOf(argument);
    const number = view.getUint32(REGION.SLOT, true);
    const before = vm.slots.get(number);
    if (before !== undefined) this.#drain(before);
    const result = this.#backend.ioctl(vm.handle, request, argument, references);
    if (result !== 0) return result;
    vm.slots.delete(number);
    const pages = Number(view.getBigUint64(REGION.SIZE, true)) / PAGE;
    if (behind === undefined || pages === 0) return result;
    const flags = view.getUint32(REGION.FLAGS, true);
    const asked = (flags & LOGGED) !== 0;
    const slot: WatchedSlot = {
      vm,
      request,
      argument: argument.slice(),
      references,
      memory: behind.memory,
      firstPage: behind.offset / PAGE,
      pages,
      readOnly: (flags & MemFlag.READONLY) !== 0,
      asked,
      logged: asked,
      owed: new Uint8Array(Math.ceil(pages / 64) * 8),
    };
    vm.slots.set(number, slot);
    if (behind.memory.exposed) this.#log(slot);
    return result;
  }

  #enabled(vm: WatchedVm, argument: Uint8Array): void {
    const { cap, args } = kvm_enable_cap.decode(argument);
    if (RINGS.includes(cap)) vm.rings = true;
    if (cap === Cap.MANUAL_DIRTY_LOG_PROTECT2)
      vm.manual = ((args[0] ?? 0n) & BigInt(DirtyLog.MANUAL_PROTECT_ENABLE)) !== 0n;
  }

  #getLog(vm: WatchedVm, argument: Uint8Array, bitmap: Uint8Array): number {
    const slot = vm.slots.get(kvm_dirty_log.decode(argument).slot);
    if (slot?.logged && !slot.asked) return -Errno.ENOENT;
    const result = this.#backend.ioctl(vm.handle, ioctls.KVM_GET_DIRTY_LOG.request, argument, [bitmap]);
    if (result < 0 || slot === undefined) return result;
    this.#pend(slot, bitmap);
    for (let i = 0; i < Math.min(bitmap.length, slot.owed.length); i++) bitmap[i]! |= slot.owed[i]!;
    if (!vm.manual) slot.owed.fill(0);
    return result;
  }
  #clearLog(vm: WatchedVm, argument: Uint8Array, bitmap: Uint8Array): number {
    const { slot: number, firstPage, numPages } = kvm_clear_dirty_log.decode(argument);
    const slot = vm.slots.get(number);
    if (slot?.logged && !slot.asked) return -Errno.ENOENT;
    if (slot !== undefined) this.#drain(slot);
    const result = this.#backend.ioctl(vm.handle, ioctls.KVM_CLEAR_DIRTY_LOG.request, argument, [bitmap]);
    if (result < 0 || slot === undefined) return result;
    const first = Number(firstPage);
    for (let i = 0; i < numPages; i++) {
      if ((bitmap[i >>> 3]! & (1 << (i & 7))) !== 0)
        slot.owed[(first + i) >>> 3]! &= ~(1 << ((first + i) & 7));
    }
    return result;
  }

  #pend({ memory, firstPage }: WatchedSlot, bitmap: Uint8Array): void {
    if (!memory.exposed) return;
    for (let byte = 0; byte < bitmap.length; byte++) {
      if (bitmap[byte] === 0) continue;
      for (let bits = bitmap[byte]!, bit = 0; bits !== 0; bits >>>= 1, bit++)
        if (bits & 1) memory.pending.add(firstPage + byte * 8 + bit);
    }
  }

  /** Zeroed, for one call. */
  #bitmapOf(bytes: number): Uint8Array {
    if (this.#bitmap.length < bytes) this.#bitmap = new Uint8Array(bytes);
    return this.#bitmap.subarray(0, bytes).fill(0);
  }
  #bitmap = new Uint8Array(0);

  /** Reads the slot's log, of which the VMM is owed what it has asked for. */
  #drain(slot: WatchedSlot): void {
    if (!slot.logged || slot.vm.rings || !slot.memory.exposed) return;
    const { vm, pages, owed } = slot;
    const number = viewOf(slot.argument).getUint32(REGION.SLOT, true);
    const bitmap = this.#bitmapOf(owed.length);
    const log = kvm_dirty_log.encode({ slot: number });
    if (this.#backend.ioctl(vm.handle, ioctls.KVM_GET_DIRTY_LOG.request, log, [bitmap]) < 0) {
      // Any page of it may have changed.
      for (let page = 0; page < pages; page++) slot.memory.pending.add(slot.firstPage + page);
      return;
    }
    this.#pend(slot, bitmap);
    if (slot.asked) for (let i = 0; i < owed.length; i++) owed[i]! |= bitmap[i]!;
    if (!vm.manual) return;
    const clear = kvm_clear_dirty_log.encode({ slot: number, firstPage: 0, numPages: pages });
    this.#backend.ioctl(vm.handle, ioctls.KVM_CLEAR_DIRTY_LOG.request, clear, [bitmap]);
  }

  /** Reads what a vCPU has put into its ring; before the VMM can take it from there. */
  peek(ring: WatchedRing): void {
    // struct kvm_dirty_gfn: u32 flags (bit 0: dirty), u32 slot, u64 offset in pages
    const { vm, words } = ring;
    for (let entries = words.length / 4; entries > 0; entries--) {
      const at = ring.at * 4;
      if ((words[at]! & 1) === 0) return;
      const slot = vm.slots.get(words[at + 1]!);
      if (slot?.memory.exposed) slot.memory.pending.add(slot.firstPage + words[at + 2]!);
      ring.at = (ring.at + 1) % (words.length / 4);
    }
  }

  /**
   * Before a run: finds what the VMM has written by its views where no log tells of the guest's doing, for the guest may write
   * there what the record has.
   */
  look(): void {
    for (const memory of this.#memories.values()) {
      if (!memory.exposed || !this.#untold(memory)) continue;
      for (const page of this.#differing(memory)) memory.pending.add(page);
    }
  }

  /** What has changed in memory that the VMM has views of. */
  collect(): Value[] {
    const changed: Value[] = [];
    for (const vm of this.#vms) for (const slot of vm.slots.values()) this.#drain(slot);
    for (const memory of this.#memories.values()) {
      if (!memory.exposed) continue;
      const pages = this.#untold(memory) ? this.#differing(memory) : [];
      changed.push(...this.#tell(memory, new Set([...memory.pending, ...pages]), true));
      memory.pending.clear();
    }
    return changed;
  }
  /** Whether it is written by ways of which no log tells. */
  #untold(memory: Watched): boolean {
    if (memory.shared) return true;
    for (const vm of this.#vms)
      for (const slot of vm.slots.values())
        if (slot.memory === memory && !slot.logged && !slot.readOnly) return true;
    return false;
  }

  /** What is in a range: of memory without a view, only what a replay has not. */
  range(memory: Watched, offset: number, size: number): Value[] {
    const pages: number[] = [];
    for (let page = Math.floor(offset / PAGE); page * PAGE < offset + size; page++) pages.push(page);
    return this.#tell(memory, pages, memory.exposed);
  }

  /**
   * The pages as a record has them: the memory's number, and pairs of a page and its bytes, or null for as it was told last.
   * @param all also pages of which that is known
   */
  #tell(memory: Watched, pages: Iterable<number>, all: boolean): Value[] {
    const told: Value[] = [];
    for (const page of pages) {
      if ((page + 1) * PAGE > memory.size) continue;
      this.#backend.read(memory.handle, page * PAGE, this.#page);
      if (!memory.model.holds(page, this.#words)) {
        memory.model.write(page * PAGE, this.#page);
        told.push(page, this.#page.slice());
      } else if (all) told.push(page, null);
    }
    return told.length === 0 ? [] : [[memory.id, ...told]];
  }

  /** Pages that are not as the model has them; what nobody has touched is not. */
  #differing(memory: Watched): number[] {
    const candidates = new Set(memory.model.pages);
    const found: number[] = [];
    const chunk = new Uint8Array(Math.min(CHUNK, memory.size));
    const seek = (at: number, whence: number) => this.#backend.seek(memory.handle, at, whence);
    for (let at = 0; at < memory.size; ) {
      const data = seek(at, SEEK_DATA);
      if (data === -Errno.ENXIO) break;
      const from = data < 0 ? at : data - (data % PAGE);
      const hole = data < 0 ? memory.size : seek(from, SEEK_HOLE);
      const end = hole < 0 ? memory.size : Math.min(hole, memory.size);
      for (at = from; at < end; at += chunk.length) {
        const part = chunk.subarray(0, Math.min(chunk.length, memory.size - at));
        this.#backend.read(memory.handle, at, part);
        for (let offset = 0; offset + PAGE <= part.length; offset += PAGE) {
          const page = (at + offset) / PAGE;
          candidates.delete(page);
          if (!memory.model.holds(page, new Int32Array(chunk.buffer, offset, PAGE / 4))) found.push(page);
        }
      }
    }
    return [...found, ...candidates];
  }
}

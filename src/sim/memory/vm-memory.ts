/**
 * A VM's memory: slots, attributes, and the second stage of translation, whose mappings stay until something zaps
 * them. The fault path is kvm_mmu_faultin_pfn()'s (arch/x86/kvm/mmu/mmu.c).
 */
import { MemFlag } from '../../uapi/constants.ts';
import type { Dialect } from '../../uapi/dialects.ts';
import { Errno } from '../../uapi/errno.ts';
import { type Arena, PAGE } from '../arena.ts';
import { Access, MMIO } from '../cpu/processor/stage.ts';
import { DirtyBits, type DirtyRing, DirtyTracking, setBits } from './dirty.ts';
import type { Binding, GuestMemfdFile } from './guest-memfd.ts';
import type { Notifier } from './host-memory.ts';
import { Attributes, type Privacy, privacyOf } from './privacy.ts';
import {
  type Change,
  isGuestMemfdOnly,
  MAX_SLOTS,
  type Region,
  type Slot,
  type SlotRules,
  Slots,
} from './slots.ts';

/** Why an access does not succeed, in whole pages. */
export interface Failure {
  /** A negated errno; undefined when it is as the ABI tells of memory faults. */
  readonly errno: number | undefined;
  /** What is written into kvm_run; undefined for the EFAULT that says nothing. */
  readonly fault:
    | {
        readonly private: boolean;
        /** The page's bit in its slot's userfault bitmap is set. */
        readonly userfault: boolean;
        readonly gpa: number;
        readonly size: number;
      }
    | undefined;
}

export interface VmMemoryOptions {
  readonly arena: Arena;
  readonly dialect: Dialect;
  readonly rules: SlotRules;
  /** kvm_arch_has_private_mem(). */
  readonly hasPrivate: boolean;
  /** The guest's page tables say which kind of memory they want. */
  readonly choosing: boolean;
  /** Bytes that a fault tells of at once where guests choose: 4096, or more. */
  readonly faultSize: number;
}

/** What caches translations: a processor. */
export interface Translator {
  flushSecondStage(start: number, end: number): void;
  /** Pages have become read-only. */
  flushWrites(): void;
}

/** What is told of changes. */
export interface Told {
  slot(id: number, slot: Slot | undefined): void;
  attributes(start: number, end: number, attributes: number): void;
  zap(start: number, end: number): void;
  protect(start: number, end: number): void;
  /** Which of its pages cannot be had has changed. */
  fails(file: GuestMemfdFile): void;
}

const WRITABLE = 1;
/** So many pages without memory are remembered as such; a guest can touch more. */
const MAX_IO_PAGES = 2 ** 16;

export class VmMemory {
  readonly options: VmMemoryOptions;
  readonly slots = new Slots();
  readonly attributes = new Attributes();
  readonly translators = new Set<Translator>();
  readonly dirty = new DirtyTracking();
  /** Who tells other threads that have a copy of this. */
  told: Told | undefined;
  readonly #privacy: Privacy;
  readonly #bindings = new Map<Slot, Binding>();
  readonly #notifiers = new Map<Slot, Notifier>();
  /** By page number, twice, plus 1 for private: where the page lies in the arena, plus WRITABLE. */
  readonly #mappings = new Map<number, number>();
  /**
   * KVM's MMIO SPTEs: pages that were found to be in no slot, and at which generation of the slots. One of the present
   * generation is I/O without another look at slots and attributes; one of an earlier generation makes the access a
   * shared one, whatever the attribute says, for the processor reports a reserved bit (mmu.c, kvm_mmu_page_fault and
   * handle_mmio_page_fault). Nothing zaps them: unmapping a range passes over what maps nothing.
   */
  readonly #io = new Map<number, number>();
  #generation = 0;
  /**
   * KVM_X86_QUIRK_SLOT_ZAP_ALL (since 6.12; always before): in a VM of the default type, deleting or moving a slot
   * unmaps the pages of all slots (arch/x86/kvm/mmu/mmu.c, kvm_arch_flush_shadow_memslot). What shows it is that
   * userfault bits are looked at again.
   */
  zapsAll: boolean;

  constructor(options: VmMemoryOptions) {
    this.options = options;
    this.#privacy = privacyOf(options.dialect.truth, this.attributes);
    this.zapsAll = !options.hasPrivate;
  }

  // --- the ioctls ---

  /** Both region ioctls: 0 or a negated errno. */
  setRegion(region: Region): number {
    const change = this.slots.check(region, this.options.rules);
    if (typeof change === 'number') return change;
    if (change.kind === 'nothing') return 0;
    if (change.kind !== 'delete' && !this.#keepsLog(change.slot)) return -Errno.ENOMEM;
    this.#apply(change);
    this.told?.slot(region.slot, change.kind === 'delete' ? undefined : change.slot);
    return 0;
  }

  /** In a copy: what the VM's owner has made of a slot. */
  copySlot(id: number, slot: Slot | undefined): void {
    const old = this.slots.byId(id);
    if (slot === undefined) {
      if (old !== undefined) this.#apply({ kind: 'delete', old });
    } else if (old === undefined || old.start !== slot.start) this.#apply({ kind: 'place', old, slot });
    else this.#apply({ kind: 'flags', old, slot });
  }
  /** In a copy: all that is known of the VM counts no more. */
  clear(): void {
    for (const slot of [...this.slots.all]) this.#remove(slot);
    this.attributes.clear();
    this.#io.clear();
    this.zap(0, Number.POSITIVE_INFINITY);
    this.#flush();
  }

  #apply(change: Exclude<Change, { kind: 'nothing' }>): void {
    this.#generation++;
    if (change.kind !== 'delete') retain(change.slot); // first: it may be the old one's
    if (change.old !== undefined) {
      this.#remove(change.old);
      if (change.kind !== 'flags') this.#zapMoved(change.old);
      if (change.kind === 'delete' || change.slot.dirty !== change.old.dirty) change.old.dirty?.free();
      release(change.old);
    }
    if (change.kind !== 'delete') this.#add(change.slot);
    if (change.kind === 'flags') this.#changed(change.old, change.slot);
  }

  #zapMoved({ start, end }: Slot): void {
    if (this.zapsAll) this.#zap(0, Number.POSITIVE_INFINITY);
    else this.#zap(start, end);
  }

  /** kvm_mmu_slot_apply_flags(): turning USERFAULT on makes each page's bit be looked at before the next access. */
  #changed(old: Slot, slot: Slot): void {
    const added = slot.flags & ~old.flags;
    if ((added & MemFlag.USERFAULT) !== 0) this.#zap(slot.start, slot.end);
    // Where all pages count as written at first, KVM_CLEAR_DIRTY_LOG does it, bit by bit.
    if ((added & MemFlag.LOG_DIRTY_PAGES) === 0 || this.dirty.isSetAtFirst) return;
    this.protect(slot.start, slot.end);
  }

  #add(slot: Slot): void {
    this.slots.add(slot);
    const notifier = this.#notifierOf(slot);
    this.#notifiers.set(slot, notifier);
    slot.mapping.file?.notifiers?.add(notifier);
    const file = slot.guestMemfd;
    if (file !== undefined) {
      const start = slot.guestMemfdOffset;
      const toGpa = slot.start - start;
      const binding: Binding = {
        start,
        end: start + slot.end - slot.start,
        zap: (from, to) => this.zap(from + toGpa, to + toGpa),
        unbound: () => {
          slot.guestMemfd = undefined;
          this.told?.slot(slot.id, slot);
          this.zap(slot.start, slot.end);
        },
        fails: () => this.told?.fails(file),
      };
      file.bindings.add(binding);
      this.#bindings.set(slot, binding);
    }
    this.#flush();
  }

  /** kvm_unmap_gfn_range(): the slot's pages at these host addresses, private ones too. */
  #notifierOf({ start, end, mappingOffset }: Slot): Notifier {
    const toGpa = start - mappingOffset;
    return { zap: (from, to) => this.zap(Math.max(from + toGpa, start), Math.min(to + toGpa, end)) };
  }

  #remove(slot: Slot): void {
    this.slots.remove(slot);
    this.#unbind(slot);
  }

  #unbind(slot: Slot): void {
    const binding = this.#bindings.get(slot);
    if (binding !== undefined) slot.guestMemfd?.bindings.delete(binding);
    this.#bindings.delete(slot);
    slot.mapping.file?.notifiers?.delete(this.#notifiers.get(slot)!);
    this.#notifiers.delete(slot);
  }

  /** KVM_SET_MEMORY_ATTRIBUTES, and the ninth version's regions, over [start, end), which is checked. */
  setAttributes(start: number, end: number, attributes: number): void {
    this.attributes.set(start, end, attributes);
    this.#zap(start, end);
    this.told?.attributes(start, end, attributes);
  }

  /** The VM is gone: nothing of it is in use any more. */
  destroy(): void {
    for (const slot of this.slots.all) {
      this.#unbind(slot);
      slot.dirty?.free();
      release(slot);
    }
    this.slots.clear();
    this.#mappings.clear();
  }

  /** Forgets the mappings of [start, end). */
  zap(start: number, end: number): void {
    this.#zap(start, end);
    this.told?.zap(start, end);
  }
  #zap(start: number, end: number): void {
    const before = this.#mappings.size;
    const [first, last] = [(start / PAGE) * 2, (end / PAGE) * 2];
    if (last - first > before) {
      for (const key of this.#mappings.keys()) if (key >= first && key < last) this.#mappings.delete(key);
    } else {
      for (let key = first; key < last; key++) this.#mappings.delete(key);
    }
    if (this.#mappings.size !== before) this.#flush(start, end);
  }

  // --- dirty pages ---

  /** kvm_prepare_memory_region(): a slot that goes on being logged keeps its log. False when there is no room for one. */
  #keepsLog(slot: Slot): boolean {
    if ((slot.flags & MemFlag.LOG_DIRTY_PAGES) === 0 || this.dirty.ringBytes !== 0) return true;
    const { arena } = this.options;
    slot.dirty ??= DirtyBits.create(arena, (slot.end - slot.start) / PAGE, this.dirty.isSetAtFirst);
    return slot.dirty !== undefined;
  }

  /** mark_page_dirty_in_slot(). @param ring that of the vCPU that does it */
  #written(slot: Slot, gpa: number, ring: DirtyRing | undefined): void {
    const page = (gpa - slot.start) / PAGE;
    if (ring !== undefined) ring.push(slot.id, page);
    else slot.dirty?.set(page);
  }

  #protect(gpa: number): void {
    const key = (gpa / PAGE) * 2;
    const mapped = this.#mappings.get(key);
    if (mapped !== undefined && (mapped & WRITABLE) !== 0) this.#mappings.set(key, mapped - WRITABLE);
  }
  #flushWrites(): void {
    for (const translator of this.translators) translator.flushWrites();
  }

  /** The slot's log; or a negated errno where it has none. */
  #log(id: number): (Slot & { readonly dirty: DirtyBits }) | number {
    if (this.dirty.ringBytes !== 0) return -Errno.ENXIO;
    if (id >>> 16 >= this.options.rules.addressSpaces || (id & 0xffff) >= MAX_SLOTS) return -Errno.EINVAL;
    const slot = this.slots.byId(id);
    return slot?.dirty === undefined ? -Errno.ENOENT : (slot as Slot & { dirty: DirtyBits });
  }

  /** KVM_GET_DIRTY_LOG: the log as it was, cleared unless that is done by hand; or a negated errno. */
  getDirtyLog(id: number): Uint8Array<ArrayBuffer> | number {
    const slot = this.#log(id);
    if (typeof slot === 'number') return slot;
    const { copy } = slot.dirty;
    if (!this.dirty.isManual) this.#clear(slot, setBits(copy));
    return copy;
  }

  /** KVM_CLEAR_DIRTY_LOG: the bits of `bitmap`, whose first is for the page `first`. 0 or a negated errno. */
  clearDirtyLog(id: number, first: number, count: number, bitmap: Uint8Array): number {
    const slot = this.#log(id);
    if (typeof slot === 'number') return slot;
    const rest = (slot.end - slot.start) / PAGE - first;
    if (first % 64 !== 0 || rest < 0 || count > rest || (count < rest && count % 64 !== 0))
      return -Errno.EINVAL;
    this.#clear(slot, cleared(slot.dirty, first, count, bitmap));
    return 0;
  }

  #clear({ dirty, start }: Slot & { readonly dirty: DirtyBits }, pages: Iterable<number>): void {
    let [low, high] = [Number.POSITIVE_INFINITY, 0];
    for (const page of pages) {
      dirty.clear(page);
      this.#protect(start + page * PAGE);
      [low, high] = [Math.min(low, page), Math.max(high, page + 1)];
    }
    if (high === 0) return;
    this.#flushWrites();
    this.told?.protect(start + low * PAGE, start + high * PAGE);
  }

  /** In a copy: pages whose next write counts again. */
  protect(start: number, end: number): void {
    const [first, last] = [(start / PAGE) * 2, (end / PAGE) * 2];
    for (const key of this.#mappings.keys())
      if (key >= first && key < last && key % 2 === 0) this.#protect((key / 2) * PAGE);
    this.#flushWrites();
  }

  /** KVM_RESET_DIRTY_RINGS: how many entries of all vCPUs; or a negated errno. */
  resetDirtyRings(): number {
    if (this.dirty.ringBytes === 0) return -Errno.EINVAL;
    let count = 0;
    for (const ring of this.dirty.rings)
      count += ring.reset((id, page) => {
        const slot = this.slots.byId(id);
        if (slot !== undefined && page * PAGE < slot.end - slot.start)
          this.#protect(slot.start + page * PAGE);
      });
    if (count > 0) {
      this.#flushWrites();
      this.told?.protect(0, Number.POSITIVE_INFINITY);
    }
    return count;
  }

  #flush(start = 0, end = Number.POSITIVE_INFINITY): void {
    for (const translator of this.translators) translator.flushSecondStage(start, end);
  }

  // --- accesses ---

  /** How many pages the second stage maps: an access that found none there has added one. */
  get mapped(): number {
    return this.#mappings.size;
  }

  isPrivate(gpa: number): boolean {
    return this.options.hasPrivate && this.#privacy.isPrivate(gpa, this.slots.at(gpa));
  }

  /**
   * Where the page that begins at `gpa` lies in the arena; MMIO; or why KVM_RUN must end.
   * @param wants the guest's wish, where guests choose, or that of a pre-fault; elsewhere the page's state is the wish
   * @param ring the vCPU's, where it has one
   */
  access(gpa: number, access: Access, wants: boolean | undefined, ring?: DirtyRing): number | Failure {
    const io = wants === undefined ? this.#io.get(gpa) : undefined;
    if (io === this.#generation) return MMIO;
    const wish = this.options.hasPrivate && io === undefined ? (wants ?? this.isPrivate(gpa)) : false;
    const key = (gpa / PAGE) * 2 + (wish ? 1 : 0);
    const mapped = this.#mappings.get(key);
    if (mapped !== undefined && (access !== Access.WRITE || (mapped & WRITABLE) !== 0)) {
      return mapped - (mapped % PAGE);
    }

    const slot = this.slots.at(gpa);
    const readonly = slot !== undefined && (slot.flags & MemFlag.READONLY) !== 0;
    if (mapped !== undefined && slot !== undefined && !readonly) {
      // fast_page_fault(): the first write to a page that was mapped read-only for the log.
      this.#mappings.set(key, mapped + WRITABLE);
      if ((slot.flags & MemFlag.LOG_DIRTY_PAGES) !== 0) this.#written(slot, gpa, ring);
      return mapped;
    }
    const awaited = slot === undefined ? undefined : this.#userfault(gpa, wish, slot);
    if (awaited !== undefined) return awaited;
    if (this.options.hasPrivate && wish !== this.#privacy.isPrivate(gpa, slot)) {
      return this.#fault(gpa, wish, slot);
    }
    if (slot === undefined) {
      if (wish) return this.#fault(gpa, wish, slot);
      if (this.#io.size >= MAX_IO_PAGES) this.#io.clear();
      this.#io.set(gpa, this.#generation);
      return MMIO;
    }
    if (wish) return this.#private(gpa, slot, key);
    if (readonly && access === Access.WRITE) return MMIO;
    const found = this.#shared(gpa, slot, key, readonly);
    // make_spte(): what becomes writable counts as written, whatever the access was.
    const logged = !readonly && (slot.flags & MemFlag.LOG_DIRTY_PAGES) !== 0;
    if (logged && typeof found === 'number') this.#written(slot, gpa, ring);
    return found;
  }

  /**
   * kvm_tdp_map_page(): the page as what it is. No fast path knows that it is mapped (page_fault_can_be_fast(), where
   * the processor sets accessed bits), so its userfault bit is looked at in any case.
   */
  preFault(gpa: number, ring?: DirtyRing): number | Failure {
    const slot = this.slots.at(gpa);
    const wish = this.isPrivate(gpa);
    const awaited = slot === undefined ? undefined : this.#userfault(gpa, wish, slot);
    return awaited ?? this.access(gpa, Access.READ, wish, ring);
  }

  /**
   * kvm_gfn_is_userfault(), before anything else is looked at: any access to a page whose bit is set shall be caught.
   * A bitmap that cannot be read is an error that says nothing.
   */
  #userfault(gpa: number, wish: boolean, slot: Slot): Failure | undefined {
    if ((slot.flags & MemFlag.USERFAULT) === 0) return undefined;
    const base = slot.userfaultBitmap?.base;
    if (base === undefined) return unbacked;
    const page = (gpa - slot.start) / PAGE;
    const byte = Atomics.load(this.options.arena.views.u8, base + Math.floor(page / 8));
    if ((byte & (1 << (page % 8))) === 0) return undefined;
    return { errno: undefined, fault: { private: wish, userfault: true, gpa, size: PAGE } };
  }

  #map(gpa: number, key: number, page: number): void {
    this.#io.delete(gpa);
    this.#mappings.set(key, page);
  }

  /** kvm_mmu_faultin_pfn_private(). The errno of kvm_gmem_get_pfn() is returned as it is, beside the fault. */
  #private(gpa: number, slot: Slot, key: number): number | Failure {
    if (slot.guestMemfd === undefined) return this.#fault(gpa, true, slot);
    const page = slot.guestMemfd.page(slot.guestMemfdOffset + (gpa - slot.start));
    if (page < 0) return this.#fault(gpa, true, slot, page);
    this.#map(gpa, key, page + WRITABLE);
    return page;
  }

  /** kvm_handle_error_pfn() says nothing of an address with nothing behind it. */
  #shared(gpa: number, slot: Slot, key: number, readonly: boolean): number | Failure {
    const offset = gpa - slot.start;
    if (isGuestMemfdOnly(slot)) {
      const page = slot.guestMemfd!.page(slot.guestMemfdOffset + offset);
      if (page < 0) return this.#fault(gpa, false, slot, page);
      this.#map(gpa, key, page + WRITABLE);
      return page;
    }
    const { base } = slot.mapping;
    if (base === undefined) return unbacked;
    const page = base + slot.mappingOffset + offset;
    this.#map(gpa, key, page + (readonly ? 0 : WRITABLE));
    return page;
  }

  /** kvm_mmu_prepare_memory_fault_exit(): one page, or where guests choose what of a larger one lies in the slot. */
  #fault(gpa: number, wish: boolean, slot: Slot | undefined, errno?: number): Failure {
    const { faultSize } = this.options;
    if (!this.options.choosing || slot === undefined || errno !== undefined) {
      return { errno, fault: { private: wish, userfault: false, gpa, size: PAGE } };
    }
    const start = Math.max(gpa - (gpa % faultSize), slot.start);
    const end = Math.min(gpa - (gpa % faultSize) + faultSize, slot.end);
    return { errno, fault: { private: wish, userfault: false, gpa: start, size: end - start } };
  }

  /**
   * What KVM itself accesses when it emulates: the slot's host address, whatever the attributes say, and I/O where
   * that has nothing behind it (virt/kvm/kvm_main.c, __kvm_read_guest_page; x86.c, emulator_read_write_onepage).
   * Guests that choose do what needs emulation themselves, in their handlers of #VC and #VE, which reach all of their
   * memory: here they have the page as it is. It is no vCPU's access, so no userfault bit stops it.
   */
  sharedPage(gpa: number, access: Access, ring?: DirtyRing): number {
    const slot = this.slots.at(gpa);
    if (slot === undefined) return MMIO;
    if (this.options.choosing && this.isPrivate(gpa)) {
      const page = slot.guestMemfd?.page(slot.guestMemfdOffset + (gpa - slot.start)) ?? MMIO;
      return page < 0 ? MMIO : page;
    }
    const { mapping, mappingOffset } = slot;
    if (mapping.base === undefined) return MMIO;
    if (access === Access.WRITE && (slot.flags & MemFlag.READONLY) !== 0) return MMIO;
    const offset = mappingOffset + (gpa - slot.start);
    mapping.onOwnAccess?.(offset);
    if (access === Access.WRITE && (slot.flags & MemFlag.LOG_DIRTY_PAGES) !== 0)
      this.#written(slot, gpa, ring);
    return mapping.base + offset;
  }
}

/** Of the pages whose bits are set, those that the log has. */
function* cleared(log: DirtyBits, first: number, count: number, bitmap: Uint8Array): Generator<number> {
  for (const bit of setBits(bitmap)) if (bit < count && log.has(first + bit)) yield first + bit;
}

/** A slot keeps what it was given. */
function retain(slot: Slot): void {
  slot.mapping.retain();
  slot.userfaultBitmap?.retain();
}
function release(slot: Slot): void {
  slot.mapping.release();
  slot.userfaultBitmap?.release();
}

const unbacked: Failure = { errno: -Errno.EFAULT, fault: undefined };

/** A VM's memory: its slots, their attributes, and which pages were written. */
import { MemFlag, MemoryAttribute } from '../uapi/constants.ts';
import { dialects } from '../uapi/dialects.ts';
import { ioctls } from '../uapi/ioctls.ts';
import { size64, viewOf } from '../uapi/layout.ts';
import {
  kvm_create_guest_memfd,
  kvm_dirty_log,
  kvm_enc_region,
  kvm_memory_attributes,
} from '../uapi/structs.ts';
import { integer, object, PAGE_SIZE, roundUp, u32 } from './args.ts';
import { type Handle, isHandle } from './backend.ts';
import { KvmError, wrongType } from './errors.ts';
import { Fd, failed } from './fd.ts';
import { GuestMemfd } from './guest-memfd.ts';
import { GuestMemory, KEEP_SIZE, PUNCH_HOLE } from './guest-memory.ts';
import { MemoryMap } from './memory-map.ts';
import { Unsaved } from './unsaved.ts';
import { bitmapPages, bitmapSize, fitsSlot, UserfaultBitmap } from './userfault-bitmap.ts';

/** A memory slot to be made, changed or (with memorySize 0) deleted. Addresses and sizes in bytes. */
export interface MemoryRegion {
  /** From 0 to below KVM_CAP_NR_MEMSLOTS. */
  readonly slot: number;
  /** 0, or 1 for SMM where the VM has two (KVM_CAP_MULTI_ADDRESS_SPACE). */
  readonly addressSpace?: number;
  /** MemFlag bits. GUEST_MEMFD is added when a guestMemfd is given, and USERFAULT with a userfaultBitmap. */
  readonly flags?: number;
  /** A multiple of 4096. */
  readonly guestPhysAddr?: number;
  /** A multiple of 4096; without it what the memory, or else the guest_memfd, has from its offset on. */
  readonly memorySize?: number;
  /** Shared memory. Without it a shared access finds nothing behind the slot: Exit.FAULT. */
  readonly memory?: GuestMemory | undefined;
  /** Where in `memory` the slot begins, in bytes: a multiple of 4096, 0 without it. */
  readonly memoryOffset?: number;
}

/** As MemoryRegion, with what KVM_SET_USER_MEMORY_REGION2 adds (since 6.8). */
export interface MemoryRegion2 extends MemoryRegion {
  /** Private memory. */
  readonly guestMemfd?: GuestMemfd | undefined;
  /** Where in the guest_memfd the slot begins; a multiple of 4096. */
  readonly guestMemfdOffset?: number;
  /**
   * Which pages' accesses end KVM_RUN (KVM_MEM_USERFAULT, a proposal). Turned on and off by giving the same slot with
   * and without it, also where there is private memory; the slot's pages are unmapped when it is turned on. Flags with
   * USERFAULT and no bitmap give KVM a null pointer: each fault is Exit.FAULT.
   */
  readonly userfaultBitmap?: UserfaultBitmap | undefined;
}

/** KVM_SET_MEMORY_ATTRIBUTES. Bytes, multiples of 4096; attributes are MemoryAttribute bits. */
export interface MemoryAttributes {
  /** Guest-physical, in bytes: a multiple of 4096. */
  readonly address: number;
  /** Bytes: a multiple of 4096 above 0. */
  readonly size: number;
  /** MemoryAttribute bits: PRIVATE, or 0 for shared. All attributes are replaced. */
  readonly attributes: number;
}

const ATTRIBUTES = kvm_memory_attributes.fields;

/** The part of a Vm that is about its memory. */
export abstract class VmMemory {
  readonly #memoryMap = new MemoryMap();
  protected readonly fd: Fd;
  /** Phrases, as VmSetup has them. */
  protected readonly unsaved = new Unsaved();
  // Conversions are the hot path, and logs are read again and again: their arguments are made once.
  readonly #attributes = new Uint8Array(kvm_memory_attributes.size);
  readonly #attributesView = viewOf(this.#attributes);
  readonly #dirtyLog = new Uint8Array(kvm_dirty_log.size);
  readonly #dirtyLogView = viewOf(this.#dirtyLog);

  constructor(fd: Fd) {
    this.fd = fd;
  }

  /**
   * What this Vm's ioctls have made of its memory: slots and attributes.
   * @throws VmexitError ERR_KVM_NOT_OWNER in a thread that has opened the VM by a token
   */
  get memoryMap(): MemoryMap {
    this.fd.owned('memoryMap');
    return this.#memoryMap;
  }

  /**
   * Guest RAM, zero and untouched until used; place it with setUserMemoryRegion() or setUserMemoryRegion2().
   * @param size bytes, a multiple of 4096, at most 4 GiB
   * @throws RangeError ERR_KVM_INVALID_ARG; KvmError ENOMEM
   */
  allocate(size: number): GuestMemory {
    this.fd.handle;
    return GuestMemory.allocate(this.fd.backend, size);
  }

  /**
   * Private memory (KVM_CREATE_GUEST_MEMFD, since 6.8): the host has no view of it.
   * @param size bytes, a multiple of 4096 above 0
   * @param flags GuestMemfdFlag bits (since 6.18)
   * @throws KvmError EINVAL for other sizes and for flags that this VM does not have
   */
  createGuestMemfd(size: number, flags = 0): GuestMemfd {
    const wanted = { size: integer('size', size), flags: integer('flags', flags) };
    const argument = kvm_create_guest_memfd.encode(wanted);
    const handle = this.fd.create(ioctls.KVM_CREATE_GUEST_MEMFD, argument);
    return new GuestMemfd(new Fd(this.fd.backend, handle, 'guest_memfd'), wanted.size, wanted.flags);
  }

  /**
   * A bitmap for setUserMemoryRegion2(), all clear. Where KVM has no `userfault`, it is of no use.
   * @param pages from 1 to 2^31 - 1, at least as many as its slot has
   * @throws TypeError, RangeError ERR_KVM_INVALID_ARG; KvmError ENOMEM
   */
  createUserfaultBitmap(pages: number): UserfaultBitmap {
    const wanted = bitmapPages(pages);
    return new UserfaultBitmap(this.allocate(bitmapSize(wanted)), wanted);
  }

  /**
   * KVM_SET_USER_MEMORY_REGION: a slot of ordinary memory.
   * @throws KvmError EEXIST when it overlaps another slot, EINVAL for what cannot be; nothing has changed then
   * @example
   * ```ts
   * import { openHypervisor } from 'vmexit';
   *
   * const hv = openHypervisor();
   * const vm = hv.createVm();
   * const ram = vm.allocate(0x1_0000);
   * vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0x10_0000, memory: ram });
   * console.log(vm.memoryMap.slotAt(0x10_8000)?.slot);
   * vm.setUserMemoryRegion({ slot: 0, memorySize: 0 }); // deletes the slot
   * console.log(vm.memoryMap.slotAt(0x10_8000)?.slot);
   * for (const opened of [ram, vm, hv]) opened.close();
   * // prints: 0
   * // prints: undefined
   * ```
   */
  setUserMemoryRegion(region: MemoryRegion): void {
    this.#setRegion(ioctls.KVM_SET_USER_MEMORY_REGION, region);
  }

  /** KVM_SET_USER_MEMORY_REGION2 (since 6.8): as setUserMemoryRegion(), and with private memory and userfaults. */
  setUserMemoryRegion2(region: MemoryRegion2): void {
    this.#setRegion(ioctls.KVM_SET_USER_MEMORY_REGION2, region);
  }

  #setRegion(
    row: typeof ioctls.KVM_SET_USER_MEMORY_REGION | typeof ioctls.KVM_SET_USER_MEMORY_REGION2,
    given: MemoryRegion2,
  ): void {
    object('region', given);
    const { memory, guestMemfd, userfaultBitmap } = given;
    if (memory !== undefined && !(memory instanceof GuestMemory)) {
      throw wrongType('memory', memory, 'what Vm.allocate() or GuestMemfd.map() gives');
    }
    if (guestMemfd !== undefined && !(guestMemfd instanceof GuestMemfd)) {
      throw wrongType('guestMemfd', guestMemfd, 'what Vm.createGuestMemfd() gives');
    }
    if (userfaultBitmap !== undefined && !(userfaultBitmap instanceof UserfaultBitmap)) {
      throw wrongType('userfaultBitmap', userfaultBitmap, 'what Vm.createUserfaultBitmap() gives');
    }
    const slot = integer('slot', given.slot, 0xffff);
    const addressSpace = integer('addressSpace', given.addressSpace ?? 0, 0xffff);
    const implied = (guestMemfd ? MemFlag.GUEST_MEMFD : 0) | (userfaultBitmap ? MemFlag.USERFAULT : 0);
    const flags = (u32('flags', given.flags ?? 0) | implied) >>> 0;
    const start = integer('guestPhysAddr', given.guestPhysAddr ?? 0);
    const memoryOffset = integer('memoryOffset', given.memoryOffset ?? 0, memory?.size);
    const guestMemfdOffset = integer('guestMemfdOffset', given.guestMemfdOffset ?? 0);
    const backing = memory ? memory.size - memoryOffset : (guestMemfd?.size ?? 0) - guestMemfdOffset;
    const size = integer(
      'memorySize',
      given.memorySize ?? Math.max(backing, 0),
      memory ? backing : undefined,
    );

    if (userfaultBitmap) fitsSlot(userfaultBitmap, size);
    const fields = { slot: slot + addressSpace * 0x1_0000, flags, guestPhysAddr: start, memorySize: size };
    const { backend } = this.fd;
    const hollow = memory || size === 0 ? undefined : reserve(this.fd, size);
    const behind = memory?.handle ?? hollow;
    const place = behind === undefined ? null : { memory: behind, offset: memoryOffset };
    const bits = userfaultBitmap && { memory: userfaultBitmap.memory.handle, offset: 0 };
    try {
      if (row === ioctls.KVM_SET_USER_MEMORY_REGION2)
        this.fd.refer(row, { ...fields, guestMemfdOffset }, [
          place,
          guestMemfd?.fd.handle ?? null,
          bits ?? null,
        ]);
      else this.fd.refer(row, fields, [place]);
    } finally {
      // The slot keeps what it uses.
      if (hollow) backend.close(hollow);
    }
    this.memoryMap.recordSlot({
      slot,
      addressSpace,
      flags,
      start,
      end: start + size,
      memory,
      memoryOffset,
      guestMemfd,
      guestMemfdOffset,
      userfaultBitmap,
    });
  }

  /**
   * KVM_GET_DIRTY_LOG: the pages of a slot with MemFlag.LOG_DIRTY_PAGES that were written since the log was read last, or
   * begun. Reading it clears it.
   * @param slot the slot's number
   * @param addressSpace 0, or 1 for SMM
   * @param into where to put it, for who reads it often: at least as many bytes as it has; a new array without it
   * @returns a bit for each page, the lowest of the first byte for the slot's first page; in whole words of 64 bits
   * @throws KvmError ENOENT where there is no such slot or it has no log, ENXIO in a VM with rings
   */
  getDirtyLog(slot: number, addressSpace = 0, into?: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
    const id = integer('slot', slot, 0xffff) + integer('addressSpace', addressSpace, 0xffff) * 0x1_0000;
    const { start, end } = this.memoryMap.slotById(slot, addressSpace) ?? { start: 0, end: 0 };
    const size = roundUp((end - start) / PAGE_SIZE, 64) / 8;
    if (into !== undefined && !(into instanceof Uint8Array)) throw wrongType('into', into, 'a Uint8Array');
    if (into !== undefined) integer("into: the log's bytes", size, into.length);
    const bitmap = into?.length === size ? into : (into?.subarray(0, size) ?? new Uint8Array(size));
    this.#dirtyLogView.setUint32(kvm_dirty_log.fields.slot.offset, id, true);
    this.fd.call(ioctls.KVM_GET_DIRTY_LOG, this.#dirtyLog, [bitmap]);
    return bitmap;
  }

  /**
   * KVM_CLEAR_DIRTY_LOG (since 5.0): takes pages out of a slot's log and write-protects them again. With
   * Cap.MANUAL_DIRTY_LOG_PROTECT2 it is this that does so, a part at a time, and getDirtyLog() only reads.
   * @param slot the slot's number
   * @param bitmap a bit for each page from `first` on, as getDirtyLog() gives them: those that are set are cleared
   * @param part `first` is a multiple of 64 (0 without it), and `count` one too unless it reaches the slot's end (without it
   *   as many as the bitmap and the slot have from there on); pages both. `addressSpace` is 0, or 1 for SMM
   * @throws RangeError ERR_KVM_INVALID_ARG for a bitmap with fewer bits than `count`; KvmError ENOENT where there is no such
   *   slot or it has no log, ENXIO in a VM with rings, EINVAL for a part that is not one of the slot
   */
  clearDirtyLog(
    slot: number,
    bitmap: Uint8Array,
    part: { readonly first?: number; readonly count?: number; readonly addressSpace?: number } = {},
  ): void {
    const { first, count, addressSpace = 0 } = object('part', part);
    const id = integer('slot', slot, 0xffff) + integer('addressSpace', addressSpace, 0xffff) * 0x1_0000;
    if (!(bitmap instanceof Uint8Array)) throw wrongType('bitmap', bitmap, 'a Uint8Array');
    const { start, end } = this.memoryMap.slotById(slot, addressSpace) ?? { start: 0, end: 0 };
    const firstPage = integer('first', first ?? 0);
    const rest = Math.max((end - start) / PAGE_SIZE - firstPage, 0);
    const numPages = u32('count', count ?? Math.min(bitmap.length * 8, rest));
    // The kernel reads whole words of 64 bits.
    const bits = new Uint8Array(roundUp(numPages, 64) / 8);
    integer("count: the bitmap's bytes", Math.ceil(numPages / 8), bitmap.length);
    bits.set(bitmap.subarray(0, bits.length));
    this.fd.refer(ioctls.KVM_CLEAR_DIRTY_LOG, { slot: id, firstPage, numPages }, [bits]);
  }

  /**
   * KVM_RESET_DIRTY_RINGS (since 5.11): write-protects the pages that were taken from the vCPUs' rings by
   * DirtyRing.harvest(), and gives their entries back to the kernel.
   * @returns how many there were; fewer than were taken where a signal has come meanwhile (since 6.17): call it again
   * @throws KvmError EINVAL for a VM without rings (Cap.DIRTY_LOG_RING_ACQ_REL)
   */
  resetDirtyRings(): number {
    return this.fd.call(ioctls.KVM_RESET_DIRTY_RINGS);
  }

  /**
   * KVM_SET_MEMORY_ATTRIBUTES (since 6.8): makes pages private or shared. Needs no slot. Over huge ranges the
   * kernel is busy for seconds.
   * @throws KvmError EINVAL for ranges that are not whole pages and for attributes that this VM does not have,
   *   ENOTTY where KVM has none; nothing has changed then
   */
  setMemoryAttributes(given: MemoryAttributes): void {
    object('range', given);
    const address = integer('address', given.address);
    const size = integer('size', given.size);
    const attributes = integer('attributes', given.attributes);
    const result = this.trySetMemoryAttributes(address, size, attributes);
    if (result < 0) throw failed(result, ioctls.KVM_SET_MEMORY_ATTRIBUTES, this.#attributes);
  }

  /** As setMemoryAttributes(), giving 0 or a negated errno. For whole, non-negative numbers. */
  trySetMemoryAttributes(address: number, size: number, attributes: number): number {
    const view = this.#attributesView;
    size64.set(view, ATTRIBUTES.address.offset, address);
    size64.set(view, ATTRIBUTES.size.offset, size);
    size64.set(view, ATTRIBUTES.attributes.offset, attributes);
    const result = this.fd.issue(ioctls.KVM_SET_MEMORY_ATTRIBUTES, this.#attributes);
    if (result === 0) this.memoryMap.recordAttributes(address, address + size, attributes);
    return result;
  }

  /**
   * Makes memory private or shared by the call that this host's ABI has for it: KVM_SET_MEMORY_ATTRIBUTES today;
   * before that, registering a region, or allocating and punching the guest_memfd's pages.
   * @returns 0 or a negated errno; for whole pages
   */
  tryConvert(address: number, size: number, attributes: number): number {
    const { truth } = dialects[this.fd.backend.dialect ?? 'mainline'];
    if (truth === 'attributes') return this.trySetMemoryAttributes(address, size, attributes);
    if (truth === 'allocation') return this.#allocate(address, size, attributes);
    const result = this.#registerRegion(address, size, attributes);
    if (result === 0) this.memoryMap.recordAttributes(address, address + size, attributes);
    return result;
  }

  #registerRegion(addr: number, size: number, attributes: number): number {
    const toPrivate = (attributes & MemoryAttribute.PRIVATE) !== 0;
    const row = toPrivate ? ioctls.KVM_MEMORY_ENCRYPT_REG_REGION : ioctls.KVM_MEMORY_ENCRYPT_UNREG_REGION;
    return this.fd.issue(row, kvm_enc_region.encode({ addr, size }));
  }

  #allocate(address: number, size: number, attributes: number): number {
    const mode = (attributes & MemoryAttribute.PRIVATE) !== 0 ? KEEP_SIZE : PUNCH_HOLE;
    for (const { start, end, slot } of this.memoryMap.pieces(address, address + size)) {
      if (slot?.guestMemfd !== undefined && !slot.guestMemfd.closed) {
        const offset = slot.guestMemfdOffset + start - slot.start;
        const result = this.fd.backend.fallocate(slot.guestMemfd.fd.handle, mode, offset, end - start);
        if (result < 0) return result;
      }
      // The slots before one that fails are converted.
      this.memoryMap.recordAttributes(start, end, attributes);
    }
    return 0;
  }
}

function reserve(fd: Fd, size: number): Handle {
  const handle = fd.backend.reserve(size);
  if (!isHandle(handle)) throw new KvmError(handle, 'mmap', undefined, `no address space for ${size} bytes`);
  return handle;
}

/** Dirty pages: a slot's log and a vCPU's ring (virt/kvm/kvm_main.c, dirty_ring.c). */
import { DirtyGfnFlag, DirtyLog as Option } from '../../uapi/constants.ts';
import { Errno } from '../../uapi/errno.ts';
import { viewOf } from '../../uapi/layout.ts';
import { kvm_dirty_gfn } from '../../uapi/structs.ts';
import type { Arena } from '../arena.ts';
import { sharedMemory } from '../shared-memory.ts';

const ENTRY = kvm_dirty_gfn.size;
/** KVM_DIRTY_RING_MAX_ENTRIES. */
export const MAX_RING_BYTES = 65_536 * ENTRY;
const MIN_RING_BYTES = 4096;
/** KVM_DIRTY_RING_RSVD_ENTRIES: what is left for what one entry into the guest may still write. */
const RESERVED = 64;
/** KVM_DIRTY_LOG_MANUAL_CAPS. */
export const MANUAL_OPTIONS = Option.MANUAL_PROTECT_ENABLE | Option.INITIALLY_SET;

/** How a VM keeps account. */
export class DirtyTracking {
  /** KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: DirtyLog bits. */
  manual = 0;
  /** Bytes of each vCPU's ring; 0 where slots have logs. */
  ringBytes = 0;
  /** Of all vCPUs that there ever were: they live as long as their VM. */
  readonly rings: DirtyRing[] = [];

  get isManual(): boolean {
    return (this.manual & Option.MANUAL_PROTECT_ENABLE) !== 0;
  }
  get isSetAtFirst(): boolean {
    return (this.manual & Option.INITIALLY_SET) !== 0;
  }

  /** KVM_ENABLE_CAP of MANUAL_DIRTY_LOG_PROTECT2. The second option goes only with the first. */
  setManual(options: bigint): number {
    const allowed = (options & 1n) !== 0n ? MANUAL_OPTIONS : Option.MANUAL_PROTECT_ENABLE;
    if ((options & ~BigInt(allowed)) !== 0n) return -Errno.EINVAL;
    this.manual = Number(options);
    return 0;
  }

  /** kvm_vm_ioctl_enable_dirty_log_ring(): once, before the first vCPU. KVM takes 32 bits of the size. */
  enableRing(size: bigint, hasVcpus: boolean): number {
    const bytes = Number(BigInt.asUintN(32, size));
    if (bytes < MIN_RING_BYTES || (bytes & (bytes - 1)) !== 0) return -Errno.EINVAL;
    if (bytes > MAX_RING_BYTES) return -Errno.E2BIG;
    if (this.ringBytes !== 0 || hasVcpus) return -Errno.EINVAL;
    this.ringBytes = bytes;
    return 0;
  }
}

/** The bits of a slot's log, in whole words of 64, in the arena: whoever runs a vCPU of the VM sets them. */
export class DirtyBits {
  readonly #arena: Arena;
  readonly base: number;
  readonly size: number;
  readonly #isCopy: boolean;

  /** @param base where they are already */
  constructor(arena: Arena, base: number, size: number, isCopy = true) {
    this.#arena = arena;
    this.#isCopy = isCopy;
    this.base = base;
    this.size = size;
  }
  /** Undefined when the arena is full. */
  static create(arena: Arena, pages: number, set: boolean): DirtyBits | undefined {
    const size = Math.ceil(pages / 64) * 8;
    const base = arena.allocate(size);
    if (base === undefined) return undefined;
    const bits = new DirtyBits(arena, base, size, false);
    if (set) for (let page = 0; page < pages; page++) bits.set(page);
    return bits;
  }
  free(): void {
    if (!this.#isCopy) this.#arena.free(this.base, this.size);
  }

  get copy(): Uint8Array<ArrayBuffer> {
    return new Uint8Array(this.#arena.views.u8.subarray(this.base, this.base + this.size));
  }
  has(page: number): boolean {
    return (this.#arena.views.u8[this.base + (page >>> 3)]! & (1 << (page & 7))) !== 0;
  }
  set(page: number): void {
    this.#arena.views.u8[this.base + (page >>> 3)]! |= 1 << (page & 7);
  }
  clear(page: number): void {
    this.#arena.views.u8[this.base + (page >>> 3)]! &= ~(1 << (page & 7));
  }
}

/** The pages whose bits are set. */
export function* setBits(bytes: Uint8Array): Generator<number> {
  for (const [i, byte] of bytes.entries())
    for (let rest = byte; rest !== 0; rest &= rest - 1) yield i * 8 + 31 - Math.clz32(rest & -rest);
}

export class DirtyRing {
  /** What userspace maps. */
  readonly bytes: Uint8Array;
  /** All of it in one piece: the ring, and behind it how many entries were ever written, and how many given back. */
  readonly memory: ArrayBufferLike;
  readonly #view: DataView;
  readonly #entries: number;
  readonly #counts: Float64Array;

  /** @param memory that another thread has made; else of `bytes` bytes */
  constructor(memory: ArrayBufferLike | number) {
    this.memory = typeof memory === 'number' ? sharedMemory(memory + 16) : memory;
    const size = this.memory.byteLength - 16;
    this.bytes = new Uint8Array(this.memory, 0, size);
    this.#view = viewOf(this.bytes);
    this.#entries = size / ENTRY;
    this.#counts = new Float64Array(this.memory, size, 2);
  }

  get pushed(): number {
    return this.#counts[0]!;
  }
  get #reset(): number {
    return this.#counts[1]!;
  }

  /** kvm_dirty_ring_soft_full(): the vCPU does not enter the guest. */
  get isSoftFull(): boolean {
    return this.pushed - this.#reset >= this.#entries - RESERVED;
  }

  push(slot: number, page: number): void {
    kvm_dirty_gfn.set(this.#view, (this.pushed % this.#entries) * ENTRY, {
      flags: DirtyGfnFlag.DIRTY,
      slot,
      offset: page,
    });
    this.#counts[0]!++;
  }

  /** kvm_dirty_ring_reset(): takes back what userspace has marked, and gives how many. */
  reset(protect: (slot: number, page: number) => void): number {
    let count = 0;
    for (; count < this.#entries; count++, this.#counts[1]!++) {
      const at = (this.#reset % this.#entries) * ENTRY;
      const { flags, slot, offset } = kvm_dirty_gfn.get(this.#view, at);
      if ((flags & DirtyGfnFlag.RESET) === 0) break;
      kvm_dirty_gfn.set(this.#view, at, { flags: 0, slot, offset });
      protect(slot, offset);
    }
    return count;
  }
}

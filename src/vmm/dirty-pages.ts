/**
 * Which pages of guest memory were written, by whomever: KVM logs the guest and itself, and knows nothing of what the
 * VMM writes through its own mapping, nor of what it discards. Both are brought together here.
 */
import { PAGE_SIZE as PAGE } from '../hypervisor/args.ts';
import { VmexitError, wrongType } from '../hypervisor/errors.ts';
import type { GuestMemory } from '../hypervisor/guest-memory.ts';
import type { Slot } from '../hypervisor/memory-map.ts';
import type { Vcpu } from '../hypervisor/vcpu.ts';
import { Vm } from '../hypervisor/vm.ts';
import { Cap } from '../uapi/cap.ts';
import { DirtyLog, MemFlag } from '../uapi/constants.ts';
import { Exit } from '../uapi/exit.ts';

const RINGS: readonly number[] = [Cap.DIRTY_LOG_RING, Cap.DIRTY_LOG_RING_ACQ_REL];

/** Pages of a memory that were written, one after the other. */
export interface DirtyRange {
  /** The memory. */
  readonly memory: GuestMemory;
  /** Where they begin in it, in bytes: a multiple of 4096. */
  readonly offset: number;
  /** Bytes: a multiple of 4096. */
  readonly size: number;
}

/** How DirtyPages keeps account. */
export interface DirtyPagesOptions {
  /** The VM's vCPUs: all that it has, where it has rings (Cap.DIRTY_LOG_RING_ACQ_REL). */
  readonly vcpus?: readonly Vcpu[];
  /**
   * Whoever writes through `bytes`, or from another thread, calls markDirty(). Without it knows() is false of a memory that
   * is GuestMemory.exposed, and a differential snapshot compares all of it.
   */
  readonly marksAll?: boolean;
}

/** The marks of one memory. */
interface Marks {
  /** A bit for each page. */
  readonly bits: Uint8Array;
  readonly stop: () => void;
}

const keyOf = ({ slot, addressSpace }: Slot): string => `${addressSpace}:${slot}`;
/** More signals than that, one for each reset, do not come. */
const MAX_RESETS = 1000;
const LOGGED = MemFlag.LOG_DIRTY_PAGES;

/**
 * The pages of a VM's memory that were written, by the guest, by KVM or by the VMM. From start() on, or from the last
 * take(). Slots are given MemFlag.LOG_DIRTY_PAGES; their logs, or the vCPUs' rings where the VM has them, are this object's
 * to read. A page may be told that holds what it held before: KVM counts one as written when it is first mapped.
 *
 * With rings, make it a handler of the run loop: it serves Exit.DIRTY_RING_FULL.
 * @example
 * ```ts
 * import { DirtyPages, flatImage, Machine, openHypervisor } from 'vmexit';
 *
 * const hv = openHypervisor();
 * const machine = new Machine(hv, { memory: 0x10_0000 });
 * // mov [0x9000], al; hlt
 * machine.load(flatImage(Uint8Array.of(0xa2, 0x00, 0x90, 0xf4), 'real'));
 * const dirty = DirtyPages.start(machine.vm, { vcpus: [machine.vcpu] });
 * machine.vcpu.run(5000);
 * machine.memory.write(0x2_0ff8, new Uint8Array(16));
 * const offsets = dirty.take().map(({ offset, size }) => `${offset.toString(16)}+${size}`);
 * console.log(offsets.includes('9000+4096'), offsets.includes('20000+8192'), dirty.take().length);
 * dirty.close();
 * machine.close();
 * hv.close();
 * // prints: true true 0
 * ```
 */
export class DirtyPages implements Disposable {
  readonly #vm: Vm;
  readonly #vcpus: readonly Vcpu[];
  readonly #marksAll: boolean;
  readonly #memories = new Map<GuestMemory, Marks>();
  /** The slots whose logs are whole, as they were when logging began. */
  readonly #slots = new Map<string, Slot>();
  /** Those that have the flag from here, with it. */
  readonly #given = new Map<string, Slot>();
  /** Where logs are read to: one at a time. */
  #space = new Uint8Array(0);
  #taken = 0;
  /** Entries of the rings that were taken and not given back yet. */
  #left = 0;
  #closed = false;

  private constructor(vm: Vm, { vcpus = [], marksAll = false }: DirtyPagesOptions) {
    this.#vm = vm;
    this.#vcpus = vcpus;
    this.#marksAll = marksAll;
  }

  /**
   * Keeps account from now on.
   * @throws VmexitError ERR_KVM_REFUSED for a VM with private memory (the slot is named: KVM logs none with a
   *   guest_memfd), and for one with rings whose vCPUs are not given; KvmError; TypeError ERR_KVM_INVALID_ARG
   */
  static start(vm: Vm, options: DirtyPagesOptions = {}): DirtyPages {
    if (!(vm instanceof Vm)) throw wrongType('vm', vm, 'a Vm');
    const dirty = new DirtyPages(vm, options);
    dirty.#check();
    try {
      dirty.take();
      return dirty;
    } catch (error) {
      dirty.close();
      throw error;
    }
  }

  #check(): void {
    const secret = this.#all().find(({ guestMemfd }) => guestMemfd !== undefined);
    if (secret !== undefined)
      throw refused(
        `slot ${secret.slot} has private memory, and KVM keeps no log of a slot with a guest_memfd`,
      );
    if (this.#hasRings && this.#vcpus.length === 0)
      throw refused("this VM's vCPUs have rings of dirty pages: give all its `vcpus`");
  }

  #all(): Slot[] {
    const { slots, otherSlots } = this.#vm.memoryMap;
    return [...slots, ...otherSlots];
  }
  get #hasRings(): boolean {
    return this.#vm.setup.caps.some(({ cap }) => RINGS.includes(cap));
  }

  /**
   * The pages that were written since the last take(), or since start(). A slot that was made, moved or changed meanwhile
   * is told whole. The guest must not run meanwhile: its vCPUs are this thread's.
   * @throws VmexitError ERR_KVM_REFUSED for private memory that the VM has got; ERR_KVM_CLOSED; KvmError
   */
  take(): DirtyRange[] {
    if (this.#closed) throw new VmexitError('ERR_KVM_CLOSED', 'this DirtyPages was closed');
    this.#collect();
    this.#taken++;
    const ranges: DirtyRange[] = [];
    for (const [memory, { bits }] of this.#memories) {
      for (const { first, count } of runsOf(bits))
        ranges.push({ memory, offset: first * PAGE, size: count * PAGE });
      bits.fill(0);
    }
    return ranges;
  }

  /** How often take() was called. */
  get taken(): number {
    return this.#taken;
  }

  /**
   * Whether take() tells all that is written to the memory: it is in a slot, or was, and nobody has a view of it (`bytes`) whom
   * `marksAll` does not speak for.
   */
  knows(memory: GuestMemory): boolean {
    return this.#memories.has(memory) && (this.#marksAll || !memory.exposed);
  }

  /**
   * Serves Exit.DIRTY_RING_FULL, as a handler of the run loop.
   * @returns whether the exit was that
   */
  handle(_vcpu: Vcpu, exit: number): boolean {
    if (exit !== Exit.DIRTY_RING_FULL || this.#closed) return false;
    this.#harvest();
    return true;
  }

  #collect(): void {
    this.#check();
    if (this.#hasRings) this.#harvest();
    const all = this.#all();
    const now = new Map(all.map((slot) => [keyOf(slot), slot]));
    for (const [key, slot] of this.#slots) {
      if (now.get(key) === slot) continue;
      this.#markSlot(slot); // its log is lost, or speaks of another place
      this.#slots.delete(key);
    }
    for (const slot of all) {
      if (slot.memory === undefined || slot.memory.closed) continue;
      slot.memory.demand?.tell();
      if (this.#slots.has(keyOf(slot))) this.#readLog(slot);
      else this.#begin(slot);
    }
    for (const [memory, { stop }] of this.#memories) {
      if (!memory.closed) continue;
      stop();
      this.#memories.delete(memory);
    }
  }

  /** Nobody knows what was written to it before. */
  #begin(slot: Slot): void {
    this.#track(slot.memory!);
    this.#markSlot(slot);
    if ((slot.flags & (LOGGED | MemFlag.READONLY)) === 0) {
      this.#setFlags(slot, slot.flags | LOGGED);
      this.#given.set(keyOf(slot), this.#now(slot)!);
    }
    const logged = this.#now(slot)!;
    this.#log(logged); // what it has by now is in the marks
    this.#slots.set(keyOf(slot), logged);
  }

  /** As it is by now. */
  #now({ slot, addressSpace }: Slot): Slot | undefined {
    return this.#vm.memoryMap.slotById(slot, addressSpace);
  }

  #setFlags(slot: Slot, flags: number): void {
    const { start, end, userfaultBitmap, ...region } = slot;
    const given = { ...region, flags, guestPhysAddr: start, memorySize: end - start };
    if (userfaultBitmap === undefined) this.#vm.setUserMemoryRegion(given);
    else this.#vm.setUserMemoryRegion2({ ...given, userfaultBitmap });
  }

  #track(memory: GuestMemory): Marks {
    let marks = this.#memories.get(memory);
    if (marks === undefined) {
      const bits = new Uint8Array(Math.ceil(memory.size / PAGE / 32) * 4);
      marks = { bits, stop: memory.onDirty((offset, size) => setRange(bits, offset, size)) };
      this.#memories.set(memory, marks);
    }
    return marks;
  }

  #markSlot({ memory, memoryOffset, start, end }: Slot): void {
    const bits = memory && this.#memories.get(memory)?.bits;
    if (bits) setRange(bits, memoryOffset, end - start);
  }

  /** The slot's log, which is empty afterwards; undefined of one that has none. */
  #log({ slot, addressSpace, flags, start, end }: Slot): Uint8Array | undefined {
    if ((flags & LOGGED) === 0 || this.#hasRings) return undefined;
    const bytes = Math.ceil((end - start) / PAGE / 64) * 8;
    if (this.#space.length < bytes) this.#space = new Uint8Array(bytes);
    const log = this.#vm.getDirtyLog(slot, addressSpace, this.#space.subarray(0, bytes));
    if (this.#isManual) this.#vm.clearDirtyLog(slot, log, { addressSpace });
    return log;
  }
  /** Whether KVM_GET_DIRTY_LOG only reads. */
  get #isManual(): boolean {
    const manual = this.#vm.setup.caps.findLast(({ cap }) => cap === Cap.MANUAL_DIRTY_LOG_PROTECT2);
    return ((manual?.args[0] ?? 0n) & BigInt(DirtyLog.MANUAL_PROTECT_ENABLE)) !== 0n;
  }

  #readLog(slot: Slot): void {
    const log = this.#log(slot);
    if (log === undefined) return;
    const { memory, memoryOffset } = slot;
    const { bits } = this.#memories.get(memory!)!;
    if (memoryOffset % (8 * PAGE) === 0) {
      const at = memoryOffset / PAGE / 8;
      for (let i = 0; i < log.length; i++) if (log[i] !== 0) bits[at + i]! |= log[i]!;
      return;
    }
    for (const { first, count } of runsOf(log)) setRange(bits, memoryOffset + first * PAGE, count * PAGE);
  }

  #harvest(): void {
    for (const vcpu of this.#vcpus) {
      if (vcpu.closed) continue;
      this.#left +=
        vcpu.dirtyRing?.harvest((id, addressSpace, page) => {
          const slot = this.#slots.get(`${addressSpace}:${id}`);
          const bits = slot?.memory && this.#memories.get(slot.memory)?.bits;
          if (bits) setRange(bits, slot.memoryOffset + page * PAGE, PAGE);
        }) ?? 0;
    }
    // A signal may end one early. A page that was taken and stays writable would never be told again.
    for (let tries = 0; this.#left > 0 && tries < MAX_RESETS; tries++)
      this.#left -= this.#vm.resetDirtyRings();
  }

  /**
   * Idempotent. Takes MemFlag.LOG_DIRTY_PAGES from the slots that start() or take() has given it.
   * @throws KvmError when the kernel refuses that; another close() takes it from those that are left
   */
  close(): void {
    this.#closed = true;
    for (const { stop } of this.#memories.values()) stop();
    this.#memories.clear();
    if (this.#vm.closed) return;
    for (const [key, slot] of this.#given) {
      if (this.#now(slot) === slot && slot.memory?.closed === false)
        this.#setFlags(slot, slot.flags & ~LOGGED);
      this.#given.delete(key);
    }
  }

  /** As close(): for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}

const refused = (what: string) => new VmexitError('ERR_KVM_REFUSED', what);

/** The bits of the pages that the bytes touch. */
function setRange(bits: Uint8Array, offset: number, size: number): void {
  const end = Math.ceil((offset + size) / PAGE);
  for (let page = Math.floor(offset / PAGE); page < end; ) {
    if (page % 8 === 0 && page + 8 <= end) {
      const whole = Math.floor((end - page) / 8);
      bits.fill(0xff, page / 8, page / 8 + whole);
      page += whole * 8;
    } else {
      bits[page >>> 3]! |= 1 << (page & 7);
      page++;
    }
  }
}

/** Runs of bits that are set. */
function* runsOf(bits: Uint8Array): Generator<{ readonly first: number; readonly count: number }> {
  const total = bits.length * 8;
  const has = (bit: number) => (bits[bit >>> 3]! & (1 << (bit & 7))) !== 0;
  for (let bit = 0; bit < total; ) {
    if (!has(bit)) {
      // Eight at once.
      bit += bits[bit >>> 3] === 0 ? 8 - (bit & 7) : 1;
      continue;
    }
    const first = bit;
    while (bit < total && has(bit)) bit += (bit & 7) === 0 && bits[bit >>> 3] === 0xff ? 8 : 1;
    yield { first, count: bit - first };
  }
}

/**
 * Memory as instructions see it: linear addresses, with the translations kept in buffers that translated code reads
 * too. Linear addresses are unsigned bigints, values unsigned; load and store are the micro-ops' (signed).
 */
import { PAGE } from '../arena.ts';
import { noteDataAccess } from './breakpoints.ts';
import type { Cpu } from './cpu.ts';
import { raise, secondStageFault, Vector } from './fault.ts';
import { canonical, ia32e } from './mode.ts';
import { walk } from './paging.ts';
import { Access, FAULT, MMIO } from './processor.ts';
import { State } from './state.ts';

/**
 * Entries of a table, 16 bytes each: the page's linear address (i64; INVALID never equals one), and what is to be
 * added to the low half of a linear address to get to the arena (i32). There are four tables: for the supervisor and
 * the user, reads and writes. Pages with code in them are in no table for writes.
 */
export const Tlb = { entries: 1024, entryBytes: 16, tableBytes: 0x4000, INVALID: 1n } as const;
/** Where the table for an access begins in the state page. */
export const tlbTable = (user: boolean, write: boolean): number =>
  State.tlb + ((user ? 2 : 0) + (write ? 1 : 0)) * Tlb.tableBytes;

/** How many fills are kept account of; then all begins anew. */
const FILLED = 8192;
const Fetches = 256;
const lowHalf = (linear: bigint) => Number(BigInt.asIntN(32, linear));
const fetchIndex = (linear: bigint, user: boolean) =>
  ((lowHalf(linear) >>> 12) & (Fetches - 1)) + (user ? Fetches : 0);
const MASK64 = 0xffff_ffff_ffff_ffffn;
const OFFSET = 0xfffn;

/** Whose rights an access has. */
export type Rights = 'cpl' | 'system';

export class Memory {
  readonly #cpu: Cpu;
  /** Of the last translation that came to MMIO. */
  #physical = 0;
  readonly #scratch = new DataView(new ArrayBuffer(8));
  /** What was put into the tables since all were empty: entries, as indices of 8 bytes, and guest-physical pages. */
  readonly #filled: number[] = [];
  readonly #filledWith: number[] = [];
  /** Fetches, which translated code does not do: the supervisor's, then the user's. */
  readonly #fetchPages = new BigInt64Array(Fetches * 2).fill(Tlb.INVALID);
  readonly #fetchHosts = new Float64Array(Fetches * 2);
  readonly #fetchWith = new Float64Array(Fetches * 2);
  /** Which of them are in use, or were. */
  readonly #fetched = new Set<number>();

  constructor(cpu: Cpu) {
    this.#cpu = cpu;
    const { i64 } = cpu.arena.views;
    const start = (cpu.state.base + State.tlb) / 8;
    for (let i = 0; i < Tlb.entries * 4; i++) i64[start + i * 2] = Tlb.INVALID;
  }

  /** Forgets every translation. */
  flush(): void {
    const { i64 } = this.#cpu.arena.views;
    for (const entry of this.#filled) i64[entry] = Tlb.INVALID;
    this.#filled.length = 0;
    this.#filledWith.length = 0;
    for (const i of this.#fetched) this.#fetchPages[i] = Tlb.INVALID;
    this.#fetched.clear();
  }
  /** Forgets the translations to guest-physical [start, end). Gives whether there was code's among them. */
  flushPhysical(start: number, end: number): boolean {
    const { i64 } = this.#cpu.arena.views;
    let kept = 0;
    for (const [i, physical] of this.#filledWith.entries()) {
      const entry = this.#filled[i]!;
      if (physical >= start && physical < end) i64[entry] = Tlb.INVALID;
      else {
        this.#filled[kept] = entry;
        this.#filledWith[kept++] = physical;
      }
    }
    this.#filled.length = kept;
    this.#filledWith.length = kept;
    let fetched = false;
    for (const i of this.#fetched) {
      const physical = this.#fetchWith[i]!;
      if (physical < start || physical >= end || this.#fetchPages[i] === Tlb.INVALID) continue;
      this.#fetchPages[i] = Tlb.INVALID;
      fetched = true;
    }
    return fetched;
  }
  flushPage(linear: bigint): void {
    const { i64 } = this.#cpu.arena.views;
    for (const user of [false, true]) {
      for (const write of [false, true]) i64[this.#entry(lowHalf(linear), user, write) / 8] = Tlb.INVALID;
      this.#fetchPages[fetchIndex(linear, user)] = Tlb.INVALID;
    }
  }
  /** Forgets the translations for writing: pages have got code in them. */
  flushWrites(): void {
    const { i64 } = this.#cpu.arena.views;
    for (const user of [false, true]) {
      const start = (this.#cpu.state.base + tlbTable(user, true)) / 8;
      for (let i = 0; i < Tlb.entries; i++) i64[start + i * 2] = Tlb.INVALID;
    }
  }

  /** Where its entry in a table lies, by the low half of a linear address. */
  #entry(low: number, user: boolean, write: boolean): number {
    return (
      this.#cpu.state.base + tlbTable(user, write) + ((low >>> 8) & ((Tlb.entries - 1) * Tlb.entryBytes))
    );
  }

  /**
   * Where a byte lies in the arena, or MMIO. A page that is being written is no code's any more.
   * @param reads a read whose instruction will write there: the rights are a write's, but KVM's emulator reads first
   * @throws GuestFault, SecondStageFault
   */
  host(linear: bigint, access: Access, rights: Rights = 'cpl', stack = false, reads = false): number {
    const host = this.#place(linear, access, rights, stack, reads);
    if (host === FAULT) throw secondStageFault;
    return host;
  }
  /** The same, or FAULT. @throws GuestFault, SecondStageFault from the walk */
  #place(linear: bigint, access: Access, rights: Rights, stack: boolean, reads: boolean): number {
    const cpu = this.#cpu;
    if (cpu.io.mode === 'emulated') return this.#emulated(linear, access, rights, stack, reads);
    const user = rights === 'cpl' && cpu.user;
    const write = access === Access.WRITE;
    const low = lowHalf(linear);
    const entry = this.#entry(low, user, write);
    const { i64, i32 } = cpu.arena.views;
    const page = BigInt.asIntN(64, linear & ~OFFSET);
    if (access !== Access.FETCH && i64[entry / 8] === page) {
      return (i32[(entry + 8) / 4]! + low) >>> 0;
    }
    const fetch = access === Access.FETCH ? fetchIndex(linear, user) : -1;
    if (fetch >= 0 && this.#fetchPages[fetch] === page) {
      return this.#fetchHosts[fetch]! + (low & (PAGE - 1));
    }
    this.#checkCanonical(linear, stack);
    const found = walk(cpu, linear, access, user, rights === 'system');
    const host = cpu.stage.page(found.physical, access, found.wants);
    if (host === FAULT) return FAULT;
    if (fetch >= 0 && host !== MMIO) {
      this.#fetchPages[fetch] = page;
      this.#fetchHosts[fetch] = host;
      this.#fetchWith[fetch] = found.physical;
      this.#fetched.add(fetch);
    }
    if (host === MMIO) {
      this.#physical = found.physical + (low & (PAGE - 1));
      return MMIO;
    }
    if (access !== Access.FETCH && !(write && this.#writesCode(host))) {
      if (this.#filled.length >= FILLED) this.flush();
      this.#filled.push(entry / 8);
      this.#filledWith.push(found.physical);
      i64[entry / 8] = page;
      i32[(entry + 8) / 4] = (host - (low & -PAGE)) | 0;
    }
    return host + (low & (PAGE - 1));
  }

  /** Code that is written to is stale, and whoever executes it must look again before the next instruction. */
  #writesCode(host: number): boolean {
    const { code, io, current } = this.#cpu;
    if (!code.has(host)) return false;
    // Deliveries of events write outside of any instruction.
    if (io.mode === undefined && current !== undefined) io.demand('alone');
    code.invalidate(host);
    return true;
  }

  /** What KVM emulates uses the shared copy, whatever the attributes say (virt/kvm/kvm_main.c, kvm_read_guest_page). */
  #emulated(linear: bigint, access: Access, rights: Rights, stack: boolean, reads: boolean): number {
    const cpu = this.#cpu;
    this.#checkCanonical(linear, stack);
    const found = walk(cpu, linear, access, rights === 'cpl' && cpu.user, rights === 'system');
    const host = cpu.stage.sharedPage(found.physical, reads ? Access.READ : access);
    if (host === MMIO) {
      this.#physical = found.physical + Number(linear & OFFSET);
      return MMIO;
    }
    if (access === Access.WRITE && cpu.code.has(host)) cpu.code.invalidate(host);
    return host + Number(linear & OFFSET);
  }

  #checkCanonical(linear: bigint, stack: boolean): void {
    if (ia32e(this.#cpu) && !canonical(linear)) raise(stack ? Vector.SS : Vector.GP, 0);
  }

  /** SDM volume 3, 6.15, #AC: only at CPL 3, and only when CR0.AM and RFLAGS.AC say so. */
  #checkAlignment(linear: bigint, size: number): void {
    if (this.#cpu.alignment && (linear & BigInt(size - 1)) !== 0n) raise(Vector.AC, 0);
  }

  /** Breakpoints on data are looked at where instructions are executed one by one. */
  #watch(address: bigint, size: number, write: boolean): void {
    if (this.#cpu.mode.single) noteDataAccess(this.#cpu, address, size, write);
  }

  // --- the micro-ops' ----------------------------------------------------------------------------------------------
  // With `quiet` a fault of the second stage sets State.trap, and what they give means nothing.

  /** What a quiet access does instead of throwing. */
  #trap(quiet: boolean): void {
    if (!quiet) throw secondStageFault;
    this.#cpu.state.setU32(State.trap, 1);
  }

  load32(linear: bigint, size: number, write: boolean, stack: boolean, quiet = false): number {
    const address = linear & MASK64;
    this.#checkAlignment(address, size);
    this.#watch(address, size, false);
    if (Number(address & OFFSET) <= PAGE - size) {
      const host = this.#place(address, write ? Access.WRITE : Access.READ, 'cpl', stack, true);
      if (host === FAULT) {
        this.#trap(quiet);
        return 0;
      }
      const { u8, dv } = this.#cpu.arena.views;
      if (host !== MMIO)
        return size === 1 ? u8[host]! : size === 2 ? dv.getUint16(host, true) : dv.getInt32(host, true);
    }
    const view = this.#gather(address, size, write, stack, 'cpl');
    return size === 1 ? view.getUint8(0) : size === 2 ? view.getUint16(0, true) : view.getInt32(0, true);
  }
  load64(linear: bigint, write: boolean, stack: boolean, quiet = false): bigint {
    const address = linear & MASK64;
    this.#checkAlignment(address, 8);
    this.#watch(address, 8, false);
    if (Number(address & OFFSET) <= PAGE - 8) {
      const host = this.#place(address, write ? Access.WRITE : Access.READ, 'cpl', stack, true);
      if (host === FAULT) {
        this.#trap(quiet);
        return 0n;
      }
      if (host !== MMIO) return this.#cpu.arena.views.dv.getBigInt64(host, true);
    }
    return this.#gather(address, 8, write, stack, 'cpl').getBigInt64(0, true);
  }
  store32(linear: bigint, value: number, size: number, stack: boolean, quiet = false): void {
    const address = linear & MASK64;
    this.#checkAlignment(address, size);
    this.#watch(address, size, true);
    if (Number(address & OFFSET) <= PAGE - size) {
      const host = this.#place(address, Access.WRITE, 'cpl', stack, false);
      if (host === FAULT) {
        this.#trap(quiet);
        return;
      }
      const { u8, dv } = this.#cpu.arena.views;
      if (host !== MMIO) {
        if (size === 1) u8[host] = value;
        else if (size === 2) dv.setUint16(host, value, true);
        else dv.setInt32(host, value, true);
        return;
      }
    }
    this.#scratch.setInt32(0, value, true);
    this.#scatter(address, new Uint8Array(this.#scratch.buffer, 0, size), stack, 'cpl');
  }
  store64(linear: bigint, value: bigint, stack: boolean, quiet = false): void {
    const address = linear & MASK64;
    this.#checkAlignment(address, 8);
    this.#watch(address, 8, true);
    if (Number(address & OFFSET) <= PAGE - 8) {
      const host = this.#place(address, Access.WRITE, 'cpl', stack, false);
      if (host === FAULT) {
        this.#trap(quiet);
        return;
      }
      if (host !== MMIO) {
        this.#cpu.arena.views.dv.setBigInt64(host, value, true);
        return;
      }
    }
    this.#scratch.setBigInt64(0, value, true);
    this.#scatter(address, new Uint8Array(this.#scratch.buffer, 0, 8), stack, 'cpl');
  }

  // --- the helpers' ------------------------------------------------------------------------------------------------

  read8 = (linear: bigint, rights?: Rights) => this.#gather(linear, 1, false, false, rights).getUint8(0);
  read16 = (linear: bigint, rights?: Rights) =>
    this.#gather(linear, 2, false, false, rights).getUint16(0, true);
  read32 = (linear: bigint, rights?: Rights) =>
    this.#gather(linear, 4, false, false, rights).getUint32(0, true);
  read64 = (linear: bigint, rights?: Rights) =>
    this.#gather(linear, 8, false, false, rights).getBigUint64(0, true);
  write8(linear: bigint, value: number, rights?: Rights): void {
    this.#scratch.setUint8(0, value);
    this.#scatter(linear, new Uint8Array(this.#scratch.buffer, 0, 1), false, rights);
  }
  write16(linear: bigint, value: number, rights?: Rights): void {
    this.#scratch.setUint16(0, value, true);
    this.#scatter(linear, new Uint8Array(this.#scratch.buffer, 0, 2), false, rights);
  }
  write32(linear: bigint, value: number, rights?: Rights): void {
    this.#scratch.setUint32(0, value, true);
    this.#scatter(linear, new Uint8Array(this.#scratch.buffer, 0, 4), false, rights);
  }
  write64(linear: bigint, value: bigint, rights?: Rights): void {
    this.#scratch.setBigUint64(0, value, true);
    this.#scatter(linear, new Uint8Array(this.#scratch.buffer, 0, 8), false, rights);
  }
  // Implicit accesses of the system's: descriptor tables, TSS, IDT, stacks of inner rings.
  readSystem8 = (linear: bigint) => this.read8(linear, 'system');
  readSystem16 = (linear: bigint) => this.read16(linear, 'system');
  readSystem32 = (linear: bigint) => this.read32(linear, 'system');
  readSystem64 = (linear: bigint) => this.read64(linear, 'system');
  writeSystem8 = (linear: bigint, value: number) => this.write8(linear, value, 'system');
  writeSystem16 = (linear: bigint, value: number) => this.write16(linear, value, 'system');
  writeSystem32 = (linear: bigint, value: number) => this.write32(linear, value, 'system');
  writeSystem64 = (linear: bigint, value: bigint) => this.write64(linear, value, 'system');

  readBytes(linear: bigint, size: number, rights?: Rights): Uint8Array {
    const view = this.#gather(linear, size, false, false, rights);
    return new Uint8Array(view.buffer, 0, size).slice();
  }
  writeBytes(linear: bigint, bytes: Uint8Array, rights?: Rights): void {
    this.#scatter(linear, bytes, false, rights);
  }
  /** Faults as a write would, and changes nothing. */
  checkWrite(linear: bigint, size: number, rights?: Rights): void {
    for (const [at] of parts(linear & MASK64, size)) this.host(at, Access.WRITE, rights);
  }

  // --- any size, across pages, MMIO --------------------------------------------------------------------------------

  #gather(linear: bigint, size: number, write: boolean, stack: boolean, rights: Rights = 'cpl'): DataView {
    const into = size <= 8 ? this.#scratch : new DataView(new ArrayBuffer(size));
    const bytes = new Uint8Array(into.buffer);
    const access = write ? Access.WRITE : Access.READ;
    const address = linear & MASK64;
    if (rights === 'cpl') this.#watch(address, size, write);
    const { io, arena } = this.#cpu;
    // Both pages of one that crosses must be there before MMIO is asked for.
    const places: [host: number, physical: number, done: number, length: number][] = [];
    for (const [at, done, length] of parts(address, size)) {
      const host = this.host(at, access, rights, stack, true);
      if (host === MMIO) io.demand('emulated');
      places.push([host, this.#physical, done, length]);
    }
    for (const [host, physical, done, length] of places) {
      if (host !== MMIO) bytes.set(arena.views.u8.subarray(host, host + length), done);
      else bytes.set(io.read(physical, length), done);
    }
    return into;
  }

  #scatter(linear: bigint, bytes: Uint8Array, stack: boolean, rights: Rights = 'cpl'): void {
    const { io, arena } = this.#cpu;
    if (rights === 'cpl') this.#watch(linear & MASK64, bytes.length, true);
    const places: [host: number, physical: number, done: number, length: number][] = [];
    for (const [at, done, length] of parts(linear & MASK64, bytes.length)) {
      const host = this.host(at, Access.WRITE, rights, stack);
      if (host === MMIO) io.demand('emulated');
      places.push([host, this.#physical, done, length]);
    }
    for (const [host, physical, done, length] of places) {
      const part = bytes.subarray(done, done + length);
      if (host !== MMIO) arena.views.u8.set(part, host);
      else io.write(physical, part);
    }
  }
}

/** A range in pieces that lie in one page: address, bytes before it, bytes. */
function parts(linear: bigint, size: number): [bigint, number, number][] {
  const first = Math.min(size, PAGE - Number(linear & OFFSET));
  const all: [bigint, number, number][] = [[linear, 0, first]];
  for (let done = first; done < size; done += PAGE) {
    all.push([(linear + BigInt(done)) & MASK64, done, Math.min(PAGE, size - done)]);
  }
  return all;
}

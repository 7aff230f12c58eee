/** Memory as instructions see it, on the translations that are kept. */

import { PAGE } from '../../arena.ts';
import { noteDataAccess } from '../processor/debug.ts';
import { guestFault, raise, secondStageFault, Vector } from '../processor/fault.ts';
import { highHalf, joined, lowHalf } from '../processor/halves.ts';
import type { Processor } from '../processor/processor.ts';
import type { LinearMemory, Rights } from '../processor/services.ts';
import { Access, FAULT, GUEST_FAULT, MMIO } from '../processor/stage.ts';
import { State } from '../processor/state.ts';
import { Tlb } from './tlb.ts';

const OFFSET = 0xfffn;
const MASK64 = 0xffff_ffff_ffff_ffffn;

export class Memory implements LinearMemory {
  readonly #tlb: Tlb;
  readonly #cpu: Processor;
  readonly #scratch = new DataView(new ArrayBuffer(8));
  readonly #bytes = new Uint8Array(this.#scratch.buffer);

  constructor(cpu: Processor) {
    this.#cpu = cpu;
    this.#tlb = new Tlb(cpu);
  }

  get physical(): number {
    return this.#tlb.physical;
  }
  get global(): boolean {
    return this.#tlb.global;
  }
  flush(): void {
    this.#tlb.flush();
  }
  flushLocal(): void {
    this.#tlb.flushLocal();
  }
  flushPage(low: number): void {
    this.#tlb.flushPage(low);
  }
  flushPhysical(start: number, end: number): boolean {
    return this.#tlb.flushPhysical(start, end);
  }
  flushWrites(host?: number): void {
    this.#tlb.flushWrites(host);
  }

  /** As Tlb.place(), but @throws SecondStageFault */
  host(
    linear: bigint,
    size: number,
    access: Access,
    rights: Rights = 'cpl',
    stack = false,
    reads = false,
  ): number {
    const host = this.#tlb.place(lowHalf(linear), highHalf(linear), size, access, rights, stack, reads);
    if (host <= FAULT) throw thrownFor(host);
    return host;
  }

  hostAt(low: number, high: number, size: number, access: Access): number {
    const host = this.#tlb.place(low, high, size, access, 'cpl', false, false);
    if (host <= FAULT) throw thrownFor(host);
    return host;
  }

  /** SDM volume 3, 6.15, #AC: only at CPL 3, and only when CR0.AM and RFLAGS.AC say so. */
  #checkAlignment(low: number, size: number): void {
    if (this.#cpu.alignment && (low & (size - 1)) !== 0) raise(Vector.AC, 0);
  }

  /** SDM volume 3, 6.15, #GP: an operand of 16 bytes that must be aligned. An address must be canonical first. */
  checkAligned(low: number, high: number, stack: boolean): void {
    if ((low & 15) === 0) return;
    this.#tlb.checkCanonical(high, stack);
    raise(Vector.GP, 0);
  }

  /** Breakpoints on data are looked at where instructions are executed one by one. */
  #watch(low: number, high: number, size: number, write: boolean): void {
    if (this.#cpu.mode.single) noteDataAccess(this.#cpu, joined(low, high), size, write);
  }

  // --- the micro-ops' ----------------------------------------------------------------------------------------------
  // With `quiet` a fault of the second stage sets State.trap, and what they give means nothing.

  /** What a quiet access does instead of throwing. */
  #trap(quiet: boolean, host: number): void {
    if (!quiet) throw thrownFor(host);
    this.#cpu.faulted = host === GUEST_FAULT;
    this.#cpu.state.setU32(State.trap, 1);
  }

  load32(linear: bigint, size: number, write: boolean, stack: boolean, waits = false): number {
    return this.#load32(lowHalf(linear), highHalf(linear), size, write, stack, false, waits);
  }
  load64(linear: bigint, write: boolean, stack: boolean, waits = false): bigint {
    return this.#load64(lowHalf(linear), highHalf(linear), write, stack, false, waits);
  }
  store32(linear: bigint, value: number, size: number, stack: boolean): void {
    this.store32At(lowHalf(linear), highHalf(linear), value, size, stack, false);
  }
  store64(linear: bigint, value: bigint, stack: boolean): void {
    this.store64At(lowHalf(linear), highHalf(linear), value, stack, false);
  }

  load32At(low: number, high: number, size: number, write: boolean, stack: boolean, quiet: boolean): number {
    return this.#load32(low, high, size, write, stack, quiet, quiet);
  }
  load64At(low: number, high: number, write: boolean, stack: boolean, quiet: boolean): bigint {
    return this.#load64(low, high, write, stack, quiet, quiet);
  }
  #load32(
    low: number,
    high: number,
    size: number,
    write: boolean,
    stack: boolean,
    quiet: boolean,
    waits: boolean,
  ): number {
    const host = this.#loaded(low, high, size, write, stack);
    if (host >= 0) {
      const { u8, dv } = this.#cpu.arena.views;
      return size === 1 ? u8[host]! : size === 2 ? dv.getUint16(host, true) : dv.getInt32(host, true);
    }
    if (host <= FAULT) {
      this.#trap(quiet, host);
      return 0;
    }
    if (this.#leaves(low, size, Access.READ, quiet)) return 0;
    const view =
      waits && this.#asked(low, size, quiet)
        ? this.#scratch
        : this.#gather(joined(low, high), size, write, stack, 'cpl');
    return size === 1 ? view.getUint8(0) : size === 2 ? view.getUint16(0, true) : view.getInt32(0, true);
  }
  #load64(low: number, high: number, write: boolean, stack: boolean, quiet: boolean, waits: boolean): bigint {
    const host = this.#loaded(low, high, 8, write, stack);
    if (host >= 0) return this.#cpu.arena.views.dv.getBigInt64(host, true);
    if (host <= FAULT) {
      this.#trap(quiet, host);
      return 0n;
    }
    if (this.#leaves(low, 8, Access.READ, quiet)) return 0n;
    if (waits && this.#asked(low, 8, quiet)) return this.#scratch.getBigInt64(0, true);
    return this.#gather(joined(low, high), 8, write, stack, 'cpl').getBigInt64(0, true);
  }
  store32At(low: number, high: number, value: number, size: number, stack: boolean, quiet: boolean): void {
    const host = this.#stored(low, high, size, stack);
    if (host >= 0) {
      const { u8, dv } = this.#cpu.arena.views;
      if (size === 1) u8[host] = value;
      else if (size === 2) dv.setUint16(host, value, true);
      else dv.setInt32(host, value, true);
    } else if (host <= FAULT) this.#trap(quiet, host);
    else if (!this.#leaves(low, size, Access.WRITE, quiet)) {
      this.#scratch.setInt32(0, value, true);
      this.#written(low, high, size, stack);
    }
  }
  store64At(low: number, high: number, value: bigint, stack: boolean, quiet: boolean): void {
    const host = this.#stored(low, high, 8, stack);
    if (host >= 0) this.#cpu.arena.views.dv.setBigInt64(host, value, true);
    else if (host <= FAULT) this.#trap(quiet, host);
    else if (!this.#leaves(low, 8, Access.WRITE, quiet)) {
      this.#scratch.setBigInt64(0, value, true);
      this.#written(low, high, 8, stack);
    }
  }

  /** As IoLog.demandEmulation(), of a quiet access to MMIO, which throws nothing. What lies in two pages is looked at first. */
  #leaves(low: number, size: number, access: Access, quiet: boolean): boolean {
    const { io, state } = this.#cpu;
    if (!quiet || io.mode !== undefined || (low & (PAGE - 1)) > PAGE - size) return false;
    io.gpa = this.#tlb.physical;
    io.access = access;
    io.isDemanded = true;
    state.setU32(State.trap, 1);
    return true;
  }

  /** As #gather() of MMIO in one page, for who looks at IoLog.waiting: gives whether the scratch has it, or it waits. */
  #asked(low: number, size: number, quiet: boolean): boolean {
    const { io, state } = this.#cpu;
    if (io.mode !== 'emulated' || (low & (PAGE - 1)) > PAGE - size) return false;
    if (!io.readTo(this.#bytes, this.#tlb.physical, size) && quiet) state.setU32(State.trap, 1);
    return true;
  }

  /** Stores what is in the scratch where a look has found MMIO. */
  #written(low: number, high: number, size: number, stack: boolean): void {
    const { io } = this.#cpu;
    if (io.mode === 'emulated' && (low & (PAGE - 1)) <= PAGE - size)
      io.write(this.#tlb.physical, this.#bytes, size);
    else this.#scatter(joined(low, high), this.#bytes.subarray(0, size), stack, 'cpl');
  }

  /** Where what is loaded lies; FAULT or GUEST_FAULT; or MMIO, also for what lies in two pages. */
  #loaded(low: number, high: number, size: number, write: boolean, stack: boolean): number {
    this.#checkAlignment(low, size);
    this.#watch(low, high, size, false);
    if ((low & (PAGE - 1)) > PAGE - size) return MMIO;
    return this.#tlb.place(low, high, size, write ? Access.WRITE : Access.READ, 'cpl', stack, true);
  }
  #stored(low: number, high: number, size: number, stack: boolean): number {
    this.#checkAlignment(low, size);
    this.#watch(low, high, size, true);
    if ((low & (PAGE - 1)) > PAGE - size) return MMIO;
    return this.#tlb.place(low, high, size, Access.WRITE, 'cpl', stack, false);
  }

  // --- the helpers' ------------------------------------------------------------------------------------------------

  /** Where an operand in one page lies, which nobody watches; MMIO where it must be looked at more closely. */
  #simple(linear: bigint, size: number, access: Access, rights: Rights): number {
    const low = lowHalf(linear);
    if ((low & (PAGE - 1)) > PAGE - size || this.#cpu.mode.single) return MMIO;
    const host = this.#tlb.place(low, highHalf(linear), size, access, rights, false, access === Access.READ);
    if (host <= FAULT) throw thrownFor(host);
    return host;
  }
  read8(linear: bigint, rights: Rights = 'cpl'): number {
    const host = this.#simple(linear, 1, Access.READ, rights);
    if (host !== MMIO) return this.#cpu.arena.views.u8[host]!;
    return this.#gather(linear, 1, false, false, rights).getUint8(0);
  }
  read16(linear: bigint, rights: Rights = 'cpl'): number {
    const host = this.#simple(linear, 2, Access.READ, rights);
    if (host !== MMIO) return this.#cpu.arena.views.dv.getUint16(host, true);
    return this.#gather(linear, 2, false, false, rights).getUint16(0, true);
  }
  read32(linear: bigint, rights: Rights = 'cpl'): number {
    const host = this.#simple(linear, 4, Access.READ, rights);
    if (host !== MMIO) return this.#cpu.arena.views.dv.getUint32(host, true);
    return this.#gather(linear, 4, false, false, rights).getUint32(0, true);
  }
  read64(linear: bigint, rights: Rights = 'cpl'): bigint {
    const host = this.#simple(linear, 8, Access.READ, rights);
    if (host !== MMIO) return this.#cpu.arena.views.dv.getBigUint64(host, true);
    return this.#gather(linear, 8, false, false, rights).getBigUint64(0, true);
  }
  write8(linear: bigint, value: number, rights?: Rights): void {
    this.#scratch.setUint8(0, value);
    this.#scatter(linear, new Uint8Array(this.#scratch.buffer, 0, 1), false, rights);
  }
  write16(linear: bigint, value: number, rights?: Rights): void {
    this.#scratch.setUint16(0, value, true);
    this.#scatter(linear, new Uint8Array(this.#scratch.buffer, 0, 2), false, rights);
  }
  write32(linear: bigint, value: number, rights: Rights = 'cpl'): void {
    const host = this.#simple(linear, 4, Access.WRITE, rights);
    if (host !== MMIO) {
      this.#cpu.arena.views.dv.setUint32(host, value, true);
      return;
    }
    this.#scratch.setUint32(0, value, true);
    this.#scatter(linear, new Uint8Array(this.#scratch.buffer, 0, 4), false, rights);
  }
  write64(linear: bigint, value: bigint, rights: Rights = 'cpl'): void {
    const host = this.#simple(linear, 8, Access.WRITE, rights);
    if (host !== MMIO) {
      this.#cpu.arena.views.dv.setBigUint64(host, value, true);
      return;
    }
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
    if ((lowHalf(linear) & (PAGE - 1)) <= PAGE - size) {
      this.host(linear, size, Access.WRITE, rights);
      return;
    }
    for (const [at, , length] of parts(linear & MASK64, size)) this.host(at, length, Access.WRITE, rights);
  }

  // --- any size, across pages, MMIO --------------------------------------------------------------------------------

  /** As parts(); none of it is translated when one is not canonical. */
  #parts(linear: bigint, size: number, stack: boolean): ReturnType<typeof parts> {
    const all = parts(linear, size);
    if (all.length > 1) for (const [at] of all) this.#tlb.checkCanonical(highHalf(at), stack);
    return all;
  }

  #gather(linear: bigint, size: number, write: boolean, stack: boolean, rights: Rights = 'cpl'): DataView {
    const into = size <= 8 ? this.#scratch : new DataView(new ArrayBuffer(size));
    const bytes = new Uint8Array(into.buffer);
    const access = write ? Access.WRITE : Access.READ;
    const address = linear & MASK64;
    if (rights === 'cpl') this.#watch(lowHalf(address), highHalf(address), size, write);
    const { io, arena } = this.#cpu;
    // Both pages of one that crosses must be there before MMIO is asked for.
    const places: [host: number, physical: number, done: number, length: number][] = [];
    for (const [at, done, length] of this.#parts(address, size, stack)) {
      const host = this.host(at, length, access, rights, stack, true);
      if (host === MMIO) io.demandEmulation(this.#tlb.physical, access);
      places.push([host, this.#tlb.physical, done, length]);
    }
    for (const [host, physical, done, length] of places) {
      if (host !== MMIO) bytes.set(arena.views.u8.subarray(host, host + length), done);
      else bytes.set(io.read(physical, length), done);
    }
    return into;
  }

  #scatter(linear: bigint, bytes: Uint8Array, stack: boolean, rights: Rights = 'cpl'): void {
    const { io, arena } = this.#cpu;
    if (rights === 'cpl') this.#watch(lowHalf(linear), highHalf(linear), bytes.length, true);
    const places: [host: number, physical: number, done: number, length: number][] = [];
    for (const [at, done, length] of this.#parts(linear & MASK64, bytes.length, stack)) {
      const host = this.host(at, length, Access.WRITE, rights, stack);
      if (host === MMIO) io.demandEmulation(this.#tlb.physical, Access.WRITE);
      places.push([host, this.#tlb.physical, done, length]);
    }
    for (const [host, physical, done, length] of places) {
      const part = bytes.subarray(done, done + length);
      if (host !== MMIO) arena.views.u8.set(part, host);
      else io.write(physical, part);
    }
  }
}

const thrownFor = (host: number) => (host === GUEST_FAULT ? guestFault : secondStageFault);

/** A range in pieces that lie in one page: address, bytes before it, bytes. */
function parts(linear: bigint, size: number): [bigint, number, number][] {
  const first = Math.min(size, PAGE - Number(linear & OFFSET));
  const all: [bigint, number, number][] = [[linear, 0, first]];
  for (let done = first; done < size; done += PAGE) {
    all.push([(linear + BigInt(done)) & MASK64, done, Math.min(PAGE, size - done)]);
  }
  return all;
}

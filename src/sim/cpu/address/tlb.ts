/**
 * Translations of linear addresses, kept in buffers that translated code reads too. Linear addresses come as two
 * halves of 32 bits each, of which the signs do not matter: bigints would cost more than all the rest of a miss.
 */

import { PAGE } from '../../arena.ts';
import { raise, Vector } from '../processor/fault.ts';
import { CR4, ia32e } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import type { Rights } from '../processor/services.ts';
import { Access, GUEST_FAULT, MMIO } from '../processor/stage.ts';
import { Flag, State } from '../processor/state.ts';
import { PagingStructures, type Translation, walk } from './paging.ts';

/**
 * Entries of a table, 16 bytes each: the page's linear address (i64; INVALID never equals one), and what is to be
 * added to the low half of a linear address to get to the arena (i32). There are four tables: for the supervisor and
 * the user, reads and writes. In those for writes a page with code in it has MIXED in its address, and what is to be
 * added to get to its map (i32), whose bytes are zero where there is no code.
 */
export const Tables = { entries: 8192, entryBytes: 16, tableBytes: 0x2_0000 } as const;
/** Where the table for an access begins in the state page. */
export const tableFor = (user: boolean, write: boolean): number =>
  State.tlb + ((user ? 2 : 0) + (write ? 1 : 0)) * Tables.tableBytes;

/** In the low half of a page's linear address, where pages have zeroes, and so have operands that must be aligned. */
const INVALID = 0x10;
export const MIXED = 0x20;
/** How many fills are kept account of; then all begins anew. */
const FILLED = 32_768;
const Fetches = 256;
const fetchIndex = (low: number, user: boolean) => ((low >>> 12) & (Fetches - 1)) + (user ? Fetches : 0);

/** What was put into the tables since all were empty: entries, by their places in the arena, and guest-physical pages. */
class Filled {
  readonly entries: number[] = [];
  readonly physical: number[] = [];
  /** Those for writing, by the arena's page. */
  readonly writers = new Map<number, number[]>();
  /** Which fetches are in use, or were. */
  readonly fetches = new Set<number>();

  clear(): void {
    this.entries.length = 0;
    this.physical.length = 0;
    this.writers.clear();
    this.fetches.clear();
  }
}

export class Tlb {
  readonly #cpu: Processor;
  /** The guest-physical address of the last access that came to MMIO. */
  physical = 0;
  /** Whether the page of the last fetch is global. */
  global = false;
  readonly #local = new Filled();
  readonly #global = new Filled();
  readonly #structures = new PagingStructures();
  /** Fetches, which translated code does not do: the supervisor's, then the user's. */
  readonly #fetchLow = new Uint32Array(Fetches * 2).fill(INVALID);
  readonly #fetchHigh = new Uint32Array(Fetches * 2);
  readonly #fetchHosts = new Float64Array(Fetches * 2);
  readonly #fetchWith = new Float64Array(Fetches * 2);
  readonly #fetchGlobal = new Uint8Array(Fetches * 2);
  /**
   * The walk whose page the second stage refused, or where there is none: for the access that comes again when that was mended,
   * or by KVM's emulator.
   */
  #refused: { low: number; high: number; how: number; found: Translation } | undefined;

  constructor(cpu: Processor) {
    this.#cpu = cpu;
    // An entry of zeroes is one of page 0, which is looked for in the first, and in the last for an access that begins in the
    // last page and ends there.
    const start = cpu.state.base + State.tlb;
    for (let table = 0; table < 4; table++) {
      const first = start + table * Tables.tableBytes;
      this.#forget(first);
      this.#forget(first + (Tables.entries - 1) * Tables.entryBytes);
    }
  }

  #forget(entry: number): void {
    this.#cpu.arena.views.u32[entry / 4] = INVALID;
  }

  /** Forgets every translation. */
  flush(): void {
    this.#flush(this.#global);
    this.flushLocal();
  }
  /** Forgets all but those of global pages (SDM volume 3, 4.10.2.4). */
  flushLocal(): void {
    this.#structures.flush();
    this.#flush(this.#local);
    this.#refused = undefined;
  }
  /** What has taken the place of one since is forgotten too: it is only looked up once more. */
  #flush(filled: Filled): void {
    for (const entry of filled.entries) this.#forget(entry);
    for (const i of filled.fetches) this.#fetchLow[i] = INVALID;
    filled.clear();
  }
  /** Forgets the translations to guest-physical [start, end). Gives whether there was code's among them. */
  flushPhysical(start: number, end: number): boolean {
    this.#structures.flush(); // their tables may be gone
    let fetched = false;
    for (const { entries, physical, fetches } of [this.#local, this.#global]) {
      let kept = 0;
      for (const [i, page] of physical.entries()) {
        const entry = entries[i]!;
        if (page >= start && page < end) this.#forget(entry);
        else {
          entries[kept] = entry;
          physical[kept++] = page;
        }
      }
      entries.length = kept;
      physical.length = kept;
      for (const i of fetches) {
        const page = this.#fetchWith[i]!;
        if (page < start || page >= end || this.#fetchLow[i] === INVALID) continue;
        this.#fetchLow[i] = INVALID;
        fetched = true;
      }
    }
    return fetched;
  }
  flushPage(low: number): void {
    this.#structures.flush(); // whatever the page (SDM volume 3, 4.10.4.1, INVLPG)
    for (const user of [false, true]) {
      for (const write of [false, true]) this.#forget(this.#entry(low, user, write));
      this.#fetchLow[fetchIndex(low, user)] = INVALID;
    }
    this.#refused = undefined;
  }
  /** Forgets the translations for writing, of all or to a page of the arena: it has got code in it, or is read-only now. */
  flushWrites(host?: number): void {
    for (const { writers } of [this.#local, this.#global]) {
      if (host === undefined) {
        for (const entries of writers.values()) for (const entry of entries) this.#forget(entry);
        writers.clear();
      } else {
        for (const entry of writers.get(host) ?? []) this.#forget(entry);
        writers.delete(host);
      }
    }
  }

  /** Where its entry in a table lies in the arena. */
  #entry(low: number, user: boolean, write: boolean): number {
    return (
      this.#cpu.state.base +
      tableFor(user, write) +
      ((low >>> 8) & ((Tables.entries - 1) * Tables.entryBytes))
    );
  }

  /**
   * Where an operand that lies in one page lies in the arena; or MMIO, FAULT or GUEST_FAULT. What is being written is no code's
   * any more.
   * @param stack a fault of the address is #SS
   * @param reads a read whose instruction will write there: the rights are a write's, but KVM's emulator reads first
   * @throws GuestFault; SecondStageFault from the walk
   */
  place(
    low: number,
    high: number,
    size: number,
    access: Access,
    rights: Rights,
    stack: boolean,
    reads: boolean,
  ): number {
    const cpu = this.#cpu;
    if (cpu.io.mode === 'emulated') return this.#emulated(low, high, size, access, rights, stack, reads);
    const user = rights === 'cpl' && cpu.user;
    const page = (low & -PAGE) >>> 0;
    const top = high >>> 0;
    const inside = low & (PAGE - 1);
    if (access === Access.FETCH) {
      const fetch = fetchIndex(low, user);
      if (this.#fetchLow[fetch] === page && this.#fetchHigh[fetch] === top) {
        this.global = this.#fetchGlobal[fetch] !== 0;
        return this.#fetchHosts[fetch]! + inside;
      }
      const found = this.#walk(low, high, access, user, rights, stack);
      if (found === undefined) return GUEST_FAULT;
      const host = this.#stage(low, high, access, user, rights, found);
      if (host < 0) return host;
      this.#fetchLow[fetch] = page;
      this.#fetchHigh[fetch] = top;
      this.#fetchHosts[fetch] = host;
      this.#fetchWith[fetch] = found.physical;
      this.global = found.global;
      this.#fetchGlobal[fetch] = found.global ? 1 : 0;
      (found.global ? this.#global : this.#local).fetches.add(fetch);
      return host + inside;
    }
    const write = access === Access.WRITE;
    const entry = this.#entry(low, user, write);
    const { u32, i32 } = cpu.arena.views;
    if (u32[entry / 4 + 1] === top) {
      const known = (i32[(entry + 8) / 4]! + low) >>> 0;
      if (u32[entry / 4] === page) return known;
      if (u32[entry / 4] === page + MIXED && cpu.code.clear(known) >= size) return known;
    }
    const found = this.#walk(low, high, access, user, rights, stack);
    if (found === undefined) return GUEST_FAULT;
    const host = this.#stage(low, high, access, user, rights, found);
    if (host < 0) return host;
    if (write) this.#writes(host + inside, size);
    const code = write ? cpu.code.pageOf(host) : undefined;
    const map = code?.map;
    if (code !== undefined && map === undefined) return host + inside;
    // RFLAGS.AC and who asks decide about each access of the supervisor's to a page of the user's (SDM volume 3, 4.6.1).
    if (found.user && !user && (cpu.cr4 & CR4.SMAP) !== 0) return host + inside;
    const filled = found.global ? this.#global : this.#local;
    if (filled.entries.length >= FILLED) this.flush();
    filled.entries.push(entry);
    filled.physical.push(found.physical);
    if (write) {
      const writers = filled.writers.get(host);
      if (writers === undefined) filled.writers.set(host, [entry]);
      else writers.push(entry);
    }
    u32[entry / 4] = code === undefined ? page : page + MIXED;
    u32[entry / 4 + 1] = top;
    i32[(entry + 8) / 4] = (host - page) | 0;
    if (map !== undefined) i32[(entry + 12) / 4] = (map - page) | 0;
    return host + inside;
  }

  #walk(
    low: number,
    high: number,
    access: Access,
    user: boolean,
    rights: Rights,
    stack: boolean,
  ): Translation | undefined {
    const known = this.#known(low, high, access, user, rights);
    if (known !== undefined) return known;
    this.checkCanonical(high, stack);
    return walk(this.#cpu, low, high, access, user, rights === 'system', this.#structures);
  }
  /** The walk that was refused last, if it was this. */
  #known(low: number, high: number, access: Access, user: boolean, rights: Rights): Translation | undefined {
    const refused = this.#refused;
    if (refused === undefined) return undefined;
    this.#refused = undefined;
    const is =
      refused.low === (low & -PAGE) &&
      refused.high === high &&
      refused.how === this.#how(access, user, rights);
    return is ? refused.found : undefined;
  }
  /** What a walk's outcome depends on beside the address and what flush() is called for. */
  #how(access: Access, user: boolean, rights: Rights): number {
    const checked = this.#cpu.state.u32(State.eflags) & Flag.AC;
    return checked | (access << 2) | (user ? 2 : 0) | (rights === 'system' ? 1 : 0);
  }

  #stage(
    low: number,
    high: number,
    access: Access,
    user: boolean,
    rights: Rights,
    found: Translation,
  ): number {
    const host = this.#cpu.stage.page(found.physical, access, found.wants);
    if (host === MMIO) this.physical = found.physical + (low & (PAGE - 1));
    if (host < 0) this.#refused = { low: low & -PAGE, high, how: this.#how(access, user, rights), found };
    return host;
  }

  /** Code that is written to is stale, and whoever executes it must look again before the next instruction. */
  #writes(host: number, size: number): void {
    const { code, io, current } = this.#cpu;
    const page = code.pageOf(host);
    if (page === undefined || page.clear(host - page.host) >= size) return;
    // Deliveries of events write outside of any instruction.
    if (io.mode === undefined && current !== undefined) io.demand('alone');
    code.invalidate(host);
  }

  /** What KVM emulates uses the shared copy, whatever the attributes say (virt/kvm/kvm_main.c, kvm_read_guest_page). */
  #emulated(
    low: number,
    high: number,
    size: number,
    access: Access,
    rights: Rights,
    stack: boolean,
    reads: boolean,
  ): number {
    const cpu = this.#cpu;
    const inside = low & (PAGE - 1);
    this.checkCanonical(high, stack);
    const user = rights === 'cpl' && cpu.user;
    const found =
      this.#known(low, high, access, user, rights) ?? walk(cpu, low, high, access, user, rights === 'system');
    if (found === undefined) return GUEST_FAULT;
    const host = cpu.stage.sharedPage(found.physical, reads ? Access.READ : access);
    if (host === MMIO) {
      this.physical = found.physical + inside;
      return MMIO;
    }
    if (access === Access.WRITE) this.#writes(host + inside, size);
    return host + inside;
  }

  /** Bits 63 to 47 are alike (SDM volume 1, 3.3.7.1). */
  checkCanonical(high: number, stack: boolean): void {
    if (ia32e(this.#cpu) && (high << 16) >> 16 !== (high | 0)) raise(stack ? Vector.SS : Vector.GP, 0);
  }
}

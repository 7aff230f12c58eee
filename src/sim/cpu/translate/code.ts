/**
 * Translated code, by where it lies in the arena and by what it depends on beside its bytes. Blocks start as records
 * (cold.ts); those that run often become WebAssembly together with the blocks that they lead to (wasm.ts).
 */

import { PAGE } from '../../arena.ts';
import { segmentLinear } from '../address/addressing.ts';
import { notEmulated, raise, Vector } from '../processor/fault.ts';
import { LONGEST } from '../processor/insn.ts';
import type { Mode } from '../processor/modes.ts';
import type { Processor } from '../processor/processor.ts';
import type { TranslatedCode } from '../processor/services.ts';
import { Access, MMIO } from '../processor/stage.ts';
import { State } from '../processor/state.ts';
import type { Unit } from '../processor/unit.ts';
import { Builder } from './builder.ts';
import { ClosureUnit } from './closures.ts';
import { CodePage as PageOf } from './code-page.ts';
import { BLOCK, Cold } from './cold.ts';
import type { Decoder } from './decode.ts';
import { type CodePage, Entry, keyOf, type MadeUnit } from './entry.ts';
import { Generations, NEVER } from './generations.ts';
import type { Block, End } from './ir.ts';
import type { Lower } from './lowering.ts';
import { ENTRIES, revoke, slotOf } from './targets.ts';
import { Units } from './units.ts';
import { WasmUnit } from './wasm.ts';

/**
 * How often a block runs before it is worth what a module costs: some tens of microseconds an instruction, which records
 * take nanoseconds for, and closures a microsecond.
 */
const Hot = { records: 2048, closures: 40 } as const;
/** Blocks at most, half a KiB each of records and as much beside them. */
const BLOCKS = 100_000;
/** Places for what was found, at first; and for single instructions. */
const PLACES = 4096;
/** What Decoder.emulators is about, by iced-x86's names. */
const DIFFERENT: ReadonlySet<string> = new Set(['call', 'jmp', 'ret', 'lss', 'lfs', 'lgs', 'lzcnt', 'tzcnt']);

const LOW = 0xffff_ffffn;
/** Thrown where more bytes are needed. */
const short = new RangeError('the bytes end in the middle of an instruction');

/** Where in a list a RIP is, by its lower half. */
const placeOf = (low: number, { length }: readonly unknown[]): number => slotOf(low) & (length - 1);

/** One executor alone (of WebAssembly from the first time on), or what is worth it: for tests that compare them. */
export type Tier = 'closures' | 'templates' | 'wasm' | 'both';

export class Code implements TranslatedCode {
  readonly #cpu: Processor;
  readonly #decoder: Decoder;
  readonly #lower: Lower;
  readonly #pages = new Map<number, CodePage>();
  /** What was found last by RIP: blocks, and single instructions. */
  #jumps: (Entry | undefined)[] = new Array(PLACES);
  readonly #singles: (Entry | undefined)[] = new Array(PLACES);
  readonly #generations: Generations;
  /** Linear pages that code was fetched from since all was forgotten, by the lower 32 bits. */
  readonly #fetched = new Set<number>();
  /** To be forgotten, when what executes has come to its end. */
  #forgets = false;
  /** How many blocks there may be at most by now: those that went with their page are counted too. */
  #blocks = 0;
  #run = 0;
  /** What the host had written when this run began. */
  #hostWrites = -1;
  #tier: Tier = 'both';
  get tier(): Tier {
    return this.#tier;
  }
  set tier(tier: Tier) {
    this.#tier = tier;
    if (tier === 'templates' && this.#cold !== undefined) this.#cold.batch = 1;
  }
  /** Blocks that were translated since somebody last set it to 0. */
  made = 0;
  readonly #units: Units;
  readonly #cold: Cold | undefined;

  /** @param lower makes micro-ops of an instruction */
  constructor(cpu: Processor, decoder: Decoder, lower: Lower) {
    this.#cpu = cpu;
    this.#decoder = decoder;
    this.#lower = lower;
    this.#generations = new Generations(cpu);
    this.#cold = Cold.create(cpu, decoder, lower, segmentLinear, Hot.records);
    this.#units = new Units(cpu, this.#cold?.interpreter, {
      near: (rip, from) => this.#near(rip, from),
      isCurrent: ({ epoch }) => this.#generations.holds(epoch),
    });
  }

  /** Linear addresses may mean other pages now. */
  flush(): void {
    this.#advance();
  }
  flushLocal(): void {
    this.#generations.advanceLocal();
  }
  flushPage(low: number): void {
    if (this.#fetched.has(low >>> 12)) this.#advance();
  }
  /** What was found by RIP does not hold any more, in no executor. */
  #advance(): void {
    this.#fetched.clear();
    this.#generations.advance();
  }
  settle(): void {
    this.#generations.settle();
  }
  /**
   * A run begins. Where somebody may have written to guest memory since the last, pages are compared once before they are
   * executed.
   * @param unseen nothing is known of what was written
   */
  begin(unseen = true): void {
    const { host } = this.#cpu.arena;
    if (!unseen && !host.isUnseen && host.writes === this.#hostWrites) return;
    this.#hostWrites = host.writes;
    this.#run++;
    this.#advance();
  }
  /** The page's record, if there is code in it. */
  pageOf(host: number): CodePage | undefined {
    return this.#pages.size === 0 ? undefined : this.#pages.get(host - (host % PAGE));
  }
  /** How many bytes from a place on, of one page, are no code's. */
  clear(host: number): number {
    const inside = host % PAGE;
    return this.pageOf(host)?.clear(inside) ?? PAGE - inside;
  }
  invalidate(host: number): void {
    const page = this.pageOf(host);
    if (page !== undefined) this.#drop(page);
  }
  /** A page's code is not what memory has any more: nothing that was made of it is executed again. */
  #drop(page: CodePage): void {
    const { state, memory } = this.#cpu;
    this.#pages.delete(page.host);
    page.drop();
    memory.flushWrites(page.host); // they know its map
    for (const entry of page.made) {
      entry.epoch = NEVER;
      if (entry.cold !== undefined) revoke(state, entry.low, entry.cold);
    }
    for (const unit of page.units) this.#units.discard(unit);
  }

  /** What to execute at RIP. @throws GuestFault, SecondStageFault from the fetch */
  find(): Entry {
    return this.#found(this.#cpu.mode, this.#jumps);
  }
  #found(mode: Mode, jumps: (Entry | undefined)[]): Entry {
    if (this.#forgets) this.forget();
    const { state, arena } = this.#cpu;
    const { u32 } = arena.views;
    const low = u32[(state.base + State.rip) / 4]!;
    const high = u32[(state.base + State.rip) / 4 + 1]!;
    const slot = placeOf(low, jumps);
    const known = jumps[slot];
    if (
      known !== undefined &&
      known.low === low &&
      known.high === high &&
      known.mode === mode.key &&
      (this.#generations.holds(known.epoch) || this.#isStill(known))
    )
      return known;
    const entry = this.#look(mode, state.rip);
    jumps[slot] = entry;
    return entry;
  }

  /** The instruction at RIP by itself. */
  findSingle(): Entry {
    return this.#found(this.#cpu.alone, this.#singles);
  }

  /** The same as KVM's emulator decodes it: where that may differ it is translated anew, for it is rare. */
  findEmulated(): Entry {
    const { alone, state } = this.#cpu;
    const entry = this.findSingle();
    if (!DIFFERENT.has(entry.block.insns[0]!.mnemonic)) return entry;
    return this.#translate(alone, state.rip, entry.pages[0]!, this.#decoder.emulators);
  }

  /** The bytes of an entry's instructions. */
  bytesOf({ block, pages: [first, second] }: Entry): Uint8Array {
    const start = Number(this.#cpu.linearOf(block.rip) & BigInt(PAGE - 1));
    const length = block.insns.reduce((sum, insn) => sum + insn.length, 0);
    const bytes = new Uint8Array(length);
    bytes.set(first!.bytes(start, Math.min(start + length, PAGE)));
    const rest = start + length - PAGE;
    if (rest > 0) bytes.set(second!.bytes(0, rest), length - rest);
    return bytes;
  }

  /** What KVM's emulator has fetched for an entry's first instruction: no second page if that does not reach it. */
  fetchedOf({ block, pages: [first, second] }: Entry): Uint8Array {
    const { u8 } = this.#cpu.arena.views;
    const start = Number(this.#cpu.linearOf(block.rip) & BigInt(PAGE - 1));
    const end = Math.min(start + LONGEST, PAGE);
    const bytes = u8.slice(first!.host + start, first!.host + end);
    if (second === undefined) return bytes;
    const rest = u8.slice(second.host, second.host + LONGEST - bytes.length);
    return Uint8Array.of(...bytes, ...rest);
  }

  #look(mode: Mode, rip: bigint): Entry {
    // Now, when nothing of it is executing.
    if (this.#blocks >= BLOCKS || this.#units.isFull || this.#cold?.interpreter.isFull) this.forget();
    if (this.#blocks > this.#jumps.length / 2 && this.#jumps.length < ENTRIES)
      this.#jumps = new Array(ENTRIES);
    if (Number(rip) > mode.codeLimit) raise(Vector.GP, 0);
    const first = this.#pageAt(rip);
    const current = this.#generations.current;
    const key = keyOf(rip, mode.key);
    let entry = first.entries.get(key);
    if (entry === undefined || entry.rip !== rip || !this.#holds(entry, rip)) {
      entry = this.#translate(mode, rip, first);
      first.entries.set(key, entry);
      for (const page of entry.pages) page.made.push(entry);
    }
    entry.epoch = entry.pages.length > 1 ? this.#generations.local : current;
    return entry;
  }

  /** Whether an entry that holds no more does so again, with nothing but its epoch: RIP leads to its page, which is as it was. */
  #isStill(entry: Entry): boolean {
    const { pages, low, high } = entry;
    const first = pages[0]!;
    if (pages.length > 1 || first.stale || this.#fetch(low, high) !== first.host) return false;
    const current = this.#generations.current;
    if (first.checked !== this.#run && this.#page(first.host) !== first) return false;
    entry.epoch = current;
    return true;
  }

  /** The arena's page that RIP lies in. */
  #fetch(low: number, high: number): number {
    const { memory, mode } = this.#cpu;
    const linear = mode.bits === 64 ? low : (low + mode.codeBase) >>> 0;
    this.#fetched.add(linear >>> 12);
    const host = memory.hostAt(linear, mode.bits === 64 ? high : 0, 1, Access.FETCH);
    if (host === MMIO) {
      // KVM would emulate the access, and has nothing to decode.
      const { io } = this.#cpu;
      io.gpa = memory.physical;
      io.access = Access.FETCH;
      throw notEmulated;
    }
    return host - (host % PAGE);
  }

  /** Whether what was translated is what is there now: an instruction in two pages may have got another second one. */
  #holds({ pages }: Entry, rip: bigint): boolean {
    const [first, second] = pages;
    if (first!.stale) return false;
    return second === undefined || (!second.stale && this.#pageAt(rip + BigInt(LONGEST)) === second);
  }

  #pageAt(rip: bigint): CodePage {
    return this.#page(this.#fetch(Number(rip & LOW), Number(BigInt.asUintN(64, rip) >> 32n)));
  }
  /** The page's record, with the bytes that are there now. */
  #page(host: number): CodePage {
    let page = this.#pages.get(host);
    if (page !== undefined && page.checked !== this.#run) {
      if (page.holds()) page.checked = this.#run;
      else {
        this.#drop(page);
        page = undefined;
      }
    }
    if (page === undefined) {
      page = new PageOf(this.#cpu.arena, host, this.#run);
      this.#pages.set(host, page);
      // Writes to it must be seen from now on.
      this.#cpu.memory.flushWrites(host);
    }
    return page;
  }

  /** Bytes of a page as they are now. */
  #read({ host }: CodePage, start: number, end: number): Uint8Array {
    return this.#cpu.arena.views.u8.slice(host + start, host + end);
  }

  #translate(mode: Mode, rip: bigint, first: CodePage, decoder = this.#decoder): Entry {
    this.made++;
    this.#blocks++;
    const offset = Number(this.#cpu.linearOf(rip) & BigInt(PAGE - 1));
    // Nothing is fetched beyond the segment's limit, and from the next page only what an instruction needs of it.
    const most = Math.min(BLOCK * LONGEST, mode.codeLimit - Number(rip) + 1);
    const templates = this.tier === 'both' || this.tier === 'templates';
    const cold = this.#cold;
    if (templates && cold !== undefined && !mode.single && !this.#cpu.alignment) {
      const found = cold.decode(mode, rip, first.host + offset, Math.min(most, PAGE - offset));
      if (found !== undefined) {
        const { block, length } = found;
        first.cover(offset, this.#read(first, offset, offset + length));
        // Its bytes are kept: what they are is asked for when memory may have others.
        const make = () => this.#build(mode, rip, first.bytes(offset, offset + length), decoder, BLOCK);
        return new Entry(rip, mode, [first], cold.interpreter, block, make);
      }
    }
    const pages = [first];
    const rest = PAGE - offset;
    let bytes = this.#read(first, offset, Math.min(offset + most, PAGE));
    let block: Block;
    try {
      block = this.#build(mode, rip, bytes, decoder, BLOCK);
    } catch (thrown) {
      if (thrown !== short) throw thrown;
      if (rest >= Math.min(LONGEST, most)) raise(Vector.GP, 0); // longer than LONGEST, or than the segment
      const second = this.#pageAt(rip + BigInt(rest));
      pages.push(second);
      const whole = new Uint8Array(Math.min(LONGEST, most));
      whole.set(bytes);
      whole.set(this.#read(second, 0, whole.length - rest), rest);
      bytes = whole;
      try {
        block = this.#build(mode, rip, bytes, decoder, 1);
      } catch (again) {
        if (again === short) raise(Vector.GP, 0);
        throw again;
      }
    }
    const length = block.insns.reduce((sum, insn) => sum + insn.length, 0);
    first.cover(offset, bytes.subarray(0, Math.min(length, rest)));
    pages[1]?.cover(0, bytes.subarray(rest, length));
    return new Entry(rip, mode, pages, new ClosureUnit(this.#cpu, block), 0, block);
  }

  /** The block that the bytes begin with. @throws short, GuestFault of what is no instruction */
  #build(mode: Mode, rip: bigint, bytes: Uint8Array, decoder: Decoder, most: number): Block {
    const builder = new Builder(mode, segmentLinear);
    const outcome = decoder.decode(bytes, mode.bits, rip, (insn) => {
      builder.begin(insn);
      this.#lower(builder, insn);
      return builder.end === undefined && builder.insns.length < (mode.single ? 1 : most);
    });
    if (outcome === 'short') throw short;
    if (outcome === 'invalid') raise(Vector.UD);
    const end: End = builder.end ?? { kind: 'goto', target: builder.insns.at(-1)!.next };
    return { rip, insns: builder.insns, nodes: builder.finish(end), end };
  }

  /** Executes what find() gave; false is as in Unit.run(). */
  execute(entry: Entry): boolean {
    const cpu = this.#cpu;
    const unit = this.#unitOf(entry);
    const interpreter = this.#cold?.interpreter;
    if (interpreter !== undefined && entry.cold !== undefined) {
      // From there on it goes on by itself.
      cpu.current = interpreter;
      this.settle();
      interpreter.remember(entry.low, entry.high, entry.cold, entry.epoch === this.#generations.global);
      if (!interpreter.run(entry.cold)) return false;
    } else {
      cpu.current = unit;
      if (!unit.run(entry.index)) return false;
    }
    cpu.current = undefined;
    return true;
  }
  /** What executes it by now: what is hot becomes a unit, and one whose pages have moved is none any more. */
  #unitOf(entry: Entry): Unit {
    const { unit, cold } = entry;
    if (unit instanceof WasmUnit) {
      const made = unit as MadeUnit;
      if (made.epoch !== entry.epoch) this.#confirm(entry, made);
      return entry.unit;
    }
    if (cold !== undefined) {
      const heat = this.#cold!.interpreter.heatOf(cold);
      return this.tier === 'both' && heat !== 0 && heat % Hot.records === 0 ? this.#heat(entry) : unit;
    }
    const often = this.tier === 'wasm' ? 1 : this.tier === 'both' ? Hot.closures : Number.POSITIVE_INFINITY;
    return ++entry.heat >= often ? this.#heat(entry) : unit;
  }

  /** Makes a unit of a hot block and those that it leads to. */
  #heat(entry: Entry): Unit {
    if (!this.#units.isFull) return this.#units.heat(entry);
    this.#advance(); // #look() makes room
    return entry.unit;
  }
  /** A block that another leads to, if it was executed in this run or lies in the same page. */
  #near(rip: bigint, from: Entry): Entry | undefined {
    const known = this.#jumps[placeOf(Number(rip & LOW), this.#jumps)];
    const entry =
      known?.rip === rip && known.epoch === from.epoch && known.mode === from.mode
        ? known
        : rip >> 12n === from.rip >> 12n
          ? from.pages[0]!.entries.get(keyOf(rip, from.mode))
          : undefined;
    return entry?.rip === rip ? entry : undefined;
  }

  /** Whether all that a unit was made of is still where it was; if not, its blocks start anew. */
  #confirm(entry: Entry, unit: MadeUnit): void {
    let current = entry.epoch;
    let holds = true;
    try {
      for (const [{ low, high }, page] of unit.places) {
        holds &&= !page.stale && this.#page(this.#fetch(low, high)) === page;
        if (!this.#cpu.memory.global) current = this.#generations.local;
      }
    } catch {
      holds = false; // it faults if it is executed
    }
    // One that is left for a page that is not global holds for no longer than that.
    if (holds) unit.epoch = entry.epoch = current;
    else this.#units.discard(unit);
  }
  /** Everything starts anew: the cache is full, or modes have new numbers. Where something executes, before the next does. */
  forget(): void {
    this.#forgets = this.#cpu.current !== undefined;
    if (this.#forgets) return;
    for (const page of this.#pages.values()) page.drop();
    this.#pages.clear();
    this.#cpu.memory.flushWrites();
    this.#units.forget();
    this.#blocks = 0;
    this.#cold?.forget();
    this.#advance();
  }
}

/** A processor as its instructions see it: what it holds, the mode that follows, its memory and its I/O. */
import type { Observer } from '../../../hypervisor/backend.ts';
import type { Arena } from '../../arena.ts';
import { Contexts, type Delivery } from './contexts.ts';
import { Seg, type Segment } from './descriptors.ts';
import { lowHalf } from './halves.ts';
import { IoLog } from './io.ts';
import { CR0, cpl } from './mode.ts';
import { type Mode, Modes } from './modes.ts';
import { Registers } from './registers.ts';
import type { LinearMemory, TranslatedCode } from './services.ts';
import type { GuestChoice, MsrPolicy, SecondStage, Stop } from './stage.ts';
import { Flag, State } from './state.ts';
import type { Unit } from './unit.ts';

export interface ProcessorOptions {
  readonly vendor: 'intel' | 'amd';
  readonly choice?: GuestChoice | undefined;
  readonly msrPolicy?: MsrPolicy | undefined;
  /** RDRAND's and RDSEED's numbers, of 32 bits; else they are the host's. */
  readonly random?: (() => number) | undefined;
  /** What it is without, by the names of its claims (system/claims.ts), of all that there is. */
  readonly absent?: ReadonlySet<string> | undefined;
}

/** The host's randomness, some at a time. */
const drawn = new Uint32Array(1024);
let left = 0;
function hostsRandom(): number {
  if (left === 0) left = crypto.getRandomValues(drawn).length;
  const number = drawn[--left]!;
  drawn[left] = 0;
  return number;
}

const EVERY_MSR: MsrPolicy = { exits: 0, allows: () => true };

export abstract class Processor extends Registers {
  readonly stage: SecondStage;
  readonly vendor: 'intel' | 'amd';
  readonly choice: GuestChoice | undefined;
  readonly msrPolicy: MsrPolicy;
  readonly random: () => number;
  readonly absent: ReadonlySet<string>;
  abstract readonly memory: LinearMemory;
  abstract readonly code: TranslatedCode;
  readonly io = new IoLog();
  mode!: Mode;
  /** The same, with one instruction at a time. */
  alone!: Mode;
  /** The unit that is executing, or was last. */
  current: Unit | undefined;
  /** A load or store of translated code met a fault of the guest's, which is in guestFault. */
  faulted = false;
  /** A helper's way to stop: taken when its instruction is done. */
  stop: Stop | undefined;
  /** iced-x86's names of what the guest executed and this processor lacks. */
  readonly unimplemented = new Set<string>();
  readonly #modes = new Modes();
  readonly #forget = () => {
    this.code.forget();
    this.#forgetContexts();
  };
  readonly #contexts = new Contexts();
  /** Events that were delivered, by vector. */
  readonly deliveries: (Delivery | undefined)[] = [];
  /** The number of what segments and mode are here, as State.context has it until translated code changes that. */
  #context = 0;
  #observer: Observer | undefined;

  constructor(
    arena: Arena,
    stage: SecondStage,
    { vendor, choice, msrPolicy, random, absent }: ProcessorOptions,
  ) {
    super(arena);
    this.stage = stage;
    this.vendor = vendor;
    this.choice = choice;
    this.msrPolicy = msrPolicy ?? EVERY_MSR;
    this.random = random ?? hostsRandom;
    this.absent = absent ?? new Set();
  }

  /** Tells what the guest does. Nothing that the guest could see changes by it. */
  observe(observer: Observer | undefined): void {
    this.#observer = observer;
    this.changed();
  }
  get observer(): Observer | undefined {
    return this.#observer;
  }
  /** The guest wants what there is not. */
  lacks(what: string): void {
    this.unimplemented.add(what);
    this.#observer?.lacking?.(what);
  }

  /** Instructions that were completed: what the time-stamp counter counts. */
  get completed(): bigint {
    const { current, state } = this;
    return state.count - BigInt(current === undefined ? 0 : current.where(state.u32(State.at)).rest);
  }
  get user(): boolean {
    return this.mode.user;
  }
  /** The linear address of a RIP. */
  linearOf(rip: bigint): bigint {
    if (this.mode.bits === 64) return rip;
    return BigInt.asUintN(32, rip + BigInt(this.mode.codeBase));
  }

  /** To be called after control registers, segments or MSRs were changed from outside, or by an instruction. */
  changed(): void {
    const { segments, state, cr0 } = this;
    for (let i = 0; i < segments.length; i++) this.mirrorSegment(i);
    const eflags = state.u32(State.eflags);
    const user = cpl(this) === 3;
    const watched =
      (eflags & Flag.TF) !== 0 ||
      this.shadow !== undefined ||
      this.debug.held !== 0n ||
      this.debugging.singleStep ||
      this.debugging.hardware !== undefined ||
      (this.dr[7]! & 0xffn) !== 0n;
    const single = watched || this.#observer?.instruction !== undefined;
    if (!single && (eflags & Flag.RF) !== 0) state.resume();
    this.watched = watched;
    this.alignment = user && (cr0 & CR0.AM) !== 0 && (eflags & Flag.AC) !== 0;
    const modes = this.#modes.find(this, single, this.#forget);
    if (modes === undefined || modes[0] === this.mode) return;
    [this.mode, this.alone] = modes;
    this.#setContext(0);
  }

  #forgetContexts(): void {
    this.#contexts.forget();
    this.deliveries.length = 0;
    this.state.forgetTransitions();
  }
  #setContext(number: number): void {
    this.#context = number;
    this.state.setU32(State.context, number);
  }
  /** To be called first of all where translated code calls JS: it may have gone to another privilege level by itself. */
  sync(): void {
    const number = this.state.u32(State.context);
    if (number === this.#context) return;
    const { cs, ss, mode, alone, what } = this.#contexts.at(number);
    this.#context = number;
    this.adopt(Seg.CS, cs);
    this.adopt(Seg.SS, ss);
    this.mode = mode;
    this.alone = alone;
    this.alignment = false;
    this.watched = false;
    this.#modes.resume(what);
  }
  /** The context's number, if it has one. */
  get context(): number {
    return this.#context;
  }
  /** Goes to one that has a number: as sync(), for JS. */
  enterContext(number: number): void {
    const { cs, ss } = this.#contexts.at(number);
    this.state.setSegment(Seg.CS, cs.base, cs.selector);
    this.state.setSegment(Seg.SS, ss.base, ss.selector);
    this.state.setU32(State.context, number);
    this.sync();
  }
  /** The context's number, which it gets now if need be; 0 where translated code shall not go from it, or to it. */
  numberContext(): number {
    const { mode, alone, segments } = this;
    const [cs, ss] = [segments[Seg.CS]!, segments[Seg.SS]!];
    if (mode.bits !== 64 || mode.single || this.alignment || cs.base !== 0n || ss.base !== 0n) return 0;
    if (this.#context !== 0) return this.#context;
    const number = this.#contexts.numberOf({ cs, ss, mode, alone, what: this.#modes.last });
    if (number === undefined) {
      this.#forgetContexts();
      return 0;
    }
    const known = this.#contexts.at(number);
    this.adopt(Seg.CS, known.cs);
    this.adopt(Seg.SS, known.ss);
    this.#setContext(number);
    return number;
  }
  protected override replaced(index: number, before: Segment | undefined): void {
    const after = this.segments[index]!;
    if (index === Seg.CS || index === Seg.SS) this.#setContext(0);
    // A way to another level was one that left these as they were.
    else if (before?.selector !== after.selector || before.dpl !== after.dpl || before.type !== after.type)
      this.state.forgetTransitions();
  }
  /**
   * changed() within translated code, by the instruction that ends a block: the next block is one of the mode that this is now, or
   * is left to who executes where something else comes first.
   */
  settle(): void {
    this.changed();
    this.numberContext();
    this.code.settle();
    if (this.mode.single || this.isAwaited) this.state.setLimit(0); // no block begins
  }
  /** Somebody is to come before the next instruction, or as soon as interrupts can be taken. */
  get isAwaited(): boolean {
    return this.stop !== undefined || this.halted || this.windowRequested || this.nmiPending > 0;
  }
  /** Linear addresses mean something else now: CR0, CR4 or EFER have changed. */
  flushTlb(): void {
    this.memory.flush();
    this.code.flush();
  }
  /** So do all but those of global pages: CR3 has changed. */
  flushTlbLocal(): void {
    this.memory.flushLocal();
    this.code.flushLocal();
  }
  /** WRPKRU and what restores the register: translations for data may have become wrong. */
  setPkru(value: number): void {
    if (value === this.pkru) return;
    this.pkru = value;
    this.memory.flush();
  }
  flushTlbPage(linear: bigint): void {
    const low = lowHalf(linear);
    this.memory.flushPage(low);
    this.code.flushPage(low);
  }
  /** The second stage has zapped the mappings of guest-physical [start, end). */
  flushSecondStage(start: number, end: number): void {
    if (this.memory.flushPhysical(start, end)) this.code.flush();
  }
  flushWrites(): void {
    this.memory.flushWrites();
  }
}

/** An x86-64 processor: its registers outside the arena, and the loop that executes. */
import type { Observer } from '../../hypervisor/backend.ts';
import type { Arena } from '../arena.ts';
import { effectiveAddress, halves, linearAddress, lowHalf } from './address/addressing.ts';
import { Memory } from './address/memory.ts';
import { walk } from './address/paging.ts';
import { emulationFailure, emulatorGoesOn, givesUpBeforeWriting } from './emulator.ts';
import { instructions } from './instructions.ts';
import { flatSegment, Seg } from './processor/descriptors.ts';
import { Alone, GuestFault, notEmulated, SecondStageFault, Vector } from './processor/fault.ts';
import type { Insn, Memory as MemoryOperand } from './processor/insn.ts';
import { IoLog, IoStop } from './processor/io.ts';
import { CR0, protectedMode, Unmodelled } from './processor/mode.ts';
import { type Mode, Modes } from './processor/modes.ts';
import { Access, type MsrPolicy, type SecondStage, type Stop } from './processor/stage.ts';
import { CpuState, Flag, State } from './processor/state.ts';
import { type DebugEvents, DR6 } from './system/breakpoints.ts';
import { deliver, instructionBreakpoint, trapsAfter, tripleFault } from './system/events.ts';
import { BLOCK, Code, type Entry } from './translate/code.ts';
import type { Decoder } from './translate/decode.ts';
import type { Unit } from './translate/unit.ts';
import { resetFpu } from './x87/fxsave.ts';

/** A segment register with its descriptor cache (SDM volume 3, 3.4.3). */
export interface Segment {
  selector: number;
  /** Unsigned, 64 bits. */
  base: bigint;
  /** In bytes, the granularity applied: the offset of the last byte. */
  limit: number;
  /** The descriptor's type field; 3 (data, read/write, accessed) and so on. */
  type: number;
  /** Code or data (1), or system (0). */
  s: number;
  dpl: number;
  present: number;
  avl: number;
  l: number;
  db: number;
  g: number;
  /** A null selector was loaded. */
  unusable: number;
}

/** GDTR and IDTR. */
export interface Table {
  base: bigint;
  limit: number;
}

/** What KVM_GUESTDBG_* asks for. */
export interface GuestDebugging {
  singleStep: boolean;
  softwareBreakpoints: boolean;
  /** DR0-3 and DR7 of userspace's hardware breakpoints, which then take the place of the guest's. */
  hardware: { readonly addresses: readonly bigint[]; readonly dr7: bigint } | undefined;
}

/** The entries of KVM_SET_CPUID2. */
export interface CpuidEntry {
  readonly function: number;
  readonly index: number;
  readonly flags: number;
  readonly eax: number;
  readonly ebx: number;
  readonly ecx: number;
  readonly edx: number;
}

/** How the guest's page tables choose between private and shared memory, if they do. */
export interface GuestChoice {
  /** The bit of an entry's physical address. */
  readonly bit: number;
  /** SNP's C-bit: 1 is private. TDX's shared bit: 1 is shared. */
  readonly set: 'private' | 'shared';
}

/** Counts how often one was set. */
class Msrs extends Map<number, bigint> {
  changes = 0;
  override set(index: number, value: bigint): this {
    this.changes++;
    return super.set(index, value);
  }
}

/** As after INIT: 64 KiB that can be read and written. */
const segment = (overrides: Partial<Segment>): Segment =>
  flatSegment({ selector: 0, limit: 0xffff, db: 0, g: 0, ...overrides });

export class Cpu {
  readonly arena: Arena;
  readonly state: CpuState;
  readonly stage: SecondStage;
  readonly vendor: 'intel' | 'amd';
  readonly choice: GuestChoice | undefined;
  readonly msrPolicy: MsrPolicy;

  /** ES CS SS DS FS GS. A base is mirrored in the state: change it with loadSegment() or call changed(). */
  readonly segments: Segment[] = [
    segment({}),
    segment({ selector: 0xf000, base: 0xffff_0000n, type: 11 }),
    segment({}),
    segment({}),
    segment({}),
    segment({}),
  ];
  ldtr: Segment = segment({ type: 2, s: 0 });
  tr: Segment = segment({ type: 11, s: 0 });
  gdtr: Table = { base: 0n, limit: 0xffff };
  idtr: Table = { base: 0n, limit: 0xffff };
  cr0 = 0x6000_0010;
  cr2 = 0n;
  cr3 = 0n;
  cr4 = 0;
  cr8 = 0;
  efer = 0;
  xcr0 = 1n;
  /** DR0-3; 4 and 5 are unused. */
  readonly dr: bigint[] = [0n, 0n, 0n, 0n, 0n, 0n, 0xffff_0ff0n, 0x400n];
  /** Model-specific registers with nothing behind them but their value; the others are in msrs.ts. */
  readonly msrs = new Msrs();
  cpuid: readonly CpuidEntry[] = [];

  // --- events ---
  /** What is to be delivered before the next instruction: KVM_SET_VCPU_EVENTS and KVM_INTERRUPT put it here. */
  exception: { vector: number; errorCode: number | undefined; payload: bigint | undefined } | undefined;
  interrupt: { vector: number; soft: boolean } | undefined;
  nmiPending = 0;
  nmiMasked = false;
  /** The shadow of STI or of MOV SS: over with the next instruction. */
  shadow: 'sti' | 'mov-ss' | undefined;
  /** HLT was executed, and nobody was told. */
  halted = false;
  /** Somebody waits until an interrupt can be taken (kvm_run's request_interrupt_window). */
  windowRequested = false;
  /** Debug exceptions on their way. */
  readonly debug: DebugEvents = { hits: 0n, stepLost: false, held: 0n };
  debugging: GuestDebugging = { singleStep: false, softwareBreakpoints: false, hardware: undefined };

  // --- execution ---
  readonly decoder: Decoder;
  readonly memory: Memory;
  readonly code: Code;
  readonly io = new IoLog();
  mode!: Mode;
  /** The same, with one instruction at a time. */
  alone!: Mode;
  /** The unit that is executing, or was last. */
  current: Unit | undefined;
  /** A helper's way to stop: taken when its instruction is done. */
  stop: Stop | undefined;
  /** iced-x86's names of what the guest executed and this processor lacks. */
  readonly unimplemented = new Set<string>();
  /** Alignment is checked: CPL 3, CR0.AM and RFLAGS.AC. */
  alignment = false;
  /** The guest or userspace watches each instruction, and each element of a REP. */
  watched = false;
  #observer: Observer | undefined;

  constructor(
    arena: Arena,
    stage: SecondStage,
    options: {
      vendor: 'intel' | 'amd';
      decoder: Decoder;
      choice?: GuestChoice | undefined;
      msrPolicy?: MsrPolicy;
    },
  ) {
    this.arena = arena;
    this.state = new CpuState(arena);
    this.stage = stage;
    this.vendor = options.vendor;
    this.choice = options.choice;
    this.msrPolicy = options.msrPolicy ?? EVERY_MSR;
    this.decoder = options.decoder;
    this.memory = new Memory(this);
    this.code = new Code(this);
    this.reset();
  }

  /** As after INIT (SDM volume 3, table 9-1), which KVM gives a new vCPU. */
  reset(): void {
    this.state.flags = 2;
    this.state.rip = 0xfff0n;
    this.state.setGpr(2, 0x600n);
    resetFpu(this);
    this.changed();
  }

  free(): void {
    this.code.forget();
    this.state.free();
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
    return BigInt.asUintN(32, rip + this.mode.codeBase);
  }
  /** The linear address of a memory operand, with everything checked but paging. */
  address(memory: MemoryOperand, insn: Insn, size: number, write: boolean): bigint {
    return linearAddress(this, memory.segment, effectiveAddress(this, memory, insn.addressSize), size, write);
  }

  /** To be called when KVM_RUN begins: the host may have written to guest memory since it ended. */
  enter(): void {
    this.code.begin();
  }

  /**
   * Executes until something needs the kernel. It gives 'slice' when it is time to look at kicks and the deadline:
   * after about `slice` instructions, or after so much else that some milliseconds may have passed.
   * @param exactly not one instruction more: where a block would reach too far, its instructions are executed one by one
   */
  run(slice: number, exactly = false): Stop {
    const { state, code } = this;
    const begun = state.count;
    const end = begun + BigInt(slice);
    const limit = exactly && slice < BLOCK ? begun : exactly ? end - BigInt(BLOCK - 1) : end;
    state.limit = limit;
    for (let work = WORK; ; ) {
      try {
        const stop = this.#events();
        if (stop !== undefined) return stop;
        const last = state.count >= limit;
        if ((last && (!exactly || state.count >= end)) || work <= 0) return SLICE;
        work -= 1 + code.made * TRANSLATION;
        code.made = 0;
        if (this.mode.single) this.#step();
        else if (!code.execute(last ? code.findSingle() : code.find())) {
          this.#rewind();
          return FAULTED;
        }
      } catch (thrown) {
        work -= DELIVERY;
        const stop = this.#caught(thrown);
        if (stop !== undefined) return stop;
      }
    }
  }

  /**
   * Finishes the instruction that stopped for I/O or a hypercall. `data` is what was read: bytes for I/O (ignored
   * for writes), RAX for a hypercall. Gives the next stop of the same instruction, if there is one; nothing else
   * executes.
   */
  finish(data: Uint8Array | bigint): Stop | undefined {
    const { io } = this;
    if (this.#again === undefined) return io.writes.shift();
    io.answer(data);
    return this.#alone(this.#again.mode, this.#again.entry);
  }
  /** Whether an instruction is waiting for finish(). */
  get unfinished(): boolean {
    return this.#again !== undefined || this.io.writes.length > 0;
  }
  /** Forgets what is waiting: registers were set that belong to another place. */
  abandon(): void {
    this.#again = undefined;
    this.io.writes.length = 0;
    this.io.end();
  }
  /** What waits is port I/O of one element or a hypercall: not KVM's emulator's. */
  get waitsAlone(): boolean {
    return this.#again?.mode === 'alone';
  }
  /** The instruction that waits for an answer. It is not fetched again, as KVM's emulator does not. */
  #again: { readonly mode: 'alone' | 'emulated'; readonly entry: Entry } | undefined;

  /** Events that come before the next instruction, in their order (SDM volume 3, table 6-2). */
  #events(): Stop | undefined {
    if (this.stop !== undefined) {
      const { stop } = this;
      this.stop = undefined;
      return stop;
    }
    // KVM without an interrupt controller ends KVM_RUN, and looks at what is pending when it begins again.
    if (this.halted) {
      this.halted = false;
      return { kind: 'halt' };
    }
    // What is delivered stays pending until that is done: the second stage may end KVM_RUN in the middle.
    if (this.exception !== undefined) {
      const { vector, errorCode, payload } = this.exception;
      deliver(this, { kind: 'exception', vector, errorCode, address: payload });
      this.exception = undefined;
    } else if (this.interrupt !== undefined) {
      const { vector, soft } = this.interrupt;
      deliver(this, { kind: soft ? 'soft' : 'interrupt', vector });
      this.interrupt = undefined;
    } else if (this.nmiPending > 0 && !this.nmiMasked && this.shadow === undefined) {
      deliver(this, { kind: 'nmi', vector: 2 });
      this.nmiPending--;
      this.nmiMasked = true;
    } else if (this.windowRequested && this.interruptible) {
      return { kind: 'interrupt-window' };
    }
    return undefined;
  }
  get interruptible(): boolean {
    return this.shadow === undefined && (this.state.flags & Flag.IF) !== 0 && this.debug.held === 0n;
  }

  /** One instruction, with what watches instructions one by one. */
  #step(): void {
    if (instructionBreakpoint(this, this.linearOf(this.state.rip))) return;
    const { shadow } = this;
    const flags = this.state.flags;
    const entry = this.code.find();
    this.#observer?.instruction?.(entry.block.rip, this.code.bytesOf(entry), this.mode.bits);
    this.shadow = undefined;
    try {
      this.code.execute(entry);
    } catch (thrown) {
      this.shadow = shadow; // it has not happened; a delivery ends the shadow
      throw thrown;
    }
    this.#stepped(flags);
  }
  #stepped(flags: number): void {
    if (this.halted) this.#steppedHalt(flags);
    else this.stop ??= trapsAfter(this, flags);
    this.changed();
  }
  /** KVM ends HLT: userspace's step is lost by that, and the guest's comes when it goes on (kvm_emulate_halt()). */
  #steppedHalt(flags: number): void {
    this.state.flags &= ~(flags & Flag.RF);
    if ((flags & Flag.TF) === 0 || this.debugging.singleStep) return;
    this.exception = { vector: Vector.DB, errorCode: undefined, payload: DR6.BS };
  }

  /** The instruction at RIP by itself, with I/O. Gives where it stopped. */
  #alone(mode: 'alone' | 'emulated', decoded?: Entry): Stop | undefined {
    const { io, state } = this;
    const flags = state.flags;
    const { shadow } = this;
    const { single } = this.mode;
    io.begin(mode);
    let entry = decoded;
    try {
      entry ??= mode === 'emulated' ? this.code.findEmulated() : this.code.findSingle();
      if (mode === 'emulated') {
        const insn = entry.block.insns[0]!;
        if (!instructions.emulated(this, insn)) throw notEmulated;
        io.refusesWrites = givesUpBeforeWriting(insn);
      }
      this.shadow = undefined;
      this.code.execute(entry);
    } catch (thrown) {
      this.shadow = shadow;
      if (thrown instanceof Alone) {
        this.#rewind();
        return this.#alone(thrown.mode);
      }
      if (thrown instanceof IoStop) {
        this.#rewind();
        io.mode = undefined;
        this.#again = { mode, entry: entry! };
        return thrown.stop;
      }
      this.#again = undefined;
      io.end();
      if (thrown === notEmulated && entry !== undefined) {
        this.#rewind();
        return emulationFailure(this, this.code.fetchedOf(entry));
      }
      return this.#caught(thrown);
    }
    this.#again = undefined;
    io.end();
    io.settle();
    if (single) {
      try {
        this.#stepped(flags);
      } catch (thrown) {
        const stop = this.#caught(thrown);
        if (stop !== undefined) return stop;
      }
    }
    const goesOn =
      mode === 'emulated' && !single && io.writes.length === 0 && emulatorGoesOn(this, entry.block);
    return goesOn ? this.#alone('emulated', entry) : io.writes.shift();
  }

  /** Back to the instruction that did not happen. */
  #rewind(): void {
    const { state, current } = this;
    if (current === undefined) return;
    const { insn, rest } = current.where(state.u32(State.at));
    state.rip = insn.rip;
    state.count -= BigInt(rest);
    this.current = undefined;
  }

  #caught(thrown: unknown): Stop | undefined {
    this.#rewind();
    if (thrown instanceof Alone) return this.#alone(thrown.mode);
    if (thrown instanceof IoStop) return thrown.stop;
    if (thrown instanceof SecondStageFault) return FAULTED;
    if (thrown === notEmulated) return emulationFailure(this, new Uint8Array(0));
    if (thrown instanceof Unmodelled) {
      this.lacks(thrown.what);
      return { kind: 'internal-error', suberror: thrown.suberror, data: [] };
    }
    if (thrown === tripleFault) return { kind: 'shutdown' };
    if (!(thrown instanceof GuestFault)) throw thrown;
    try {
      const { vector, errorCode, address } = thrown;
      deliver(this, { kind: 'exception', vector, errorCode, address });
      return undefined;
    } catch (second) {
      if (second instanceof GuestFault) throw second;
      return this.#caught(second);
    }
  }

  /** To be called after control registers, segments or MSRs were changed from outside, or by an instruction. */
  changed(): void {
    const { segments, state, cr0 } = this;
    for (const [index, segment] of segments.entries()) state.setSegmentBase(index, segment.base);
    const { flags } = state;
    const user = protectedMode(this) && ((flags & Flag.VM) !== 0 || segments[Seg.SS]!.dpl === 3);
    this.watched =
      (flags & (Flag.TF | Flag.RF)) !== 0 ||
      this.shadow !== undefined ||
      this.debug.held !== 0n ||
      this.debugging.singleStep ||
      this.debugging.hardware !== undefined ||
      (this.dr[7]! & 0xffn) !== 0n;
    const single = this.watched || this.#observer?.instruction !== undefined;
    this.alignment = user && (cr0 & CR0.AM) !== 0 && (flags & Flag.AC) !== 0;
    const modes = this.#modes.find(this, user, single);
    if (modes !== undefined) [this.mode, this.alone] = modes;
  }
  readonly #modes = new Modes();

  /** Linear addresses mean something else now: CR3, CR0, CR4 or EFER have changed. */
  flushTlb(): void {
    this.memory.tlb.flush();
    this.code.flush();
  }
  flushTlbPage(linear: bigint): void {
    this.memory.tlb.flushPage(lowHalf(linear));
    this.code.flush();
  }
  /** The second stage has zapped the mappings of guest-physical [start, end). */
  flushSecondStage(start: number, end: number): void {
    if (this.memory.tlb.flushPhysical(start, end)) this.code.flush();
  }
  flushWrites(): void {
    this.memory.tlb.flushWrites();
  }

  /** A linear address as KVM_TRANSLATE walks it; undefined when it is not mapped. */
  translate(linear: bigint): { physical: number; writeable: boolean; user: boolean } | undefined {
    try {
      const { physical } = walk(this, ...halves(linear), Access.READ, false, true);
      return { physical: physical + Number(linear & 0xfffn), writeable: true, user: false };
    } catch (thrown) {
      if (thrown instanceof GuestFault || thrown instanceof SecondStageFault) return undefined;
      throw thrown;
    }
  }
}

const EVERY_MSR: MsrPolicy = { exits: 0, allows: () => true };

const FAULTED: Stop = { kind: 'fault' };
const SLICE: Stop = { kind: 'slice' };

/** What a slice may cost, in blocks executed as closures: 10 us at most, and what else takes as long as how many. */
const WORK = 500;
const TRANSLATION = 20;
const DELIVERY = 3;

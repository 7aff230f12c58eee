/** An x86-64 processor: its registers outside the arena, and the loop that executes. */

import type { Arena } from '../arena.ts';
import { Memory } from './address/memory.ts';
import { walked } from './address/paging.ts';
import { emulationFailure, emulatorGoesOn } from './emulator.ts';
import { instructions } from './instructions.ts';
import { finishPort } from './integer/ports.ts';
import { DR6 } from './processor/debug.ts';
import {
  Alone,
  GuestFault,
  guestFault,
  notEmulated,
  SecondStageFault,
  secondStageFault,
  Vector,
} from './processor/fault.ts';
import { halves } from './processor/halves.ts';
import { IoStop } from './processor/io.ts';
import { protectedMode, Unmodelled } from './processor/mode.ts';
import { Processor, type ProcessorOptions } from './processor/processor.ts';
import { Access, type SecondStage, type Stop } from './processor/stage.ts';
import { Flag, State } from './processor/state.ts';
import { instructionBreakpoint, trapsAfter } from './system/breakpoints.ts';
import { deliver, tripleFault } from './system/events.ts';
import { Code } from './translate/code.ts';
import { BLOCK } from './translate/cold.ts';
import type { Decoder } from './translate/decode.ts';
import type { Entry } from './translate/entry.ts';
import { resetFpu } from './x87/fxsave.ts';

export class Cpu extends Processor {
  readonly memory: Memory;
  readonly code: Code;

  constructor(
    arena: Arena,
    stage: SecondStage,
    { decoder, ...options }: ProcessorOptions & { readonly decoder: Decoder },
  ) {
    super(arena, stage, options);
    this.memory = new Memory(this);
    this.code = new Code(this, decoder, instructions.lower);
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

  /**
   * To be called when KVM_RUN begins: the host may have written to guest memory since it ended.
   * @param unseen and so may another processor, or another thread
   */
  enter(unseen = false): void {
    this.code.begin(unseen);
  }

  /**
   * Executes until something needs the kernel. It gives 'slice' when it is time to look at kicks and the deadline:
   * after about `slice` instructions, or after so much else that some milliseconds may have passed.
   * @param exactly not one instruction more: where a block would reach too far, its instructions are executed one by one
   */
  run(slice: number, exactly = false): Stop {
    const { state, code } = this;
    const begun = state.counted;
    const end = begun + slice;
    const limit = exactly && slice < BLOCK ? begun : exactly ? end - (BLOCK - 1) : end;
    // Of one that translated code has left by itself until now.
    if (this.shadow !== undefined) this.changed();
    for (let work = WORK; ; ) {
      state.setLimit(limit);
      state.setU32(State.awaited, this.isAwaited || this.nmiMasked ? Flag.IF : 0);
      try {
        const stop = this.#events();
        if (stop !== undefined) return stop;
        const { counted } = state;
        const last = counted >= limit;
        if ((last && (!exactly || counted >= end)) || work <= 0) return SLICE;
        work -= 1 + code.made * TRANSLATION;
        code.made = 0;
        if (this.mode.single) this.#step();
        else if (!code.execute(last ? code.findSingle() : code.find())) {
          work -= DELIVERY;
          const stop = this.#trapped();
          if (stop !== undefined) return stop;
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
    if (data instanceof Uint8Array && this.finishesPort(data)) return undefined;
    if (this.#again === undefined) return io.writes.shift();
    io.answer(data);
    return this.#alone(this.#again.mode, this.#again.entry);
  }
  /** As finish(), where all that is left is what a port gives: nothing changes that changed() would be for. */
  finishesPort(data: Uint8Array): boolean {
    const { port } = this.io;
    if (port === undefined) return false;
    this.io.port = undefined;
    finishPort(this, port, data);
    return true;
  }
  /** Whether an instruction is waiting for finish(). */
  get unfinished(): boolean {
    return this.#again !== undefined || this.io.port !== undefined || this.io.writes.length > 0;
  }
  /** Forgets what is waiting: registers were set that belong to another place. */
  abandon(): void {
    this.#again = undefined;
    this.io.port = undefined;
    this.io.writes.length = 0;
    this.io.end();
  }
  /** What waits is port I/O of one element or a hypercall: not KVM's emulator's. */
  get waitsAlone(): boolean {
    return this.io.port !== undefined || this.#again?.mode === 'alone';
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
    return this.shadow === undefined && (this.state.eflags & Flag.IF) !== 0 && this.debug.held === 0n;
  }

  /** One instruction, with what watches instructions one by one. */
  #step(): void {
    if (instructionBreakpoint(this, this.linearOf(this.state.rip))) return;
    const { shadow } = this;
    const flags = this.state.flags;
    const entry = this.code.find();
    this.observer?.instruction?.(entry.block.rip, this.code.bytesOf(entry), this.mode.bits);
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
    const { shadow } = this;
    const { single } = this.mode;
    const flags = single ? state.flags : 0;
    io.begin(mode);
    let entry = decoded;
    try {
      entry ??= mode === 'emulated' ? this.code.findEmulated() : this.code.findSingle();
      if (mode === 'emulated') {
        entry.emulation ??= instructions.emulation(entry.block.insns[0]!);
        const { emulation } = entry;
        if (!(protectedMode(this) ? emulation.protected : emulation.real)) throw notEmulated;
        io.refusesWrites = emulation.givesUpBeforeWriting;
      }
      this.shadow = undefined;
      if (!this.code.execute(entry)) {
        const { waiting } = io;
        io.waiting = undefined;
        if (waiting === undefined) throw this.#taken() ? guestFault : secondStageFault;
        this.shadow = shadow;
        this.#rewind();
        io.mode = undefined;
        this.#again = { mode, entry };
        return waiting;
      }
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

  /** Whether a load or store of translated code met a fault of the guest's, which is taken care of now. */
  #taken(): boolean {
    const { faulted } = this;
    this.faulted = false;
    return faulted;
  }
  /** What a load or store of translated code could not do. */
  #trapped(): Stop | undefined {
    if (this.#taken()) return this.#caught(guestFault);
    this.#rewind();
    if (!this.io.isDemanded) return FAULTED;
    this.io.isDemanded = false;
    return this.#alone('emulated');
  }

  /** Back to the instruction that did not happen. */
  #rewind(): void {
    const { state, current } = this;
    if (current === undefined) return;
    const { rip, rest } = current.where(state.u32(State.at));
    state.rip = rip;
    state.counted -= rest;
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

  /** A linear address as KVM_TRANSLATE walks it; undefined when it is not mapped. */
  translate(linear: bigint): { physical: number; writeable: boolean; user: boolean } | undefined {
    try {
      const { physical } = walked(this, ...halves(linear), Access.READ, false, true);
      return { physical: physical + Number(linear & 0xfffn), writeable: true, user: false };
    } catch (thrown) {
      if (thrown instanceof GuestFault || thrown instanceof SecondStageFault) return undefined;
      throw thrown;
    }
  }
}

const FAULTED: Stop = { kind: 'fault' };
const SLICE: Stop = { kind: 'slice' };

/** What a slice may cost, in blocks executed as closures: 10 us at most, and what else takes as long as how many. */
const WORK = 500;
const TRANSLATION = 20;
const DELIVERY = 3;

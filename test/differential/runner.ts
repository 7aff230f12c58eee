/**
 * Executes cases: a guest in which a program at privilege 3 has one instruction between bytes that end it wherever it
 * goes. An exception is caught by the guest's own IDT. The host puts the state in and takes it out, so nothing but
 * the instruction, and what the processor does about it, decides the result.
 */
import {
  Exit,
  exitName,
  type GuestMemory,
  type Hypervisor,
  type Sregs,
  type Vcpu,
  type Vm,
} from '../../src/index.ts';
import { IoDirection, viewOf } from '../../src/uapi/index.ts';
import { type Case, FILLER, REGISTERS, RFLAGS, RIP, RSP, type State, stateOf } from './case.ts';
import type { Inspected } from './forms.ts';
import { buildMachine, HANDLER_SIZE, HIDDEN_MSRS, isPaged, RAM_SIZE } from './machine.ts';
import { hasAvx, type ModeName, modeOf } from './modes.ts';
import { PAGE, Place, System, WINDOW } from './places.ts';
import { changedRegisters, segmentsOf } from './system-state.ts';

/** How many bytes of memory an instruction changed, and to what; offsets are from Place.data. */
export interface Change {
  readonly offset: number;
  readonly bytes: Uint8Array;
}

export interface Result {
  /** `completed`; `#14 error=6 address=30000`; or the exit that the case does not come back from. */
  readonly end: string;
  /** Port accesses that it made, one exit each. */
  readonly io: readonly string[];
  readonly registers: BigUint64Array;
  /** As State.fpu. */
  readonly fpu: Uint8Array;
  readonly memory: readonly Change[];
  /**
   * Selectors and bases of the segments, where the case's instruction may change them. At privilege 0: which system
   * registers and descriptors it left with another content.
   */
  readonly system: string | undefined;
}

/** What the runner must know of a case's instruction. */
type What = Pick<
  Inspected,
  'changesSegments' | 'changesMsrs' | 'changesDebugRegisters' | 'doesIo' | 'interrupt'
>;
const PLAIN: What = {
  changesSegments: false,
  changesMsrs: false,
  changesDebugRegisters: false,
  doesIo: false,
  interrupt: undefined,
};

const HLT = 0xf4;
const TF = 0x100n;
const DEADLINE_MS = 5_000;
/** More accesses to ports than any case has. */
const MAX_IO = 64;
/** Exceptions with an error code (SDM volume 3, table 6-1). */
const WITH_ERROR = new Set([8, 10, 11, 12, 13, 14, 17, 21]);

/** The area as KVM_SET_XSAVE takes it: FXSAVE's image, and a header that says that x87 and SSE are in it. */
const XSTATE_BV = 512;
const X87_AND_SSE = 3;
const X87_SSE_AND_AVX = 7n;

/** As after a reset (SDM volume 3, table 10-1). */
const DEBUG_RESET = { db: [0n, 0n, 0n, 0n], dr6: 0xffff_0ff0n, dr7: 0x400n, flags: 0 };

/** Of DR6: clear where #DB came in a transaction, and reserved, as one, where CPUID does not tell of RTM (SDM volume 3, 18.2.3). */
const DR6_RTM = 1n << 16n;

/**
 * What is not a case's, but the stack of the exceptions; and the page tables, which the processor marks, where there
 * is paging.
 */
const outside = (paging: boolean) =>
  [
    [0, System.stack - PAGE],
    [System.stack, paging ? System.tables : Place.code],
    [Place.codeEnd, Place.data],
    [Place.dataEnd, Place.reachEnd],
  ] as const;

export class Runner implements Disposable {
  readonly hv: Hypervisor;
  #vm!: Vm;
  #ram!: GuestMemory;
  #vcpu!: Vcpu;
  #view!: DataView;
  #modes!: { readonly [mode in ModeName]: Sregs };
  #xsave!: Uint8Array;
  /** Memory as it is before a case, but for its code and the window. */
  #pristine!: Uint8Array;
  readonly #filler = new Uint8Array(Place.codeEnd - Place.code).fill(FILLER);
  readonly #halting = new Uint8Array(Place.codeEnd - Place.code).fill(HLT);
  #initialMsrs: ReadonlyMap<number, bigint> = new Map();
  #mode: ModeName | undefined;
  /** By how much RIP is past the OUT that ends a case: KVM's emulator is done with it, its fast path is not. */
  readonly #past = new Map<number, bigint>();

  constructor(hv: Hypervisor) {
    this.hv = hv;
    this.#boot();
  }

  #boot(): void {
    const vm = this.hv.createVm();
    this.#vm = vm;
    this.#ram = vm.allocate(RAM_SIZE);
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: this.#ram });
    this.#view = viewOf(this.#ram.bytes);
    this.#vcpu = vm.createVcpu(0);
    this.#vcpu.setCpuid2(this.hv.getSupportedCpuid());
    this.#modes = buildMachine(this.#vcpu, this.#ram);
    this.#pristine = this.#ram.bytes.slice(0, Place.reachEnd);
    this.#xsave = this.#vcpu.getXsave();
    this.#mode = undefined;
    this.#vcpu.setDebugRegs(DEBUG_RESET);
    this.#initialMsrs = new Map(this.#vcpu.getMsrs(HIDDEN_MSRS).map(({ index, data }) => [index, data]));
  }

  #calibrate(mode: ModeName): bigint {
    const { privilege } = modeOf(mode);
    const known = this.#past.get(privilege);
    if (known !== undefined) return known;
    const nop: Case = { mode, code: Uint8Array.of(0x90), state: 1, registers: [], patches: [] };
    this.#past.set(privilege, 0n);
    const { end, registers } = this.#execute(nop, PLAIN);
    const past = registers[RIP]! - stateOf(nop).registers[RIP]! - 1n;
    if (end !== 'completed' || past > 1n)
      throw new Error(`a NOP ends with ${end} at ${registers[RIP]!.toString(16)}`);
    this.#past.set(privilege, past);
    return past;
  }

  /**
   * @param what of the instruction. Whether it may change segment registers costs two more ioctls; around one that
   *   accesses ports is HLT, which a program may not execute either
   * @returns what it did; also where the backend threw, which none should
   */
  run(given: Case, what: What): Result {
    try {
      return this.#execute(given, what);
    } catch (error) {
      this[Symbol.dispose]();
      this.#boot();
      const { registers, fpu } = stateOf(given);
      return { end: `threw ${error}`, io: [], registers, fpu, memory: [], system: undefined };
    }
  }

  #execute(given: Case, what: What): Result {
    const state = stateOf(given);
    const { privilege } = modeOf(given.mode);
    const { doesIo } = what;
    const past = this.#calibrate(given.mode);
    this.#enter(given, state, doesIo ? this.#halting : this.#filler);
    const io: string[] = [];
    for (;;) {
      const outcome = this.#vcpu.run(DEADLINE_MS);
      const registers = this.#registers();
      const rip = registers[RIP]!;
      const sregs = privilege === 0 || what.changesSegments ? this.#vcpu.getSregs() : undefined;
      const finish = (end: string) => this.#finish(given, what, state, end, io, registers, sregs);
      if (doesIo && outcome === Exit.HLT && privilege === 0) {
        registers[RIP] = rip - 1n;
        return finish('completed');
      }
      if (outcome !== Exit.IO) return this.#stopped(given, state, exitName(outcome));
      const linear = Number(rip + (privilege === 0 ? sregs!.cs.base : 0n));
      if (linear >= System.handlers && linear < System.handlers + 256 * HANDLER_SIZE) {
        const end = this.#caught(given, what, registers, sregs);
        const halted = doesIo && end === '#13 error=0' && registers[RIP] !== state.registers[RIP];
        return finish(halted ? 'completed' : end);
      }
      if (!doesIo) {
        registers[RIP] = rip - past;
        return finish('completed');
      }
      io.push(this.#answer());
      if (io.length > MAX_IO) return finish('too much I/O');
    }
  }

  /** An exit that the case does not come back from. What state the vCPU is in then is not said anywhere, as a rule. */
  #stopped(given: Case, { registers, fpu }: State, end: string): Result {
    if (end === 'INTERNAL_ERROR') {
      this.#mode = undefined;
      this.#outsideTheWindow(given);
    } else {
      this[Symbol.dispose]();
      this.#boot();
    }
    return { end, io: [], registers, fpu, memory: [], system: undefined };
  }

  #enter(given: Case, state: State, filler: Uint8Array): void {
    if (this.#mode !== given.mode) {
      this.#vcpu.setSregs(this.#modes[given.mode]);
      if (hasAvx(given.mode)) this.#vcpu.setXcrs({ nrXcrs: 1, xcrs: [{ xcr: 0, value: X87_SSE_AND_AVX }] });
      this.#mode = given.mode;
    }
    const { bytes } = this.#ram;
    bytes.set(filler, Place.code);
    bytes.set(given.code, linearOf(given, state));
    bytes.set(state.memory, Place.data);
    this.#vcpu.raw.cr8 = 0n; // KVM_RUN takes it from there
    viewOf(this.#xsave).setBigUint64(XSTATE_BV, BigInt(X87_AND_SSE), true);
    this.#xsave.set(state.fpu);
    this.#vcpu.setXsave(this.#xsave);
    this.#vcpu.setRegs(Object.fromEntries(REGISTERS.map((name, i) => [name, state.registers[i]!])));
  }

  #registers(): BigUint64Array {
    const regs = this.#vcpu.getRegs();
    return BigUint64Array.from(REGISTERS, (name) => regs[name]);
  }

  /** An access to a port that the instruction itself makes: what it was, and an answer that follows from it. */
  #answer(): string {
    const { io } = this.#vcpu;
    const { data, direction, port, size, count } = io;
    const input = direction === IoDirection.IN;
    if (input) for (let i = 0; i < data.length; i++) data[i] = (port + 37 * i) ^ 0xa5;
    return `${input ? 'in' : 'out'} ${port.toString(16)} ${count}x${size}${input ? '' : ` ${Buffer.from(data).toString('hex')}`}`;
  }

  /**
   * What delivery of the exception left on the stack becomes the result's registers, and the stack's memory is again
   * what it was: flags among it may be undefined.
   */
  #caught(given: Case, what: What, registers: BigUint64Array, sregs: Sregs | undefined): string {
    const { bits } = modeOf(given.mode);
    const { port: vector } = this.#vcpu.io;
    const size = bits / 8;
    const ss = sregs?.ss;
    const mask = ss === undefined || bits === 64 ? ~0n : ss.db === 1 ? 0xffff_ffffn : 0xffffn;
    const base = ss === undefined || bits === 64 ? 0n : ss.base;
    const top = registers[RSP]! & mask;
    const at = (index: number) => Number((base + ((top + BigInt(size * index)) & mask)) & 0xffff_ffff_ffffn);
    if (at(0) + 6 * size > RAM_SIZE) return `#${vector} with its frame at ${top.toString(16)}`;
    const word = (index: number) => wordOf(this.#view, at(index), size);

    const withError = bits !== 16 && WITH_ERROR.has(vector) && what.interrupt !== vector;
    const first = withError ? 1 : 0;
    const cs = word(first + 1) & 0xffffn;
    const outer = modeOf(given.mode).privilege === 3 || bits === 64 || (bits !== 16 && (cs & 3n) !== 0n);
    registers[RIP] = word(first);
    registers[RFLAGS] = word(first + 2) | (bits === 16 ? registers[RFLAGS]! & ~0xffffn : 0n);
    const count = first + (outer ? 5 : 3);
    const after = outer ? word(first + 3) : (registers[RSP]! & ~mask) | ((top + BigInt(size * count)) & mask);
    const error = withError ? ` error=${word(0).toString(16)}` : '';
    const address = vector === 14 ? ` address=${(sregs ?? this.#vcpu.getSregs()).cr2.toString(16)}` : '';
    if (bits !== 64) this.#takeBack(given, at, size, count);
    registers[RSP] = after;
    if (sregs !== undefined) {
      const loaded = outer ? { cs, ss: word(first + 4) & 0xffffn } : { cs };
      for (const [name, selector] of Object.entries(loaded) as ['cs' | 'ss', bigint][])
        sregs[name] = { ...this.#modes[given.mode][name], selector: Number(selector) };
    }
    return `#${vector}${error}${address}`;
  }

  #takeBack(given: Case, at: (index: number) => number, size: number, count: number): void {
    const { memory } = stateOf(given);
    for (let i = 0; i < count; i++) {
      for (let byte = at(i); byte < at(i) + size; byte++) {
        const offset = byte - Place.data;
        if (offset >= 0 && offset < WINDOW) this.#ram.bytes[byte] = memory[offset]!;
        else if (byte < Place.reachEnd) this.#ram.bytes[byte] = this.#pristine[byte]!;
      }
    }
  }

  #finish(
    given: Case,
    what: What,
    state: State,
    end: string,
    io: string[],
    registers: BigUint64Array,
    sregs: Sregs | undefined,
  ): Result {
    const { privilege } = modeOf(given.mode);
    const initial = this.#modes[given.mode];
    const { bytes } = this.#ram;
    const memory = changes(state.memory, bytes.subarray(Place.data, Place.data + WINDOW));
    let system: string | undefined;
    if (privilege === 3) system = sregs && segmentsOf(sregs);
    else {
      const hidden = [
        ...(what.changesMsrs ? this.#msrs() : []),
        ...(what.changesDebugRegisters ? this.#debugRegisters() : []),
      ];
      system = [...changedRegisters(initial, sregs!), ...hidden].join(' ');
      memory.push(...this.#outsideTheWindow(given));
    }
    // The OUT that ended it must be over before registers are set.
    this.#vcpu.complete((exit) => {
      throw new Error(`the OUT that ends a case ends with exit ${exit}`);
    });
    // What single-steps ends with a trap, and DR6 may tell of it.
    if ((registers[RFLAGS]! & TF) !== 0n) this.#vcpu.setDebugRegs(DEBUG_RESET);
    // The handler is at privilege 0, and the next case is not.
    if (end !== 'completed' || what.doesIo || system) this.#mode = undefined;
    const fpu = this.#vcpu.getXsave().slice(0, state.fpu.length);
    return { end, io, registers, fpu, memory, system };
  }

  #msrs(): string[] {
    const found = this.#vcpu.getMsrs(HIDDEN_MSRS);
    const changed = found.filter(({ index, data }) => data !== this.#initialMsrs.get(index));
    this.#vcpu.setMsrs([...this.#initialMsrs].map(([index, data]) => ({ index, data })));
    return changed.map(({ index, data }) => `msr${index.toString(16)}=${data.toString(16)}`);
  }

  #debugRegisters(): string[] {
    const { db, dr6, dr7 } = this.#vcpu.getDebugRegs();
    this.#vcpu.setDebugRegs(DEBUG_RESET);
    // The simulator has no RTM, and of a processor that has it PVM takes it from no guest.
    return [...db, dr6 | DR6_RTM, dr7].map((value, i) => `dr${i < 4 ? i : i + 2}=${value.toString(16)}`);
  }

  /** Descriptors that were marked, and what was written where no operand should be: not all modes forbid it. */
  #outsideTheWindow({ mode }: Case): Change[] {
    const { bytes } = this.#ram;
    const found: Change[] = [];
    for (const [from, to] of outside(isPaged(mode))) {
      const before = this.#pristine.subarray(from, to);
      const changed = changes(before, bytes.subarray(from, to));
      for (const { offset, bytes: after } of changed)
        found.push({ offset: from + offset - Place.data, bytes: after });
      if (changed.length > 0) bytes.set(before, from);
    }
    return found;
  }

  [Symbol.dispose](): void {
    this.#vcpu.close();
    this.#vm.close();
    this.#ram.close();
  }
}

const linearOf = ({ mode }: Case, { registers }: State): number =>
  Number(registers[RIP]! + modeOf(mode).segments.cs.base);

function wordOf(view: DataView, at: number, size: number): bigint {
  if (size === 8) return view.getBigUint64(at, true);
  return BigInt(size === 4 ? view.getUint32(at, true) : view.getUint16(at, true));
}

/** Where two stretches of memory differ; what is less than 8 bytes apart is one change. */
export function changes(before: Uint8Array, after: Uint8Array): Change[] {
  const found: Change[] = [];
  if (Buffer.compare(before, after) === 0) return found;
  for (let i = 0; i < before.length; i++) {
    if (before[i] === after[i]) continue;
    let last = i;
    for (let j = i + 1; j < before.length && j - last <= 8; j++) if (before[j] !== after[j]) last = j;
    found.push({ offset: i, bytes: after.slice(i, last + 1) });
    i = last;
  }
  return found;
}

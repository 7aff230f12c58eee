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
import { enterLongMode } from '../../src/vmm/long-mode.ts';
import {
  bitsOf,
  type Case,
  FILLER,
  Fx,
  type ModeName,
  Place,
  REGISTERS,
  RFLAGS,
  RIP,
  RSP,
  type State,
  stateOf,
  WINDOW,
} from './case.ts';
import type { Inspected } from './forms.ts';

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
  /** Selectors and bases of the segments, where the case's instruction may change them. */
  readonly segments: string | undefined;
}

const PAGE = 0x1000;
/** What the program does not see. */
const System = {
  gdt: 0x2000,
  idt: 0x3000,
  tss: 0x4000,
  handlers: 0x8000,
  stack: 0xa000,
  tables: 0x1_0000,
  pages: 0x1_4000,
} as const;
const HANDLER_SIZE = 4;
const HLT = 0xf4;
const RAM_SIZE = 0x10_0000;
const DEADLINE_MS = 5_000;
/** More accesses to ports than any case has. */
const MAX_IO = 64;

/** As Linux numbers them, for a host that lets the guest's program see its own descriptor tables. */
const Selector = { kernelCode: 0x10, user32: 0x23, userData: 0x2b, user64: 0x33, tss: 0x40 } as const;
const DESCRIPTORS: readonly (readonly [selector: number, descriptor: bigint])[] = [
  [Selector.kernelCode, 0x00af_9b00_0000_ffffn],
  [0x18, 0x00cf_9300_0000_ffffn],
  [Selector.user32, 0x00cf_fb00_0000_ffffn],
  [Selector.userData, 0x00cf_f300_0000_ffffn],
  [Selector.user64, 0x00af_fb00_0000_ffffn],
];
/** The TSS, with a map that permits every port: the program may end itself with an OUT. */
const TSS_SIZE = 0x68;
const IO_MAP_SIZE = 0x2000;
const TSS_LIMIT = TSS_SIZE + IO_MAP_SIZE;

// SDM volume 3, 4.5: present, writable, user.
const P = 1n;
const RW = 2n;
const US = 4n;
/** Which exceptions a program may raise with INT3 and INTO. */
const SOFTWARE = [3, 4];
/** Those with an error code (SDM volume 3, table 6-1). */
const WITH_ERROR = new Set([8, 10, 11, 12, 13, 14, 17, 21]);
const CR4_FSGSBASE = 1n << 16n;

const rights = (address: number): bigint => {
  if (address < Place.code - PAGE) return P | RW;
  if (address >= Place.code && address < Place.codeEnd) return P | US;
  if (address >= Place.data && address < Place.readOnly) return P | RW | US;
  if (address === Place.readOnly) return P | US;
  if (address === Place.supervisor) return P | RW;
  return 0n;
};

/** The area as KVM_SET_XSAVE takes it: FXSAVE's image, and a header that says that x87 and SSE are in it. */
const XSTATE_BV = 512;
const X87_AND_SSE = 3;

export class Runner implements Disposable {
  readonly #hv: Hypervisor;
  #vm!: Vm;
  #ram!: GuestMemory;
  #vcpu!: Vcpu;
  #view!: DataView;
  #modes!: { readonly [mode in ModeName]: Sregs };
  #xsave!: Uint8Array;
  readonly #filler = new Uint8Array(Place.codeEnd - Place.code).fill(FILLER);
  readonly #halting = new Uint8Array(Place.codeEnd - Place.code).fill(HLT);
  #mode: ModeName | undefined;
  /** By how much RIP is past the OUT that ends a case: KVM's emulator is done with it, its fast path is not. */
  #past = 0n;

  constructor(hv: Hypervisor) {
    this.#hv = hv;
    this.#boot();
    this.#calibrate();
  }

  #boot(): void {
    const vm = this.#hv.createVm();
    this.#vm = vm;
    this.#ram = vm.allocate(RAM_SIZE);
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: this.#ram });
    this.#view = viewOf(this.#ram.bytes);
    this.#vcpu = vm.createVcpu(0);
    this.#vcpu.setCpuid2(this.#hv.getSupportedCpuid());
    this.#modes = this.#buildTables();
    this.#xsave = this.#vcpu.getXsave();
    viewOf(this.#xsave).setBigUint64(XSTATE_BV, BigInt(X87_AND_SSE), true);
    this.#mode = undefined;
  }

  #buildTables(): { readonly [mode in ModeName]: Sregs } {
    const view = this.#view;
    const set = (at: number, value: bigint) => view.setBigUint64(at, value, true);
    enterLongMode(this.#vcpu, this.#ram, { tables: System.tables, identity: 2 * 2 ** 20 });
    const [pml4, pd] = [System.tables + PAGE, System.tables + 3 * PAGE];
    set(pd, BigInt(System.pages) | P | RW | US);
    for (let page = 0; page < 512; page++) {
      const access = rights(page * PAGE);
      set(System.pages + 8 * page, access === 0n ? 0n : BigInt(page * PAGE) | access);
    }
    set(pml4 + 8 * Number(Place.alias >> 39n), view.getBigUint64(pml4, true));

    for (const [selector, descriptor] of DESCRIPTORS) set(System.gdt + (selector & ~7), descriptor);
    set(System.gdt + Selector.tss, BigInt(TSS_LIMIT) | (BigInt(System.tss) << 16n) | (0x8bn << 40n));
    for (let vector = 0; vector < 256; vector++) {
      const handler = System.handlers + HANDLER_SIZE * vector;
      this.#ram.bytes.set([0xe6, vector, 0xf4], handler); // out vector, al; hlt
      const gate = System.idt + 16 * vector;
      view.setUint32(gate, (Selector.kernelCode << 16) | handler, true);
      view.setUint32(gate + 4, 0x8e00 | (SOFTWARE.includes(vector) ? 0x6000 : 0), true);
    }
    set(System.tss + 4, BigInt(System.stack));
    view.setUint16(System.tss + 0x66, TSS_SIZE, true);
    this.#ram.bytes[System.tss + TSS_LIMIT] = 0xff;

    const sregs = this.#vcpu.getSregs();
    const data = { ...sregs.ds, selector: Selector.userData, dpl: 3 };
    const tr = { ...sregs.tr, selector: Selector.tss, base: BigInt(System.tss), limit: TSS_LIMIT };
    const long3: Sregs = {
      ...sregs,
      cr4: sregs.cr4 | CR4_FSGSBASE,
      gdt: { ...sregs.gdt, base: BigInt(System.gdt), limit: Selector.tss + 15 },
      idt: { ...sregs.idt, base: BigInt(System.idt), limit: 16 * 256 - 1 },
      tr: { ...tr, type: 0b1011, present: 1, s: 0, dpl: 0, db: 0, l: 0, g: 0, unusable: 0 },
      cs: { ...sregs.cs, selector: Selector.user64, dpl: 3 },
      ss: data,
      ds: data,
      es: data,
      fs: { ...data, base: BigInt(Place.fsBase) },
      gs: { ...data, base: Place.gsBase },
    };
    const compat3: Sregs = {
      ...long3,
      cs: { ...long3.cs, selector: Selector.user32, l: 0, db: 1 },
      fs: data,
      gs: data,
    };
    return { long3, compat3 };
  }

  #calibrate(): void {
    const nop: Case = { mode: 'long3', code: Uint8Array.of(0x90), state: 1, registers: [], patches: [] };
    this.#past = 0n;
    const { end, registers } = this.#execute(nop, false, false);
    this.#past = registers[RIP]! - BigInt(Place.start + 1);
    if (end !== 'completed' || this.#past > 1n)
      throw new Error(`a NOP ends with ${end} at ${registers[RIP]!.toString(16)}`);
  }

  /**
   * @param what of the instruction. Whether it may change segment registers costs two more ioctls; around one that
   *   accesses ports is HLT, which a program may not execute either
   * @returns what it did; also where the backend threw, which none should
   */
  run(given: Case, what: Pick<Inspected, 'changesSegments' | 'doesIo'>): Result {
    try {
      return this.#execute(given, what.changesSegments, what.doesIo);
    } catch (error) {
      this[Symbol.dispose]();
      this.#boot();
      const { registers, fpu } = stateOf(given);
      return { end: `threw ${error}`, io: [], registers, fpu, memory: [], segments: undefined };
    }
  }

  #execute(given: Case, segments: boolean, doesIo: boolean): Result {
    const state = stateOf(given);
    this.#enter(given, state, doesIo ? this.#halting : this.#filler);
    const io: string[] = [];
    for (;;) {
      const outcome = this.#vcpu.run(DEADLINE_MS);
      const registers = this.#registers();
      const rip = registers[RIP]!;
      const finish = (end: string) => this.#finish(state, end, io, registers, segments, doesIo);
      if (outcome !== Exit.IO) return finish(exitName(outcome));
      const { port } = this.#vcpu.io;
      if (rip >= System.handlers && rip < System.handlers + 256 * HANDLER_SIZE) {
        const end = this.#caught(port, registers);
        const halted = doesIo && end === '#13 error=0' && registers[RIP] !== state.registers[RIP];
        return finish(halted ? 'completed' : end);
      }
      if (!doesIo) {
        registers[RIP] = rip - this.#past;
        return finish('completed');
      }
      io.push(this.#answer());
      if (io.length > MAX_IO) return finish('too much I/O');
    }
  }

  #enter(given: Case, state: State, filler: Uint8Array): void {
    if (this.#mode !== given.mode) {
      this.#vcpu.setSregs(this.#modes[given.mode]);
      this.#mode = given.mode;
    }
    const { bytes } = this.#ram;
    bytes.set(filler, Place.code);
    bytes.set(given.code, Number(state.registers[RIP]!));
    bytes.set(state.memory, Place.data);
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

  /** What delivery of the exception left on the supervisor's stack becomes the result's registers. */
  #caught(vector: number, registers: BigUint64Array): string {
    const sp = Number(registers[RSP]!);
    if (sp < System.stack - PAGE || sp >= System.stack)
      return `#${vector} with its frame at ${sp.toString(16)}`;
    const withError = WITH_ERROR.has(vector);
    const word = (index: number) => this.#view.getBigUint64(sp + 8 * (index + (withError ? 1 : 0)), true);
    registers[RIP] = word(0);
    registers[RFLAGS] = word(2);
    registers[RSP] = word(3);
    const error = withError ? ` error=${this.#view.getBigUint64(sp, true).toString(16)}` : '';
    const address = vector === 14 ? ` address=${this.#vcpu.getSregs().cr2.toString(16)}` : '';
    return `#${vector}${error}${address}`;
  }

  #finish(
    state: State,
    end: string,
    io: string[],
    registers: BigUint64Array,
    segments: boolean,
    doesIo: boolean,
  ): Result {
    const named = segments ? this.#segments() : undefined;
    // The OUT that ended it must be over before registers are set.
    this.#vcpu.complete((exit) => {
      throw new Error(`the OUT that ends a case ends with exit ${exit}`);
    });
    // The handler is at privilege 0, and the next case is not.
    if (end !== 'completed' || doesIo || segments) this.#mode = undefined;
    const fpu = this.#vcpu.getXsave().slice(0, Fx.end);
    const memory = changes(state.memory, this.#ram.bytes.subarray(Place.data, Place.data + WINDOW));
    return { end, io, registers, fpu, memory, segments: named };
  }

  /** Without CS and SS, of which an exception's handler has its own. */
  #segments(): string {
    const { ds, es, fs, gs } = this.#vcpu.getSregs();
    return Object.entries({ ds, es, fs, gs })
      .map(([name, { selector, base }]) => `${name}=${selector.toString(16)}:${base.toString(16)}`)
      .join(' ');
  }

  [Symbol.dispose](): void {
    this.#vcpu.close();
    this.#vm.close();
    this.#ram.close();
  }
}

/** Where two stretches of memory differ; what is less than 8 bytes apart is one change. */
function changes(before: Uint8Array, after: Uint8Array): Change[] {
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

/** Whether the case's mode is one in which the registers R8-R15 and the upper halves exist. */
export const isWide = (given: Case): boolean => bitsOf(given.mode) === 64;

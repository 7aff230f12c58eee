/**
 * What of a processor lies in the arena, where translated code reaches it. Everything else is fields of Processor.
 * Offsets are bytes from the start of the processor's state page.
 */
import type { Arena } from '../../arena.ts';
import { Transition, Way } from './ways.ts';

export const State = {
  /** RAX RCX RDX RBX RSP RBP RSI RDI R8-R15, 8 bytes each: the order of the encodings. */
  gpr: 0x000,
  /** The next instruction, or the one that is executing while it executes. */
  rip: 0x080,
  /** RFLAGS without the arithmetic flags, which follow from the four below. */
  eflags: 0x088,
  flagKind: 0x08c,
  flagA: 0x090,
  flagB: 0x098,
  flagResult: 0x0a0,
  /** Instructions completed, and where translated code must come back. */
  count: 0x0a8,
  limit: 0x0b0,
  /** The instruction that is executing, as its unit numbers them: set before what may fault. */
  at: 0x0b8,
  /** A load or store of translated code met a fault of the second stage. */
  trap: 0x0bc,
  /** ES CS SS DS FS GS, 8 bytes each. */
  segmentBase: 0x0c0,
  /** Their selectors, 2 bytes each. */
  selectors: 0x0f0,
  /** XMM0-15, 16 bytes each. */
  xmm: 0x100,
  /** The x87 registers R0-R7 (not ST(i)), 16 bytes each, of which the low 10 hold; MMi is the low 8 of Ri. */
  x87: 0x200,
  fcw: 0x280,
  fsw: 0x282,
  /** The tag word, two bits a register: 11 empty, else 00 (what a register holds is looked at when it is stored). */
  ftw: 0x284,
  fop: 0x286,
  fip: 0x288,
  fdp: 0x290,
  mxcsr: 0x298,
  /** Selectors of the x87's last instruction and of its last operand in memory. */
  fcs: 0x29c,
  fds: 0x29e,
  /** Where an operand in memory waits for a vector op: 16 bytes. */
  vector: 0x2a0,
  /** What YMM0-15 have above XMM0-15: 16 bytes each. */
  ymm: 0x2b0,
  /** What `count` was when RF was set: it is over with the next instruction, and nobody looks at it. */
  resumed: 0x3b0,
  /** Eight bytes that stay zero: a register that an address does without. */
  zero: 0x3c0,
  /** Of what is in `targets`, that holds which has this number; or, as long as global pages are what they were, the other one. */
  generation: 0x3c8,
  globals: 0x3d0,
  /** The unit of WebAssembly that is executing: State.at is its number then; 0 where it is a record. */
  unit: 0x3cc,
  /** IF where somebody waits until interrupts can be taken, or an NMI is being served; else 0. */
  awaited: 0x3d4,
  /** What `count` was after STI: its shadow is over by itself when another instruction was begun. */
  shadowed: 0x3d8,
  /** Which code and stack segments, and mode, these are; 0 where they have no number: see contexts.ts. */
  context: 0x3e0,
  /** Where the upper 16 of 32 bytes of an operand in memory wait for a vector op. */
  vectorHigh: 0x3f0,
  transitions: 0x400,
  /** The translation lookaside buffers: see tlb.ts. */
  tlb: 0x1000,
  /** Where execution may go on, by RIP: see targets.ts. */
  targets: 0x81000,
  size: 0x28_1000,
} as const;

/** What of it is the processor's; behind it there are caches. */
export const STATE_BYTES = 0x3c0;

/** RFLAGS (SDM volume 1, 3.4.3). */
export const Flag = {
  CF: 0x1,
  PF: 0x4,
  AF: 0x10,
  ZF: 0x40,
  SF: 0x80,
  TF: 0x100,
  IF: 0x200,
  DF: 0x400,
  OF: 0x800,
  IOPL: 0x3000,
  NT: 0x4000,
  RF: 0x1_0000,
  VM: 0x2_0000,
  AC: 0x4_0000,
  VIF: 0x8_0000,
  VIP: 0x10_0000,
  ID: 0x20_0000,
} as const;
export const ARITHMETIC = Flag.CF | Flag.PF | Flag.AF | Flag.ZF | Flag.SF | Flag.OF;

/**
 * How the arithmetic flags follow from flagA, flagB and flagResult, which are sign-extended from the operation's
 * size. SF, ZF and PF are the result's in all but EXPLICIT.
 */
export const FlagKind = {
  /** All of them are in flagA, at their places in RFLAGS. */
  EXPLICIT: 0,
  /** CF, AF and OF are in flagA, at their places in RFLAGS. */
  RESULT: 1,
  /** flagResult = flagA + flagB. */
  ADD: 2,
  /** flagResult = flagA - flagB. */
  SUB: 3,
} as const;

/** RFLAGS's arithmetic flags, from the lazy description in a state page, by halves of 32 bits. */
function arithmeticFlags({ views: { i32 } }: Arena, base: number): number {
  const kind = i32[(base + State.flagKind) / 4]!;
  const a = i32[(base + State.flagA) / 4]!;
  if (kind === FlagKind.EXPLICIT) return a & ARITHMETIC;
  const result = i32[(base + State.flagResult) / 4]!;
  const resultHigh = i32[(base + State.flagResult) / 4 + 1]!;
  const common = resultFlags(result, resultHigh);
  if (kind === FlagKind.RESULT) return common | (a & (Flag.CF | Flag.AF | Flag.OF));
  const aHigh = i32[(base + State.flagA) / 4 + 1]!;
  const b = i32[(base + State.flagB) / 4]!;
  const bHigh = i32[(base + State.flagB) / 4 + 1]!;
  const adds = kind === FlagKind.ADD;
  const carry = adds ? isBelow(result, resultHigh, a, aHigh) : isBelow(a, aHigh, b, bHigh);
  const overflow = adds
    ? (aHigh ^ resultHigh) & (bHigh ^ resultHigh)
    : (aHigh ^ bHigh) & (aHigh ^ resultHigh);
  return (
    common |
    (carry ? Flag.CF : 0) |
    (((a ^ b ^ result) & 0x10) !== 0 ? Flag.AF : 0) |
    (overflow < 0 ? Flag.OF : 0)
  );
}
/** PF, ZF and SF of a result in halves. */
export function resultFlags(low: number, high: number): number {
  const parity = (0x9669 >> ((low ^ (low >> 4)) & 15)) & 1;
  return (parity ? Flag.PF : 0) | ((low | high) === 0 ? Flag.ZF : 0) | (high < 0 ? Flag.SF : 0);
}
/** Of unsigned numbers in halves. */
const isBelow = (a: number, aHigh: number, b: number, bHigh: number): boolean =>
  aHigh === bHigh ? a >>> 0 < b >>> 0 : aHigh >>> 0 < bHigh >>> 0;

const TWO32 = 2 ** 32;

/** A processor's state page as JS sees it. Registers are unsigned; `signed` ones are as the micro-ops have them. */
export class CpuState {
  readonly arena: Arena;
  /** Where the page begins in the arena. */
  readonly base: number;
  /** RIP was assigned since this was last cleared: how a helper that ends its block says where to go on. */
  moved = false;

  constructor(arena: Arena) {
    const base = arena.allocate(State.size);
    if (base === undefined) throw new RangeError("the simulated host's 4 GiB of memory are used up");
    this.arena = arena;
    this.base = base;
  }

  free(): void {
    this.arena.free(this.base, State.targets);
    this.arena.free(this.base + State.targets, State.size - State.targets, this.written);
  }
  /** The pages of `targets` that something was written to, as offsets in it: most vCPUs execute little. */
  readonly written = new Set<number>();

  gpr(index: number): bigint {
    return this.arena.views.u64[(this.base + State.gpr) / 8 + index]!;
  }
  setGpr(index: number, value: bigint): void {
    this.arena.views.u64[(this.base + State.gpr) / 8 + index] = value;
  }
  get rip(): bigint {
    return this.arena.views.u64[(this.base + State.rip) / 8]!;
  }
  set rip(value: bigint) {
    this.moved = true;
    this.arena.views.u64[(this.base + State.rip) / 8] = value;
  }
  get count(): bigint {
    return this.arena.views.u64[(this.base + State.count) / 8]!;
  }
  set count(value: bigint) {
    this.arena.views.u64[(this.base + State.count) / 8] = value;
  }
  /** The same as numbers, for what each run does: a guest does not come to 2^53 instructions. */
  get counted(): number {
    return this.#number(State.count);
  }
  set counted(value: number) {
    this.#setNumber(State.count, value);
  }
  setLimit(value: number): void {
    this.#setNumber(State.limit, value);
  }
  #number(offset: number): number {
    const { u32 } = this.arena.views;
    const at = (this.base + offset) / 4;
    return u32[at]! + u32[at + 1]! * TWO32;
  }
  #setNumber(offset: number, value: number): void {
    const { u32 } = this.arena.views;
    const at = (this.base + offset) / 4;
    u32[at] = value;
    u32[at + 1] = Math.floor(value / TWO32);
  }
  setSegment(index: number, base: bigint, selector: number): void {
    this.arena.views.u64[(this.base + State.segmentBase) / 8 + index] = base;
    this.arena.views.u16[(this.base + State.selectors) / 2 + index] = selector;
  }

  /** RFLAGS, all of it. */
  get flags(): number {
    return this.eflags | arithmeticFlags(this.arena, this.base);
  }
  set flags(value: number) {
    const { i32 } = this.arena.views;
    this.eflags = value & ~ARITHMETIC;
    i32[(this.base + State.flagA) / 4] = value & ARITHMETIC;
    i32[(this.base + State.flagKind) / 4] = FlagKind.EXPLICIT;
  }

  /** Translated code knows no way from one context to another. */
  forgetTransitions(): void {
    for (let way = 0; way < Way.count; way++)
      this.setU32(State.transitions + way * Transition.bytes + Transition.from, 0);
  }

  /** RFLAGS without the arithmetic flags. */
  get eflags(): number {
    return this.arena.views.i32[(this.base + State.eflags) / 4]! | (this.isNow(State.resumed) ? Flag.RF : 0);
  }
  set eflags(value: number) {
    this.arena.views.i32[(this.base + State.eflags) / 4] = value;
    this.setNever(State.resumed);
  }
  /** Whether a place in the page has the count of instructions as it is now. */
  isNow(offset: number): boolean {
    const { u32 } = this.arena.views;
    const [noted, count] = [(this.base + offset) / 4, (this.base + State.count) / 4];
    return u32[noted] === u32[count] && u32[noted + 1] === u32[count + 1];
  }
  setNever(offset: number): void {
    this.arena.views.i32[(this.base + offset) / 4 + 1] = -1; // no count is as high
  }
  /** Where nothing looks at RF until the next instruction has ended it, it is kept by the count of instructions. */
  resume(): void {
    this.eflags &= ~Flag.RF;
    this.setU64(State.resumed, this.count);
  }

  u8(offset: number): number {
    return this.arena.views.u8[this.base + offset]!;
  }
  setU8(offset: number, value: number): void {
    this.arena.views.u8[this.base + offset] = value;
  }
  u16(offset: number): number {
    return this.arena.views.u16[(this.base + offset) / 2]!;
  }
  setU16(offset: number, value: number): void {
    this.arena.views.u16[(this.base + offset) / 2] = value;
  }
  u32(offset: number): number {
    return this.arena.views.u32[(this.base + offset) / 4]!;
  }
  setU32(offset: number, value: number): void {
    this.arena.views.u32[(this.base + offset) / 4] = value;
  }
  u64(offset: number): bigint {
    return this.arena.views.u64[(this.base + offset) / 8]!;
  }
  setU64(offset: number, value: bigint): void {
    this.arena.views.u64[(this.base + offset) / 8] = value;
  }
}

/**
 * The x87's common instructions on ordinary numbers, as translated code attempts them: without bigints, and without looking
 * for what cannot be. Each gives 0 where it is not that, and has then changed nothing; the helper does the instruction.
 *
 * Nothing may be pending in FSW, or would be with FCW's masks; and what is rounded is so to nearest, with 64 bits of
 * precision and PE masked. Of the exceptions only PE is then possible (SDM volume 1, 8.5): no register is empty or in the
 * way, no operand a NaN, infinite or denormal, and no result out of range.
 */
import {
  addExtended,
  compareExtended,
  divideExtended,
  type Extended,
  extended,
  fromDouble,
  fromHalves,
  fromSingle,
  halves,
  multiplyExtended,
  rootExtended,
  rounded,
  toDouble,
  toHalves,
  toSingle,
} from '../fp/extended.ts';
import { Exception, Rounding } from '../fp/float.ts';
import { Seg } from '../processor/descriptors.ts';
import type { Answer, Helper, Quick } from '../processor/helper.ts';
import type { Processor } from '../processor/processor.ts';
import { ARITHMETIC as ARITHMETIC_FLAGS, State } from '../processor/state.ts';
import { controlWord } from './move.ts';
import { Fsw, operandAddress } from './stack.ts';

/** FCW: rounding control and precision control as they must be for arithmetic; for conversions the latter is nothing. */
const ARITHMETIC = { mask: 0xf20, value: 0x320 };
const TO_NEAREST = { mask: 0xc20, value: 0x20 };
const INEXACT = { mask: 0x20, value: 0x20 };
const ANY = { mask: 0, value: 0 };

const a = extended();
const b = extended();
const r = extended();

/** The register stack of a processor; an instruction begins with `begin`, and ends with `end`. */
class Stack {
  readonly #cpu: Processor;
  #fsw = 0;
  #tags = 0;
  top = 0;
  /** FCW's rounding control. */
  rounding = 0;

  constructor(cpu: Processor) {
    this.#cpu = cpu;
  }
  #place(i: number): number {
    return (this.#cpu.state.base + State.x87 + 16 * ((this.top + i) & 7)) >> 2;
  }

  begin({ mask, value }: typeof ANY): boolean {
    const { state, arena } = this.#cpu;
    const { u16 } = arena.views;
    const at = state.base >> 1;
    const fcw = u16[at + State.fcw / 2]!;
    this.#fsw = u16[at + State.fsw / 2]!;
    this.#tags = u16[at + State.ftw / 2]!;
    this.top = (this.#fsw >> 11) & 7;
    this.rounding = (fcw >> 10) & 3;
    return (fcw & mask) === value && (this.#fsw & (Fsw.ES | (~fcw & 0x3f))) === 0;
  }
  /** Whether a register holds anything. */
  has(i: number): boolean {
    return ((this.#tags >> (2 * ((this.top + i) & 7))) & 3) === 0;
  }
  /** A register's number, if it is ordinary. */
  take(x: Extended, i: number): boolean {
    const { i32 } = this.#cpu.arena.views;
    const at = this.#place(i);
    const head = i32[at + 2]!;
    x.low = i32[at]!;
    x.high = i32[at + 1]!;
    x.exponent = head & 0x7fff;
    x.negative = (head & 0x8000) !== 0;
    if (x.exponent === 0) return x.high === 0 && x.low === 0;
    return x.high < 0 && x.exponent !== 0x7fff;
  }
  put({ low, high, exponent, negative }: Extended, i: number): void {
    const { i32, u16 } = this.#cpu.arena.views;
    const at = this.#place(i);
    i32[at] = low;
    i32[at + 1] = high;
    u16[2 * at + 4] = exponent | (negative ? 0x8000 : 0);
  }
  /** Whatever a register holds into another. */
  copy(from: number, to: number): void {
    const { i32, u16 } = this.#cpu.arena.views;
    const [source, target] = [this.#place(from), this.#place(to)];
    i32[target] = i32[source]!;
    i32[target + 1] = i32[source + 1]!;
    u16[2 * target + 4] = u16[2 * source + 4]!;
  }
  exchange(i: number): void {
    const { i32 } = this.#cpu.arena.views;
    const [x, y] = [this.#place(0), this.#place(i)];
    for (let word = 0; word < 3; word++) {
      const kept = i32[x + word]!;
      i32[x + word] = i32[y + word]!;
      i32[y + word] = kept;
    }
  }
  head(i: number): number {
    return this.#cpu.arena.views.u16[2 * this.#place(i) + 4]!;
  }
  setHead(i: number, value: number): void {
    this.#cpu.arena.views.u16[2 * this.#place(i) + 4] = value;
  }
  low(i: number): number {
    return this.#cpu.arena.views.i32[this.#place(i)]!;
  }
  high(i: number): number {
    return this.#cpu.arena.views.i32[this.#place(i) + 1]!;
  }
  set(i: number, low: number, high: number, head: number): void {
    const { i32, u16 } = this.#cpu.arena.views;
    const at = this.#place(i);
    i32[at] = low;
    i32[at + 1] = high;
    u16[2 * at + 4] = head;
  }
  pop(): void {
    this.#tags |= 3 << (2 * this.top);
    this.top = (this.top + 1) & 7;
  }
  push(): void {
    this.top = (this.top - 1) & 7;
    this.#tags &= ~(3 << (2 * this.top));
  }
  /** `conditions`: bits of FSW that take the place of those in `mask`. C1 is cleared with that of `rounded` in its place. */
  end(segment: number, inexact: boolean, up: boolean, mask: number = Fsw.C1, conditions = 0): 1 {
    const { state, arena, segments } = this.#cpu;
    const { u16 } = arena.views;
    const at = state.base >> 1;
    u16[at + State.fsw / 2] =
      (this.#fsw & ~(mask | 0x3800)) |
      (this.top << 11) |
      conditions |
      (inexact ? Exception.PE : 0) |
      (up ? Fsw.C1 : 0);
    u16[at + State.ftw / 2] = this.#tags;
    u16[at + State.fcs / 2] = segments[Seg.CS]!.selector;
    if (segment >= 0) u16[at + State.fds / 2] = segments[segment]!.selector;
    return 1;
  }
  /** Where a value waits for the micro-op that stores it. */
  leave(low: number, high: number, head = 0): void {
    const { i32 } = this.#cpu.arena.views;
    const at = (this.#cpu.state.base + State.vector) >> 2;
    i32[at] = low;
    i32[at + 1] = high;
    i32[at + 2] = head;
  }
}

type Operation = (x: Extended, y: Extended) => boolean;
const operations: { readonly [name: string]: Operation } = {
  add: (x, y) => addExtended(r, x, y, false),
  sub: (x, y) => addExtended(r, x, y, true),
  subr: (x, y) => addExtended(r, y, x, true),
  mul: (x, y) => multiplyExtended(r, x, y),
  div: (x, y) => divideExtended(r, x, y),
  divr: (x, y) => divideExtended(r, y, x),
};

/** An operand from memory: `bytes` of a number, or as many of an integer where it is negative. */
function fromMemory(x: Extended, bytes: number, low: number, high: number): boolean {
  if (bytes === 4) return fromSingle(x, low);
  if (bytes === 8) return fromDouble(x, low, high);
  fromHalves(x, low, high);
  return true;
}

const registers =
  (operation: Operation): Quick =>
  (cpu) => {
    const stack = new Stack(cpu);
    return (to, from, pops) => {
      if (!stack.begin(ARITHMETIC) || !stack.has(to) || !stack.has(from)) return 0;
      if (!stack.take(a, to) || !stack.take(b, from) || !operation(a, b)) return 0;
      stack.put(r, to);
      if (pops !== 0) stack.pop();
      return stack.end(-1, rounded.inexact, rounded.up);
    };
  };
const memory =
  (operation: Operation): Quick =>
  (cpu) => {
    const stack = new Stack(cpu);
    return (bytes, low, high, segment) => {
      if (!stack.begin(ARITHMETIC) || !stack.has(0)) return 0;
      if (!stack.take(a, 0) || !fromMemory(b, bytes, low, high) || !operation(a, b)) return 0;
      stack.put(r, 0);
      return stack.end(segment, rounded.inexact, rounded.up);
    };
  };

const of = (make: (operation: Operation) => Quick) =>
  Object.fromEntries(Object.entries(operations).map(([name, operation]) => [name, make(operation)]));

/** Each with the processor's own stack. */
const on =
  (body: (stack: Stack) => (...args: number[]) => number): Quick =>
  (cpu) =>
    body(new Stack(cpu));

export const x87Quick = {
  registers: of(registers),
  memory: of(memory),

  /** FLD and FILD from memory. */
  load: on((stack) => (bytes, low, high, segment) => {
    if (!stack.begin(ANY) || stack.has(7) || !fromMemory(a, bytes, low, high)) return 0;
    stack.push();
    stack.put(a, 0);
    return stack.end(segment, false, false);
  }),
  /** FLD of 80 bits, or of a constant: whatever they are. */
  loadBits: on((stack) => (low, high, head, segment) => {
    if (!stack.begin(ANY) || stack.has(7)) return 0;
    stack.push();
    stack.set(0, low, high, head);
    return stack.end(segment, false, false);
  }),
  /** FLD ST(i). */
  duplicate: on((stack) => (i) => {
    if (!stack.begin(ANY) || stack.has(7) || !stack.has(i)) return 0;
    stack.push();
    stack.copy(i + 1, 0);
    return stack.end(-1, false, false);
  }),
  /** FST and FSTP to a register. */
  copy: on((stack) => (i, pops) => {
    if (!stack.begin(ANY) || !stack.has(0) || !stack.has(i)) return 0;
    stack.copy(0, i);
    if (pops !== 0) stack.pop();
    return stack.end(-1, false, false);
  }),
  exchange: on((stack) => (i) => {
    if (!stack.begin(ANY) || !stack.has(0) || !stack.has(i)) return 0;
    stack.exchange(i);
    return stack.end(-1, false, false);
  }),
  root: on((stack) => () => {
    if (!stack.begin(ARITHMETIC) || !stack.has(0) || !stack.take(a, 0) || !rootExtended(r, a)) return 0;
    stack.put(r, 0);
    return stack.end(-1, rounded.inexact, rounded.up);
  }),
  /** FCHS and FABS: the sign's bit as it becomes by `and` and then `xor`. */
  sign: on((stack) => (and, xor) => {
    if (!stack.begin(ANY) || !stack.has(0)) return 0;
    stack.setHead(0, (stack.head(0) & and) ^ xor);
    return stack.end(-1, false, false);
  }),

  /** FST, FIST and FISTTP: the bits wait in the state page for the micro-op that stores them. */
  store: on((stack) => (bytes, truncates, pops, segment) => {
    if (!stack.begin(bytes < 0 ? INEXACT : TO_NEAREST) || !stack.has(0) || !stack.take(a, 0)) return 0;
    // What compilers make of a cast sets FCW's rounding control to that of zero.
    const truncating = truncates !== 0 || stack.rounding === Rounding.ZERO;
    if (bytes < 0 && !truncating && stack.rounding !== Rounding.NEAREST) return 0;
    if (bytes === 8 ? !toDouble(a) : bytes === 4 ? !toSingle(a) : !toHalves(a, truncating)) return 0;
    const { low, high } = halves;
    if (bytes === -4 && high !== low >> 31) return 0;
    if (bytes === -2 && (high !== low >> 31 || low !== (low << 16) >> 16)) return 0;
    stack.leave(low, high);
    if (pops !== 0) stack.pop();
    return stack.end(segment, rounded.inexact, rounded.up);
  }),
  /** FSTP of 80 bits. */
  storeBits: on((stack) => (segment) => {
    if (!stack.begin(ANY) || !stack.has(0)) return 0;
    stack.leave(stack.low(0), stack.high(0), stack.head(0));
    stack.pop();
    return stack.end(segment, false, false);
  }),

  /** FCOMI and FUCOMI: 1 and the flags at their places in RFLAGS above it. */
  flags: on((stack) => (i, pops) => {
    if (!stack.begin(ANY) || !stack.has(0) || !stack.has(i)) return 0;
    if (!stack.take(a, 0) || !stack.take(b, i)) return 0;
    const order = compareExtended(a, b);
    if (pops !== 0) stack.pop();
    stack.end(-1, false, false, 0);
    return 0x100 | flagsOf(order);
  }),
  /** FCOM and FUCOM, of registers. */
  conditions: on((stack) => (i, pops) => {
    if (!stack.begin(ANY) || !stack.has(0) || !stack.has(i)) return 0;
    if (!stack.take(a, 0) || !stack.take(b, i)) return 0;
    const order = compareExtended(a, b);
    for (let pop = 0; pop < pops; pop++) stack.pop();
    return stack.end(-1, false, false, CONDITIONS, flagsOf(order) << 8);
  }),
  /** The same with an operand from memory. */
  conditionsOfMemory: on((stack) => (bytes, low, high, segment, pops) => {
    if (!stack.begin(ANY) || !stack.has(0) || !stack.take(a, 0) || !fromMemory(b, bytes, low, high)) return 0;
    const order = compareExtended(a, b);
    if (pops !== 0) stack.pop();
    return stack.end(segment, false, false, CONDITIONS, flagsOf(order) << 8);
  }),
  /** FLDCW, where it makes nothing pending. */
  control: ((cpu) => (value) => {
    const { state, arena } = cpu;
    const { u16 } = arena.views;
    const at = state.base >> 1;
    if ((u16[at + State.fsw / 2]! & (Fsw.ES | (~value & 0x3f))) !== 0) return 0;
    u16[at + State.fcw / 2] = controlWord(value);
    return 1;
  }) as Quick,
} as const;

const CONDITIONS = Fsw.C0 | Fsw.C1 | Fsw.C2 | Fsw.C3;
/** ZF and CF; C3 and C0 stand where those do, eight bits further. */
const flagsOf = (order: number): number => (order === 0 ? 0x40 : order < 0 ? 1 : 0);

/** A helper that sets flags: it answers with them too. */
const thatTells =
  (helper: Helper): Answer =>
  (cpu, insn) => {
    helper(cpu, insn);
    return cpu.state.flags & ARITHMETIC_FLAGS;
  };
/** A helper that stores: what is in memory afterwards waits in the state page too, to be stored once more. */
const thatLeaves =
  (helper: Helper): Helper =>
  (cpu, insn) => {
    helper(cpu, insn);
    const operand = insn.operands[0]!;
    const size = operand.kind === 'mem' ? operand.size : 0;
    const bytes = cpu.memory.readBytes(operandAddress(cpu, insn, size, false), size);
    for (const [i, byte] of bytes.entries()) cpu.state.setU8(State.vector + i, byte);
  };
/** What an instruction's helper is where an attempt gives up. */
export const leaving = (mnemonic: string, helper: Helper): Helper | Answer =>
  /^fu?comi/.test(mnemonic) ? thatTells(helper) : thatLeaves(helper);

/**
 * What lowering writes micro-ops with: operands, sized arithmetic, flags, control flow. Values of 1 and 2 bytes are
 * `i` and zero-extended, of 4 bytes `i`, of 8 bytes `l`.
 *
 * An instruction that faults must not have happened: read and check everything (write-intent loads check) before
 * setting the first register or flag.
 */

import type { Insn, Memory, Operand, Size } from '../processor/insn.ts';
import type { Mode } from '../processor/modes.ts';
import { FlagKind, State } from '../processor/state.ts';
import type { Attempt } from './attempt.ts';
import { type Condition, conditionValue, type Description, type FlagName, flagValue } from './flag-values.ts';
import { type End, type Node, node, prune, typeOf } from './ir.ts';
import type { CallTarget, Detail, OpName } from './ops.ts';

type Gpr = Operand & { readonly kind: 'gpr' };

/** Whether two operands are one register. */
export const areSame = (left: Operand, right: Operand): boolean =>
  left.kind === 'gpr' && right.kind === 'gpr' && left.index === right.index && left.high === right.high;

const CS = 1;
const SS = 2;
const DS = 3;
const FS = 4;
const RSP = 4;
const RBP = 5;

/** An address that was computed once, of an operand that is read and written. */
export interface Place {
  readonly linear: Node;
  readonly stack: boolean;
}

export class Builder {
  readonly mode: Mode;
  insn!: Insn;
  readonly insns: Insn[] = [];
  #nodes: Node[] = [];
  end: End | undefined;
  /** What the last `flags` op of this block described, as long as nothing else can have changed them. */
  #flags: Description | undefined;
  /** CF and OF where they are known by themselves. */
  #alone: Carries = {};
  /** The whole registers whose value is known. */
  readonly #known = new Map<number, Node>();
  /** The linear address of the segment check helper; set by the processor (lowering knows no helpers). */
  readonly #segment: CallTarget;

  constructor(mode: Mode, segment: CallTarget) {
    this.mode = mode;
    this.#segment = segment;
  }

  begin(insn: Insn): void {
    this.insn = insn;
    this.insns.push(insn);
  }

  /** All ops as they were written. */
  get nodes(): readonly Node[] {
    return this.#nodes;
  }
  /** The block's ops, pruned. */
  finish(end: End): Node[] {
    return prune(this.#nodes, end);
  }

  // --- ops -------------------------------------------------------------------------------------------------------

  op(name: OpName, args: readonly Node[] = [], detail: Detail = {}): Node {
    const made = node(name, args, detail, this.insns.length - 1);
    this.#nodes.push(made);
    return made;
  }
  const32(value: number): Node {
    return this.op('const32', [], { value: value | 0 });
  }
  const64(value: bigint): Node {
    return this.op('const64', [], { value: BigInt.asIntN(64, value) });
  }
  /** A constant of the type of values of that size. */
  constant(size: Size, value: bigint | number): Node {
    if (size === 8) return this.const64(BigInt(value));
    return this.const32(Number(BigInt.asUintN(size * 8, BigInt(value))));
  }

  // Arithmetic on values of a size: the result is of that size too.
  add = (size: Size, a: Node, b: Node) => this.#fit(size, this.op(size === 8 ? 'add64' : 'add32', [a, b]));
  sub = (size: Size, a: Node, b: Node) => this.#fit(size, this.op(size === 8 ? 'sub64' : 'sub32', [a, b]));
  mul = (size: Size, a: Node, b: Node) => this.#fit(size, this.op(size === 8 ? 'mul64' : 'mul32', [a, b]));
  and = (size: Size, a: Node, b: Node) => this.op(size === 8 ? 'and64' : 'and32', [a, b]);
  or = (size: Size, a: Node, b: Node) => this.op(size === 8 ? 'or64' : 'or32', [a, b]);
  xor = (size: Size, a: Node, b: Node) => this.op(size === 8 ? 'xor64' : 'xor32', [a, b]);
  not = (size: Size, a: Node) => this.xor(size, a, this.constant(size, -1));
  /** Shifts by a count of the same type, which must be below the operand's bits (32 for 1 and 2 bytes). */
  shl = (size: Size, a: Node, count: Node) =>
    this.#fit(size, this.op(size === 8 ? 'shl64' : 'shl32', [a, count]));
  shr = (size: Size, a: Node, count: Node) => this.op(size === 8 ? 'shr64' : 'shr32', [a, count]);
  sar = (size: Size, a: Node, count: Node) =>
    this.#fit(size, this.op(size === 8 ? 'sar64' : 'sar32', [this.extend(size, a), count]));
  /** 1 or 0, as an `i`. */
  eq = (size: Size, a: Node, b: Node) => this.op(size === 8 ? 'eq64' : 'eq32', [a, b]);
  isZero = (size: Size, a: Node) => this.op(size === 8 ? 'eqz64' : 'eqz32', [a]);
  ltu = (size: Size, a: Node, b: Node) => this.op(size === 8 ? 'ltu64' : 'ltu32', [a, b]);
  select = (size: Size, condition: Node, yes: Node, no: Node) =>
    this.op(size === 8 ? 'select64' : 'select32', [condition, yes, no]);

  /** Cuts a value of 1 or 2 bytes back to them. */
  #fit(size: Size, value: Node): Node {
    if (size >= 4) return value;
    return this.op('and32', [value, this.const32(size === 1 ? 0xff : 0xffff)]);
  }
  /** The value sign-extended within its own type: from 1 or 2 bytes to 32 bits. */
  extend(size: Size, value: Node): Node {
    if (size >= 4) return value;
    return this.op(size === 1 ? 'sext8' : 'sext16', [value]);
  }
  /** The value sign-extended, zero-extended, or cut to another size. */
  signExtend(from: Size, to: Size, value: Node): Node {
    const wide = this.extend(from, value);
    return to === 8 ? (from === 8 ? wide : this.op('sext', [wide])) : this.#fit(to, wide);
  }
  zeroExtend(from: Size, to: Size, value: Node): Node {
    return to === 8 && from !== 8 ? this.op('zext', [value]) : value;
  }
  truncate(to: Size, value: Node): Node {
    if (typeOf(value) !== 'l' || to === 8) return this.#fit(to, value);
    return this.#fit(to, value.op === 'zext' ? value.args[0]! : this.op('wrap', [value]));
  }

  // --- state -----------------------------------------------------------------------------------------------------

  get(offset: number, size: Size): Node {
    if (size === 8) return this.op('get64', [], { offset });
    return this.op('get32', [], { offset, bits: (size * 8) as 8 | 16 | 32 });
  }
  set(offset: number, size: Size, value: Node): void {
    if (size === 8) this.op('set64', [value], { offset });
    else this.op('set32', [value], { offset, bits: (size * 8) as 8 | 16 | 32 });
  }

  /** A general register, or a part of it. */
  gpr(index: number, size: Size, high = false): Node {
    const whole = this.#known.get(index);
    if (whole !== undefined && size === 8) return whole;
    if (whole !== undefined && size === 4) return this.truncate(4, whole);
    const value = this.get(State.gpr + index * 8 + (high ? 1 : 0), size);
    if (size === 8) this.#known.set(index, value);
    return value;
  }
  /** 4 bytes clear the upper half (SDM volume 1, 3.4.1.1); 1 and 2 leave the rest. */
  setGpr(index: number, size: Size, value: Node, high = false): void {
    const offset = State.gpr + index * 8 + (high ? 1 : 0);
    if (size < 4) {
      this.#known.delete(index);
      this.set(offset, size, value);
      return;
    }
    const whole = size === 8 ? value : this.op('zext', [value]);
    this.set(offset, 8, whole);
    this.#known.set(index, whole);
  }

  // --- memory ----------------------------------------------------------------------------------------------------

  /** base + index * scale + displacement, cut to the address size: an `l`. */
  effective({ base, index, scale, displacement }: Memory): Node {
    const size = this.insn.addressSize;
    let sum: Node | undefined;
    const plus = (term: Node) => {
      sum = sum === undefined ? term : this.op('add64', [sum, term]);
    };
    if (base !== undefined) plus(this.gpr(base, 8));
    if (index !== undefined) {
      const scaled = this.gpr(index, 8);
      plus(scale === 1 ? scaled : this.op('shl64', [scaled, this.const64(BigInt(Math.log2(scale)))]));
    }
    if (displacement !== 0n || sum === undefined) plus(this.const64(displacement));
    if (size === 8) return sum!;
    return this.op('and64', [sum!, this.const64(size === 4 ? 0xffff_ffffn : 0xffffn)]);
  }

  /** The linear address of an offset in a segment, whose limit and type are checked for `size` bytes. */
  linear(segment: number, offset: Node, size: number, write: boolean): Node {
    if (this.mode.bits === 64) {
      return segment < FS ? offset : this.op('add64', [offset, this.get(State.segmentBase + segment * 8, 8)]);
    }
    // Code can be executed, but not always read, and never be written.
    if (segment !== CS && this.mode.flat & (1 << segment)) return offset;
    return this.op(
      'call64',
      [this.const32(segment), offset, this.const32(size), this.const32(write ? 1 : 0)],
      {
        helper: this.#segment,
        insn: this.insn,
      },
    );
  }
  place(memory: Memory, size: number, write: boolean): Place {
    return this.placeAt(memory, this.effective(memory), size, write);
  }
  /** The same by an offset that is known. */
  placeAt({ segment }: Memory, offset: Node, size: number, write: boolean): Place {
    return { linear: this.linear(segment, offset, size, write), stack: segment === SS };
  }
  /** The segment that the x87's pointer names: in 64-bit mode overrides but FS and GS are ignored. */
  dataSegment({ segment, base }: Memory): number {
    if (this.mode.bits !== 64 || segment >= FS) return segment;
    return base === RSP || base === RBP ? SS : DS;
  }
  /** `write`: faults as the write that follows would. */
  load({ linear, stack }: Place, size: Size, write = false): Node {
    if (size === 8) return this.op('load64', [linear], { bits: 64, write, stack });
    return this.op('load32', [linear], { bits: (size * 8) as Bits32, write, stack });
  }
  store({ linear, stack }: Place, size: Size, value: Node): void {
    if (size === 8) this.op('store64', [linear, value], { bits: 64, stack });
    else this.op('store32', [linear, value], { bits: (size * 8) as Bits32, stack });
  }

  // --- operands --------------------------------------------------------------------------------------------------

  operand(index: number): Operand {
    return this.insn.operands[index]!;
  }
  /** The size of an operand that is a general register or memory; immediates have their instruction's. */
  sizeOf(index: number): Size {
    const operand = this.operand(index);
    return operand.kind === 'gpr' || operand.kind === 'mem'
      ? (operand.size as Size)
      : (this.insn.operandSize as Size);
  }
  read(index: number, size = this.sizeOf(index)): Node {
    const operand = this.operand(index);
    if (operand.kind === 'gpr') return this.registerAt(index, operand, size);
    if (operand.kind === 'mem') return this.load(this.place(operand, size, false), size);
    if (operand.kind === 'imm') return this.immediate(operand, size);
    throw new Error(`${this.insn.code}: operand ${index} is no general one`);
  }
  write(index: number, value: Node, size = this.sizeOf(index)): void {
    const operand = this.operand(index);
    if (operand.kind === 'gpr') this.setRegisterAt(index, operand, size, value);
    else if (operand.kind === 'mem') this.store(this.place(operand, size, true), size, value);
    else throw new Error(`${this.insn.code}: operand ${index} cannot be written`);
  }
  /** Whether two operands are one register. */
  isSame(first: number, second: number): boolean {
    return areSame(this.operand(first), this.operand(second));
  }
  // What of an instruction is a register's number or a value: a template asks for it when it is executed.
  protected registerAt(_position: number, { index, high }: Gpr, size: Size): Node {
    return this.gpr(index, size, high);
  }
  protected setRegisterAt(_position: number, { index, high }: Gpr, size: Size, value: Node): void {
    this.setGpr(index, size, value, high);
  }
  protected immediate({ value }: Operand & { kind: 'imm' }, size: Size): Node {
    return this.constant(size, value);
  }
  /** An immediate that counts, modulo a power of two, and whether it is zero then. */
  count(index: number, size: Size, mask: number): { node: Node; isZero: boolean } {
    const { value } = this.operand(index) as Operand & { kind: 'imm' };
    const known = Number(value) & mask;
    return { node: this.constant(size, known), isZero: known === 0 };
  }
  /** The instruction's own RIP, and its opcode as the x87 keeps it. */
  rip(): Node {
    return this.const64(this.insn.rip);
  }
  fop(): Node {
    return this.const32(this.insn.fop);
  }
  /** RIP of the next instruction, as CALL pushes it. */
  next(size: Size): Node {
    return this.constant(size, this.insn.next);
  }
  /** Where a near branch goes: RIP, cut to the operand's size. Undefined in a template, whose user checks it. */
  target(): bigint | undefined {
    const { target } = this.insn.operands[0] as Operand & { kind: 'near' };
    return BigInt.asUintN(this.insn.operandSize * 8, target);
  }
  /**
   * Replaces an operand by what `change` makes of it. Flags and other registers are set in `then`, after the write,
   * which is the last thing that can fault.
   */
  modify(
    index: number,
    change: (value: Node, size: Size) => Node,
    then?: (before: Node, after: Node) => void,
  ): void {
    const operand = this.operand(index);
    const size = this.sizeOf(index);
    if (operand.kind === 'mem') {
      const place = this.place(operand, size, true);
      const before = this.load(place, size, true);
      const after = change(before, size);
      this.store(place, size, after);
      then?.(before, after);
    } else {
      const before = this.read(index);
      const after = change(before, size);
      this.write(index, after);
      then?.(before, after);
    }
  }

  // --- the stack -------------------------------------------------------------------------------------------------

  /** RSP, ESP or SP as an offset in SS, moved by some bytes: an `l`. */
  #stackPointer(delta: number): Node {
    const { bits, stackBits } = this.mode;
    const moved =
      delta === 0 ? this.gpr(RSP, 8) : this.op('add64', [this.gpr(RSP, 8), this.const64(BigInt(delta))]);
    if (bits === 64) return moved;
    return this.op('and64', [moved, this.const64(stackBits === 32 ? 0xffff_ffffn : 0xffffn)]);
  }
  setStackPointer(value: Node): void {
    const { bits, stackBits } = this.mode;
    if (bits === 64) this.setGpr(RSP, 8, value);
    else this.setGpr(RSP, stackBits === 32 ? 4 : 2, this.truncate(stackBits === 32 ? 4 : 2, value));
  }
  /** The top of the stack moved by `delta` bytes: where, and the value that the stack pointer then has. */
  stack(delta: number, size: number, write: boolean): Place & { readonly pointer: Node } {
    const pointer = this.#stackPointer(delta);
    return { linear: this.linear(SS, pointer, size, write), stack: true, pointer };
  }
  push(size: Size, value: Node): void {
    const place = this.stack(-size, size, true);
    this.store(place, size, value);
    this.setStackPointer(place.pointer);
  }
  /** The value on top; `drop` then moves the stack pointer, when nothing can fault any more. */
  top(size: Size): { readonly value: Node; drop(extra?: number): void } {
    const value = this.load(this.stack(0, size, false), size);
    return { value, drop: (extra = 0) => this.setStackPointer(this.#stackPointer(size + extra)) };
  }

  // --- flags -----------------------------------------------------------------------------------------------------

  /** The flags of result = a + b (ADD) or a - b (SUB), all of one size. */
  flags(kind: 'ADD' | 'SUB', size: Size, a: Node, b: Node, result: Node): void {
    this.#describe(
      FlagKind[kind],
      ...([a, b, result].map((value) => this.signExtend(size, 8, value)) as [Node, Node, Node]),
    );
  }
  /** SF, ZF and PF from the result; CF, AF and OF as the bits of `packed` (an `i`), or cleared. */
  flagsOf(size: Size, result: Node, packed?: Node): void {
    const others = packed === undefined ? this.const64(0n) : this.op('zext', [packed]);
    this.#describe(FlagKind.RESULT, others, this.const64(0n), this.signExtend(size, 8, result));
  }
  /** As flagsOf() where `condition` (an `i`) is not 0; elsewhere the flags stay. */
  flagsOfIf(condition: Node, size: Size, result: Node, packed: Node): void {
    const known = this.#flags;
    const others = this.op('zext', [packed]);
    const wide = this.signExtend(size, 8, result);
    if (known !== undefined && known.kind !== FlagKind.EXPLICIT) {
      const before = this.op('zext', [this.#carries({})]);
      const a = this.select(8, condition, others, before);
      this.#describe(FlagKind.RESULT, a, this.const64(0n), this.select(8, condition, wide, known.result));
      return;
    }
    const kind = this.get(State.flagKind, 4);
    this.set(State.flagA, 8, this.select(8, condition, others, this.get(State.flagA, 8)));
    this.set(State.flagResult, 8, this.select(8, condition, wide, this.get(State.flagResult, 8)));
    this.set(State.flagKind, 4, this.select(4, condition, this.const32(FlagKind.RESULT), kind));
    this.#flags = undefined;
    this.#alone = {};
  }
  #describe(kind: number, a: Node, b: Node, result: Node): void {
    this.op('flags', [a, b, result], { kind });
    this.#flags = { kind, a, b, result };
    this.#alone = {};
  }
  /** CF, AF and OF at their places, some of them replaced. */
  #carries(changed: Carries): Node {
    const bit = (name: 'CF' | 'AF' | 'OF', shift: number) => {
      const value = name === 'AF' ? this.flag(name) : (changed[name] ?? this.flag(name));
      return shift === 0 ? value : this.op('shl32', [value, this.const32(shift)]);
    };
    return this.op('or32', [this.op('or32', [bit('CF', 0), bit('AF', 4)]), bit('OF', 11)]);
  }
  /** Sets CF, OF or both, from `i`s that are 1 or 0; the other flags stay. */
  setCarries(changed: Carries): void {
    const known = this.#flags;
    const carries = this.#carries(changed);
    const a = known?.a ?? this.get(State.flagA, 8);
    // What else flagA says matters only if it is all flags.
    const rest = this.op('and32', [this.op('wrap', [a]), this.const32(~0x811)]);
    const packed = this.op('zext', [this.op('or32', [rest, carries])]);
    if (known !== undefined) {
      const kind = known.kind === FlagKind.EXPLICIT ? FlagKind.EXPLICIT : FlagKind.RESULT;
      this.#describe(kind, packed, this.const64(0n), known.result);
      this.#alone = changed;
      return;
    }
    const lazy = this.op('ne32', [this.get(State.flagKind, 4), this.const32(FlagKind.EXPLICIT)]);
    const kind = this.select(4, lazy, this.const32(FlagKind.RESULT), this.const32(FlagKind.EXPLICIT));
    this.set(State.flagKind, 4, kind);
    this.set(State.flagA, 8, packed);
    this.#alone = { ...this.#alone, ...changed };
  }
  /** Sets all arithmetic flags from their bits at their places in RFLAGS (an `i`). */
  setArithmeticFlags(bits: Node): void {
    this.#describe(FlagKind.EXPLICIT, this.op('zext', [bits]), this.const64(0n), this.const64(0n));
  }
  /** All arithmetic flags at their places in RFLAGS: an `i`. */
  arithmeticFlags(): Node {
    const bit = (value: Node, shift: number) =>
      shift === 0 ? value : this.op('shl32', [value, this.const32(shift)]);
    const all = [
      bit(this.flag('CF'), 0),
      bit(this.flag('PF'), 2),
      bit(this.flag('AF'), 4),
      bit(this.flag('ZF'), 6),
      bit(this.flag('SF'), 7),
      bit(this.flag('OF'), 11),
    ];
    return all.reduce((a, b) => this.op('or32', [a, b]));
  }

  /** A flag: an `i`, 1 or 0. */
  flag(name: FlagName): Node {
    const alone = name === 'CF' || name === 'OF' ? this.#alone[name] : undefined;
    return alone ?? flagValue(this, name, this.#flags);
  }
  /** A condition: an `i`, 0 or not. */
  condition(name: Condition): Node {
    return conditionValue(this, name, this.#flags);
  }

  // --- calls and control flow ------------------------------------------------------------------------------------

  /** Calls a helper. What it may have changed is read again afterwards. */
  call(helper: CallTarget, ...args: Node[]): void {
    this.op('call', args, { helper, insn: this.insn });
    this.#forget();
  }
  /** The same of one that gives an `i`. */
  answer(helper: CallTarget): Node {
    const answer = this.op('call32', [], { helper, insn: this.insn });
    this.#forget();
    return answer;
  }
  /** The same of one that is called where an attempt gives up, which gives an `i` too and changes what it may change. */
  tryAnswer(attempt: Attempt, helper: CallTarget): Node {
    const answer = this.op('attempt32', [], { attempt, helper, insn: this.insn });
    this.#forget();
    return answer;
  }
  /** Calls a helper that gives a value and changes no registers or flags, but may fault. */
  ask(result: 'i' | 'l', helper: CallTarget, ...args: Node[]): Node {
    return this.op(result === 'i' ? 'call32' : 'call64', args, { helper, insn: this.insn });
  }
  /** Calls a helper that raises an exception where `condition` (an `i`, its first argument) is not 0. */
  callIf(condition: Node, helper: CallTarget, ...args: Node[]): void {
    this.op('callIf', [condition, ...args], { helper, insn: this.insn });
  }
  /** An `l` of a helper's that gives its second argument, `otherwise`, where its first, `condition`, is 0. */
  askIf(condition: Node, otherwise: Node, helper: CallTarget, ...args: Node[]): Node {
    return this.op('call64If', [condition, otherwise, ...args], { helper, insn: this.insn });
  }
  protected forgetRegisters(): void {
    this.#known.clear();
  }
  #forget(): void {
    this.#known.clear();
    this.#flags = undefined;
    this.#alone = {};
  }

  /** Ends the block: execution goes on at this RIP. */
  goto(target: bigint | undefined): void {
    this.end = { kind: 'goto', target: target! };
  }
  branch(condition: Node, taken: bigint | undefined): void {
    this.end = { kind: 'branch', condition, taken: taken!, next: this.insn.next };
  }
  /** At this instruction once more where `again` (an `i`) is not 0. */
  repeat(again: Node): void {
    this.branch(again, this.insn.rip);
  }
  /** With the next instruction. */
  proceed(): void {
    this.goto(this.insn.next);
  }
  /** To a computed RIP, an `l`. */
  dynamic(target: Node): void {
    this.end = { kind: 'dynamic', target };
  }
  /** Ends the block after a helper that writes RIP, changes the mode or opens an interrupt window. */
  leave(): void {
    this.end = { kind: 'left' };
  }
}

/** Flags that instructions set by themselves: `i`s, 1 or 0. */
interface Carries {
  readonly CF?: Node;
  readonly OF?: Node;
}

type Bits32 = 8 | 16 | 32;

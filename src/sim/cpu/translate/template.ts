/**
 * One instruction's form as a function of WebAssembly that finds its operands in a record (records.ts): made once, and then
 * every instruction of that form can be executed as soon as it is decoded (forms.ts). It is lowered as in a block; what
 * lowering looks at beside the operands' places and values becomes a part of what the template is for.
 */
import type { Insn, Memory, Operand, Size } from '../processor/insn.ts';
import type { Mode } from '../processor/modes.ts';
import { State } from '../processor/state.ts';
import { areSame, Builder } from './builder.ts';
import { type Node, prune } from './ir.ts';
import type { Lower } from './lowering.ts';
import type { CallTarget } from './ops.ts';
import { fieldOf } from './patterns.ts';
import { Record } from './records.ts';
import { Wasm } from './wasm-bytes.ts';
import { FunctionEmitter, LEFT, Local, loadOf, storeOf } from './wasm-function.ts';
import { type Callee, WasmModule } from './wasm-module.ts';

/** What a template gives beside LEFT and TRAPPED: its block goes on, or execution goes on at RIP. */
export const CONTINUES = 0;
export const DONE = 3;

const SS = 2;
const DS = 3;
const FS = 4;

/** What lowering has looked at: the numbers of registers, an immediate's value, or what no template can have. */
interface Seen {
  registers: boolean;
  immediate: boolean;
  place: boolean;
  /** Whether vectors or the x87 may be used. */
  vectors: boolean;
}

/** A copy that notes when one of these is looked at. */
function notes<T extends object>(of: T, names: readonly (keyof T)[], what: keyof Seen, seen: Seen): T {
  const copy = { ...of };
  for (const name of names) {
    Object.defineProperty(copy, name, {
      get() {
        seen[what] = true;
        return of[name];
      },
      enumerable: true,
    });
  }
  return copy;
}

/** The instruction, which notes what is looked at. */
function watched(insn: Insn, seen: Seen): Insn {
  const operands = insn.operands.map((operand): Operand => {
    switch (operand.kind) {
      case 'gpr':
        return notes(operand, ['index', 'high'], 'registers', seen);
      case 'mem':
        return notes(operand, ['base', 'index', 'scale', 'displacement'], 'place', seen);
      case 'imm':
        return notes(operand, ['value'], 'immediate', seen);
      case 'near':
        return notes(operand, ['target'], 'place', seen);
      case 'far':
        return notes(operand, ['selector', 'offset'], 'place', seen);
      case 'st':
      case 'segment':
      case 'cr':
      case 'dr':
        return operand; // the form says which
      default:
        return notes(operand, ['index'], 'place', seen);
    }
  });
  return notes({ ...insn, operands }, ['rip', 'next', 'length', 'fop'], 'place', seen);
}

type Gpr = Operand & { readonly kind: 'gpr' };

class TemplateBuilder extends Builder {
  readonly #insn: Insn;
  readonly #places: readonly (number | undefined)[];

  constructor(mode: Mode, segment: CallTarget, insn: Insn, hasRegister: boolean) {
    super(mode, segment);
    this.#insn = insn;
    this.#places = insn.operands.map((_, i) => {
      const field = fieldOf(insn, i, hasRegister);
      return field && Record[field];
    });
  }

  #field(offset: number, size: Size): Node {
    if (size === 8) return this.op('field64', [], { offset });
    return this.op('field32', [], { offset, bits: (size * 8) as 8 | 16 | 32 });
  }
  #register(offset: number, size: Size): Node {
    if (size === 8) return this.op('register64', [], { offset });
    return this.op('register32', [], { offset, bits: (size * 8) as 8 | 16 | 32 });
  }
  /** The two registers of the form are compared: a template is for those that are one, or for those that are not. */
  compares = false;
  override isSame(first: number, second: number): boolean {
    const { operands } = this.#insn;
    this.compares ||= operands[first]!.kind === 'gpr' && operands[second]!.kind === 'gpr';
    return areSame(operands[first]!, operands[second]!);
  }
  /** Not 0: a template is for immediates with some of these bits, or for those with none. */
  counts = 0;
  override count(index: number, size: Size, mask: number): { node: Node; isZero: boolean } {
    this.counts = mask;
    const { value } = this.#insn.operands[index] as Operand & { kind: 'imm' };
    const node = this.and(size, this.#field(Record.immediate, size), this.constant(size, mask));
    return { node, isZero: (Number(value) & mask) === 0 };
  }
  protected override registerAt(position: number, _operand: Gpr, size: Size): Node {
    const place = this.#places[position];
    if (place !== undefined) return this.#register(place, size);
    return super.registerAt(position, this.#insn.operands[position] as Gpr, size);
  }
  protected override setRegisterAt(position: number, _operand: Gpr, size: Size, value: Node): void {
    const place = this.#places[position];
    if (place === undefined) {
      super.setRegisterAt(position, this.#insn.operands[position] as Gpr, size, value);
      return;
    }
    this.forgetRegisters(); // it may be any
    if (size === 8) this.op('setRegister64', [value], { offset: place });
    else if (size === 4) this.op('setRegister64', [this.op('zext', [value])], { offset: place });
    else this.op('setRegister32', [value], { offset: place, bits: (size * 8) as 8 | 16 });
  }
  protected override immediate(_operand: Operand, size: Size): Node {
    return this.#field(Record.immediate, size);
  }
  override next(size: Size): Node {
    return this.#field(Record.next, size);
  }
  override rip(): Node {
    return this.#field(Record.rip, 8);
  }
  override fop(): Node {
    return this.#field(Record.immediate, 4);
  }
  /** There are no overrides that are ignored: the form says whether the base is the stack's. */
  override dataSegment({ segment }: Memory): number {
    if (this.mode.bits !== 64 || segment >= FS) return segment;
    return segment === SS ? SS : DS;
  }
  override effective(_memory: Memory): Node {
    const scale = this.op('zext', [this.#field(Record.scale, 4)]);
    const index = this.op('shl64', [this.#register(Record.index, 8), scale]);
    const base = this.op('add64', [this.#field(Record.displacement, 8), this.#register(Record.base, 8)]);
    const sum = this.op('add64', [base, index]);
    const { addressSize } = this.insn;
    if (addressSize === 8) return sum;
    return this.op('and64', [sum, this.const64(addressSize === 4 ? 0xffff_ffffn : 0xffffn)]);
  }
  override target(): undefined {
    return undefined;
  }
  override goto(): void {
    this.dynamic(this.#field(Record.immediate, 8));
  }
  override branch(condition: Node): void {
    this.dynamic(this.select(8, condition, this.#field(Record.immediate, 8), this.#field(Record.next, 8)));
  }
  override proceed(): void {
    this.dynamic(this.#field(Record.next, 8));
  }
  override repeat(again: Node): void {
    this.dynamic(this.select(8, again, this.#field(Record.rip, 8), this.#field(Record.next, 8)));
  }
}

class TemplateEmitter extends FunctionEmitter {
  constructor(module: WasmModule, mode: Mode) {
    super(module, mode.user, undefined);
  }

  add(builder: Builder): void {
    const { end } = builder;
    const nodes = prune(builder.nodes, end ?? { kind: 'left' });
    this.begin(nodes, end);
    for (const node of nodes) this.node(node);
    if (end === undefined) this.code.op(Wasm.i32Const, CONTINUES);
    else if (end.kind === 'left') this.code.op(Wasm.i32Const, LEFT);
    else if (end.kind === 'dynamic') {
      this.stateAddress();
      this.value(end.target);
      this.store(Wasm.i64Store, State.rip);
      this.code.op(Wasm.i32Const, DONE);
    } else throw new Error(`a template does not end by ${end.kind}`);
  }

  protected override emit(node: Node): void {
    const { op, detail, args } = node;
    const offset = detail.offset ?? 0;
    const bits = op.endsWith('64') ? 64 : (detail.bits ?? 32);
    if (op === 'field32' || op === 'field64') {
      this.code.op(Wasm.localGet).u(Local.parameter).op(loadOf(bits), 0).u(offset);
    } else if (op === 'register32' || op === 'register64') {
      this.#register(offset);
      this.code.op(loadOf(bits), 0, 0);
    } else if (op === 'setRegister32' || op === 'setRegister64') {
      this.#register(offset);
      this.value(args[0]!);
      this.code.op(storeOf(bits), 0, 0);
    } else super.emit(node);
  }
  #register(offset: number): void {
    this.stateAddress();
    this.code.op(Wasm.localGet).u(Local.parameter).op(Wasm.i32Load16u, 0).u(offset).op(0x6a);
  }

  protected mark(): void {
    this.stateAddress();
    this.code.op(Wasm.localGet).u(Local.parameter);
    this.store(Wasm.i32Store, State.at);
  }
  protected helper({ args, row, detail }: Node) {
    const shape = `i${args.map((arg) => arg.row.result).join('')}`;
    return {
      index: this.module.helper(shape, row.result, detail.helper as Callee),
      before: () => this.code.op(Wasm.localGet).u(Local.parameter),
    };
  }
}

/** A form as a function of a module, which is the same for every processor. */
export interface Template {
  /** It ends its block. */
  readonly ends: boolean;
  /** It is for these registers, or this immediate, alone; or for two registers that are one, or are not. */
  readonly registers: boolean;
  readonly compares: boolean;
  readonly immediate: boolean;
  /** Not 0: it is for immediates with some of these bits, or for those with none. */
  readonly counts: number;
  /** It depends on whether vectors and the x87 may be used. */
  readonly vectors: boolean;
}

/** A module for templates. */
export const templateModule = (): WasmModule => new WasmModule({ global: true });

/**
 * Adds the template of an instruction's form to a module; undefined where it depends on what a record does not have.
 * @param insn one of that form
 */
export function templateOf(
  mode: Mode,
  insn: Insn,
  hasRegister: boolean,
  segment: CallTarget,
  lower: Lower,
  module: WasmModule,
): Template | undefined {
  const seen: Seen = { registers: false, immediate: false, place: false, vectors: false };
  const looked = notes(mode, ['x87', 'sse', 'avx'], 'vectors', seen);
  const builder = new TemplateBuilder(looked, segment, insn, hasRegister);
  const traced = watched(insn, seen);
  builder.begin(traced);
  lower(builder, traced);
  if (seen.place) return undefined;
  // What names places in the state page itself is for one processor, and for its registers.
  if (builder.nodes.some(({ op }) => op === 'vector')) return undefined;
  new TemplateEmitter(module, mode).add(builder);
  const { registers, immediate, vectors } = seen;
  const { end, compares, counts } = builder;
  return { ends: end !== undefined, registers, compares, immediate, counts, vectors };
}

/** The helpers that the template of an instruction's form calls, in the order of its module's imports. */
export function helpersOf(
  mode: Mode,
  insn: Insn,
  hasRegister: boolean,
  segment: CallTarget,
  lower: Lower,
): readonly Callee[] {
  const builder = new TemplateBuilder(mode, segment, insn, hasRegister);
  builder.begin(insn);
  lower(builder, insn);
  return prune(builder.nodes, builder.end ?? { kind: 'left' })
    .map(({ detail }) => detail.helper as Callee | undefined)
    .filter((helper) => helper !== undefined);
}

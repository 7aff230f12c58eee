/** From blocks of micro-ops to the code of one WebAssembly function. */

import { MIXED, Tables, tableFor } from '../address/tlb.ts';
import type { Insn } from '../processor/insn.ts';
import type { Processor } from '../processor/processor.ts';
import { FlagKind, State } from '../processor/state.ts';
import type { Block, Node } from './ir.ts';
import { vectorBytes } from './vectors.ts';
import { Wasm } from './wasm-bytes.ts';
import { Slow, WasmModule, wasmType } from './wasm-module.ts';

/** What the function gives when RIP was left to a helper, and when a load or store met State.trap; else 0. */
export const LEFT = 1;
export const TRAPPED = 2;

/**
 * Computed jumps, returns above all, within a unit: a table of 16 bytes an entry has where in which unit a RIP was
 * last found. What it says of a unit holds as long as that exists, so nothing has to be forgotten.
 */
export const Jumps = { entries: 1024, entryBytes: 16, unit: 8, index: 12 } as const;

/** The function's own locals, of which the first is its parameter; those of values follow. */
const Local = { next: 0, address: 1, entry: 2, high: 3, low: 4 } as const;
const OWN = [Wasm.i64, Wasm.i32, Wasm.i64, Wasm.i64];

export class Emitter {
  readonly #cpu: Processor;
  readonly #blocks: readonly Block[];
  readonly #index: ReadonlyMap<bigint, number>;
  readonly #unit: number;
  readonly #module = new WasmModule(OWN);
  readonly #code = this.#module.code;
  readonly #helperIndex = new Map<string, number>();
  readonly #insnIds = new Map<Insn, number>();
  readonly #helperIds = new Map<unknown, number>();
  /** Locals for values, and where those of each type are free from in the current block. */
  #free = { i: 0, l: 0 };
  readonly #pool: { i: number[]; l: number[] } = { i: [], l: [] };
  #uses = new Map<Node, number>();
  /** Of the current block: how many instructions come before it in the unit. */
  #first = 0;

  constructor(cpu: Processor, blocks: readonly Block[], unit: number) {
    this.#cpu = cpu;
    this.#blocks = blocks;
    this.#unit = unit;
    this.#index = new Map(blocks.map(({ rip }, index) => [rip, index]));
  }

  /** The unit's module, complete. */
  module(): WasmModule {
    this.#body();
    return this.#module;
  }

  #body(): void {
    const code = this.#code;
    const count = this.#blocks.length;
    code.op(Wasm.loop, Wasm.void);
    for (let i = 0; i < count; i++) code.op(Wasm.block, Wasm.void);
    code
      .op(Wasm.localGet)
      .u(Local.next)
      .op(Wasm.brTable)
      .u(count - 1);
    for (let i = 0; i < count; i++) code.u(i);
    for (let i = 0; i < count; i++) {
      code.op(Wasm.end);
      this.#block(this.#blocks[i]!, i);
      this.#first += this.#blocks[i]!.insns.length;
    }
    code.op(Wasm.end).op(Wasm.i32Const, 0);
  }

  #block(block: Block, index: number): void {
    const code = this.#code;
    const { end, nodes } = block;
    this.#free = { i: 0, l: 0 };
    this.#uses = new Map();
    const use = (node: Node) => this.#uses.set(node, (this.#uses.get(node) ?? 0) + 1);
    for (const { args } of nodes) args.forEach(use);
    if (end.kind === 'branch') use(end.condition);
    if (end.kind === 'dynamic') use(end.target);
    // A block that leads to itself loops without the table.
    const again = end.kind === 'branch' && (end.taken === block.rip || end.next === block.rip);
    if (again) code.op(Wasm.loop, Wasm.void);
    const outer = this.#blocks.length - 1 - index + (again ? 1 : 0);

    this.#stateAddress();
    this.#load(Wasm.i64Load, State.count);
    code.op(Wasm.localTee).u(Local.high);
    this.#stateAddress();
    this.#load(Wasm.i64Load, State.limit);
    code.op(0x5a, Wasm.if, Wasm.void); // i64.ge_u
    this.#exit(block.rip);
    code.op(Wasm.end);
    this.#stateAddress();
    code.op(Wasm.localGet).u(Local.high).op(Wasm.i64Const).s(block.insns.length).op(0x7c);
    this.#store(Wasm.i64Store, State.count);

    for (const node of nodes) this.#node(node);

    switch (end.kind) {
      case 'goto':
        this.#goto(end.target, outer);
        break;
      case 'branch':
        this.#value(end.condition);
        if (again) {
          if (end.next === block.rip) code.op(0x45); // i32.eqz
          code.op(Wasm.brIf).u(0);
          this.#goto(end.next === block.rip ? end.taken : end.next, outer);
        } else {
          code.op(Wasm.if, Wasm.void);
          this.#goto(end.taken, outer + 1);
          code.op(Wasm.else);
          this.#goto(end.next, outer + 1);
          code.op(Wasm.end);
        }
        break;
      case 'dynamic':
        this.#dynamic(end.target, outer);
        break;
      case 'left':
        code.op(Wasm.i32Const, LEFT, Wasm.return);
    }
    if (again) code.op(Wasm.end);
  }

  #dynamic(target: Node, depth: number): void {
    const code = this.#code;
    const table = this.#cpu.state.base + State.jumps;
    this.#value(target);
    code.op(Wasm.localTee).u(Local.high);
    code.op(Wasm.localGet).u(Local.high).op(Wasm.i64Const).s(12).op(0x88, 0x85, 0xa7); // shr_u, xor, wrap
    code
      .op(Wasm.i32Const)
      .s(Jumps.entries - 1)
      .op(0x71, Wasm.i32Const)
      .s(4)
      .op(0x74); // and, shl
    code.op(Wasm.localTee).u(Local.entry).op(Wasm.i64Load, 0).u(table);
    code.op(Wasm.localGet).u(Local.high).op(0x51);
    code
      .op(Wasm.localGet)
      .u(Local.entry)
      .op(Wasm.i32Load, 0)
      .u(table + Jumps.unit);
    code.op(Wasm.i32Const).s(this.#unit).op(0x46, 0x71, Wasm.if, Wasm.void);
    code
      .op(Wasm.localGet)
      .u(Local.entry)
      .op(Wasm.i32Load, 0)
      .u(table + Jumps.index);
    code
      .op(Wasm.localSet)
      .u(Local.next)
      .op(Wasm.br)
      .u(depth + 1)
      .op(Wasm.end);
    this.#stateAddress();
    code.op(Wasm.localGet).u(Local.high);
    this.#store(Wasm.i64Store, State.rip);
    code.op(Wasm.i32Const, 0, Wasm.return);
  }
  /** To a block of this unit, or out. `depth` is that of the outer loop. */
  #goto(target: bigint, depth: number): void {
    const index = this.#index.get(target);
    if (index === undefined) {
      this.#exit(target);
      return;
    }
    this.#code.op(Wasm.i32Const).s(index).op(Wasm.localSet).u(Local.next).op(Wasm.br).u(depth);
  }
  #exit(rip: bigint): void {
    this.#stateAddress();
    this.#code.op(Wasm.i64Const).s64(BigInt.asIntN(64, rip));
    this.#store(Wasm.i64Store, State.rip);
    this.#code.op(Wasm.i32Const, 0, Wasm.return);
  }

  // --- values ------------------------------------------------------------------------------------------------------

  /** A pure result that is used once is computed where it is used. */
  #inlined(node: Node): boolean {
    const { row, args, op } = node;
    return row.pure && op !== 'mulhu64' && (args.length === 0 || this.#uses.get(node) === 1);
  }
  #node(node: Node): void {
    if (this.#inlined(node)) return;
    this.#emit(node);
    if (node.row.result !== '') this.#code.op(Wasm.localSet).u(this.#local(node));
  }
  #local(node: Node): number {
    const type = node.row.result as 'i' | 'l';
    const pool = this.#pool[type];
    const index = this.#free[type]++;
    pool[index] ??= this.#module.local(wasmType(type));
    node.slot = pool[index]!;
    return node.slot;
  }
  #value(node: Node): void {
    if (this.#inlined(node)) this.#emit(node);
    else this.#code.op(Wasm.localGet).u(node.slot);
  }

  #emit(node: Node): void {
    const code = this.#code;
    const { op, row, args, detail } = node;
    if (row.wasm !== undefined && row.wasm.length > 0) {
      for (const arg of args) this.#value(arg);
      code.op(...row.wasm);
      return;
    }
    switch (op) {
      case 'const32':
        code.op(Wasm.i32Const).s(detail.value as number);
        return;
      case 'const64':
        code.op(Wasm.i64Const).s64(detail.value as bigint);
        return;
      case 'select32':
      case 'select64':
        this.#value(args[1]!);
        this.#value(args[2]!);
        this.#value(args[0]!);
        code.op(Wasm.select);
        return;
      case 'mulhu64':
        this.#multiplyHigh(args[0]!, args[1]!);
        return;
      case 'get32':
      case 'get64':
        this.#stateAddress();
        this.#load(loadOf(op === 'get64' ? 64 : detail.bits!), detail.offset!);
        return;
      case 'set32':
      case 'set64':
        this.#stateAddress();
        this.#value(args[0]!);
        this.#store(storeOf(op === 'set64' ? 64 : detail.bits!), detail.offset!);
        return;
      case 'flags':
        this.#flags(node);
        return;
      case 'vector':
        code.op(...vectorBytes(this.#cpu.state.base, detail.vector!));
        return;
      case 'load32':
      case 'load64':
      case 'store32':
      case 'store64':
        this.#access(node);
        return;
      case 'callIf':
      case 'call64If':
        this.#callIf(node);
        return;
      default:
        this.#call(node);
    }
  }

  #flags({ args, detail }: Node): void {
    this.#stateAddress();
    this.#code.op(Wasm.i32Const).s(detail.kind!);
    this.#store(Wasm.i32Store, State.flagKind);
    const [a, b, result] = args as [Node, Node, Node];
    const kept: [Node, number][] = [
      [result, State.flagResult],
      [a, State.flagA],
    ];
    if (detail.kind !== FlagKind.RESULT) kept.push([b, State.flagB]);
    for (const [value, offset] of kept) {
      this.#stateAddress();
      this.#value(value);
      this.#store(Wasm.i64Store, offset);
    }
  }

  /** high(a * b) from the products of halves (Hacker's Delight, 8-2). */
  #multiplyHigh(a: Node, b: Node): void {
    const code = this.#code;
    const half = (node: Node, high: boolean) => {
      this.#value(node);
      if (high) code.op(Wasm.i64Const).s(32).op(0x88);
      else code.op(Wasm.i64Const).s64(0xffff_ffffn).op(0x83);
    };
    const product = (x: boolean, y: boolean) => {
      half(a, x);
      half(b, y);
      code.op(0x7e);
    };
    const upper = () => code.op(Wasm.i64Const).s(32).op(0x88);
    product(true, false);
    product(false, false);
    upper();
    code.op(0x7c, Wasm.localTee).u(Local.high);
    code.op(Wasm.i64Const).s64(0xffff_ffffn).op(0x83);
    product(false, true);
    code.op(0x7c, Wasm.localSet).u(Local.low);
    product(true, true);
    code.op(Wasm.localGet).u(Local.high);
    upper();
    code.op(0x7c, Wasm.localGet).u(Local.low);
    upper();
    code.op(0x7c);
  }

  // --- memory ------------------------------------------------------------------------------------------------------

  #stateAddress(): void {
    this.#code.op(Wasm.i32Const, 0);
  }
  #load(op: number, offset: number): void {
    this.#code.op(op, 0).u(this.#cpu.state.base + offset);
  }
  #store(op: number, offset: number): void {
    this.#code.op(op, 0).u(this.#cpu.state.base + offset);
  }
  /** For what may fault: which instruction it was. */
  #mark(node: Node): void {
    this.#stateAddress();
    this.#code.op(Wasm.i32Const).s(this.#first + node.at);
    this.#store(Wasm.i32Store, State.at);
  }

  #access(node: Node): void {
    const code = this.#code;
    const { op, args, detail } = node;
    const storing = op === 'store32' || op === 'store64';
    const wide = op === 'load64' || op === 'store64';
    const bits = wide ? 64 : detail.bits!;
    const size = bits / 8;
    const write = storing || detail.write === true;
    const table = this.#cpu.state.base + tableFor(this.#cpu.user, write);
    const how = size | (write ? 16 : 0) | (detail.stack ? 32 : 0) | (detail.aligned ? 64 : 0);

    this.#value(args[0]!);
    code.op(Wasm.localTee).u(Local.address);
    // The entry's offset in its table: (address / 4096 % entries) * 16.
    code
      .op(Wasm.i64Const)
      .s(8)
      .op(0x88, 0xa7, Wasm.i32Const)
      .s((Tables.entries - 1) * Tables.entryBytes)
      .op(0x71, Wasm.localSet)
      .u(Local.entry);
    const field = (load: number, offset: number) =>
      code
        .op(Wasm.localGet)
        .u(Local.entry)
        .op(load, 0)
        .u(table + offset);
    const page = () => {
      // An access that reaches into the next page has another page's address at its end.
      code.op(Wasm.localGet).u(Local.address);
      if (size > 1 && !detail.aligned)
        code
          .op(Wasm.i64Const)
          .s(size - 1)
          .op(0x7c);
      // Of one that must be aligned, so has the address itself if it is not.
      code
        .op(Wasm.i64Const)
        .s(detail.aligned ? -4096 | 15 : -4096)
        .op(0x83);
    };
    const place = (offset: number) => {
      code.op(Wasm.localGet).u(Local.address).op(0xa7); // i32.wrap
      field(Wasm.i32Load, offset).op(0x6a);
    };

    code.op(Wasm.block, storing ? Wasm.void : wide ? Wasm.i64 : Wasm.i32); // done
    code.op(Wasm.block, Wasm.void); // slow
    if (write) code.op(Wasm.block, Wasm.void); // fast
    field(Wasm.i64Load, 0);
    page();
    if (write) {
      code.op(0x51, Wasm.brIf, 0);
      // A page with code, but not here.
      field(Wasm.i64Load, 0);
      page();
      code.op(Wasm.i64Const).s(MIXED).op(0x84, 0x52, Wasm.brIf, 1);
      place(12);
      code.op(loadOf(bits), 0, 0);
      if (wide) code.op(Wasm.i64Const, 0, 0x52);
      code.op(Wasm.brIf, 1, Wasm.end);
    } else code.op(0x52, Wasm.brIf, 0);
    place(8);
    if (storing) this.#value(args[1]!);
    code.op(storing ? storeOf(bits) : loadOf(bits), 0, 0);
    code.op(Wasm.br, 1, Wasm.end);
    this.#mark(node);
    code.op(Wasm.localGet).u(Local.address).op(0xa7); // i32.wrap
    code.op(Wasm.localGet).u(Local.address).op(Wasm.i64Const).s(32).op(0x88, 0xa7); // shr_u, i32.wrap
    if (storing) this.#value(args[1]!);
    code
      .op(Wasm.i32Const)
      .s(how)
      .op(Wasm.call)
      .u(Slow[op as keyof typeof Slow]);
    this.#stateAddress();
    this.#load(Wasm.i32Load, State.trap);
    code.op(Wasm.if, Wasm.void, Wasm.i32Const, TRAPPED, Wasm.return, Wasm.end);
    code.op(Wasm.end);
  }

  #call(node: Node): void {
    const { args, row, detail } = node;
    this.#mark(node);
    for (const arg of args) this.#value(arg);
    this.#code.op(Wasm.call).u(this.#helper(node, detail.insn!, args, row.result));
  }
  /** The helper looks at its first argument, the condition, and then not at `otherwise`. */
  #callIf(node: Node): void {
    const code = this.#code;
    const { op, args, row, detail } = node;
    const [condition, otherwise] = op === 'call64If' ? args : [args[0]];
    this.#value(condition!);
    code.op(Wasm.if, otherwise === undefined ? Wasm.void : Wasm.i64);
    this.#mark(node);
    code.op(Wasm.i32Const, 1);
    if (otherwise !== undefined) code.op(Wasm.i64Const, 0);
    for (const arg of args.slice(otherwise === undefined ? 1 : 2)) this.#value(arg);
    code.op(Wasm.call).u(this.#helper(node, detail.insn!, args, row.result));
    if (otherwise !== undefined) {
      code.op(Wasm.else);
      this.#value(otherwise);
    }
    code.op(Wasm.end);
  }
  #helper({ detail }: Node, insn: Insn, args: readonly Node[], result: string): number {
    const id = (map: Map<unknown, number>, key: unknown) => {
      if (!map.has(key)) map.set(key, map.size);
      return map.get(key)!;
    };
    const shape = args.map((arg) => arg.row.result).join('');
    const key = `${id(this.#insnIds as Map<unknown, number>, insn)}/${id(this.#helperIds, detail.helper)}/${shape}/${result}`;
    let index = this.#helperIndex.get(key);
    if (index === undefined) {
      const cpu = this.#cpu;
      const { state } = cpu;
      const helper = detail.helper!;
      const call = (...values: unknown[]) => {
        state.rip = insn.rip;
        state.moved = false;
        return helper(cpu, insn, ...values);
      };
      index = this.#module.helper(shape, result, call);
      this.#helperIndex.set(key, index);
    }
    return index;
  }
}
const loadOf = (bits: number) =>
  bits === 8 ? Wasm.i32Load8u : bits === 16 ? Wasm.i32Load16u : bits === 32 ? Wasm.i32Load : Wasm.i64Load;
const storeOf = (bits: number) =>
  bits === 8 ? Wasm.i32Store8 : bits === 16 ? Wasm.i32Store16 : bits === 32 ? Wasm.i32Store : Wasm.i64Store;

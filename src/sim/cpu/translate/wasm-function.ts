/** From micro-ops to the code of a WebAssembly function: values, accesses to memory, calls of helpers. */
import { MIXED, Tables, tableFor } from '../address/tlb.ts';
import { FlagKind, State } from '../processor/state.ts';
import { AttemptCode, type Quick } from './attempt.ts';
import type { End, Node } from './ir.ts';
import { vectorBytes } from './vectors.ts';
import type { Bytes } from './wasm-bytes.ts';
import { Wasm } from './wasm-bytes.ts';
import { Slow, type WasmModule, wasmType } from './wasm-module.ts';

/** What a function gives when RIP was left to a helper, and when a load or store met State.trap. */
export const LEFT = 1;
export const TRAPPED = 2;

/** The function's own locals behind its parameter; those of values follow. */
export const Local = { parameter: 0, address: 1, entry: 2, high: 3, low: 4 } as const;
const OWN = [Wasm.i64, Wasm.i32, Wasm.i64, Wasm.i64];

export abstract class FunctionEmitter {
  protected readonly module: WasmModule;
  protected readonly code: Bytes;
  /** The state page, where the code is for one processor alone; else its place is the module's global. */
  readonly #base: number | undefined;
  readonly #user: boolean;
  /** Locals for values, and where those of each type are free from in the current block. */
  #free = { i: 0, l: 0 };
  readonly #pool: { i: number[]; l: number[] } = { i: [], l: [] };
  /** Locals of attempts, by type and number. */
  readonly #scratches = new Map<number, number>();
  /** The functions that attempts call. */
  readonly #callees = new Map<Quick, number>();
  #uses = new Map<Node, number>();

  constructor(module: WasmModule, user: boolean, base: number | undefined) {
    this.module = module;
    this.code = module.begin(OWN);
    this.#user = user;
    this.#base = base;
  }

  /** Stores which instruction a node belongs to, for what may fault. */
  protected abstract mark(node: Node): void;
  /** Calls a helper; its arguments but those that the call itself has come last. */
  protected abstract helper(node: Node): { readonly index: number; before(): void };

  /** Begins with a block's nodes: no value is known yet. */
  protected begin(nodes: readonly Node[], end: End | undefined): void {
    this.#free = { i: 0, l: 0 };
    this.#uses = new Map();
    const use = (node: Node) => this.#uses.set(node, (this.#uses.get(node) ?? 0) + 1);
    for (const { args } of nodes) args.forEach(use);
    if (end?.kind === 'branch') use(end.condition);
    if (end?.kind === 'dynamic') use(end.target);
  }

  // --- values ------------------------------------------------------------------------------------------------------

  /** A pure result that is used once is computed where it is used. */
  #inlined(node: Node): boolean {
    const { row, args, op } = node;
    return row.pure && op !== 'mulhu64' && (args.length === 0 || this.#uses.get(node) === 1);
  }
  protected node(node: Node): void {
    if (this.#inlined(node)) return;
    this.emit(node);
    if (node.row.result !== '') this.code.op(Wasm.localSet).u(this.#local(node));
  }
  #local(node: Node): number {
    const type = node.row.result as 'i' | 'l';
    const pool = this.#pool[type];
    const index = this.#free[type]++;
    pool[index] ??= this.module.local(wasmType(type));
    node.slot = pool[index]!;
    return node.slot;
  }
  protected value(node: Node): void {
    if (this.#inlined(node)) this.emit(node);
    else this.code.op(Wasm.localGet).u(node.slot);
  }

  protected emit(node: Node): void {
    const { code } = this;
    const { op, row, args, detail } = node;
    if (row.wasm !== undefined && row.wasm.length > 0) {
      for (const arg of args) this.value(arg);
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
        this.value(args[1]!);
        this.value(args[2]!);
        this.value(args[0]!);
        code.op(Wasm.select);
        return;
      case 'mulhu64':
        this.#multiplyHigh(args[0]!, args[1]!);
        return;
      case 'get32':
      case 'get64':
        this.stateAddress();
        this.load(loadOf(op === 'get64' ? 64 : detail.bits!), detail.offset!);
        return;
      case 'set32':
      case 'set64':
        this.stateAddress();
        this.value(args[0]!);
        this.store(storeOf(op === 'set64' ? 64 : detail.bits!), detail.offset!);
        return;
      case 'flags':
        this.#flags(node);
        return;
      case 'vector':
        if (this.#base === undefined) throw new Error('a vector op of no processor');
        code.op(...vectorBytes(this.#base, detail.vector!));
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
      case 'attempt':
      case 'attempt32':
      case 'attempt64':
        this.#attempt(node);
        return;
      default:
        this.#call(node);
    }
  }

  #flags({ args, detail }: Node): void {
    this.stateAddress();
    this.code.op(Wasm.i32Const).s(detail.kind!);
    this.store(Wasm.i32Store, State.flagKind);
    const [a, b, result] = args as [Node, Node, Node];
    const kept: [Node, number][] = [
      [result, State.flagResult],
      [a, State.flagA],
    ];
    if (detail.kind !== FlagKind.RESULT) kept.push([b, State.flagB]);
    for (const [value, offset] of kept) {
      this.stateAddress();
      this.value(value);
      this.store(Wasm.i64Store, offset);
    }
  }

  /** high(a * b) from the products of halves (Hacker's Delight, 8-2). */
  #multiplyHigh(a: Node, b: Node): void {
    const { code } = this;
    const half = (node: Node, high: boolean) => {
      this.value(node);
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

  /** The address that load() and store() take. */
  protected stateAddress(): void {
    if (this.#base === undefined) this.code.op(Wasm.globalGet, 0);
    else this.code.op(Wasm.i32Const, 0);
  }
  /** An offset in the state page, as an instruction's. */
  protected offset(of: number): number {
    return (this.#base ?? 0) + of;
  }
  protected load(op: number, offset: number): void {
    this.code.op(op, 0).u(this.offset(offset));
  }
  protected store(op: number, offset: number): void {
    this.code.op(op, 0).u(this.offset(offset));
  }
  #access(node: Node): void {
    const { code } = this;
    const { op, args, detail } = node;
    const storing = op === 'store32' || op === 'store64';
    const wide = op === 'load64' || op === 'store64';
    const bits = wide ? 64 : detail.bits!;
    const size = bits / 8;
    const write = storing || detail.write === true;
    const table = this.offset(tableFor(this.#user, write));
    const how = size | (write ? 16 : 0) | (detail.stack ? 32 : 0) | (detail.aligned ? 64 : 0);

    this.value(args[0]!);
    code.op(Wasm.localTee).u(Local.address);
    // The entry's offset in its table: (address / 4096 % entries) * 16.
    code
      .op(Wasm.i64Const)
      .s(8)
      .op(0x88, 0xa7, Wasm.i32Const)
      .s((Tables.entries - 1) * Tables.entryBytes)
      .op(0x71);
    if (this.#base === undefined) code.op(Wasm.globalGet, 0, 0x6a);
    code.op(Wasm.localSet).u(Local.entry);
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
    if (storing) this.value(args[1]!);
    code.op(storing ? storeOf(bits) : loadOf(bits), 0, 0);
    code.op(Wasm.br, 1, Wasm.end);
    this.mark(node);
    code.op(Wasm.localGet).u(Local.address).op(0xa7); // i32.wrap
    code.op(Wasm.localGet).u(Local.address).op(Wasm.i64Const).s(32).op(0x88, 0xa7); // shr_u, i32.wrap
    if (storing) this.value(args[1]!);
    code
      .op(Wasm.i32Const)
      .s(how)
      .op(Wasm.call)
      .u(Slow[op as keyof typeof Slow]);
    this.stateAddress();
    this.load(Wasm.i32Load, State.trap);
    code.op(Wasm.if, Wasm.void, Wasm.i32Const, TRAPPED, Wasm.return, Wasm.end);
    code.op(Wasm.end);
  }

  #call(node: Node): void {
    const { index, before } = this.helper(node);
    this.mark(node);
    before();
    for (const arg of node.args) this.value(arg);
    this.code.op(Wasm.call).u(index);
  }
  #attempt(node: Node): void {
    const { code } = this;
    const { args, detail, row } = node;
    code.op(Wasm.block, row.result === '' ? Wasm.void : wasmType(row.result)); // done
    code.op(Wasm.block, Wasm.void); // slow
    const host = {
      code,
      address: () => this.stateAddress(),
      offset: (of: number) => this.offset(of),
      local: (type: number, index: number) => this.#scratch(type, index),
      argument: (index: number) => this.value(args[index]!),
      callee: (quick: Quick) => this.#callee(quick),
    };
    detail.attempt!(new AttemptCode(host));
    code.op(Wasm.br, 1, Wasm.end);
    this.#call({ ...node, args: [] });
    code.op(Wasm.end);
  }
  #callee(quick: Quick): number {
    const index = this.#callees.get(quick) ?? this.module.helper(quick.params, 'i', quick);
    this.#callees.set(quick, index);
    return index;
  }
  #scratch(type: number, index: number): number {
    const key = type * 256 + index;
    const local = this.#scratches.get(key) ?? this.module.local(type);
    this.#scratches.set(key, local);
    return local;
  }
  /** The helper looks at its first argument, the condition, and then not at `otherwise`. */
  #callIf(node: Node): void {
    const { code } = this;
    const { op, args } = node;
    const [condition, otherwise] = op === 'call64If' ? args : [args[0]];
    const { index, before } = this.helper(node);
    this.value(condition!);
    code.op(Wasm.if, otherwise === undefined ? Wasm.void : Wasm.i64);
    this.mark(node);
    before();
    code.op(Wasm.i32Const, 1);
    if (otherwise !== undefined) code.op(Wasm.i64Const, 0);
    for (const arg of args.slice(otherwise === undefined ? 1 : 2)) this.value(arg);
    code.op(Wasm.call).u(index);
    if (otherwise !== undefined) {
      code.op(Wasm.else);
      this.value(otherwise);
    }
    code.op(Wasm.end);
  }
}
export const loadOf = (bits: number) =>
  bits === 8 ? Wasm.i32Load8u : bits === 16 ? Wasm.i32Load16u : bits === 32 ? Wasm.i32Load : Wasm.i64Load;
export const storeOf = (bits: number) =>
  bits === 8 ? Wasm.i32Store8 : bits === 16 ? Wasm.i32Store16 : bits === 32 ? Wasm.i32Store : Wasm.i64Store;

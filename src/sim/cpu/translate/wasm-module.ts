/** The module that one unit becomes: its types, imports and locals around the code of its one function. */
import { Bytes, Wasm } from './wasm-bytes.ts';

type Callee = (...args: unknown[]) => unknown;

interface FunctionType {
  readonly params: readonly number[];
  readonly results: readonly number[];
}

/** Imports that every module has, `s0` and so on, by their function index. */
export const Slow = { load32: 0, load64: 1, store32: 2, store64: 3 } as const;

const types = {
  run: { params: [Wasm.i32], results: [Wasm.i32] },
  load32: { params: [Wasm.i32, Wasm.i32, Wasm.i32], results: [Wasm.i32] },
  load64: { params: [Wasm.i32, Wasm.i32, Wasm.i32], results: [Wasm.i64] },
  store32: { params: [Wasm.i32, Wasm.i32, Wasm.i32, Wasm.i32], results: [] },
  store64: { params: [Wasm.i32, Wasm.i32, Wasm.i64, Wasm.i32], results: [] },
} as const satisfies { [name: string]: FunctionType };

const SLOW = Object.keys(Slow).length;

/** A micro-op's kind of value, `i` or `l`, as WebAssembly's type. */
export const wasmType = (type: string) => (type === 'l' ? Wasm.i64 : Wasm.i32);

export class WasmModule {
  /** The function's body. */
  readonly code = new Bytes();
  readonly #types: FunctionType[] = Object.values(types);
  readonly #helpers: { readonly type: number; readonly call: Callee }[] = [];
  /** Types of the locals; the function's parameter, which comes before them, is not among them. */
  readonly #locals: number[];

  /** The state page's place is a global, which is imported. */
  readonly #global: boolean;

  constructor(locals: readonly number[], { global = false } = {}) {
    this.#locals = [...locals];
    this.#global = global;
  }

  /** Another local; its index. */
  local(type: number): number {
    return this.#locals.push(type);
  }

  /** Another import, of the types that `args` and `result` name; its function index. */
  helper(args: string, result: string, call: Callee): number {
    const params = [...args].map(wasmType);
    const results = result === '' ? [] : [wasmType(result)];
    const same = (type: FunctionType) => `${type.params}/${type.results}` === `${params}/${results}`;
    let type = this.#types.findIndex(same);
    if (type < 0) type = this.#types.push({ params, results }) - 1;
    return SLOW + this.#helpers.push({ type, call }) - 1;
  }

  /** What `helper` was given, as imports by name. */
  get imports(): { [name: string]: Callee } {
    return Object.fromEntries(this.#helpers.map(({ call }, index) => [`h${index}`, call]));
  }

  /** The binary. The memory is the import `m`, the function the export `r`. */
  bytes(): Uint8Array {
    const typeSection = new Bytes().u(this.#types.length);
    for (const { params, results } of this.#types) {
      typeSection
        .op(0x60)
        .u(params.length)
        .op(...params)
        .u(results.length)
        .op(...results);
    }
    const imports = new Bytes().u(1 + SLOW + this.#helpers.length + (this.#global ? 1 : 0));
    // limits: shared, with a maximum
    imports.name('e').name('m').op(2, 3).u(1).u(65_536);
    const imported = (name: string, type: number) => imports.name('e').name(name).op(0).u(type);
    for (let i = 0; i < SLOW; i++) imported(`s${i}`, i + 1);
    for (const [index, { type }] of this.#helpers.entries()) imported(`h${index}`, type);
    if (this.#global) imports.name('e').name('b').op(3, Wasm.i32, 0);
    const functions = new Bytes().u(1).u(0);
    const run = SLOW + this.#helpers.length;
    const exports = new Bytes().u(1).name('r').op(0).u(run);
    const body = this.#declarations().append(this.code).op(Wasm.end);
    const code = new Bytes().u(1).u(body.length).append(body);
    const module = new Bytes().op(0, 0x61, 0x73, 0x6d, 1, 0, 0, 0);
    module
      .section(1, typeSection)
      .section(2, imports)
      .section(3, functions)
      .section(7, exports)
      .section(10, code);
    return module.all;
  }

  /** Locals are declared by runs of one type. */
  #declarations(): Bytes {
    const runs: [count: number, type: number][] = [];
    for (const type of this.#locals) {
      const last = runs.at(-1);
      if (last?.[1] === type) last[0]++;
      else runs.push([1, type]);
    }
    const bytes = new Bytes().u(runs.length);
    for (const [count, type] of runs) bytes.u(count).op(type);
    return bytes;
  }
}

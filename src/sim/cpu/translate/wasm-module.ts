/** The module that a unit becomes, or several templates: types, imports and locals around the code of its functions. */
import type { Processor } from '../processor/processor.ts';
import type { Quick } from './attempt.ts';
import { Bytes, Wasm } from './wasm-bytes.ts';

export type Callee = (...args: unknown[]) => unknown;

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
  /** The bodies of its functions, and the types of their locals; the parameter, which comes before them, is not among them. */
  readonly #functions: { readonly code: Bytes; readonly locals: number[] }[] = [];
  readonly #types: FunctionType[] = Object.values(types);
  readonly #helpers: { readonly type: number; readonly call: Callee | Quick }[] = [];
  /** The state page's place is a global, which is imported. */
  readonly #global: boolean;

  /** Its functions are no exports but go into a table, which is imported, from a place on that is a global. */
  readonly #placed: boolean;

  constructor({ global = false, placed = false } = {}) {
    this.#global = global;
    this.#placed = placed;
  }
  /** How many functions there are. */
  get count(): number {
    return this.#functions.length;
  }

  /** Another function, with these locals; its body. */
  begin(locals: readonly number[]): Bytes {
    const code = new Bytes();
    this.#functions.push({ code, locals: [...locals] });
    return code;
  }
  /** Takes the last function back; what it calls stays among the imports. */
  drop(): void {
    this.#functions.pop();
  }
  /** Another local of the function that was begun last; its index. */
  local(type: number): number {
    return this.#functions.at(-1)!.locals.push(type);
  }

  /** Another import, of the types that `args` and `result` name; its function index. */
  helper(args: string, result: string, call: Callee | Quick): number {
    const params = [...args].map(wasmType);
    const results = result === '' ? [] : [wasmType(result)];
    const same = (type: FunctionType) => `${type.params}/${type.results}` === `${params}/${results}`;
    let type = this.#types.findIndex(same);
    if (type < 0) type = this.#types.push({ params, results }) - 1;
    return SLOW + this.#helpers.push({ type, call }) - 1;
  }

  /** What `helper` was given. */
  get helpers(): readonly (Callee | Quick)[] {
    return this.#helpers.map(({ call }) => call);
  }

  /** The binary. The memory is the import `m`, helpers are `h0` and so on, the functions the exports `r0` and so on. */
  bytes(): Uint8Array<ArrayBuffer> {
    const typeSection = new Bytes().u(this.#types.length);
    for (const { params, results } of this.#types) {
      typeSection
        .op(0x60)
        .u(params.length)
        .op(...params)
        .u(results.length)
        .op(...results);
    }
    const imports = new Bytes().u(
      1 + SLOW + this.#helpers.length + (this.#global ? 1 : 0) + (this.#placed ? 2 : 0),
    );
    // limits: shared, with a maximum
    imports.name('e').name('m').op(2, 3).u(1).u(65_536);
    const imported = (name: string, type: number) => imports.name('e').name(name).op(0).u(type);
    for (let i = 0; i < SLOW; i++) imported(`s${i}`, i + 1);
    for (const [index, { type }] of this.#helpers.entries()) imported(`h${index}`, type);
    if (this.#global) imports.name('e').name('b').op(3, Wasm.i32, 0);
    if (this.#placed) imports.name('e').name('t').op(1, 0x70, 0, 0).name('e').name('p').op(3, Wasm.i32, 0);
    const functions = new Bytes().u(this.#functions.length);
    const exports = new Bytes().u(this.#functions.length);
    const elements = new Bytes()
      .u(1)
      .op(0, Wasm.globalGet)
      .u(this.#global ? 1 : 0)
      .op(Wasm.end);
    elements.u(this.#functions.length);
    const bodies = new Bytes().u(this.#functions.length);
    for (const [index, { code, locals }] of this.#functions.entries()) {
      functions.u(0);
      const at = SLOW + this.#helpers.length + index;
      exports.name(`r${index}`).op(0).u(at);
      elements.u(at);
      const body = declarations(locals).append(code).op(Wasm.end);
      bodies.u(body.length).append(body);
    }
    const module = new Bytes().op(0, 0x61, 0x73, 0x6d, 1, 0, 0, 0);
    module.section(1, typeSection).section(2, imports).section(3, functions);
    if (this.#placed) module.section(9, elements);
    else module.section(7, exports);
    module.section(10, bodies);
    return module.all;
  }
}

/** Locals are declared by runs of one type. */
export function declarations(locals: readonly number[]): Bytes {
  const runs: [count: number, type: number][] = [];
  for (const type of locals) {
    const last = runs.at(-1);
    if (last?.[1] === type) last[0]++;
    else runs.push([1, type]);
  }
  const bytes = new Bytes().u(runs.length);
  for (const [count, type] of runs) bytes.u(count).op(type);
  return bytes;
}

/** Imports by the names that a module's helpers have, for a processor; `called` is what JS functions become. */
export const importsOf = (
  cpu: Processor,
  helpers: readonly (Callee | Quick)[],
  called = (call: Callee) => call,
): { [name: string]: Callee } =>
  Object.fromEntries(
    helpers.map((call, index) => [`h${index}`, typeof call === 'function' ? called(call) : call.of(cpu)]),
  );

/** Modules of functions that translated code calls. */
import type { Module } from '../../../webassembly.ts';
import { WebAssembly } from '../../../webassembly.ts';
import type { Processor } from '../../processor/processor.ts';
import type { Quick } from '../attempt.ts';
import { Bytes, Wasm } from '../wasm-bytes.ts';
import { wasmType } from '../wasm-module.ts';
import { Body, type Definition } from './code.ts';

type Exports = { readonly [name: string]: unknown };
const NONE: Exports = {};
const givesUp = () => 0;

/** Functions that are compiled together, when the first of them is asked for. */
export class Functions {
  /** Those that are exported, in the order of their names `f0` and so on; they may call others. */
  readonly #exported: Definition[] = [];
  #module: Module | undefined;
  readonly #instances = new WeakMap<Processor, Exports>();

  /** On the processor's own state; none where the engine compiles no such module at once. */
  #of(cpu: Processor): Exports {
    const known = this.#instances.get(cpu);
    if (known !== undefined) return known;
    let made = NONE;
    try {
      this.#module ??= new WebAssembly.Module(bytesOf(this.#exported));
      const imports = { m: cpu.arena.memory, b: cpu.state.base };
      made = new WebAssembly.Instance(this.#module, { e: imports }).exports;
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
    }
    this.#instances.set(cpu, made);
    return made;
  }

  /** Another function, as attempts call it. */
  quick(definition: Definition): Quick {
    const name = `f${this.#exported.push(definition) - 1}`;
    const of: Quick['of'] = (cpu) => (this.#of(cpu)[name] ?? givesUp) as ReturnType<Quick['of']>;
    return { params: definition.params, of };
  }
}

/** The binary. The memory and the state page's place are imported. */
function bytesOf(first: readonly Definition[]): Uint8Array {
  const all = [...first];
  const indexOf = (definition: Definition) => {
    const known = all.indexOf(definition);
    return known >= 0 ? known : all.push(definition) - 1;
  };
  const bodies: Bytes[] = [];
  // Others join the list as they are called.
  for (let index = 0; index < all.length; index++) {
    const { params, body } = all[index]!;
    const code = new Bytes();
    const f = new Body(code, params.length, indexOf);
    body(f, ...Array.from(params, (_, local) => ({ local })));
    bodies.push(f.declarations.append(code).op(Wasm.end));
  }
  const signatures = [...new Set(all.map(({ params }) => params))];
  const types = new Bytes().u(signatures.length);
  for (const params of signatures)
    types
      .op(0x60)
      .u(params.length)
      .op(...Array.from(params, wasmType), 1, Wasm.i32);
  const imports = new Bytes().u(2).name('e').name('m').op(2, 3).u(1).u(65_536);
  imports.name('e').name('b').op(3, Wasm.i32, 0);
  const functions = new Bytes().u(all.length);
  for (const { params } of all) functions.u(signatures.indexOf(params));
  const names = new Bytes().u(first.length);
  for (const index of first.keys()) names.name(`f${index}`).op(0).u(index);
  const code = new Bytes().u(bodies.length);
  for (const body of bodies) code.u(body.length).append(body);
  return new Bytes()
    .op(0, 0x61, 0x73, 0x6d, 1, 0, 0, 0)
    .section(1, types)
    .section(2, imports)
    .section(3, functions)
    .section(7, names)
    .section(10, code).all;
}

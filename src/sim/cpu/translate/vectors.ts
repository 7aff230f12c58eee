/**
 * WebAssembly's SIMD as micro-ops. JS has none, so the closure of an op is a function of a small module that does
 * the one op, which translated code has inline.
 */

import type { Arena } from '../../arena.ts';
import { WebAssembly } from '../../webassembly.ts';
import type { Processor } from '../processor/processor.ts';
import { Bytes, Wasm } from './wasm-bytes.ts';

/** One instruction of WebAssembly's SIMD on 16-byte places of the state page: to = op(a, b), or op(a) shifted. */
export interface VectorDetail {
  /** The instruction's bytes, its immediate lanes included. */
  readonly bytes: readonly number[];
  readonly to: number;
  readonly a: number;
  readonly b?: number;
  /** The count of a shift. */
  readonly shift?: number;
}

const LOAD = [0xfd, 0, 0];
const STORE = [0xfd, 11, 0];

/** A SIMD instruction by its number (WebAssembly specification, 5.4.8), with its immediate bytes. */
export function simd(number: number, immediate: readonly number[] = []): readonly number[] {
  return [
    ...new Bytes()
      .op(0xfd)
      .u(number)
      .op(...immediate).all,
  ];
}

/** The op's whole code: loads, the instruction, a store. */
export function vectorBytes(base: number, { bytes, to, a, b, shift }: VectorDetail): number[] {
  const code = new Bytes().op(Wasm.i32Const, 0);
  const load = (offset: number) => code.op(Wasm.i32Const, 0, ...LOAD).u(base + offset);
  load(a);
  if (b !== undefined) load(b);
  if (shift !== undefined) code.op(Wasm.i32Const).s(shift);
  return [...code.op(...bytes, ...STORE).u(base + to).all];
}

const made = new WeakMap<Arena, Map<string, () => void>>();

export function vectorFunction({ arena, state }: Processor, detail: VectorDetail): () => void {
  const known = made.get(arena) ?? new Map<string, () => void>();
  made.set(arena, known);
  const code = vectorBytes(state.base, detail);
  const key = code.join();
  let run = known.get(key);
  if (run === undefined) {
    const body = new Bytes().u(0).op(...code, Wasm.end);
    const module = new Bytes().op(0, 0x61, 0x73, 0x6d, 1, 0, 0, 0);
    module.section(1, new Bytes().op(1, 0x60, 0, 0));
    module.section(2, new Bytes().u(1).name('e').name('m').op(2, 3).u(1).u(65_536));
    module.section(3, new Bytes().op(1, 0));
    module.section(7, new Bytes().u(1).name('r').op(0, 0));
    module.section(10, new Bytes().u(1).u(body.length).append(body));
    const instance = new WebAssembly.Instance(new WebAssembly.Module(module.all), {
      e: { m: arena.memory },
    });
    run = instance.exports.r as () => void;
    known.set(key, run);
  }
  return run;
}

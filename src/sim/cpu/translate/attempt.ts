/**
 * What translated code tries before it calls a helper: code that does the instruction in its common case, and says where
 * it is not that. Closures have the helper alone, so the helper is what the instruction does, and the attempt must be
 * the same or give up before it has changed anything.
 */
import type { Processor } from '../processor/processor.ts';
import { type Bytes, Wasm } from './wasm-bytes.ts';

/** Leaves the op's result, if it has one, on the stack; or has changed the state page. */
export type Attempt = (code: AttemptCode) => void;

/** A function of WebAssembly that does an instruction where it is ordinary, and else gives 0. */
export interface Quick {
  /** The types of its parameters, `i` or `l`. */
  readonly params: string;
  /** As it is for a processor: the same for all of its code. */
  of(cpu: Processor): (...args: unknown[]) => number;
}

/** Where the code goes, and what it may use there. */
export interface AttemptHost {
  readonly code: Bytes;
  /** The address of the state page, and an offset in it, as load and store instructions take them. */
  address(): void;
  offset(of: number): number;
  /** A local of a type for one attempt's own use: the first, the second and so on of that type. */
  local(type: number, index: number): number;
  /** One of the op's arguments. */
  argument(index: number): void;
  /** The index of a function. */
  callee(quick: Quick): number;
}

/** Writes an attempt. Instructions are lists of bytes without their immediate offsets and indices. */
export class AttemptCode {
  readonly #host: AttemptHost;
  /** How many blocks are open within the attempt. */
  #depth = 0;
  readonly #used = new Map<number, number>();

  constructor(host: AttemptHost) {
    this.#host = host;
  }

  op(...bytes: readonly number[]): this {
    this.#host.code.op(...bytes);
    return this;
  }
  argument(index: number): this {
    this.#host.argument(index);
    return this;
  }
  /** A new local. */
  local(type: number): number {
    const index = this.#used.get(type) ?? 0;
    this.#used.set(type, index + 1);
    return this.#host.local(type, index);
  }
  get(local: number): this {
    this.#host.code.op(Wasm.localGet).u(local);
    return this;
  }
  set(local: number): this {
    this.#host.code.op(Wasm.localSet).u(local);
    return this;
  }
  tee(local: number): this {
    this.#host.code.op(Wasm.localTee).u(local);
    return this;
  }
  const32(value: number): this {
    this.#host.code.op(Wasm.i32Const).s(value);
    return this;
  }
  const64(value: bigint): this {
    this.#host.code.op(Wasm.i64Const).s64(BigInt.asIntN(64, value));
    return this;
  }
  /** From a place in the state page. */
  load(instruction: readonly number[], offset: number): this {
    this.#host.address();
    this.#host.code.op(...instruction, 0).u(this.#host.offset(offset));
    return this;
  }
  /** What `value` leaves on the stack, to a place in the state page. */
  store(instruction: readonly number[], offset: number, value: () => void): this {
    this.#host.address();
    value();
    this.#host.code.op(...instruction, 0).u(this.#host.offset(offset));
    return this;
  }
  /** Calls with the arguments on the stack, and leaves the answer there. */
  call(quick: Quick): this {
    this.#host.code.op(Wasm.call).u(this.#host.callee(quick));
    return this;
  }
  /** Gives up where the `i` on the stack is not 0. */
  slowIf(): this {
    this.#host.code.op(Wasm.brIf).u(this.#depth);
    return this;
  }
  /** What `body` writes is done where the `i` on the stack is not 0. */
  when(body: () => void): this {
    this.op(Wasm.if, Wasm.void);
    this.#depth++;
    body();
    this.#depth--;
    return this.op(Wasm.end);
  }
}

/** Functions of WebAssembly as they are written by hand: expressions, locals and statements. */
import { type Bytes, Wasm } from '../wasm-bytes.ts';
import { declarations, wasmType } from '../wasm-module.ts';

export interface Local {
  readonly local: number;
}
/** Writes what leaves a value on the stack. */
type Expression = (code: Bytes) => void;
/** A number is a constant of 32 bits, a bigint one of 64. */
export type Value = number | bigint | Local | Expression;

function write(code: Bytes, value: Value): void {
  if (typeof value === 'number') code.op(Wasm.i32Const).s(value);
  else if (typeof value === 'bigint') code.op(Wasm.i64Const).s64(BigInt.asIntN(64, value));
  else if (typeof value === 'function') value(code);
  else code.op(Wasm.localGet).u(value.local);
}
const unary =
  (op: number) =>
  (a: Value): Expression =>
  (code) => {
    write(code, a);
    code.op(op);
  };
const binary =
  (op: number) =>
  (a: Value, b: Value): Expression =>
  (code) => {
    write(code, a);
    write(code, b);
    code.op(op);
  };
const loading =
  (op: number) =>
  (address: Value, offset: number): Expression =>
  (code) => {
    write(code, address);
    code.op(op, 0).u(offset);
  };

/** Of 32 bits. What compares gives 1 or 0; `u` is without signs, and so are `shr` and the loads. */
export const i = {
  isZero: unary(0x45),
  eq: binary(0x46),
  ne: binary(0x47),
  lts: binary(0x48),
  ltu: binary(0x49),
  gtu: binary(0x4b),
  geu: binary(0x4f),
  add: binary(0x6a),
  sub: binary(0x6b),
  mul: binary(0x6c),
  and: binary(0x71),
  or: binary(0x72),
  xor: binary(0x73),
  shl: binary(0x74),
  sar: binary(0x75),
  shr: binary(0x76),
  wrap: unary(0xa7),
  load: loading(Wasm.i32Load),
  load16: loading(Wasm.i32Load16u),
} as const;
/** Of 64. */
export const l = {
  isZero: unary(0x50),
  eq: binary(0x51),
  ne: binary(0x52),
  lts: binary(0x53),
  ltu: binary(0x54),
  gtu: binary(0x56),
  clz: unary(0x79),
  add: binary(0x7c),
  sub: binary(0x7d),
  mul: binary(0x7e),
  divu: binary(0x80),
  and: binary(0x83),
  or: binary(0x84),
  xor: binary(0x85),
  shl: binary(0x86),
  sar: binary(0x87),
  shr: binary(0x88),
  extend: unary(0xac),
  extendU: unary(0xad),
  /** The root of a number without a sign as a double has it, without its fraction. */
  root: ((a) => (code) => {
    write(code, a);
    code.op(0xba, 0x9f, 0xb1); // f64.convert_i64_u, f64.sqrt, i64.trunc_f64_u
  }) as (a: Value) => Expression,
  load: loading(Wasm.i64Load),
} as const;
/** The second where the first is not 0, else the third. */
export const select =
  (condition: Value, yes: Value, no: Value): Expression =>
  (code) => {
    write(code, yes);
    write(code, no);
    write(code, condition);
    code.op(Wasm.select);
  };

/** Where the state page is. */
export const statePage: Expression = (code) => code.op(Wasm.globalGet, 0);

/** A function: the types of its parameters, `i` or `l`; its body gives an `i`, for which it has `return`. */
export interface Definition {
  readonly params: string;
  readonly body: (f: Body, ...params: Local[]) => void;
}

/** A body as it grows. */
export class Body {
  readonly #code: Bytes;
  readonly #params: number;
  readonly #locals: number[] = [];
  readonly #indexOf: (definition: Definition) => number;

  /** @param indexOf a function's index, which another one calls */
  constructor(code: Bytes, params: number, indexOf: (definition: Definition) => number) {
    this.#code = code;
    this.#params = params;
    this.#indexOf = indexOf;
  }

  /** Its locals, as a body begins with them. */
  get declarations(): Bytes {
    return declarations(this.#locals);
  }

  #local(type: 'i' | 'l', value: Value): Local {
    const local = { local: this.#params + this.#locals.push(wasmType(type)) - 1 };
    this.set(local, value);
    return local;
  }
  /** A new local with this value. */
  i(value: Value): Local {
    return this.#local('i', value);
  }
  l(value: Value): Local {
    return this.#local('l', value);
  }
  set({ local }: Local, value: Value): void {
    write(this.#code, value);
    this.#code.op(Wasm.localSet).u(local);
  }
  if(condition: Value, then: () => void, otherwise?: () => void): void {
    write(this.#code, condition);
    this.#code.op(Wasm.if, Wasm.void);
    then();
    if (otherwise !== undefined) {
      this.#code.op(Wasm.else);
      otherwise();
    }
    this.#code.op(Wasm.end);
  }
  return(value: Value): void {
    write(this.#code, value);
    this.#code.op(Wasm.return);
  }
  /** Gives 0: nothing has been changed yet. */
  giveUpIf(condition: Value): void {
    this.if(condition, () => this.return(0));
  }
  #store(op: number, address: Value, offset: number, value: Value): void {
    write(this.#code, address);
    write(this.#code, value);
    this.#code.op(op, 0).u(offset);
  }
  store32(address: Value, offset: number, value: Value): void {
    this.#store(Wasm.i32Store, address, offset, value);
  }
  store16(address: Value, offset: number, value: Value): void {
    this.#store(Wasm.i32Store16, address, offset, value);
  }
  store64(address: Value, offset: number, value: Value): void {
    this.#store(Wasm.i64Store, address, offset, value);
  }
  /** Bytes alike, and bytes from elsewhere, as if all were read before any is written. */
  fill(to: Value, byte: Value, bytes: Value): void {
    for (const value of [to, byte, bytes]) write(this.#code, value);
    this.#code.op(0xfc, 11, 0);
  }
  copy(to: Value, from: Value, bytes: Value): void {
    for (const value of [to, from, bytes]) write(this.#code, value);
    this.#code.op(0xfc, 10, 0, 0);
  }
  call(definition: Definition, ...args: Value[]): Expression {
    const index = this.#indexOf(definition);
    return (code) => {
      for (const arg of args) write(code, arg);
      code.op(Wasm.call).u(index);
    };
  }
}

/**
 * The micro-ops: what every instruction is lowered to. Types are WebAssembly's: `i` is a 32-bit integer (a number in
 * JS, signed), `l` a 64-bit one (a signed bigint). Each row says what the op does twice, in JS and in WebAssembly,
 * and a test holds the two together.
 */
import { highHalf, lowHalf } from '../processor/halves.ts';
import type { Insn } from '../processor/insn.ts';
import type { Processor } from '../processor/processor.ts';
import { State } from '../processor/state.ts';
import type { Attempt } from './attempt.ts';
import { type VectorDetail, vectorFunction } from './vectors.ts';

export type Type = 'i' | 'l';
export type Bits = 8 | 16 | 32 | 64;

/** What an op is beside its arguments. */
export interface Detail {
  /** Of `get` and `set`: where in the state page. Of `field` and `register`: where in the record. */
  readonly offset?: number;
  /** Of memory accesses and of `get` and `set`. */
  readonly bits?: Bits;
  /** Of a load: the instruction will write here, so it faults as a write does. */
  readonly write?: boolean;
  /** Of an access through SS: a bad address is #SS. */
  readonly stack?: boolean;
  /** Of memory accesses: #GP(0) unless the address is a multiple of 16 (SDM volume 2, "Exceptions Type 1"). */
  readonly aligned?: boolean;
  /** Of `vector`. */
  readonly vector?: VectorDetail;
  /** Of `const`. */
  readonly value?: number | bigint;
  /** Of `call`. */
  readonly helper?: CallTarget;
  readonly insn?: Insn;
  /** Of `attempt`. */
  readonly attempt?: Attempt;
  /** Of `flags`: a FlagKind. */
  readonly kind?: number;
}

/** What `call` calls: with the instruction, and with the values of the op's arguments. */
// biome-ignore lint/suspicious/noExplicitAny: numbers and bigints, as the op's arguments are
export type CallTarget = (cpu: Processor, insn: Insn, ...args: any[]) => any;

export interface Row {
  readonly args: string;
  readonly result: Type | '';
  /** Depends on its arguments alone and does nothing else: unused ones are dropped. */
  readonly pure: boolean;
  /** May fault or stop: what it may observe is stored before it. */
  readonly observes: boolean;
  // biome-ignore lint/suspicious/noExplicitAny: as CallTarget
  readonly js: (cpu: Processor, detail: Detail) => (...args: any[]) => any;
  /** The instruction's bytes, after its arguments. Ops without are emitted by wasm.ts. */
  readonly wasm: readonly number[] | undefined;
}

// biome-ignore lint/suspicious/noExplicitAny: as CallTarget
const pure = (args: string, result: Type, f: (...args: any[]) => any, ...wasm: number[]): Row => ({
  args,
  result,
  pure: true,
  observes: false,
  js: () => f,
  wasm,
});
const i = (f: (a: number, b: number) => number, ...wasm: number[]) => pure('ii', 'i', f, ...wasm);
const l = (f: (a: bigint, b: bigint) => bigint, ...wasm: number[]) => pure('ll', 'l', f, ...wasm);
const li = (f: (a: bigint, b: bigint) => boolean, ...wasm: number[]) =>
  pure('ll', 'i', (a, b) => (f(a, b) ? 1 : 0), ...wasm);

const s64 = (value: bigint) => BigInt.asIntN(64, value);
const u64 = (value: bigint) => BigInt.asUintN(64, value);

export function popcnt64(value: bigint): number {
  let count = 0;
  for (let rest = u64(value); rest !== 0n; rest &= rest - 1n) count++;
  return count;
}
export function clz64(value: bigint): number {
  const high = Number(u64(value) >> 32n);
  return high !== 0 ? Math.clz32(high) : 32 + Math.clz32(Number(value & 0xffff_ffffn));
}
export function ctz64(value: bigint): number {
  return value === 0n ? 64 : 63 - clz64(value & -value);
}
const ctz32 = (value: number) => (value === 0 ? 32 : 31 - Math.clz32(value & -value));
function popcnt32(value: number): number {
  let count = 0;
  for (let rest = value; rest !== 0; rest &= rest - 1) count++;
  return count;
}

/** 0xfd: the opcode space of SIMD, 0xfc of saturating conversions. */
export const ops = {
  const32: {
    ...pure('', 'i', () => 0),
    js:
      (_, { value }) =>
      () =>
        value,
    wasm: undefined,
  },
  const64: {
    ...pure('', 'l', () => 0n),
    js:
      (_, { value }) =>
      () =>
        value,
    wasm: undefined,
  },

  add32: i((a, b) => (a + b) | 0, 0x6a),
  sub32: i((a, b) => (a - b) | 0, 0x6b),
  mul32: i(Math.imul, 0x6c),
  and32: i((a, b) => a & b, 0x71),
  or32: i((a, b) => a | b, 0x72),
  xor32: i((a, b) => a ^ b, 0x73),
  shl32: i((a, b) => a << b, 0x74),
  sar32: i((a, b) => a >> b, 0x75),
  shr32: i((a, b) => (a >>> b) | 0, 0x76),
  rol32: i((a, b) => (a << b) | ((b & 31) === 0 ? 0 : a >>> (32 - (b & 31))), 0x77),
  eq32: i((a, b) => (a === b ? 1 : 0), 0x46),
  ne32: i((a, b) => (a !== b ? 1 : 0), 0x47),
  lts32: i((a, b) => (a < b ? 1 : 0), 0x48),
  ltu32: i((a, b) => (a >>> 0 < b >>> 0 ? 1 : 0), 0x49),
  clz32: pure('i', 'i', Math.clz32, 0x67),
  ctz32: pure('i', 'i', ctz32, 0x68),
  popcnt32: pure('i', 'i', popcnt32, 0x69),
  eqz32: pure('i', 'i', (a: number) => (a === 0 ? 1 : 0), 0x45),
  sext8: pure('i', 'i', (a: number) => (a << 24) >> 24, 0xc0),
  sext16: pure('i', 'i', (a: number) => (a << 16) >> 16, 0xc1),

  add64: l((a, b) => s64(a + b), 0x7c),
  sub64: l((a, b) => s64(a - b), 0x7d),
  mul64: l((a, b) => s64(a * b), 0x7e),
  and64: l((a, b) => a & b, 0x83),
  or64: l((a, b) => a | b, 0x84),
  xor64: l((a, b) => a ^ b, 0x85),
  shl64: l((a, b) => s64(a << (b & 63n)), 0x86),
  sar64: l((a, b) => a >> (b & 63n), 0x87),
  shr64: l((a, b) => s64(u64(a) >> (b & 63n)), 0x88),
  rol64: l((a, b) => s64((u64(a) << (b & 63n)) | (u64(a) >> (64n - (b & 63n)))), 0x89),
  /** The divisor is neither 0 nor, with signs, -1: WebAssembly would trap. */
  divu64: l((a, b) => s64(u64(a) / u64(b)), 0x80),
  remu64: l((a, b) => s64(u64(a) % u64(b)), 0x82),
  divs64: l((a, b) => a / b, 0x7f),
  rems64: l((a, b) => a % b, 0x81),
  eq64: li((a, b) => a === b, 0x51),
  ne64: li((a, b) => a !== b, 0x52),
  lts64: li((a, b) => a < b, 0x53),
  ltu64: li((a, b) => u64(a) < u64(b), 0x54),
  clz64: pure('l', 'l', (a: bigint) => BigInt(clz64(a)), 0x79),
  ctz64: pure('l', 'l', (a: bigint) => BigInt(ctz64(a)), 0x7a),
  popcnt64: pure('l', 'l', (a: bigint) => BigInt(popcnt64(a)), 0x7b),
  eqz64: pure('l', 'i', (a: bigint) => (a === 0n ? 1 : 0), 0x50),
  /** The high half of a product. WebAssembly has none: wasm.ts makes it of four. */
  mulhu64: { ...l((a, b) => s64((u64(a) * u64(b)) >> 64n)), wasm: undefined },

  wrap: pure('l', 'i', (a: bigint) => Number(BigInt.asIntN(32, a)), 0xa7),
  zext: pure('i', 'l', (a: number) => BigInt(a >>> 0), 0xad),
  sext: pure('i', 'l', (a: number) => BigInt(a), 0xac),
  /** The second where the first is not 0, else the third. */
  select32: pure('iii', 'i', (a, b, c) => (a !== 0 ? b : c)),
  select64: pure('ill', 'l', (a, b, c) => (a !== 0 ? b : c)),

  /** Of the state page: zero-extended to `i`, or an `l` with 64 bits. */
  get32: state('', 'i', (cpu, { offset, bits }) => {
    const { state } = cpu;
    if (bits === 8) return () => state.u8(offset!);
    if (bits === 16) return () => state.u16(offset!);
    return () => state.u32(offset!) | 0;
  }),
  get64: state(
    '',
    'l',
    (cpu, { offset }) =>
      () =>
        s64(cpu.state.u64(offset!)),
  ),
  set32: state('i', '', (cpu, { offset, bits }) => {
    const { state } = cpu;
    if (bits === 8) return (value: number) => state.setU8(offset!, value);
    if (bits === 16) return (value: number) => state.setU16(offset!, value);
    return (value: number) => state.setU32(offset!, value);
  }),
  set64: state(
    'l',
    '',
    (cpu, { offset }) =>
      (value: bigint) =>
        cpu.state.setU64(offset!, value),
  ),
  /** Of a template's record: what is in it, and a register whose place is in it. Only a template has one. */
  field32: recorded('', 'i'),
  field64: recorded('', 'l'),
  register32: recorded('', 'i'),
  register64: recorded('', 'l'),
  setRegister32: recorded('i', ''),
  setRegister64: recorded('l', ''),
  /** How the arithmetic flags follow: a, b and the result, each sign-extended. */
  flags: state('lll', '', (cpu, { kind }) => (a: bigint, b: bigint, result: bigint) => {
    const { state } = cpu;
    state.setU32(State.flagKind, kind!);
    state.setU64(State.flagA, a);
    state.setU64(State.flagB, b);
    state.setU64(State.flagResult, result);
  }),

  /** Memory at a linear address: zero-extended to `i`, or an `l` with 64 bits. */
  load32: access('l', 'i', (cpu, { bits, write, stack }) => {
    const { memory } = cpu;
    return (linear: bigint) => memory.load32(linear, bits! / 8, write === true, stack === true, true);
  }),
  load64: access('l', 'l', (cpu, { write, stack, aligned }) => {
    const { memory } = cpu;
    return (linear: bigint) => {
      if (aligned) memory.checkAligned(lowHalf(linear), highHalf(linear), stack === true);
      return memory.load64(linear, write === true, stack === true, true);
    };
  }),
  store32: access('li', '', (cpu, { bits, stack }) => {
    const { memory } = cpu;
    return (linear: bigint, value: number) => memory.store32(linear, value, bits! / 8, stack === true);
  }),
  store64: access('ll', '', (cpu, { stack, aligned }) => {
    const { memory } = cpu;
    return (linear: bigint, value: bigint) => {
      if (aligned) memory.checkAligned(lowHalf(linear), highHalf(linear), stack === true);
      memory.store64(linear, value, stack === true);
    };
  }),

  /** SIMD, on registers alone. */
  vector: state('', '', (cpu, { vector }) => vectorFunction(cpu, vector!)),

  /** A helper: a JS function with the instruction and the arguments. */
  call: access(
    '*',
    '',
    (cpu, { helper, insn }) =>
      (...args) =>
        helper!(cpu, insn!, ...args),
  ),
  call32: access(
    '*',
    'i',
    (cpu, { helper, insn }) =>
      (...args) =>
        helper!(cpu, insn!, ...args),
  ),
  call64: access(
    '*',
    'l',
    (cpu, { helper, insn }) =>
      (...args) =>
        helper!(cpu, insn!, ...args),
  ),
  /** As `call`, of a helper that does nothing where its first argument (an `i`) is 0: it need not be called then. */
  callIf: access(
    '*',
    '',
    (cpu, { helper, insn }) =>
      (...args) =>
        helper!(cpu, insn!, ...args),
  ),
  /** As `call64`, of a helper that gives its second argument where its first (an `i`) is 0. */
  call64If: access(
    '*',
    'l',
    (cpu, { helper, insn }) =>
      (...args) =>
        helper!(cpu, insn!, ...args),
  ),
  /**
   * A helper that translated code calls only where its attempt at the instruction gives up. The arguments are the
   * attempt's: operands from memory, which the helper reads for itself. No general register is changed, nor a flag.
   */
  attempt: attempt(''),
  attempt32: attempt('i'),
  attempt64: attempt('l'),
} as const satisfies { [name: string]: Row };

export type OpName = keyof typeof ops;

function state(args: string, result: Type | '', js: Row['js']): Row {
  return { args, result, pure: false, observes: false, js, wasm: undefined };
}
function recorded(args: string, result: Type | ''): Row {
  return state(args, result, () => {
    throw new Error('a closure has no record');
  });
}
function access(args: string, result: Type | '', js: Row['js']): Row {
  return { args, result, pure: false, observes: true, js, wasm: undefined };
}
function attempt(result: Type | ''): Row {
  return access(
    '*',
    result,
    (cpu, { helper, insn }) =>
      () =>
        helper!(cpu, insn!),
  );
}

/** One instruction in both executors, and random numbers: what the comparisons of floating point have in common. */
import * as iced from 'iced-x86';
import { Arena } from '../../src/sim/arena.ts';
import { Cpu } from '../../src/sim/cpu/cpu.ts';
import { instructions } from '../../src/sim/cpu/instructions.ts';
import { GuestFault } from '../../src/sim/cpu/processor/fault.ts';
import type { Mode } from '../../src/sim/cpu/processor/modes.ts';
import type { CpuState } from '../../src/sim/cpu/processor/state.ts';
import type { Unit } from '../../src/sim/cpu/processor/unit.ts';
import { Builder } from '../../src/sim/cpu/translate/builder.ts';
import { ClosureUnit } from '../../src/sim/cpu/translate/closures.ts';
import { Decoder, type Iced } from '../../src/sim/cpu/translate/decode.ts';
import type { Block, Node } from '../../src/sim/cpu/translate/ir.ts';
import type { CallTarget } from '../../src/sim/cpu/translate/ops.ts';
import { WasmUnit } from '../../src/sim/cpu/translate/wasm.ts';

const RAM = 0x10_0000;
/** Where RBX points. */
export const DATA = 0x8000;
const CODE = 0x1000n;

/** An instruction, and whether WebAssembly attempts it. */
export interface Pair {
  readonly name: string;
  readonly text: string;
  readonly attempted: boolean;
  readonly closures: Unit;
  readonly wasm: Unit;
}

/** A processor in 64-bit mode with a little memory. */
export class Executors {
  readonly arena = new Arena();
  readonly ram: number;
  readonly state: CpuState;
  readonly cpu: Cpu;
  readonly #decoder = new Decoder(() => iced as unknown as Iced);
  readonly #mode: Mode;
  /** How often an attempt gave up, and its helper was called. */
  gaveUp = 0;

  constructor() {
    const { arena } = this;
    const ram = arena.allocate(RAM)!;
    this.ram = ram;
    const page = (gpa: number) => ram + (gpa % RAM);
    const cpu = new Cpu(arena, { page, sharedPage: page }, { vendor: 'intel', decoder: this.#decoder });
    this.cpu = cpu;
    this.state = cpu.state;
    cpu.cr4 |= 0x600;
    cpu.state.setLimit(2 ** 52);
    cpu.state.setGpr(3, BigInt(DATA));
    this.#mode = { ...cpu.mode, bits: 64, stackBits: 64, x87: true, sse: true, single: false };
  }

  pair(name: string, code: readonly number[]): Pair {
    const attempts = this.#block(code);
    return {
      name,
      text: `${name} (${code.map((byte) => byte.toString(16)).join(' ')})`,
      attempted: attempts.nodes.some(({ detail }) => detail.attempt !== undefined),
      closures: new ClosureUnit(this.cpu, this.#block(code)),
      wasm: WasmUnit.compile(this.cpu, [
        { blocks: [{ ...attempts, nodes: this.#counted(attempts.nodes) }] },
      ])[0]!,
    };
  }
  /** The same, with helpers that are counted where they stand behind an attempt. */
  #counted(nodes: readonly Node[]): Node[] {
    const copies = new Map<Node, Node>();
    return nodes.map((node) => {
      const { attempt, helper } = node.detail;
      const counted: CallTarget = (...of) => {
        this.gaveUp++;
        return helper!(...of);
      };
      const detail = attempt === undefined ? node.detail : { ...node.detail, helper: counted };
      const copy = { ...node, args: node.args.map((arg) => copies.get(arg)!), detail };
      copies.set(node, copy);
      return copy;
    });
  }
  #block(code: readonly number[]): Block {
    const insns = this.#decoder.decode(Uint8Array.from(code), 64, CODE, () => false);
    if (typeof insns === 'string') throw new Error(`${code} is ${insns}`);
    const insn = insns[0]!;
    const builder = new Builder(this.#mode, () => 0n);
    builder.begin(insn);
    instructions.lower(builder, insn);
    const end = { kind: 'goto', target: insn.next } as const;
    return { rip: CODE, insns: [insn], nodes: builder.finish(end), end };
  }

  /** 0, or 1 and the vector of the exception. */
  run(unit: Unit): number {
    try {
      unit.run(0);
      return 0;
    } catch (error) {
      if (!(error instanceof GuestFault)) throw error;
      return 1 + error.vector;
    }
  }
}

/** Small numbers, quick to make. */
export class Random {
  #state: number;
  constructor(seed: number) {
    this.#state = (Math.imul(seed, 0x9e37_79b1) ^ 0x5bd1_e995) | 1;
  }
  /** 32 bits, as a signed number. */
  next(): number {
    let state = this.#state;
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    this.#state = state;
    return Math.imul(state, 0x2c1b_3c6d) ^ (state >>> 15);
  }
  below(limit: number): number {
    return (this.next() >>> 8) % limit;
  }
}

/** One of 64 bits, its highest set: a random one, of few bits, of nearly all, or near another; by these, ties and carries. */
export function significand(random: Random, near?: bigint): bigint {
  const high = 1n << 63n;
  const bits = (BigInt(random.next() >>> 0) << 32n) | BigInt(random.next() >>> 0);
  const bit = () => 1n << BigInt(random.below(64));
  switch (random.below(6)) {
    case 0:
      return high | (bits & -bit() & (high - 1n));
    case 1:
      return high | bit() | bit();
    case 2:
      return (2n * high - 1n) ^ (bit() & (high - 1n));
    case 3:
      return high | ((near ?? 0n) ^ (random.below(2) === 0 ? bit() : 0n));
    default:
      return high | bits;
  }
}

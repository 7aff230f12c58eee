/** A micro-op says what it does twice, in JS and in WebAssembly: both must be the same. */
import * as iced from 'iced-x86';
import { describe, expect, test } from 'vitest';
import { Arena } from '../../src/sim/arena.ts';
import { Cpu } from '../../src/sim/cpu/cpu.ts';
import type { Insn } from '../../src/sim/cpu/processor/insn.ts';
import { State } from '../../src/sim/cpu/processor/state.ts';
import { ClosureUnit } from '../../src/sim/cpu/translate/closures.ts';
import { Decoder, type Iced } from '../../src/sim/cpu/translate/decode.ts';
import { type Block, type Node, node } from '../../src/sim/cpu/translate/ir.ts';
import { type OpName, ops, type Row } from '../../src/sim/cpu/translate/ops.ts';
import { WasmUnit } from '../../src/sim/cpu/translate/wasm.ts';

const RAM = 0x10_0000;

function processor(): Cpu {
  const arena = new Arena();
  const ram = arena.allocate(RAM)!;
  const stage = { page: (gpa: number) => ram + (gpa % RAM), sharedPage: (gpa: number) => ram + (gpa % RAM) };
  const cpu = new Cpu(arena, stage, { vendor: 'intel', decoder: new Decoder(() => iced as unknown as Iced) });
  cpu.state.setLimit(2 ** 52);
  return cpu;
}

const insn = { rip: 0n, next: 1n, length: 1, mnemonic: 'nop', code: 'Nopd', operands: [] } as unknown as Insn;
const block = (nodes: readonly Node[]): Block => ({
  rip: 0n,
  insns: [insn],
  nodes,
  end: { kind: 'goto', target: 1n },
});

/** Where the test's values are in the state: registers. */
const at = (register: number) => State.gpr + register * 8;
const RESULT = 8;

/** Reads arguments from registers, does the op, and puts its result into another. */
function around(op: OpName, detail: object = {}): Block {
  const row: Row = ops[op];
  const args = [...row.args].map((type, index) =>
    type === 'l'
      ? node('get64', [], { offset: at(index) }, 0)
      : node('get32', [], { offset: at(index), bits: 32 }, 0),
  );
  const done = node(op, args, detail, 0);
  const nodes = [...args, done];
  if (row.result === 'l') nodes.push(node('set64', [done], { offset: at(RESULT) }, 0));
  if (row.result === 'i') nodes.push(node('set32', [done], { offset: at(RESULT), bits: 32 }, 0));
  return block(nodes);
}

const edges = [0n, 1n, 2n, 7n, 31n, 32n, 63n, 64n, 0x7fn, 0x80n, 0xffn, 0x8000n, 0x7fff_ffffn, 0x8000_0000n];
const values = [...edges, ...edges.map((value) => -value), 2n ** 63n, 2n ** 63n - 1n, 0x0123_4567_89ab_cdefn];

function* cases(count: number): Generator<bigint[]> {
  if (count === 0) yield [];
  else for (const value of values) for (const rest of cases(count - 1)) yield [value, ...rest];
}

describe.each(Object.entries(ops).filter(([, row]) => row.pure))('%s', (name, row) => {
  test('does in WebAssembly what it does in JS', () => {
    const cpu = processor();
    const detail = name === 'const32' ? { value: -77 } : name === 'const64' ? { value: -(2n ** 62n) } : {};
    const closures = new ClosureUnit(cpu, around(name as OpName, detail));
    const wasm = WasmUnit.compile(cpu, [{ blocks: [around(name as OpName, detail)] }])[0]!;
    let compared = 0;
    const division = /^(div|rem)/.test(name);
    for (const args of cases(Math.min(row.args.length, 2))) {
      if (division && (args[1] === 0n || args[1] === -1n)) continue;
      const results = [closures, wasm].map((unit) => {
        for (const [index, value] of args.entries()) cpu.state.setGpr(index, value);
        if (row.args.length === 3) cpu.state.setGpr(2, 0x5555_6666_7777_8888n);
        cpu.state.setGpr(RESULT, 0n);
        unit.run(0);
        return cpu.state.gpr(RESULT);
      });
      expect(results[1], `${name}(${args})`).toBe(results[0]);
      compared++;
    }
    expect(compared).toBeGreaterThan(0);
  });
});

describe('memory accesses', () => {
  const load = (op: 'load32' | 'load64', bits: 8 | 16 | 32 | 64) => around(op, { bits });
  const forms = [
    ['load32', 8],
    ['load32', 16],
    ['load32', 32],
    ['load64', 64],
  ] as const;

  test.each(forms)(
    '%s of %s bits reads the same, in one page and across two, first and again',
    (op, bits) => {
      const cpu = processor();
      const closures = new ClosureUnit(cpu, load(op, bits));
      const wasm = WasmUnit.compile(cpu, [{ blocks: [load(op, bits)] }])[0]!;
      for (let i = 0; i < 3 * 4096; i++) cpu.memory.write8(BigInt(i), (i * 37) & 0xff);
      for (const address of [0n, 1n, 7n, 4088n, 4089n, 4093n, 4095n, 4096n, 8190n, 4089n, 4095n]) {
        const results = [wasm, closures].map((unit) => {
          cpu.state.setGpr(0, address);
          cpu.state.setGpr(RESULT, 0n);
          unit.run(0);
          return cpu.state.gpr(RESULT);
        });
        const expected = BigInt.asUintN(bits, cpu.memory.read64(address));
        expect(results, `at ${address}`).toEqual([expected, expected]);
      }
    },
  );

  test.each([
    ['store32', 8],
    ['store32', 16],
    ['store32', 32],
    ['store64', 64],
  ] as const)('%s of %s bits writes the same bytes and no others', (op, bits) => {
    const cpu = processor();
    for (const unit of [
      WasmUnit.compile(cpu, [{ blocks: [around(op, { bits })] }])[0]!,
      new ClosureUnit(cpu, around(op, { bits })),
    ]) {
      for (const address of [64n, 65n, 4090n, 4093n, 4095n, 8184n, 4093n]) {
        for (let i = -9n; i < 17n; i++) cpu.memory.write8(address + i, 0xee);
        cpu.state.setGpr(0, address);
        cpu.state.setGpr(1, 0x8877_6655_4433_2211n);
        unit.run(0);
        const bytes = [...cpu.memory.readBytes(address - 9n, 26)];
        const written = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88].slice(0, bits / 8);
        expect(bytes, `at ${address}`).toEqual([
          ...new Array(9).fill(0xee),
          ...written,
          ...new Array(17 - written.length).fill(0xee),
        ]);
      }
    }
  });
});

test('a description of flags is the same flags from both', () => {
  const cpu = processor();
  for (const kind of [1, 2, 3]) {
    const units = [
      new ClosureUnit(cpu, around('flags', { kind })),
      WasmUnit.compile(cpu, [{ blocks: [around('flags', { kind })] }])[0]!,
    ];
    for (const [a, b] of cases(2) as Generator<[bigint, bigint]>) {
      const flags = units.map((unit) => {
        const result = BigInt.asUintN(64, kind === 2 ? a + b : a - b);
        for (const [index, value] of [a, b, result].entries()) cpu.state.setGpr(index, value);
        cpu.state.flags = 2;
        unit.run(0);
        return cpu.state.flags;
      });
      expect(flags[1], `${kind}: ${a}, ${b}`).toBe(flags[0]);
    }
  }
});

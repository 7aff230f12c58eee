/** The x87's functions of WebAssembly and the host's own x87 (x87.c), on ordinary numbers: millions of them in a minute. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { State } from '../../src/sim/cpu/processor/state.ts';
import type { Quick } from '../../src/sim/cpu/translate/attempt.ts';
import { x87Functions as functions } from '../../src/sim/cpu/translate/x87/functions.ts';
import { Executors, Random, significand } from './floats-executors.ts';

/** As x87.c has them. */
const INPUT = 32;
const Input = { x: 0, fcw: 10, operation: 12, y: 16 } as const;
const OUTPUT = 16;
const Output = { result: 0, fsw: 10 } as const;
const BATCH = 65_536;

/** How many registers hold something at first: x is in ST(1), or in ST(0) if it is alone. */
type Held = 0 | 1 | 2;
interface Operation {
  readonly name: string;
  readonly quick: Quick;
  readonly held: Held;
  /** Arguments; from a place in memory, of so many bytes, comes the first of them. */
  readonly args: readonly (number | bigint)[];
  readonly from?: { readonly at: number; readonly bytes: 4 | 8; readonly wide: boolean };
  /** Bytes that are stored; none where the result is in ST(0). */
  readonly stored?: 2 | 4 | 8;
}

const arithmetic = (['add', 'sub', 'subr', 'mul', 'div', 'divr'] as const).map(
  (name): Operation => ({ name, quick: functions.registers[name], held: 2, args: [16, 0, 1] }),
);
const storing = (name: string, quick: Quick, stored: 2 | 4 | 8, ...args: (number | bigint)[]): Operation => ({
  name,
  quick,
  held: 1,
  args,
  stored,
});
const integers = ([0, 1] as const).flatMap((truncates) =>
  ([2, 4, 8] as const).map((bytes) => {
    const name = `${truncates ? 'fisttp' : 'fistp'}${8 * bytes}`;
    return storing(name, functions.storeInteger, bytes, BigInt(64 - 8 * bytes), truncates, 1);
  }),
);
const single = { bytes: 4, wide: false } as const;
const double = { bytes: 8, wide: true } as const;
/** By their numbers in x87.c. */
const operations: readonly Operation[] = [
  ...arithmetic,
  { name: 'fsqrt', quick: functions.root, held: 2, args: [] },
  { name: 'fcom', quick: functions.conditions, held: 2, args: [16, 0] },
  { name: 'ftst', quick: functions.test, held: 2, args: [] },
  { name: 'fld32', quick: functions.load.single, held: 0, args: [], from: { ...single, at: Input.x } },
  { name: 'fld64', quick: functions.load.double, held: 0, args: [], from: { ...double, at: Input.x } },
  { name: 'fild64', quick: functions.load.integer, held: 0, args: [], from: { ...double, at: Input.x } },
  storing('fstp32', functions.store.single, 4, 1),
  storing('fstp64', functions.store.double, 8, 1),
  ...integers,
  { name: 'fadd32', quick: functions.memory.single.add, held: 1, args: [], from: { ...single, at: Input.y } },
  { name: 'fdiv64', quick: functions.memory.double.div, held: 1, args: [], from: { ...double, at: Input.y } },
  { name: 'fscale', quick: functions.scale, held: 2, args: [] },
  { name: 'frndint', quick: functions.whole, held: 2, args: [] },
  { name: 'fxam', quick: functions.examine, held: 2, args: [] },
  {
    name: 'fimul32',
    quick: functions.memory.integer.mul,
    held: 1,
    args: [],
    from: { at: Input.y, bytes: 4, wide: true },
  },
];

/** Of FSW, the exceptions and conditions. */
const FSW = 0x7fff;

export class SiliconComparison implements Disposable {
  readonly #folder = mkdtempSync(join(tmpdir(), 'vmexit-x87-'));
  readonly #program = join(this.#folder, 'x87');
  readonly #executors = new Executors();
  readonly #random: Random;
  readonly #chosen: readonly number[];
  readonly #quick = operations.map(({ quick }) => quick.of(this.#executors.cpu));
  readonly #input = new DataView(new ArrayBuffer(INPUT * BATCH));
  cases = 0;
  /** None of these numbers raises anything. */
  readonly raised = 0;
  changed = 0;
  gaveUp = 0;

  constructor(seed: number, filter = /./) {
    const source = fileURLToPath(new URL('x87.c', import.meta.url));
    const { status, stderr, error } = spawnSync('cc', ['-O2', '-o', this.#program, source]);
    if (status !== 0) throw new Error(`cc x87.c: ${error ?? stderr}`);
    this.#random = new Random(seed);
    this.#chosen = [...operations.keys()].filter((index) => filter.test(operations[index]!.name));
    if (this.#chosen.length === 0) throw new RangeError('no operation has such a name');
  }
  [Symbol.dispose](): void {
    rmSync(this.#folder, { recursive: true });
  }

  *turn(): Generator<{ readonly text: string }> {
    for (let at = 0; at < INPUT * BATCH; at += INPUT) this.#choose(at);
    const input = new Uint8Array(this.#input.buffer);
    const { stdout, status } = spawnSync(this.#program, { input, maxBuffer: 2 * OUTPUT * BATCH });
    if (status !== 0) throw new Error(`x87.c ended with ${status}`);
    const output = new DataView(stdout.buffer, stdout.byteOffset, stdout.length);
    for (let i = 0; i < BATCH; i++) {
      this.cases++;
      const wanted = this.#wanted(output, i);
      const got = this.#execute(i * INPUT);
      if (got === undefined) this.gaveUp++;
      else if (got !== wanted) {
        const given = Buffer.from(input.subarray(i * INPUT, (i + 1) * INPUT)).toString('hex');
        const { name } = operations[input[i * INPUT + Input.operation]!]!;
        yield { text: `${name} given ${given}: ${wanted} / ${got}` };
      }
    }
  }

  #choose(at: number): void {
    const random = this.#random;
    const input = this.#input;
    const operation = this.#chosen[random.below(this.#chosen.length)]!;
    input.setUint8(at + Input.operation, operation);
    const narrow = random.below(4) === 0 ? random.below(4) << 8 : 0x300;
    const rounding = random.below(4) === 0 ? random.below(4) << 10 : 0;
    input.setUint16(at + Input.fcw, 0x7f | narrow | rounding, true);
    const apart = [3, 70, 140, 2000][random.below(4)]!;
    let near: bigint | undefined;
    for (const place of [at + Input.x, at + Input.y]) {
      near = significand(random, near);
      const { from } = operations[operation]!;
      if (from?.at === place - at) this.#chooseBits(place, near, from);
      else {
        const isZero = random.below(32) === 0;
        input.setBigUint64(place, isZero ? 0n : near, true);
        const exponent = isZero ? 0 : 0x3fff - (apart >> 1) + random.below(apart);
        input.setUint16(place + 8, exponent | (random.next() & 0x8000), true);
      }
    }
  }
  /** An integer of any magnitude, or a number with any exponent. */
  #chooseBits(place: number, bits: bigint, { bytes, wide }: NonNullable<Operation['from']>): void {
    const random = this.#random;
    const value = random.below(3) === 0 ? bits : (bits << 1n) >> BigInt(random.below(64));
    if (bytes === 8) this.#input.setBigUint64(place, BigInt.asUintN(64, value), true);
    else this.#input.setInt32(place, Number(BigInt.asIntN(32, wide ? value : value >> 32n)), true);
  }

  #wanted(output: DataView, index: number): string {
    const at = index * OUTPUT;
    const operation = this.#input.getUint8(index * INPUT + Input.operation);
    const { stored } = operations[operation]!;
    const fsw = output.getUint16(at + Output.fsw, true) & FSW;
    if ((fsw & 0x3f) !== 0) this.changed++;
    if (stored !== undefined) return `${fsw} ${numberOf(output, at + Output.result, stored)}`;
    const head = output.getUint16(at + Output.result + 8, true);
    return `${fsw} ${output.getBigUint64(at + Output.result, true)} ${head}`;
  }

  /** Undefined where the function gives up. */
  #execute(at: number): string | undefined {
    const input = this.#input;
    const operation = input.getUint8(at + Input.operation);
    const { held, from, args, stored } = operations[operation]!;
    const { state, arena } = this.#executors;
    const view = new DataView(arena.memory.buffer, state.base, State.size);
    view.setUint16(State.fcw, input.getUint16(at + Input.fcw, true), true);
    view.setUint16(State.fsw, ((8 - held) & 7) << 11, true);
    view.setUint16(State.ftw, 0xffff >> (2 * held), true);
    for (const [register, place] of [Input.x, Input.y].entries()) {
      view.setBigUint64(State.x87 + 16 * (7 - register), input.getBigUint64(at + place, true), true);
      view.setUint16(State.x87 + 16 * (7 - register) + 8, input.getUint16(at + place + 8, true), true);
    }
    const first = from && operandOf(input, at + from.at, from);
    const answer = this.#quick[operation]!(...(first === undefined ? args : [first, ...args]));
    if (answer === 0) return undefined;
    const fsw = view.getUint16(State.fsw, true) & FSW;
    if (stored !== undefined) return `${fsw} ${numberOf(view, State.vector, stored)}`;
    const top = State.x87 + 16 * ((fsw >> 11) & 7);
    return `${fsw} ${view.getBigUint64(top, true)} ${view.getUint16(top + 8, true)}`;
  }
}

const numberOf = (view: DataView, at: number, bytes: 2 | 4 | 8): number | bigint =>
  bytes === 2
    ? view.getUint16(at, true)
    : bytes === 4
      ? view.getUint32(at, true)
      : view.getBigUint64(at, true);
function operandOf(
  view: DataView,
  at: number,
  { bytes, wide }: NonNullable<Operation['from']>,
): number | bigint {
  if (bytes === 8) return view.getBigInt64(at, true);
  const value = view.getInt32(at, true);
  return wide ? BigInt(value) : value;
}

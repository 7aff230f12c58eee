/**
 * SSE's floating point in WebAssembly, by the machine's own arithmetic where that is the same, compared with closures, which
 * have the exact path alone. Each case is one instruction on two operands under one MXCSR, told by the seed and its number.
 */
import { State } from '../../src/sim/cpu/processor/state.ts';
import type { Unit } from '../../src/sim/cpu/processor/unit.ts';
import { DATA, Executors, type Pair, Random } from './floats-executors.ts';

/** Its name, its bytes without the operands' byte, its immediate, and how its operands are made. */
interface Form {
  readonly name: string;
  readonly before: readonly number[];
  readonly immediate: readonly number[];
  /** Of numbers of so many bits, or of integers. */
  readonly operands: 32 | 64 | 'integers';
}

const suffixes = [
  ['ps', [], 32],
  ['pd', [0x66], 64],
  ['ss', [0xf3], 32],
  ['sd', [0xf2], 64],
] as const;
const arithmetic = { sqrt: 0x51, add: 0x58, mul: 0x59, sub: 0x5c, min: 0x5d, div: 0x5e, max: 0x5f } as const;
const conversions = [
  ['cvtsi2ss', [0xf3, 0x0f, 0x2a], 'integers'],
  ['cvtsi2ss', [0xf3, 0x48, 0x0f, 0x2a], 'integers'],
  ['cvtsi2sd', [0xf2, 0x0f, 0x2a], 'integers'],
  ['cvtsi2sd', [0xf2, 0x48, 0x0f, 0x2a], 'integers'],
  ['cvttss2si', [0xf3, 0x0f, 0x2c], 32],
  ['cvttss2si', [0xf3, 0x48, 0x0f, 0x2c], 32],
  ['cvtss2si', [0xf3, 0x0f, 0x2d], 32],
  ['cvtss2si', [0xf3, 0x48, 0x0f, 0x2d], 32],
  ['cvttsd2si', [0xf2, 0x0f, 0x2c], 64],
  ['cvttsd2si', [0xf2, 0x48, 0x0f, 0x2c], 64],
  ['cvtsd2si', [0xf2, 0x0f, 0x2d], 64],
  ['cvtsd2si', [0xf2, 0x48, 0x0f, 0x2d], 64],
  ['cvtps2pd', [0x0f, 0x5a], 32],
  ['cvtpd2ps', [0x66, 0x0f, 0x5a], 64],
  ['cvtss2sd', [0xf3, 0x0f, 0x5a], 32],
  ['cvtsd2ss', [0xf2, 0x0f, 0x5a], 64],
  ['cvtdq2ps', [0x0f, 0x5b], 'integers'],
  ['cvtps2dq', [0x66, 0x0f, 0x5b], 32],
  ['cvttps2dq', [0xf3, 0x0f, 0x5b], 32],
  ['cvtdq2pd', [0xf3, 0x0f, 0xe6], 'integers'],
  ['cvtpd2dq', [0xf2, 0x0f, 0xe6], 64],
  ['cvttpd2dq', [0x66, 0x0f, 0xe6], 64],
] as const;
const others = [
  ['ucomiss', [0x0f, 0x2e], 32],
  ['comiss', [0x0f, 0x2f], 32],
  ['ucomisd', [0x66, 0x0f, 0x2e], 64],
  ['comisd', [0x66, 0x0f, 0x2f], 64],
  ['haddps', [0xf2, 0x0f, 0x7c], 32],
  ['hsubps', [0xf2, 0x0f, 0x7d], 32],
  ['haddpd', [0x66, 0x0f, 0x7c], 64],
  ['hsubpd', [0x66, 0x0f, 0x7d], 64],
  ['addsubps', [0xf2, 0x0f, 0xd0], 32],
  ['addsubpd', [0x66, 0x0f, 0xd0], 64],
] as const;
const ROUND = { ps: 0x08, pd: 0x09, ss: 0x0a, sd: 0x0b } as const;

const forms: readonly Form[] = [
  ...suffixes.flatMap(([suffix, prefix, operands]) => [
    ...Object.entries(arithmetic).map(([name, opcode]) => ({
      name: name + suffix,
      before: [...prefix, 0x0f, opcode],
      immediate: [],
      operands,
    })),
    ...[0, 1, 2, 3, 4, 5, 6, 7].map((predicate) => ({
      name: `cmp${suffix}`,
      before: [...prefix, 0x0f, 0xc2],
      immediate: [predicate],
      operands,
    })),
    ...[0, 1, 2, 3, 4, 8, 9, 10, 11, 12].map((how) => ({
      name: `round${suffix}`,
      before: [0x66, 0x0f, 0x3a, ROUND[suffix]],
      immediate: [how],
      operands,
    })),
  ]),
  ...[...conversions, ...others].map(([name, before, operands]) => ({
    name,
    before,
    immediate: [],
    operands,
  })),
];

/** Operands' byte: register 0 from register 1, or from memory at RBX. */
const REGISTERS = 0xc1;
const MEMORY = 0x03;

/** MXCSR: all masked and PE set, as nearly always; each other thing that matters; and any. */
const mxcsrs = [
  0x1fa0, 0x1f80, 0x1fa0, 0x1f80, 0x1fbf, 0x0fa0, 0x0f80, 0x3fa0, 0x5fa0, 0x7fa0, 0x7f80, 0x1fe0, 0x9fa0,
  0x9fe0, 0x9fc0, 0x17a0, 0x1ea0, 0x1da0, 0x1ba0, 0x1f20, 0x0000, 0x0020,
] as const;

/**
 * Biased exponents where something changes, by the greatest: those of denormals, tiny and great numbers, NaNs, those beside
 * the other format's range; with another operand's, those that bring a product or a quotient there.
 */
function exponent(random: Random, most: number, other?: number): number {
  const bias = most >> 1;
  const edges = [
    0,
    1,
    2,
    most,
    most - 1,
    most - 2,
    -1,
    -25,
    bias - 127,
    bias - 126,
    bias + 127,
    bias + 128,
    bias + 31,
    bias + 63,
    bias + 52,
    bias + 23,
  ];
  const kind = random.below(12);
  const edge = edges[random.below(edges.length)]!;
  if (kind === 0) return Math.max(0, Math.min(most, edge));
  if (kind === 1) return random.below(most + 1);
  if (kind === 2) return (bias >> 1) + random.below(3);
  if (kind < 5 && other !== undefined) {
    const product = kind === 3 ? bias + edge - other : other - edge + bias;
    return Math.max(0, Math.min(most, product));
  }
  return bias - 30 + random.below(66);
}

/** Zeroes at the end of a number's significand of 53 bits. */
function zeroesOf(words: Int32Array, at: number): number {
  const [low, high] = [words[at]!, words[at + 1]! | 0x10_0000];
  const of = (word: number) => 31 - Math.clz32(word & -word);
  return low !== 0 ? of(low) : 32 + of(high);
}

export interface Difference {
  readonly text: string;
}

/** A form with an operand in a register or in memory. */
interface Given {
  readonly form: Form;
  readonly memory: boolean;
  readonly pair: Pair;
}

export class FloatComparison {
  readonly #executors = new Executors();
  readonly #pairs: readonly Given[];
  readonly #given = new Int32Array(9);
  readonly #random: Random;
  /** Cases, and in how many the exact path was called in WebAssembly too, for it raised or set something. */
  cases = 0;
  raised = 0;
  changed = 0;
  get gaveUp(): number {
    return this.#executors.gaveUp;
  }

  constructor(seed: number, filter = /./) {
    this.#random = new Random(seed);
    this.#pairs = forms
      .filter(({ name }) => filter.test(name))
      .flatMap((form) =>
        [REGISTERS, MEMORY].map((operands) => {
          const { name, before, immediate } = form;
          const pair = this.#executors.pair(name, [...before, operands, ...immediate]);
          if (!pair.attempted) throw new Error(`${pair.text} is no attempt`);
          return { form, memory: operands === MEMORY, pair };
        }),
      );
    if (this.#pairs.length === 0) throw new RangeError('no form has such a name');
  }

  /** Each form once. */
  *turn(): Generator<Difference> {
    for (const given of this.#pairs) {
      const found = this.#compare(given);
      if (found !== undefined) yield { text: found };
    }
  }

  #compare({ form, memory, pair }: Given): string | undefined {
    this.#choose(form);
    const wanted = this.#execute(pair.closures, memory);
    const got = this.#execute(pair.wasm, memory);
    this.cases++;
    if (wanted[5] !== 0) this.raised++;
    if (wanted[4] !== this.#given[8]) this.changed++;
    for (let i = 0; i < wanted.length; i++) {
      if (wanted[i] === got[i]) continue;
      const hex = (values: Int32Array) => [...values].map((value) => (value >>> 0).toString(16)).join(' ');
      return `${pair.text} ${hex(this.#given)}: ${hex(wanted)} / ${hex(got)}`;
    }
    return undefined;
  }

  /** Both operands and MXCSR. */
  #choose({ operands }: Form): void {
    const given = this.#given;
    const random = this.#random;
    for (let at = 0; at < 8; at += operands === 64 ? 2 : 1) {
      if (operands === 'integers') this.#integer(at);
      else if (operands === 64) this.#double(at);
      else this.#single(at);
    }
    const which = random.below(mxcsrs.length + 2);
    given[8] = which < mxcsrs.length ? mxcsrs[which]! : random.next() & 0xffff;
  }
  /** Often one that the other operand has too, or nearly; few significant bits, all, or as many as the other leaves. */
  #double(at: number): void {
    const given = this.#given;
    const random = this.#random;
    const kind = random.below(16);
    const sign = random.next() & 0x8000_0000;
    const second = at >= 4;
    if (second && kind < 2) {
      given[at] = given[at - 4]! + kind;
      given[at + 1] = given[at - 3]! ^ sign;
      return;
    }
    let high = 0;
    let low = 0;
    if (kind === 2) low = 1;
    else if (kind === 3) high = 1 << random.below(20);
    else if (kind === 4) high = random.next() & 0xf_c000;
    else if (kind === 5) [high, low] = [0xf_ffff, -1];
    else if (kind === 6) high = random.next() & 0xf_ffff;
    else if (kind >= 8) [high, low] = [random.next() & 0xf_ffff, random.next()];
    if (kind >= 8 && kind < 12) {
      // So many zeroes below: together with the other's, 51 to 54.
      const zeroes = second ? Math.max(0, 51 + random.below(4) - zeroesOf(given, at - 4)) : random.below(53);
      low = zeroes >= 32 ? 0 : low & (-1 << zeroes);
      high = zeroes > 32 ? high & (-1 << (zeroes - 32)) : high;
      if (zeroes < 32) low |= 1 << zeroes;
      else if (zeroes < 52) high |= 1 << (zeroes - 32);
    }
    const other = second ? (given[at - 3]! >>> 20) & 0x7ff : undefined;
    given[at] = low;
    given[at + 1] = sign | (exponent(random, 0x7ff, other) << 20) | high;
  }
  #single(at: number): void {
    const given = this.#given;
    const random = this.#random;
    const kind = random.below(12);
    const sign = random.next() & 0x8000_0000;
    const second = at >= 4;
    if (second && kind < 2) {
      given[at] = (given[at - 4]! + kind) ^ sign;
      return;
    }
    const fraction =
      kind < 6
        ? [0, 0, 1, 0x7f_ffff, 0x40_0000, 1 << random.below(23)][kind]!
        : random.next() & 0x7f_ffff & (kind < 9 ? -1 << random.below(22) : -1);
    const other = second ? (given[at - 4]! >>> 23) & 0xff : undefined;
    given[at] = sign | (exponent(random, 0xff, other) << 23) | fraction;
  }
  #integer(at: number): void {
    const random = this.#random;
    const value = random.next();
    this.#given[at] = [
      value,
      value >> random.below(32),
      value & 0xff,
      -1,
      0x8000_0000 | 0,
      0,
      value >> 7,
      value,
    ][random.below(8)]!;
  }

  #execute(unit: Unit, memory: boolean): Int32Array {
    const { state, arena, ram } = this.#executors;
    const { i32 } = arena.views;
    const given = this.#given;
    const at = state.base >> 2;
    for (let i = 0; i < 8; i++) i32[at + State.xmm / 4 + i] = given[i]!;
    if (memory) for (let i = 0; i < 4; i++) i32[(ram + DATA) / 4 + i] = given[4 + i]!;
    i32[at + State.mxcsr / 4] = given[8]!;
    // RAX, which gets what conversions give, and RCX, which they may take.
    i32[at] = 0x1234_5678;
    i32[at + 1] = 0x9abc;
    i32[at + 2] = given[4]!;
    i32[at + 3] = given[5]!;
    state.flags = 2;
    const vector = this.#executors.run(unit);
    const result = new Int32Array(9);
    for (let i = 0; i < 4; i++) result[i] = i32[at + State.xmm / 4 + i]!;
    result[4] = i32[at + State.mxcsr / 4]!;
    result[5] = vector;
    result[6] = i32[at]!;
    result[7] = i32[at + 1]!;
    result[8] = state.flags;
    return result;
  }
}

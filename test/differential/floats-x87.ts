/** The same of the x87's common instructions: what translated code attempts, and closures, which have the exact path. */
import { State } from '../../src/sim/cpu/processor/state.ts';
import { DATA, Executors, type Pair, Random, significand } from './floats-executors.ts';

/** By their bytes: on registers, and on memory at RBX. */
const registers: readonly (readonly [name: string, ...bytes: number[]])[] = [
  ...[0xc0, 0xc8, 0xe0, 0xe8, 0xf0, 0xf8].flatMap((second) =>
    [0, 1, 3].flatMap((i): [string, ...number[]][] => [
      ['arithmetic', 0xd8, second + i],
      ['arithmetic', 0xdc, second + i],
      ['arithmetic', 0xde, second + i],
    ]),
  ),
  ...[0, 1, 2, 7].flatMap((i): [string, ...number[]][] => [
    ['fld', 0xd9, 0xc0 + i],
    ['fxch', 0xd9, 0xc8 + i],
    ['fst', 0xdd, 0xd0 + i],
    ['fstp', 0xdd, 0xd8 + i],
    ['fucomi', 0xdb, 0xe8 + i],
    ['fcomi', 0xdb, 0xf0 + i],
    ['fucomip', 0xdf, 0xe8 + i],
    ['fcomip', 0xdf, 0xf0 + i],
    ['fcom', 0xd8, 0xd0 + i],
    ['fcomp', 0xd8, 0xd8 + i],
    ['fucom', 0xdd, 0xe0 + i],
    ['fucomp', 0xdd, 0xe8 + i],
  ]),
  ...[0xc0, 0xc8, 0xd0, 0xd8].flatMap((second) =>
    [1, 5].flatMap((i): [string, ...number[]][] => [
      ['fcmov', 0xda, second + i],
      ['fcmov', 0xdb, second + i],
    ]),
  ),
  ['fcompp', 0xde, 0xd9],
  ['fucompp', 0xda, 0xe9],
  ['fchs', 0xd9, 0xe0],
  ['fabs', 0xd9, 0xe1],
  ['ftst', 0xd9, 0xe4],
  ['frndint', 0xd9, 0xfc],
  ['fscale', 0xd9, 0xfd],
  ['fxam', 0xd9, 0xe5],
  ['wait', 0x9b],
  ...[0, 1, 2, 3, 4, 5, 6].map((i): [string, ...number[]] => ['constant', 0xd9, 0xe8 + i]),
  ['fsqrt', 0xd9, 0xfa],
  ['fnstsw', 0xdf, 0xe0],
];
const memory: typeof registers = [
  ...[0xd8, 0xda, 0xdc, 0xde].flatMap((first) =>
    [0, 1, 2, 3, 4, 5, 6, 7].map((reg): [string, ...number[]] => ['of memory', first, (reg << 3) | 3]),
  ),
  ...[0xd9, 0xdb, 0xdd, 0xdf].flatMap((first) =>
    [0, 1, 2, 3].map((reg): [string, ...number[]] => ['loads and stores', first, (reg << 3) | 3]),
  ),
  ['fild', 0xdf, 0x2b],
  ['fistp', 0xdf, 0x3b],
  ['fld', 0xdb, 0x2b],
  ['fstp', 0xdb, 0x3b],
  ['fldcw', 0xd9, 0x2b],
  ['fnstcw', 0xd9, 0x3b],
  ['fnstsw', 0xdd, 0x3b],
];
/** DB /1 is FISTTP, D9 /1 is none. */
const NONE = '217,11';

const fcws = [
  0x37f, 0x37f, 0x37f, 0x37f, 0x27f, 0x07f, 0x77f, 0xb7f, 0xf7f, 0x35f, 0x340, 0x33f, 0x36f,
] as const;

export class X87Comparison {
  readonly #executors = new Executors();
  readonly #pairs: readonly Pair[];
  readonly #random: Random;
  /** The x87's part of the state page, flags, RAX and memory. */
  readonly #given = new Uint8Array(State.mxcsr - State.x87);
  readonly #memory = new Uint8Array(16);
  #flags = 0;
  cases = 0;
  raised = 0;
  changed = 0;
  /** Those in which the attempt gave up, and the helper was called. */
  get gaveUp(): number {
    return this.#executors.gaveUp;
  }

  constructor(seed: number, filter = /./) {
    this.#random = new Random(seed);
    this.#pairs = [...registers, ...memory]
      .filter(([name, ...bytes]) => filter.test(name) && bytes.join() !== NONE)
      .map(([name, ...bytes]) => this.#executors.pair(name, bytes));
    if (this.#pairs.length === 0) throw new RangeError('no form has such a name');
  }

  *turn(): Generator<{ readonly text: string }> {
    for (const pair of this.#pairs) {
      this.#choose();
      const wanted = this.#execute(pair, 'closures');
      const got = this.#execute(pair, 'wasm');
      this.cases++;
      if (wanted.vector !== 0) this.raised++;
      if (((wanted.bytes[State.fsw - State.x87]! ^ this.#given[State.fsw - State.x87]!) & 0x3f) !== 0)
        this.changed++;
      const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
      const shown = ({ vector, bytes }: typeof wanted) => `${vector} ${hex(bytes)}`;
      if (shown(wanted) === shown(got)) continue;
      const differences = [...wanted.bytes.keys()].filter((i) => wanted.bytes[i] !== got.bytes[i]);
      yield {
        text: `${pair.text} at ${differences} given ${hex(this.#given)} ${hex(this.#memory)}: ${shown(wanted)} / ${shown(got)}`,
      };
    }
  }

  #choose(): void {
    const random = this.#random;
    const view = new DataView(this.#given.buffer);
    this.#flags = 2 | (random.next() & 0x8d5);
    if (random.below(2) === 0) {
      this.#chooseOrdinary(view);
      return;
    }
    for (let i = 0; i < 8; i++) this.#extended(view, 16 * i, i);
    const fcw = random.below(4) === 0 ? (random.next() & 0x1f3f) | 0x40 : fcws[random.below(fcws.length)]!;
    view.setUint16(State.fcw - State.x87, fcw, true);
    // Flags that are pending are few: one in sixteen.
    const flags = random.next() & 0x3f & (random.below(16) === 0 ? 0x3f : fcw);
    const pending = (flags & ~fcw & 0x3f) !== 0 && random.below(4) !== 0 ? 0x8080 : 0;
    view.setUint16(State.fsw - State.x87, (random.next() & 0x7f40) | flags | pending, true);
    let tags = 0;
    const often = random.below(4);
    for (let i = 0; i < 8; i++) if (random.below(4) < often && random.below(2) === 0) tags |= 3 << (2 * i);
    view.setUint16(State.ftw - State.x87, tags, true);
    const memory = new DataView(this.#memory.buffer);
    switch (random.below(4)) {
      case 0:
        this.#extended(memory, 0, -1);
        break;
      case 1:
        memory.setFloat64(0, this.#number(), true);
        break;
      case 2:
        memory.setFloat32(0, this.#number(), true);
        break;
      default:
        memory.setInt32(0, random.next() >> random.below(32), true);
        memory.setInt32(4, random.next() >> random.below(32), true);
    }
  }
  /** What attempts are for: numbers of like magnitudes, all registers but one with one, and the usual control word. */
  #chooseOrdinary(view: DataView): void {
    const random = this.#random;
    const apart = 1 + random.below([3, 70, 140][random.below(3)]!);
    for (let i = 0; i < 8; i++) {
      const sign = random.next() & 0x8000;
      view.setBigUint64(
        16 * i,
        significand(random, i === 0 ? undefined : view.getBigUint64(16 * (i - 1), true)),
        true,
      );
      view.setUint16(16 * i + 8, (0x3fff - 4 + random.below(apart)) | sign, true);
      if (random.below(24) > 0) continue;
      view.setBigUint64(16 * i, 0n, true);
      view.setUint16(16 * i + 8, sign, true);
    }
    const top = random.below(8);
    const [rounding, precision] = [random.below(8), random.below(4)];
    const fcw = 0x7f | (rounding === 0 ? 0xc00 : 0) | (precision === 0 ? random.below(4) << 8 : 0x300);
    view.setUint16(State.fcw - State.x87, fcw, true);
    view.setUint16(State.fsw - State.x87, (random.next() & 0x4760) | (top << 11), true);
    view.setUint16(State.ftw - State.x87, 3 << (2 * ((top + 7) & 7)), true);
    const memory = new DataView(this.#memory.buffer);
    const number = (random.next() % 2 ** random.below(32)) * 2 ** (random.below(40) - 20);
    if (random.below(3) === 0) memory.setFloat32(0, number, true);
    else if (random.below(2) === 0) memory.setFloat64(0, number + random.next() * 2 ** -40, true);
    else memory.setBigInt64(0, BigInt.asIntN(64, significand(random)) >> BigInt(random.below(64)), true);
  }
  #number(): number {
    const random = this.#random;
    const scale = [1, 2 ** random.below(70), 2 ** -random.below(1080), 2 ** random.below(1024)][
      random.below(4)
    ]!;
    return [
      random.next() * scale,
      random.below(100),
      0,
      -0,
      Number.NaN,
      Number.POSITIVE_INFINITY,
      scale,
      -scale,
    ][random.below(8)]!;
  }
  #extended(view: DataView, at: number, i: number): void {
    const random = this.#random;
    const kind = random.below(16);
    if (i > 0 && kind < 3) {
      // As its neighbour, or nearly.
      view.setInt32(at, view.getInt32(at - 16, true) + kind, true);
      view.setInt32(at + 4, view.getInt32(at - 12, true), true);
      view.setUint16(at + 8, view.getUint16(at - 8, true) ^ (random.next() & 0x8000), true);
      return;
    }
    const high = [0, -1, 1 << random.below(31), random.next(), random.next(), random.next()][
      random.below(6)
    ]!;
    const low = [
      0,
      -1,
      1 << random.below(31),
      random.next() << random.below(32),
      random.next(),
      random.next(),
    ][random.below(6)]!;
    const edges = [
      0,
      1,
      2,
      0x7fff,
      0x7ffe,
      0x7ffd,
      0x3fff,
      0x3fff - 1023,
      0x3fff + 1024,
      0x3fff - 127,
      0x3fff + 128,
    ];
    const exponent =
      kind < 5
        ? edges[random.below(edges.length)]!
        : kind === 5
          ? random.below(0x8000)
          : 0x3fff - 30 + random.below(100);
    const integer = random.below(24) === 0 ? 0 : exponent === 0 ? random.next() : 0x8000_0000;
    const none = exponent === 0 && random.below(2) === 0;
    view.setInt32(at, none ? 0 : low, true);
    view.setInt32(at + 4, none ? 0 : (high & 0x7fff_ffff) | (integer & 0x8000_0000), true);
    view.setUint16(at + 8, exponent | (random.next() & 0x8000), true);
  }

  #execute(pair: Pair, which: 'closures' | 'wasm'): { readonly vector: number; readonly bytes: Uint8Array } {
    const { state, arena, ram } = this.#executors;
    const { u8 } = arena.views;
    u8.set(this.#given, state.base + State.x87);
    u8.set(this.#memory, ram + DATA);
    state.setGpr(0, 0x1234n);
    state.flags = this.#flags;
    const vector = this.#executors.run(pair[which]);
    const bytes = new Uint8Array(this.#given.length + 32);
    bytes.set(u8.subarray(state.base + State.x87, state.base + State.mxcsr));
    bytes.set(u8.subarray(ram + DATA, ram + DATA + 16), this.#given.length);
    bytes[this.#given.length + 16] = Number(state.gpr(0) & 0xffn);
    bytes[this.#given.length + 17] = Number((state.gpr(0) >> 8n) & 0xffn);
    bytes[this.#given.length + 18] = state.flags & 0xff;
    return { vector, bytes };
  }
}

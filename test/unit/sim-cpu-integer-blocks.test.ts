/**
 * A block of several instructions knows what its first ones have computed: flags that need not be looked up, registers
 * that need not be read again. It must come to what its instructions come to one by one, in both executors.
 */
import { describe, expect, test } from 'vitest';
import { Machine, Place } from './sim-cpu-integer.ts';

/** xorshift32: the same sequences on every machine. */
class Random {
  #state: number;
  constructor(seed: number) {
    this.#state = (seed * 0x9e37_79b9) | 1;
  }
  u32(): number {
    this.#state ^= this.#state << 13;
    this.#state ^= this.#state >>> 17;
    this.#state ^= this.#state << 5;
    return this.#state >>> 0;
  }
  below(n: number): number {
    return this.u32() % n;
  }
  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)]!;
  }
}

/** Not the stack pointer, nor R15, which is where memory operands are. */
const REGISTERS = [0, 1, 2, 3, 6, 7, 8, 9, 10, 11];
const MEMORY = 15;
const NUMBERS = [
  0n,
  1n,
  2n,
  31n,
  32n,
  63n,
  0x7fn,
  0x80n,
  0xffn,
  0x7fffn,
  0x8000n,
  0x7fff_ffffn,
  0x8000_0000n,
];

type Form = (random: Random) => number[];
/** 66, REX, opcode, ModRM and what follows; the operands are registers, or now and then memory. */
const modrm =
  (opcode: readonly number[], { digit, immediate = 0, prefix, wide = true }: Shape = {}): Form =>
  (random) => {
    const size = wide ? random.pick([0, 0x66, 0x48, 0x48]) : 0;
    const reg = digit ?? random.pick(REGISTERS);
    const memory = random.below(4) === 0;
    const rm = memory ? MEMORY : random.pick(REGISTERS);
    const rex = 0x40 | (size === 0x48 ? 8 : 0) | (reg > 7 ? 4 : 0) | (rm > 7 ? 1 : 0);
    const full = immediate < 0 ? (size === 0x66 ? 2 : 4) : immediate;
    return [
      ...(size === 0x66 ? [0x66] : []),
      ...(prefix === undefined ? [] : [prefix]),
      rex,
      ...opcode,
      (memory ? 0 : 0xc0) | ((reg & 7) << 3) | (rm & 7),
      ...Array.from({ length: full }, () => random.pick([0, 1, 5, 0x7f, 0x80, 0xff, random.below(256)])),
    ];
  };
interface Shape {
  readonly digit?: number;
  /** Bytes; -1 for 2 or 4. */
  readonly immediate?: number;
  readonly prefix?: number;
  readonly wide?: boolean;
}
/** BMI1 and BMI2, on registers. */
const vex =
  (map: number, opcode: number, pp: number, immediate = 0, digit?: number): Form =>
  (random) => {
    const [reg, rm, v] = [digit ?? random.below(4), random.below(4), random.below(4)];
    const vvvv = map === 3 ? 0xf : 0xf - v; // RORX has no third operand
    const payload = (random.pick([0, 0x80]) as number) | (vvvv << 3) | pp;
    return [
      0xc4,
      0xe0 | map,
      payload,
      opcode,
      0xc0 | (reg << 3) | rm,
      ...Array.from({ length: immediate }, () => random.below(256)),
    ];
  };

const all = <T>(from: number, to: number, make: (n: number) => T): T[] =>
  Array.from({ length: to - from + 1 }, (_, i) => make(from + i));

const forms: readonly Form[] = [
  // ADD OR ADC SBB AND SUB XOR CMP, four forms and two with immediates
  ...all(0, 7, (k) => [0, 1, 2, 3].map((form) => modrm([(k << 3) | form], { wide: form % 2 === 1 }))).flat(),
  ...all(0, 7, (digit) => [
    modrm([0x80], { digit, immediate: 1, wide: false }),
    modrm([0x81], { digit, immediate: -1 }),
    modrm([0x83], { digit, immediate: 1 }),
  ]).flat(),
  // ROL ROR RCL RCR SHL SHR SAL SAR
  ...all(0, 7, (digit) => [
    modrm([0xc0], { digit, immediate: 1, wide: false }),
    modrm([0xc1], { digit, immediate: 1 }),
    modrm([0xd1], { digit }),
    modrm([0xd2], { digit, wide: false }),
    modrm([0xd3], { digit }),
  ]).flat(),
  ...[0xa4, 0xac].map((opcode) => modrm([0x0f, opcode], { immediate: 1 })),
  ...[0xa5, 0xad].map((opcode) => modrm([0x0f, opcode])),
  // TEST NOT NEG MUL IMUL
  modrm([0xf7], { digit: 0, immediate: -1 }),
  ...all(2, 5, (digit) => [modrm([0xf6], { digit, wide: false }), modrm([0xf7], { digit })]).flat(),
  modrm([0x0f, 0xaf]),
  modrm([0x69], { immediate: -1 }),
  modrm([0x6b], { immediate: 1 }),
  // INC DEC
  ...all(0, 1, (digit) => [modrm([0xfe], { digit, wide: false }), modrm([0xff], { digit })]).flat(),
  // CMOVcc SETcc
  ...all(0x40, 0x4f, (opcode) => modrm([0x0f, opcode])),
  ...all(0x90, 0x9f, (opcode) => modrm([0x0f, opcode], { digit: 0, wide: false })),
  // MOVZX MOVSX MOVSXD MOV XCHG TEST XADD CMPXCHG
  ...[0xb6, 0xb7, 0xbe, 0xbf, 0xc1, 0xb1].map((opcode) => modrm([0x0f, opcode])),
  ...[0x63, 0x89, 0x8b, 0x87, 0x85].map((opcode) => modrm([opcode])),
  ...[0x86, 0x88, 0x8a, 0x84].map((opcode) => modrm([opcode], { wide: false })),
  ...[0xb0, 0xc0].map((opcode) => modrm([0x0f, opcode], { wide: false })),
  // BT BTS BTR BTC by immediates; by registers they may go anywhere in memory
  ...all(4, 7, (digit) => modrm([0x0f, 0xba], { digit, immediate: 1 })),
  // BSF BSR TZCNT LZCNT POPCNT ADCX ADOX
  modrm([0x0f, 0xbc]),
  modrm([0x0f, 0xbd]),
  ...[0xb8, 0xbc, 0xbd].map((opcode) => modrm([0x0f, opcode], { prefix: 0xf3 })),
  (random) => [0x66, 0x48, 0x0f, 0x38, 0xf6, 0xc0 | random.below(4) | (random.below(4) << 3)],
  (random) => [0xf3, 0x48, 0x0f, 0x38, 0xf6, 0xc0 | random.below(4) | (random.below(4) << 3)],
  // CMC CLC STC LAHF SAHF CWDE CDQ, and with REX.W
  ...[0xf5, 0xf8, 0xf9, 0x9f, 0x9e, 0x98, 0x99].map(
    (opcode): Form =>
      () => [opcode],
  ),
  ...[0x98, 0x99].map(
    (opcode): Form =>
      () => [0x48, opcode],
  ),
  // BSWAP
  (random) => [random.pick([0x40, 0x48]), 0x0f, 0xc8 | random.below(4)],
  // ANDN BLSR BLSMSK BLSI BZHI BEXTR PEXT PDEP MULX SARX SHLX SHRX RORX
  vex(2, 0xf2, 0),
  ...all(1, 3, (digit) => vex(2, 0xf3, 0, 0, digit)),
  ...[0, 2, 3].map((pp) => vex(2, 0xf5, pp)),
  vex(2, 0xf6, 3),
  ...all(0, 3, (pp) => vex(2, 0xf7, pp)),
  vex(3, 0xf0, 3, 1),
];

const LENGTH = 8;
const sequences = 60;
const JUMP = [0xeb, 0x00];

describe.each(Array.from({ length: 12 }, (_, i) => i))('blocks of seed %i', (seed) => {
  test(`come to what their instructions come to, one by one`, { timeout: 60_000 }, () => {
    const random = new Random(seed + 1);
    const machine = new Machine('long');
    for (let i = 0; i < sequences; i++) {
      const code = Array.from({ length: LENGTH }, () => random.pick(forms)(random)).flat();
      const registers = REGISTERS.map(
        () => random.pick(NUMBERS) * (random.below(2) ? 1n : -1n) + BigInt(random.below(3)),
      );
      const flags = random.u32() & 0x8d5;
      const memory = Array.from({ length: 16 }, () => random.below(256));
      // Flags come described in one of the ways that instructions leave them in.
      const before = random.pick([[], [0x48, 0x01, 0xc8], [0x48, 0x29, 0xc8], [0x48, 0x21, 0xc8]]);

      const enter = () => {
        for (const [at, register] of REGISTERS.entries()) machine.set(register, registers[at]!);
        machine.set(MEMORY, Place.data);
        machine.flags = flags;
        machine.poke(Place.data, memory);
        if (before.length > 0) machine.run(before);
        machine.load([...code, ...JUMP]);
      };
      const result = () => `${machine.state()} ${machine.bytes(Place.data, 16)}`;

      enter();
      const block = machine.block();
      expect(block.insns).toHaveLength(LENGTH + 1);
      machine.closures(block);
      const closures = result();
      enter();
      machine.wasm(block);
      const wasm = result();
      enter();
      for (let step = 0; step <= LENGTH; step++) machine.step();
      const single = result();
      const shown = block.insns.map(({ code }) => code).join(', ');
      expect(closures, shown).toBe(single);
      expect(wasm, shown).toBe(single);
    }
  });
});

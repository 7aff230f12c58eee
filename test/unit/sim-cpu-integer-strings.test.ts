/** String instructions: how far one goes, where a fault finds it, and how port strings are split. */
import { describe, expect, test } from 'vitest';
import { Machine, type Mode, modes, Place, R } from './sim-cpu-integer.ts';

const REP = 0xf3;
const REPNE = 0xf2;
const DF = 0x400;
const [CF, ZF] = [0x1, 0x40];

/** What an index register says where `linear` lies in the data segment, or in the code's or the stack's. */
const offset = (machine: Machine, linear: number) => (machine.flat ? linear : linear & 0xffff);
/** Until RIP is no more at the instruction. Gives how many calls that took. */
function complete(machine: Machine, code: readonly number[]): number {
  machine.load(code);
  const start = machine.rip;
  for (let calls = 1; ; calls++) {
    machine.step();
    if (machine.rip !== start) return calls;
  }
}

describe.each(modes)('in %s mode', (mode: Mode) => {
  const wide = mode === 'long' || mode === 'protected32';

  test('REP MOVSB copies upwards across pages, and ends with RCX 0 behind the last byte', () => {
    const machine = new Machine(mode);
    const source = Array.from({ length: 0x1800 }, (_, i) => (i * 7) & 0xff);
    machine.poke(Place.data + 0x123, source);
    machine.set(R.si, offset(machine, Place.data + 0x123));
    machine.set(R.di, offset(machine, Place.data + 0x4567));
    machine.set(R.cx, source.length);
    complete(machine, [REP, 0xa4]);
    expect(machine.bytes(Place.data + 0x4567, source.length + 1)).toEqual([...source, 0]);
    expect(machine.get(R.cx)).toBe(0n);
    expect(machine.get(R.si)).toBe(BigInt(offset(machine, Place.data + 0x123 + source.length)));
    expect(machine.get(R.di)).toBe(BigInt(offset(machine, Place.data + 0x4567 + source.length)));
  });

  test.each([1, 2, 3, 8, 100])('what REP MOVSB writes %i ahead of what it reads repeats itself', (ahead) => {
    const machine = new Machine(mode);
    const pattern = Array.from({ length: ahead }, (_, i) => i + 1);
    machine.poke(Place.data, pattern);
    machine.set(R.si, offset(machine, Place.data));
    machine.set(R.di, offset(machine, Place.data + ahead));
    machine.set(R.cx, 300);
    complete(machine, [REP, 0xa4]);
    const expected = Array.from({ length: ahead + 300 }, (_, i) => (i % ahead) + 1);
    expect(machine.bytes(Place.data, expected.length)).toEqual(expected);
  });

  test('REP MOVSW goes down where DF says so', () => {
    const machine = new Machine(mode);
    machine.poke(Place.data, [1, 2, 3, 4, 5, 6]);
    machine.set(R.si, offset(machine, Place.data + 4));
    machine.set(R.di, offset(machine, Place.data + 0x14));
    machine.set(R.cx, 3);
    machine.flags = DF;
    complete(machine, wide ? [0x66, REP, 0xa5] : [REP, 0xa5]);
    expect(machine.bytes(Place.data + 0x10, 6)).toEqual([1, 2, 3, 4, 5, 6]);
    expect(machine.get(R.di)).toBe(BigInt(offset(machine, Place.data + 0x0e)) & (wide ? -1n : 0xffffn));
  });

  test.each([
    [1, [0xaa]],
    [2, wide ? [0x66, 0xab] : [0xab]],
    [4, wide ? [0xab] : [0x66, 0xab]],
  ])('REP STOS of %i bytes fills, on odd addresses too', (size, opcode) => {
    for (const odd of [0, 1, 3]) {
      const machine = new Machine(mode);
      machine.set(R.ax, 0x4433_2211);
      machine.set(R.di, offset(machine, Place.data + odd));
      machine.set(R.cx, 0x900);
      complete(machine, [REP, ...opcode]);
      const expected = Array.from({ length: 0x900 * size }, (_, i) => [0x11, 0x22, 0x33, 0x44][i % size]);
      expect(machine.bytes(Place.data + odd, expected.length), `from ${odd}`).toEqual(expected);
      expect(machine.bytes(Place.data + odd + expected.length, 1)).toEqual([0]);
    }
  });

  test('REPNE SCASB finds a byte and stops behind it; REPE CMPSB stops behind the first difference', () => {
    const machine = new Machine(mode);
    machine.poke(Place.data, [5, 5, 5, 9, 5]);
    machine.set(R.ax, 9);
    machine.set(R.di, offset(machine, Place.data));
    machine.set(R.cx, 5);
    complete(machine, [REPNE, 0xae]);
    expect(machine.get(R.cx)).toBe(1n);
    expect(machine.flags & ZF).toBe(ZF);

    machine.poke(Place.data + 0x100, [5, 5, 6]);
    machine.set(R.si, offset(machine, Place.data));
    machine.set(R.di, offset(machine, Place.data + 0x100));
    machine.set(R.cx, 5);
    complete(machine, [REP, 0xa6]);
    expect(machine.get(R.cx)).toBe(2n);
    expect(machine.flags & (ZF | CF), '5 is below 6').toBe(CF);
  });

  test('a counter of 0 does nothing, whatever the addresses', () => {
    const machine = new Machine(mode);
    machine.set(R.si, 0x9999_9999);
    machine.set(R.di, 0x9999_9999);
    machine.set(R.cx, 0);
    machine.flags = ZF | CF;
    for (const opcode of [0xa4, 0xa6, 0xaa, 0xac, 0xae]) expect(machine.run([REP, opcode])).toBeUndefined();
    expect(machine.flags).toBe(ZF | CF | 2);
    expect(machine.get(R.si)).toBe(0x9999_9999n);
  });

  test('LODSB reads the segment that a prefix names', () => {
    const machine = new Machine(mode);
    machine.poke(Place.stack + 4, [0x77]);
    machine.set(R.si, offset(machine, Place.stack + 4));
    machine.run([0x36, 0xac]);
    expect(machine.get(R.ax)).toBe(0x77n);
  });
});

describe('one call of a repeated instruction', () => {
  test('does a bounded number of elements and leaves RIP at the instruction', () => {
    const machine = new Machine('long');
    machine.set(R.di, Place.data);
    machine.set(R.cx, 10_000);
    expect(complete(machine, [REP, 0xaa])).toBe(3);
    expect(machine.get(R.cx)).toBe(0n);
  });

  test('does one element while somebody watches each instruction', () => {
    const machine = new Machine('long');
    machine.set(R.di, Place.data);
    machine.set(R.cx, 3);
    machine.flags = 0x100;
    machine.cpu.changed();
    machine.run([REP, 0xaa]);
    expect(machine.get(R.cx)).toBe(2n);
    expect(machine.rip).toBe(Place.code);
  });
});

describe('a segment limit in the middle', () => {
  test('raises #GP with the registers at the element that did not happen', () => {
    const machine = new Machine('protected16');
    machine.cpu.segments[0] = { ...machine.cpu.segments[0]!, limit: 0x103 };
    machine.cpu.changed();
    machine.set(R.di, 0x100);
    machine.set(R.cx, 10);
    machine.set(R.ax, 0xee);
    expect(machine.run([REP, 0xaa])).toBe('#13(0)');
    expect(machine.rip).toBe(0);
    expect(machine.get(R.cx)).toBe(6n);
    expect(machine.get(R.di)).toBe(0x104n);
    expect(machine.bytes(Place.data + 0x100, 5)).toEqual([0xee, 0xee, 0xee, 0xee, 0]);
  });

  test.each([
    ['intel', ZF | CF],
    ['amd', ZF],
  ] as const)('%s leaves the flags of a comparison %i', (vendor, flags) => {
    const machine = new Machine('protected16', { vendor });
    machine.cpu.segments[0] = { ...machine.cpu.segments[0]!, limit: 0x101 };
    machine.cpu.changed();
    machine.set(R.di, 0x100);
    machine.set(R.cx, 10);
    machine.flags = ZF | CF;
    expect(machine.run([REP, 0xae])).toBe('#13(0)');
    expect(machine.get(R.cx)).toBe(8n);
    expect(machine.flags & (ZF | CF)).toBe(flags);
  });
});

describe('a counter of 0 with 4-byte addresses in 64-bit mode', () => {
  test.each([
    ['intel', 0n, 0x1111_1111n],
    ['amd', 0xffff_ffff_0000_0000n, 0xffff_ffff_1111_1111n],
  ] as const)('%s clears the upper halves, or does not', (vendor, rcx, rsi) => {
    const machine = new Machine('long', { vendor });
    machine.set(R.cx, 0xffff_ffff_0000_0000n);
    machine.set(R.si, 0xffff_ffff_1111_1111n);
    machine.set(R.di, 0xffff_ffff_1111_1111n);
    machine.run([0x67, REP, 0xa4]);
    expect([machine.get(R.cx), machine.get(R.si), machine.get(R.di)]).toEqual([rcx, rsi, rsi]);
  });
});

describe('ports', () => {
  /** Executes as KVM does, answering each exit with `answer`; gives the exits. */
  function exits(
    machine: Machine,
    code: readonly number[],
    answer: (size: number) => number[],
    after = () => {},
  ) {
    machine.load([...code, 0xf4]);
    machine.cpu.halted = false;
    const all: string[] = [];
    for (let i = 0; i < 100; i++) {
      let stop = machine.cpu.run(1000);
      while (stop.kind === 'io') {
        all.push(`${stop.write ? 'out' : 'in'} ${stop.count}x${stop.size}`);
        if (stop.write) all.push([...stop.data].join(','));
        const data = Uint8Array.from(answer(stop.count * stop.size));
        after();
        const next = machine.cpu.finish(data);
        if (next === undefined) break;
        stop = next;
      }
      if (stop.kind === 'halt') return all;
    }
    throw new Error(`it goes on and on: ${all}`);
  }
  const count = (size: number) => Array.from({ length: size }, (_, i) => i & 0xff);

  test('IN writes what its size is, and OUT sends it', () => {
    const machine = new Machine('long');
    machine.set(R.ax, -1n);
    machine.set(R.dx, 0x3f8);
    expect(exits(machine, [0xec], () => [0x41])).toEqual(['in 1x1']);
    expect(machine.get(R.ax)).toBe(0xffff_ffff_ffff_ff41n);
    expect(exits(machine, [0xed], () => [1, 2, 3, 4])).toEqual(['in 1x4']);
    expect(machine.get(R.ax)).toBe(0x0403_0201n);
    expect(exits(machine, [0x66, 0xe7, 0x80], () => [])).toEqual(['out 1x2', '1,2']);
  });

  test('REP INSB reads up to the end of the page, and 1024 bytes at most', () => {
    const machine = new Machine('long');
    machine.set(R.di, Place.data + 0x1000 - 100);
    machine.set(R.cx, 1200);
    expect(exits(machine, [REP, 0x6c], count)).toEqual(['in 100x1', 'in 1024x1', 'in 76x1']);
    expect(machine.bytes(Place.data + 0x1000 - 100, 1200)).toEqual([
      ...count(100),
      ...count(1024),
      ...count(76),
    ]);
    expect(machine.get(R.cx)).toBe(0n);
  });

  test('REP INSW goes down in one exit where DF says so', () => {
    const machine = new Machine('long');
    machine.flags = DF;
    machine.set(R.di, Place.data + 4);
    machine.set(R.cx, 3);
    expect(exits(machine, [0x66, REP, 0x6d], count)).toEqual(['in 3x2']);
    expect(machine.bytes(Place.data, 6)).toEqual([4, 5, 2, 3, 0, 1]);
    expect(machine.get(R.di)).toBe(BigInt(Place.data - 2));
  });

  test('the counter is what userspace made of it when the data is there', () => {
    for (const [asked, then, expected] of [
      [2, 1, ['in 2x1']],
      [3, 8192, ['in 3x1', ...new Array(7).fill('in 1024x1')]],
    ] as const) {
      const machine = new Machine('long');
      machine.set(R.di, Place.data);
      machine.set(R.cx, asked);
      let first = true;
      const after = () => {
        if (first) machine.set(R.cx, then);
        first = false;
      };
      expect(exits(machine, [REP, 0x6c], (size) => new Array(size).fill(0xaa), after)).toEqual(expected);
      expect(machine.get(R.cx)).toBe(0n);
      expect(machine.get(R.di)).toBe(BigInt(Place.data + then));
    }
  });

  test('REP OUTSB sends one element in each exit, behind which the registers already are', () => {
    const machine = new Machine('long');
    machine.poke(Place.data, [7, 8, 9]);
    machine.set(R.si, Place.data);
    machine.set(R.cx, 3);
    const counters: bigint[] = [];
    const after = () => counters.push(machine.get(R.cx));
    expect(exits(machine, [REP, 0x6e], () => [], after)).toEqual([
      'out 1x1',
      '7',
      'out 1x1',
      '8',
      'out 1x1',
      '9',
    ]);
    expect(counters).toEqual([2n, 1n, 0n]);
  });

  test('REP MOVSB to and from MMIO exits for each byte', () => {
    const machine = new Machine('long', { mmio: [0x80] });
    machine.set(R.si, 0x8_0000);
    machine.set(R.di, 0x8_0010);
    machine.set(R.cx, 3);
    machine.load([REP, 0xa4, 0xf4]);
    const all: string[] = [];
    let stop = machine.cpu.run(1000);
    for (let i = 0; i < 20 && stop.kind !== 'halt'; i++) {
      if (stop.kind !== 'mmio') throw new Error(stop.kind);
      all.push(`${stop.write ? `write ${stop.data}` : 'read'} ${stop.gpa.toString(16)}`);
      stop = machine.cpu.finish(Uint8Array.of(0x30 + i)) ?? machine.cpu.run(1000);
    }
    expect(all).toEqual([
      'read 80000',
      'write 48 80010',
      'read 80001',
      'write 50 80011',
      'read 80002',
      'write 52 80012',
    ]);
  });
});

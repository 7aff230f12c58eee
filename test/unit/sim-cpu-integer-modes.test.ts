/** What integer instructions do where no processor is at hand to ask: 16-bit modes, limits, decimal numbers, division. */
import { describe, expect, test } from 'vitest';
import { GuestFault } from '../../src/sim/cpu/processor/fault.ts';
import { Machine, Place, R } from './sim-cpu-integer.ts';

const Flag = { CF: 0x1, PF: 0x4, AF: 0x10, ZF: 0x40, SF: 0x80, OF: 0x800 } as const;
const ARITHMETIC = 0x8d5;
/** 8 bytes in the order of memory. */
const little = (value: bigint, size: number) =>
  Array.from({ length: size }, (_, i) => Number((value >> BigInt(8 * i)) & 0xffn));

describe('the stack in 16-bit mode', () => {
  test('wraps at 64 KiB, and only SP moves', () => {
    const machine = new Machine('protected16');
    machine.set(R.sp, 0xabcd_0000);
    machine.set(R.ax, 0x1234);
    expect(machine.run([0x50])).toBeUndefined();
    expect(machine.get(R.sp)).toBe(0xabcd_fffen);
    expect(machine.bytes(Place.stack + 0xfffe, 2)).toEqual([0x34, 0x12]);
    expect(machine.run([0x5b])).toBeUndefined();
    expect(machine.get(R.bx)).toBe(0x1234n);
    expect(machine.get(R.sp)).toBe(0xabcd_0000n);
  });

  test('a push beyond the limit of SS is #SS, and SP has not moved', () => {
    const machine = new Machine('protected16');
    machine.cpu.segments[2] = { ...machine.cpu.segments[2]!, limit: 0x7ff };
    machine.cpu.changed();
    machine.set(R.sp, 0x801);
    expect(machine.run([0x50])).toBe('#12(0)');
    expect(machine.get(R.sp)).toBe(0x801n);
  });

  test('PUSHA and POPA are each other reversed, but for SP', () => {
    for (const prefix of [[], [0x66]]) {
      const machine = new Machine('protected16');
      for (let i = 0; i < 8; i++) if (i !== R.sp) machine.set(i, 0x1111_1111 * (i + 1));
      expect(machine.run([...prefix, 0x60])).toBeUndefined();
      const size = prefix.length === 0 ? 2 : 4;
      expect(machine.get(R.sp)).toBe(BigInt(0x800 - 8 * size));
      // SP is pushed as it was, between BX and BP.
      expect(machine.bytes(Place.stack + 0x800 - 5 * size, 2)).toEqual([0x00, 0x08]);
      const before = machine.state();
      for (let i = 0; i < 8; i++)
        if (i !== R.sp) machine.set(i, 0x1111_1111 * (i + 1) - (size === 2 ? 0x3333 : 0x3333_3333));
      expect(machine.run([...prefix, 0x61])).toBeUndefined();
      expect(machine.get(R.sp)).toBe(0x800n);
      machine.set(R.sp, 0x800 - 8 * size);
      // 16 bits of each are as they were; the rest is what it became.
      const mask = size === 2 ? 0xffffn : 0xffff_ffffn;
      for (let i = 0; i < 8; i++)
        expect(machine.get(i) & mask, `register ${i}`).toBe(
          BigInt(before.split(' ')[i] === undefined ? 0 : `0x${before.split(' ')[i]}`) & mask,
        );
    }
  });

  test('ENTER copies the frame pointers of the frames around, and LEAVE undoes it', () => {
    const machine = new Machine('protected16');
    machine.set(R.bp, 0x900);
    machine.poke(Place.stack + 0x8fc, [0xbb, 0xbb, 0xaa, 0xaa]);
    expect(machine.run([0xc8, 0x10, 0x00, 0x03])).toBeUndefined();
    // BP, two frames, and the new one: then room for 16 bytes.
    expect(machine.bytes(Place.stack + 0x7f8, 8)).toEqual([0xfe, 0x07, 0xbb, 0xbb, 0xaa, 0xaa, 0x00, 0x09]);
    expect(machine.get(R.bp)).toBe(0x7fen);
    expect(machine.get(R.sp)).toBe(0x7f8n - 0x10n);
    expect(machine.run([0xc9])).toBeUndefined();
    expect(machine.get(R.bp)).toBe(0x900n);
    expect(machine.get(R.sp)).toBe(0x800n);
  });

  test('POP to memory computes its address with the stack pointer that it leaves', () => {
    const machine = new Machine('protected32');
    machine.poke(Place.stack + 0x800, [1, 2, 3, 4]);
    expect(machine.run([0x8f, 0x04, 0x24])).toBeUndefined(); // pop dword [esp]
    expect(machine.bytes(Place.stack + 0x804, 4)).toEqual([1, 2, 3, 4]);
    expect(machine.get(R.sp)).toBe(BigInt(Place.stack + 0x804));
    expect(machine.run([0x54])).toBeUndefined(); // push esp
    expect(machine.bytes(Place.stack + 0x800, 4)).toEqual(little(BigInt(Place.stack + 0x804), 4));
  });
});

describe('addresses', () => {
  test('of 16 bits wrap in their segment, and BP is in SS', () => {
    const machine = new Machine('real');
    machine.poke(Place.stack + 2, [0x5a]);
    machine.set(R.bp, 0xfff0);
    machine.set(R.si, 0x10);
    expect(machine.run([0x8a, 0x42, 0x02])).toBeUndefined(); // mov al, [bp+si+2]
    expect(machine.get(R.ax)).toBe(0x5an);
  });

  test('beyond the limit are #GP, or #SS through SS, and nothing has happened', () => {
    const machine = new Machine('real');
    machine.set(R.bx, 0xffff);
    machine.set(R.bp, 0xffff);
    machine.set(R.ax, 7);
    expect(machine.run([0x01, 0x07])).toBe('#13(0)'); // add [bx], ax
    expect(machine.run([0x01, 0x46, 0x00])).toBe('#12(0)'); // add [bp], ax
    expect(machine.run([0x8a, 0x07])).toBeUndefined(); // a byte fits
  });

  test('through CS are read, and written in real mode alone', () => {
    for (const mode of ['real', 'protected16', 'protected32'] as const) {
      const machine = new Machine(mode);
      machine.poke(Place.code + 0x2020, [0x31]);
      machine.set(R.bx, machine.flat ? Place.code + 0x2020 : 0x2020);
      expect(machine.run([0x2e, 0x8a, machine.flat ? 3 : 7]), `${mode} reads`).toBeUndefined();
      expect(machine.get(R.ax)).toBe(0x31n);
      const write = machine.run([0x2e, 0x00, machine.flat ? 3 : 7]);
      expect(write, `${mode} writes`).toBe(mode === 'real' ? undefined : '#13(0)');
      expect(machine.bytes(Place.code + 0x2020, 1)).toEqual([mode === 'real' ? 0x62 : 0x31]);
    }
  });

  test('LEA gives as many bits as both sizes have', () => {
    const machine = new Machine('long');
    machine.set(R.bx, 0xffff_ffff_ffff_fff0n);
    machine.set(R.cx, 0x20);
    machine.set(R.ax, -1n);
    machine.run([0x48, 0x8d, 0x04, 0x0b]);
    expect(machine.get(R.ax)).toBe(0x10n);
    machine.run([0x67, 0x48, 0x8d, 0x04, 0x0b]);
    expect(machine.get(R.ax)).toBe(0x10n);
    machine.set(R.ax, -1n);
    machine.run([0x66, 0x8d, 0x03]);
    expect(machine.get(R.ax)).toBe(0xffff_ffff_ffff_fff0n);
  });

  test('BT goes to the bit that its register counts, wherever that is', () => {
    const machine = new Machine('protected32');
    machine.poke(Place.data + 0x40, [0x04]);
    machine.set(R.bx, Place.data + 0x80);
    machine.set(R.ax, -(0x40 * 8) + 2);
    expect(machine.run([0x0f, 0xab, 0x03])).toBeUndefined(); // bts [ebx], eax
    expect(machine.flags & Flag.CF).toBe(1);
    machine.set(R.ax, -(0x40 * 8) + 3);
    expect(machine.run([0x0f, 0xab, 0x03])).toBeUndefined();
    expect(machine.flags & Flag.CF).toBe(0);
    expect(machine.bytes(Place.data + 0x40, 1)).toEqual([0x0c]);
  });
});

describe('near transfers', () => {
  test('cut RIP to 16 bits where the operand has them', () => {
    const machine = new Machine('protected16');
    machine.rip = 0;
    machine.poke(Place.code + 0xfffd, [0xeb, 0x10]); // jmp +0x10, across the end
    machine.cpu.code.begin();
    machine.rip = 0xfffd;
    machine.step();
    expect(machine.rip).toBe(0x0f);
  });

  test.each([
    ['jmp', [0xe9, 0xfd, 0x7f]],
    ['a taken jz', [0x0f, 0x84, 0xfc, 0x7f]],
    ['call', [0xe8, 0xfd, 0x7f]],
    ['loop', [0xe2, 0x7e]],
  ])('%s beyond the limit of CS is #GP, and nothing has happened', (_name, code) => {
    const machine = new Machine('protected16');
    machine.cpu.segments[1] = { ...machine.cpu.segments[1]!, limit: 0x7f };
    machine.cpu.changed();
    machine.flags = Flag.ZF;
    machine.set(R.cx, 2);
    expect(machine.run(code)).toBe('#13(0)');
    expect(machine.get(R.cx)).toBe(2n);
    expect(machine.get(R.sp)).toBe(0x800n);
    machine.flags = 0;
    if (code[0] === 0x0f) expect(machine.run(code), 'not taken').toBeUndefined();
  });

  test('RET beyond the limit leaves SP; RET n drops more', () => {
    const machine = new Machine('protected16');
    machine.cpu.segments[1] = { ...machine.cpu.segments[1]!, limit: 0x7f };
    machine.cpu.changed();
    machine.poke(Place.stack + 0x800, [0x80, 0x00]);
    expect(machine.run([0xc3])).toBe('#13(0)');
    expect(machine.get(R.sp)).toBe(0x800n);
    machine.poke(Place.stack + 0x800, [0x40, 0x00]);
    expect(machine.run([0xc2, 0x06, 0x00])).toBeUndefined();
    expect(machine.get(R.sp)).toBe(0x808n);
    expect(machine.rip).toBe(0x40);
  });

  test('a target that is not canonical is #GP at the instruction', () => {
    const machine = new Machine('long');
    machine.set(R.ax, 0x8000_0000_0000n);
    expect(machine.run([0xff, 0xe0])).toBe('#13(0)'); // jmp rax
    expect(machine.run([0xff, 0xd0])).toBe('#13(0)'); // call rax
    expect(machine.get(R.sp)).toBe(BigInt(Place.stack + 0x800));
    machine.poke(Place.stack + 0x800, little(0x8000_0000_0000n, 8));
    expect(machine.run([0xc3])).toBe('#13(0)');
    expect(machine.get(R.sp)).toBe(BigInt(Place.stack + 0x800));
  });

  test.each([
    ['amd', 2],
    ['intel', 8],
  ] as const)('%s: CALL with 66 in 64-bit mode pushes %i bytes', (vendor, size) => {
    const machine = new Machine('long', { vendor });
    machine.set(R.ax, Place.data);
    expect(machine.run([0x66, 0xff, 0xd0])).toBeUndefined();
    expect(machine.get(R.sp)).toBe(BigInt(Place.stack + 0x800 - size));
    expect(machine.rip).toBe(size === 2 ? Place.data & 0xffff : Place.data);
  });

  test.each([
    ['amd', Place.code + 3],
    ['intel', Place.code + 0x13],
  ] as const)('%s: REPNE before LOOPE goes to %i', (vendor, rip) => {
    const machine = new Machine('long', { vendor });
    machine.set(R.cx, 2);
    machine.flags = Flag.ZF;
    machine.run([0xf2, 0xe1, 0x10]);
    expect(machine.rip).toBe(rip);
  });

  test.each([
    ['JCXZ', 0xe3, 0x1_0000n, true],
    ['LOOP', 0xe2, 0x1_0001n, false],
    ['LOOP', 0xe2, 0x1_0000n, true],
  ])('%s in 16-bit mode looks at CX alone', (_name, opcode, rcx, taken) => {
    const machine = new Machine('protected16');
    machine.set(R.cx, rcx);
    machine.run([opcode, 0x10]);
    expect(machine.rip).toBe(taken ? 0x12 : 2);
  });
});

describe('division', () => {
  /** In both executors. */
  const divide = (bytes: number[], high: bigint, low: bigint, divisor: bigint) => {
    const results = (['step', 'wasm'] as const).map((how) => {
      const machine = new Machine('long');
      machine.set(R.ax, low);
      machine.set(R.dx, high);
      machine.set(R.bx, divisor);
      machine.load([...bytes, 0xeb, 0]);
      try {
        if (how === 'step') machine.step();
        else machine.wasm(machine.block());
      } catch (thrown) {
        if (!(thrown instanceof GuestFault)) throw thrown;
        expect([machine.get(R.ax), machine.get(R.dx)]).toEqual(
          [low, high].map((value) => BigInt.asUintN(64, value)),
        );
        return `#${thrown.vector}`;
      }
      return [BigInt.asIntN(64, machine.get(R.ax)), BigInt.asIntN(64, machine.get(R.dx))];
    });
    expect(results[1]).toEqual(results[0]);
    return results[0];
  };
  const [DIV8, DIV16, DIV32, DIV64] = [
    [0xf6, 0xf3],
    [0x66, 0xf7, 0xf3],
    [0xf7, 0xf3],
    [0x48, 0xf7, 0xf3],
  ];
  const [IDIV8, IDIV32, IDIV64] = [
    [0xf6, 0xfb],
    [0xf7, 0xfb],
    [0x48, 0xf7, 0xfb],
  ];
  const MIN = -(1n << 63n);

  test.each([
    ['by 0', DIV64, 0n, 5n, 0n],
    ['by 0, signed', IDIV64, 0n, 5n, 0n],
    ['by 0, of 32 bits', IDIV32, 0n, 5n, 0n],
    ['by 0, of 8 bits', DIV8, 0n, 5n, 0n],
    ['of which the quotient does not fit', DIV64, 2n, 0n, 2n],
    ['of which the signed quotient does not fit', IDIV64, 1n, 0n, 2n],
    ['of the smallest number by -1', IDIV64, -1n, MIN, -1n],
    ['of the smallest number of 32 bits by -1', IDIV32, 0xffff_ffffn, 0x8000_0000n, -1n],
    ['of the smallest number of 64 bits by a -1 of 32', IDIV32, 0x8000_0000n, 0n, -1n],
    ['of the smallest number of 8 bits by -1', IDIV8, 0n, 0xff80n, -1n],
  ])('%s is #DE', (_name, bytes, high, low, divisor) => {
    expect(divide(bytes, high, low, divisor)).toBe('#0');
  });

  test('of 128 bits gives quotient and remainder', () => {
    expect(divide(DIV64, 7n, 5n, 9n)).toEqual([
      ((7n << 64n) + 5n) / 9n - (1n << 64n),
      ((7n << 64n) + 5n) % 9n,
    ]);
    expect(divide(DIV64, 0n, -1n, 10n)).toEqual([0x1999_9999_9999_9999n, 5n]);
    const wide = -(3n << 70n) - 1n;
    expect(divide(IDIV64, wide >> 64n, wide, 0x1000n)).toEqual([wide / 0x1000n, wide % 0x1000n]);
    expect(divide(IDIV64, 0n, MIN, -1n), '2^63 by -1').toEqual([MIN, 0n]);
    expect(divide(IDIV64, -1n, -7n, 2n)).toEqual([-3n, -1n]);
  });

  test('of less leaves what its size leaves', () => {
    expect(divide(DIV32, 1n, 0n, 0xffff_ffffn)).toEqual([1n, 1n]);
    expect(divide(IDIV32, 0xffff_ffffn, 0xffff_fff9n, 2n)).toEqual([0xffff_fffdn, 0xffff_ffffn]);
    expect(divide(DIV16, 0xffff_0000_0000_0001n, 0x1111_1111_1111_0002n, 0x10n)).toEqual([
      0x1111_1111_1111_1000n,
      BigInt.asIntN(64, 0xffff_0000_0000_0002n),
    ]);
    expect(divide(DIV8, 0n, 0x0105n, 0x10n)).toEqual([0x0510n, 0n]);
  });
});

describe('decimal numbers', () => {
  /** AX and the flags before and after, as SDM volume 2 computes them. */
  const after = (code: number[], ax: number, flags = 0) => {
    const machine = new Machine('protected32');
    machine.set(R.ax, 0xabcd_0000 + ax);
    machine.flags = flags;
    const fault = machine.run(code);
    if (fault !== undefined) return fault;
    expect(machine.get(R.ax) >> 16n).toBe(0xabcdn);
    return [Number(machine.get(R.ax) & 0xffffn), machine.flags & (Flag.CF | Flag.AF)];
  };
  const both = Flag.CF | Flag.AF;
  const [DAA, DAS, AAA, AAS] = [[0x27], [0x2f], [0x37], [0x3f]];

  test('DAA and DAS keep sums and differences of all two-digit numbers decimal', () => {
    const packed = (n: number) => ((Math.floor(n / 10) % 10) << 4) | (n % 10);
    const machine = new Machine('protected32');
    for (let a = 0; a < 100; a++)
      for (let b = 0; b < 100; b++) {
        for (const [code, sum] of [
          [[0x00, 0xd8, 0x27], a + b], // add al, bl; daa
          [[0x28, 0xd8, 0x2f], a - b], // sub al, bl; das
        ] as const) {
          machine.set(R.ax, packed(a));
          machine.set(R.bx, packed(b));
          machine.load(code);
          machine.step();
          machine.step();
          expect(Number(machine.get(R.ax)), `${a}, ${b}`).toBe(packed((sum + 100) % 100));
          expect(machine.flags & Flag.CF).toBe(sum > 99 || sum < 0 ? 1 : 0);
        }
      }
  });

  test.each([
    ['DAA', DAA, 0x99, Flag.AF, [0x9f, Flag.AF]],
    ['DAA', DAA, 0x9a, 0, [0x00, both]],
    ['DAA', DAA, 0x00, Flag.CF, [0x60, Flag.CF]],
    ['DAS', DAS, 0x05, Flag.AF, [0xff, both]],
    ['DAS', DAS, 0x9a, 0, [0x34, both]],
    ['AAA', AAA, 0x010a, 0, [0x0200, both]],
    ['AAA', AAA, 0x01fa, 0, [0x0300, both]],
    ['AAA', AAA, 0x0135, 0, [0x0105, 0]],
    ['AAS', AAS, 0x0200, Flag.AF, [0x000a, both]],
    ['AAS', AAS, 0x020f, 0, [0x0109, both]],
    ['AAS', AAS, 0x0235, 0, [0x0205, 0]],
    ['AAM', [0xd4, 10], 0x1163, 0, [0x0909, 0]],
    ['AAM by 16', [0xd4, 16], 0x00ab, 0, [0x0a0b, 0]],
    ['AAM by 0', [0xd4, 0], 0x00ab, 0, '#0'],
    ['AAD', [0xd5, 10], 0x0907, 0, [0x0061, 0]],
  ] as const)('%s %s of %i with flags %i', (_name, code, ax, flags, expected) => {
    expect(after([...code], ax, flags)).toEqual(expected);
  });

  test('do not exist in 64-bit mode', () => {
    for (const code of [DAA, DAS, AAA, AAS, [0xd4, 10], [0xd5, 10], [0xd6], [0x60], [0x62, 0x03]]) {
      const machine = new Machine('long');
      machine.load([...code, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90]);
      expect(() => machine.step(), `${code}`).toThrow(expect.objectContaining({ vector: 6 }));
    }
  });
});

describe('the rest', () => {
  test('BOUND is #BR outside of the bounds, which are signed', () => {
    const machine = new Machine('protected32');
    machine.poke(Place.data, [...little(-5n, 4), ...little(7n, 4)]);
    machine.set(R.bx, Place.data);
    for (const [index, fault] of [
      [-5, undefined],
      [7, undefined],
      [-6, '#5'],
      [8, '#5'],
    ] as const) {
      machine.set(R.ax, BigInt.asUintN(32, BigInt(index)));
      expect(machine.run([0x62, 0x03]), `${index}`).toBe(fault);
    }
  });

  test('SALC fills AL with the carry', () => {
    const machine = new Machine('protected16');
    machine.set(R.ax, 0x1234);
    machine.flags = Flag.CF;
    machine.run([0xd6]);
    expect(machine.get(R.ax)).toBe(0x12ffn);
    machine.flags = ARITHMETIC & ~Flag.CF;
    machine.run([0xd6]);
    expect(machine.get(R.ax)).toBe(0x1200n);
  });

  test('XLATB adds AL to RBX, in the segment that a prefix names', () => {
    const machine = new Machine('real');
    machine.poke(Place.stack + 0x0f, [0x99]);
    machine.set(R.bx, 0xfff0);
    machine.set(R.ax, 0x1f);
    machine.run([0x36, 0xd7]);
    expect(machine.get(R.ax)).toBe(0x99n);
  });

  test('CMPXCHG16B of what is not aligned is #GP', () => {
    const machine = new Machine('long');
    machine.set(R.dx, 0);
    machine.set(R.bx, Place.data + 8);
    expect(machine.run([0x48, 0x0f, 0xc7, 0x0b])).toBe('#13(0)');
    machine.set(R.bx, Place.data + 16);
    expect(machine.run([0x48, 0x0f, 0xc7, 0x0b])).toBeUndefined();
    expect(machine.flags & Flag.ZF).toBe(Flag.ZF);
  });

  test('LOCK before what does not write memory is #UD', () => {
    const machine = new Machine('long');
    for (const code of [
      [0x01, 0xc0],
      [0x39, 0x03],
      [0x8b, 0x03],
      [0x0f, 0xa3, 0x03],
      [0x90],
      [0x50],
      [0xa4],
    ]) {
      machine.load([0xf0, ...code]);
      expect(() => machine.step(), `${code}`).toThrow(expect.objectContaining({ vector: 6 }));
    }
    machine.set(R.bx, Place.data);
    expect(machine.run([0xf0, 0x01, 0x03])).toBeUndefined();
  });

  test.each([
    [0x0f, 0xff, 0xc0],
    [0x0f, 0xb9, 0xc0],
    [0x0f, 0x0b],
  ])('%i %i %i is #UD', (...code) => {
    expect(new Machine('long').run(code)).toBe('#6');
  });
});

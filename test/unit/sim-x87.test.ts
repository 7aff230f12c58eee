import { beforeEach, describe, expect, it } from 'vitest';
import { Vector } from '../../src/sim/cpu/processor/fault.ts';
import { State } from '../../src/sim/cpu/processor/state.ts';
import { fxsaveImage, loadFxsaveImage, resetFpu } from '../../src/sim/cpu/x87/fxsave.ts';
import { changes, DATA, Machine, recorded, STATE, stateOf } from './sim-fp-machine.ts';

const machine = new Machine();
const { state } = machine;

const FLD1 = 'd9e8';
const FLDZ = 'd9ee';
const FLDPI = 'd9eb';
const FDIVP = 'def9';
const FADDP = 'dec1';
const FSTP_M64 = 'dd1b'; // fstp qword [rbx]
const FLD_M64 = 'dd03'; // fld qword [rbx]
const FSTP_M32 = 'd91b'; // fstp dword [rbx]
const FWAIT = '9b';
const FNSTSW_AX = 'dfe0';
const FNINIT = 'dbe3';
const FNCLEX = 'dbe2';
const FNSTENV = 'd933'; // fnstenv [rbx]
const FLDCW = 'd92b'; // fldcw [rbx]
const FNSTCW = 'd93b'; // fnstcw [rbx]
const FSIN = 'd9fe';
const FPREM = 'd9f8';
const FSCALE = 'd9fd';
const FXSAVE = '0fae03'; // fxsave [rbx]
const FXSAVE64 = '480fae03'; // fxsave64 [rbx]
const FXRSTOR = '0fae0b'; // fxrstor [rbx]
const MOVQ_MM3 = '0f6fd8'; // movq mm3, mm0
const EMMS = '0f77';

/** Executes; none of it raises an exception. */
function run(...codes: string[]): void {
  for (const code of codes) expect([code, machine.execute(code)]).toEqual([code, undefined]);
}
const f64 = (value: number) =>
  machine.memory.write64(DATA, new BigUint64Array(Float64Array.of(value).buffer)[0]!);
const readF64 = () => new Float64Array(BigUint64Array.of(machine.memory.read64(DATA)).buffer)[0]!;
const fsw = () => state.u16(State.fsw);
const unmask = (fcw: number) => {
  machine.memory.write16(DATA, fcw);
  run(FLDCW);
};

beforeEach(() => {
  machine.cr0 = 0x8005_0033;
  machine.cr4 = 0x600;
  machine.load(stateOf(1));
  resetFpu(machine.processor);
});

describe('the x87', () => {
  it('does to every register, flag and byte of memory what silicon did', () => {
    const lines = recorded('sim-x87.txt');
    expect(lines.length).toBeGreaterThan(600);
    for (const line of lines) {
      const before = stateOf(line.seed);
      machine.load(before);
      const signal = machine.signal(line.code);
      const what = `${line.form} ${line.code} ${line.seed}`;
      expect(`${what}: ${signal} ${changes(before, machine.save())}`).toBe(
        `${what}: ${line.signal} ${line.changes}`,
      );
    }
  });

  it("approximates transcendental functions to silicon's last place but one", () => {
    /** Values of the 80-bit format, in their order, so that neighbours differ by one. */
    const ordinal = (hex: string) => {
      const bits = BigInt(`0x${hex}`);
      const magnitude = ((bits >> 64n) & 0x7fffn) * (1n << 63n) + (bits & ((1n << 63n) - 1n));
      return bits >> 79n === 0n ? magnitude : -magnitude;
    };
    const parse = (text: string) =>
      new Map(text.split(' ').map((part) => part.split('=') as [string, string]));
    let values = 0;
    for (const { form, code, seed, changes: theirs } of recorded('sim-x87-approximate.txt')) {
      const before = stateOf(seed);
      machine.load(before);
      machine.execute(code);
      const after = machine.save();
      const [mine, wanted] = [parse(changes(before, after)), parse(theirs)];
      for (const name of new Set([...mine.keys(), ...wanted.keys()])) {
        if (name === '' || name === 'fsw') continue;
        const at = /^st(\d)$/.exec(name);
        const unchanged = () => parse(changes(new Uint8Array(STATE), before)).get(name) ?? '0';
        const [got, want] = [mine.get(name) ?? unchanged(), wanted.get(name) ?? unchanged()];
        if (at === null) expect([form, seed, name, got]).toEqual([form, seed, name, want]);
        else {
          values++;
          const distance = ordinal(got) - ordinal(want);
          expect([form, seed, distance <= 1n && distance >= -1n], `${got} ${want}`).toEqual([
            form,
            seed,
            true,
          ]);
        }
      }
    }
    expect(values).toBeGreaterThan(100);
  });

  it('raises an unmasked exception with the next instruction that waits', () => {
    unmask(0x37b);
    run(FLD1, FLDZ, FDIVP);
    expect(fsw() & 0x8084).toBe(0x8084);
    expect(machine.execute(FLD1)).toBe(Vector.MF);
    expect(machine.execute(FWAIT)).toBe(Vector.MF);
    run(FNSTSW_AX);
    expect(state.gpr(0) & 0x84n).toBe(0x84n);
    run(FNCLEX, FWAIT, FLD1);
  });

  it('leaves operands and stack alone when a zero divide is unmasked, and answers infinity when it is masked', () => {
    unmask(0x37b);
    run(FLD1, FLDZ, FDIVP);
    expect((fsw() >> 11) & 7).toBe(6);
    run(FNINIT, FLD1, FLDZ, FDIVP, FSTP_M64);
    expect([readF64(), fsw() & 0xff, (fsw() >> 11) & 7]).toEqual([Number.POSITIVE_INFINITY, 4, 0]);
  });

  it('raises a pending exception as soon as its mask is taken away', () => {
    run(FLD1, FLDZ, FDIVP);
    unmask(0x37b);
    expect(machine.execute(FWAIT)).toBe(Vector.MF);
  });

  it('tells the two stack faults apart by C1', () => {
    run(...Array(8).fill(FLD1), FLD1);
    expect(fsw() & 0x241).toBe(0x241);
    run(FNINIT, FADDP);
    expect(fsw() & 0x241).toBe(0x041);
  });

  it('keeps a store that would overflow from memory when that is unmasked', () => {
    f64(1e300);
    run(FLD_M64);
    unmask(0x377);
    machine.memory.write32(DATA, 0x1234_5678);
    run(FSTP_M32);
    expect(machine.memory.read32(DATA)).toBe(0x1234_5678);
    expect((fsw() >> 11) & 7).toBe(7);
  });

  it('raises #NM by CR0.TS and by CR0.EM, and in FWAIT by TS with MP', () => {
    machine.cr0 = 0x8005_0039; // TS, not MP
    expect([FLD1, FNINIT, FXSAVE].map((code) => machine.execute(code))).toEqual([
      Vector.NM,
      Vector.NM,
      Vector.NM,
    ]);
    run(FWAIT);
    machine.cr0 = 0x8005_003b;
    expect(machine.execute(FWAIT)).toBe(Vector.NM);
    machine.cr0 = 0x8005_0037;
    expect(machine.execute(FLD1)).toBe(Vector.NM);
  });

  it('leaves the sine of too large an angle to the program', () => {
    f64(2 ** 63);
    run(FLD_M64, FSIN, FSTP_M64);
    expect([readF64(), fsw() & 0x400]).toEqual([2 ** 63, 0x400]);
    f64(1e5);
    run(FLD_M64, FSIN, FSTP_M64);
    expect(fsw() & 0x400).toBe(0);
    expect(readF64()).toBeCloseTo(Math.sin(1e5), 14);
  });

  it("gives the quotient's low bits with FPREM in C0, C3 and C1", () => {
    for (let quotient = 0; quotient < 16; quotient++) {
      run(FNINIT);
      f64(2);
      run(FLD_M64);
      f64(2 * quotient + 1);
      run(FLD_M64, FPREM);
      const [c0, c1, c2, c3] = [8, 9, 10, 14].map((bit) => (fsw() >> bit) & 1);
      expect([(c0! << 2) | (c3! << 1) | c1!, c2]).toEqual([quotient & 7, 0]);
    }
  });

  it('answers infinity with FSCALE to an overflow that no adjusted exponent can express', () => {
    unmask(0x377);
    f64(40_000);
    run(FLD_M64, FLD1, FSCALE);
    // 2 ** 40000, divided by 2 ** 24576 since the exception is unmasked.
    expect(state.u16(State.x87 + 16 * ((fsw() >> 11) & 7) + 8)).toBe(0x3fff + 40_000 - 24_576);
    expect(fsw() & 0x3f).toBe(0x08);
    run(FNINIT);
    unmask(0x377);
    f64(60_000);
    run(FLD_M64, FLD1, FSCALE);
    expect(state.u16(State.x87 + 16 * ((fsw() >> 11) & 7) + 8)).toBe(0x7fff);
    expect(fsw() & 0x3f).toBe(0x28);
  });

  it('gives constants as the rounding control says, and is not inexact about it', () => {
    const pi = (fcw: number) => {
      unmask(fcw);
      run(FLDPI);
      return state.u64(State.x87 + 16 * ((fsw() >> 11) & 7));
    };
    expect([0x37f, 0x77f, 0xb7f, 0xf7f].map(pi)).toEqual([
      0xc90f_daa2_2168_c235n,
      0xc90f_daa2_2168_c234n,
      0xc90f_daa2_2168_c235n,
      0xc90f_daa2_2168_c234n,
    ]);
    expect(fsw() & 0x3f).toBe(0);
  });

  it.each([
    ['F2XM1 of -1', [FLD_M64, 'd9f0'], -1, 'bffe'],
    ['FYL2XP1 of 1', [FLD1, FLD_M64, 'd9f9'], 1, '3fff'],
    ['FYL2XP1 of 3', [FLD1, FLD_M64, 'd9f9'], 3, '4000'],
    ['FYL2XP1 of -0.5', [FLD1, FLD_M64, 'd9f9'], -0.5, 'bfff'],
    ['FYL2XP1 of -0.75', [FLD1, FLD_M64, 'd9f9'], -0.75, 'c000'],
    ['FYL2X of 1/8', [FLD1, FLD_M64, 'd9f1'], 0.125, 'c000'],
  ])('gives with %s the exact result, however it rounds, with PE and without C1', (_, codes, x, head) => {
    for (const rounding of [0, 0x400, 0x800, 0xc00]) {
      run(FNINIT);
      unmask(0x37f | rounding);
      f64(x);
      run(...codes);
      const register = State.x87 + 16 * ((fsw() >> 11) & 7);
      const significand = x === 0.125 ? 0xc000_0000_0000_0000n : 1n << 63n;
      expect([state.u16(register + 8).toString(16), state.u64(register)]).toEqual([head, significand]);
      expect(fsw() & 0x23f).toBe(0x20);
    }
  });

  it("shares its registers with MMX's: the low 64 bits of Ri, all valid, TOP zero, until EMMS", () => {
    run(FLD1);
    const r7 = state.u64(State.x87 + 7 * 16);
    state.setU64(State.x87, 0x1122_3344_5566_7788n);
    run(MOVQ_MM3);
    expect(state.u64(State.x87 + 3 * 16)).toBe(0x1122_3344_5566_7788n);
    expect(state.u16(State.x87 + 3 * 16 + 8)).toBe(0xffff);
    expect([state.u64(State.x87 + 7 * 16), state.u16(State.ftw), fsw() & 0x3800]).toEqual([r7, 0, 0]);
    run(EMMS);
    expect(state.u16(State.ftw)).toBe(0xffff);
  });

  it('stores tags by the contents of the registers, and masks all exceptions after FNSTENV', () => {
    f64(Number.NaN);
    run(FLD_M64, FLDZ, FLD1);
    unmask(0x340);
    run(FNSTENV);
    // R7 is a NaN (10), R6 zero (01), R5 valid (00), the others empty (11).
    expect(machine.memory.read16(DATA + 8n)).toBe(0b10_01_00_11_11_11_11_11);
    run(FNSTCW);
    expect(machine.memory.read16(DATA)).toBe(0x37f);
  });
});

describe("FXSAVE's image", () => {
  it('is taken and given without loss', () => {
    for (let seed = 1; seed < 50; seed++) {
      machine.load(stateOf(seed));
      const image = fxsaveImage(machine.processor);
      resetFpu(machine.processor);
      loadFxsaveImage(machine.processor, image);
      expect(Buffer.from(fxsaveImage(machine.processor)).equals(image)).toBe(true);
    }
  });

  it('after a reset is that of FNINIT with MXCSR 0x1f80, and zeroes', () => {
    machine.load(stateOf(3));
    resetFpu(machine.processor);
    const image = fxsaveImage(machine.processor);
    const view = new DataView(image.buffer);
    expect([view.getUint16(0, true), view.getUint16(2, true), image[4]]).toEqual([0x37f, 0, 0]);
    expect([view.getUint32(24, true), view.getUint32(28, true)]).toEqual([0x1f80, 0xffff]);
    expect(image.subarray(32).every((byte) => byte === 0)).toBe(true);
  });

  it('is written without its last 96 bytes in 64-bit mode, and without XMM8-15 outside it', () => {
    machine.bytes.fill(0x55);
    run(FXSAVE64);
    expect(machine.bytes.subarray(0, 512).lastIndexOf(0)).toBeLessThan(416);
    expect(machine.bytes[416]).toBe(0x55);
    machine.bytes.fill(0x55);
    machine.segments[1]!.l = 0;
    run(FXSAVE);
    machine.segments[1]!.l = 1;
    expect([machine.bytes[287], machine.bytes[288]]).toEqual([0, 0x55]);
  });

  it('must be aligned to 16 bytes, and hold no reserved bit of MXCSR: else #GP, and nothing is loaded', () => {
    state.setGpr(3, DATA + 8n);
    expect([machine.execute(FXSAVE), machine.execute(FXRSTOR)]).toEqual([Vector.GP, Vector.GP]);
    state.setGpr(3, DATA);
    run(FXSAVE64);
    machine.memory.write32(DATA + 24n, 0x1_0000);
    machine.memory.write16(DATA, 0x27f);
    expect(machine.execute(FXRSTOR)).toBe(Vector.GP);
    expect(state.u16(State.fcw)).toBe(0x37f);
  });
});

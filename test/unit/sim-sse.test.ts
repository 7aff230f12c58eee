import { beforeEach, describe, expect, it } from 'vitest';
import { Vector } from '../../src/sim/cpu/processor/fault.ts';
import { State } from '../../src/sim/cpu/processor/state.ts';
import { changes, DATA, Machine, recorded, stateOf } from './sim-fp-machine.ts';

const machine = new Machine();
const { state } = machine;

const ADDPS = '0f58c1'; // addps xmm0, xmm1
const DIVPS = '0f5ec1'; // divps xmm0, xmm1
const MOVAPS = '0f2803'; // movaps xmm0, [rbx]
const MOVUPS = '0f1003'; // movups xmm0, [rbx]
const PADDB_MM = '0ffcc1'; // paddb mm0, mm1
const PADDB_XMM = '660ffcc1'; // paddb xmm0, xmm1
const LDMXCSR = '0fae13'; // ldmxcsr [rbx]
const STMXCSR = '0fae1b'; // stmxcsr [rbx]
const MASKMOVDQU = '660ff7c1'; // maskmovdqu xmm0, xmm1
const PCMPESTRI_RANGES = '660f3a61c104'; // pcmpestri xmm0, xmm1, 4: bytes, ranges
const RCPPS = '0f53c1'; // rcpps xmm0, xmm1
const RSQRTPS = '0f52c1'; // rsqrtps xmm0, xmm1
const MOVNTI = '0fc303'; // movnti [rbx], eax

const setXmm = (index: number, low: bigint, high: bigint) => {
  state.setU64(State.xmm + 16 * index, low);
  state.setU64(State.xmm + 16 * index + 8, high);
};
const xmm = (index: number) => [state.u64(State.xmm + 16 * index), state.u64(State.xmm + 16 * index + 8)];
const floats = (values: readonly number[]) => new BigUint64Array(Float32Array.from(values).buffer);

beforeEach(() => {
  machine.cr0 = 0x8005_0033;
  machine.cr4 = 0x600;
  machine.load(stateOf(1));
  state.setU32(State.mxcsr, 0x1f80);
  state.setU16(State.fsw, 0);
});

describe('MMX and SSE', () => {
  it('do to every register, flag and byte of memory what silicon did', () => {
    const lines = recorded('sim-sse.txt');
    expect(lines.length).toBeGreaterThan(900);
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

  it('approximate reciprocals and their roots within 1.5 * 2 ** -12', () => {
    const values = [1, 3, 0.7, -5e-20, 1.999999, 12345.678, 2 ** 100, 1e-37];
    for (const [code, exact] of [
      [RCPPS, (value: number) => 1 / value],
      [RSQRTPS, (value: number) => 1 / Math.sqrt(value)],
    ] as const) {
      for (let at = 0; at < values.length; at += 4) {
        const four = Float32Array.from(values.slice(at, at + 4));
        const [low, high] = floats([...four]);
        setXmm(1, low!, high!);
        expect(machine.execute(code)).toBeUndefined();
        const got = new Float32Array(BigUint64Array.from(xmm(0)).buffer);
        for (const [i, value] of four.entries()) {
          const wanted = exact(value);
          if (Number.isNaN(wanted)) expect(got[i]).toBeNaN();
          else expect(Math.abs(got[i]! / wanted - 1)).toBeLessThanOrEqual(1.5 * 2 ** -12);
        }
      }
    }
    expect(state.u32(State.mxcsr)).toBe(0x1f80);
  });

  it('raise #XM for an unmasked exception, set its flag, and store nothing', () => {
    const [low, high] = floats([1, 1, 1, 1]);
    setXmm(0, low!, high!);
    setXmm(1, 0n, high!);
    state.setU32(State.mxcsr, 0x1d80); // ZM clear
    expect(machine.execute(DIVPS)).toBe(Vector.XM);
    expect(xmm(0)).toEqual([low, high]);
    expect(state.u32(State.mxcsr)).toBe(0x1d84);
  });

  it('raise #UD in place of #XM when CR4.OSXMMEXCPT is clear', () => {
    setXmm(0, 0x3f80_0000n, 0n);
    setXmm(1, 0n, 0n);
    state.setU32(State.mxcsr, 0x1d00);
    machine.cr4 = 0x200;
    expect(machine.execute(DIVPS)).toBe(Vector.UD);
  });

  it('leave out what comes after an unmasked exception of the operands', () => {
    // Lane 0 divides by zero, unmasked; lane 1 would be inexact.
    const [low] = floats([1, 1]);
    const [divisor] = floats([0, 3]);
    setXmm(0, low!, low!);
    setXmm(1, divisor!, low!);
    state.setU32(State.mxcsr, 0x1d80);
    expect(machine.execute(DIVPS)).toBe(Vector.XM);
    expect(state.u32(State.mxcsr) & 0x3f).toBe(0x04);
  });

  it.each([
    ['#UD by CR0.EM', { cr0: 0x8005_0037 }, [Vector.UD, Vector.UD, Vector.UD]],
    ['#NM by CR0.TS', { cr0: 0x8005_003b }, [Vector.NM, Vector.NM, Vector.NM]],
    ['#UD without CR4.OSFXSR, but not of MMX', { cr4: 0 }, [Vector.UD, Vector.UD, undefined]],
  ])('raise %s', (_, registers, expected) => {
    Object.assign(machine, registers);
    expect([ADDPS, PADDB_XMM, PADDB_MM].map((code) => machine.execute(code))).toEqual(expected);
  });

  it('do not concern MOVNTI with CR0 and CR4', () => {
    machine.cr0 |= 0xc;
    machine.cr4 = 0;
    state.setGpr(0, 0x1122_3344n);
    expect(machine.execute(MOVNTI)).toBeUndefined();
    expect(machine.memory.read32(DATA)).toBe(0x1122_3344);
  });

  it('raise #MF in MMX instructions while an x87 exception is pending, and in SSE instructions not', () => {
    state.setU16(State.fsw, 0x8081);
    expect(machine.execute(PADDB_MM)).toBe(Vector.MF);
    expect(machine.execute(PADDB_XMM)).toBeUndefined();
  });

  it('raise #GP for 16 bytes that are not aligned, unless the instruction says that they need not be', () => {
    state.setGpr(3, DATA + 8n);
    const before = xmm(0);
    expect(machine.execute(MOVAPS)).toBe(Vector.GP);
    expect(xmm(0)).toEqual(before);
    expect(machine.execute(MOVUPS)).toBeUndefined();
    expect(xmm(0)).toEqual([machine.memory.read64(DATA + 8n), machine.memory.read64(DATA + 16n)]);
  });

  it('refuse reserved bits in MXCSR with #GP', () => {
    machine.memory.write32(DATA, 0x1_1f80);
    expect(machine.execute(LDMXCSR)).toBe(Vector.GP);
    machine.memory.write32(DATA, 0xffff);
    expect(machine.execute(LDMXCSR)).toBeUndefined();
    machine.memory.write32(DATA, 0);
    expect(machine.execute(STMXCSR)).toBeUndefined();
    expect(machine.memory.read32(DATA)).toBe(0xffff);
  });

  it('compare strings with whole ranges only: a last bound without its partner is none', () => {
    const text = (string: string) => BigInt(`0x${Buffer.from(string).reverse().toString('hex')}`);
    setXmm(0, text('azAZ0'), 0n);
    setXmm(1, text('..5..K..'), 0n);
    state.setGpr(2, 8n);
    const found = (length: bigint) => {
      state.setGpr(0, length);
      expect(machine.execute(PCMPESTRI_RANGES)).toBeUndefined();
      return [state.gpr(1), state.flags & 1];
    };
    expect(found(4n)).toEqual([5n, 1]);
    expect(found(5n)).toEqual([5n, 1]);
    expect(found(3n)).toEqual([16n, 0]);
    expect(found(-4n)).toEqual([5n, 1]);
  });

  it('write with MASKMOVDQU the chosen bytes and no other, and touch nothing when none is chosen', () => {
    machine.bytes.fill(0x55);
    setXmm(0, 0x0807_0605_0403_0201n, 0x100f_0e0d_0c0b_0a09n);
    setXmm(1, 0x8000_0000_0000_0080n, 0x7f00_0000_0000_8000n);
    expect(machine.execute(MASKMOVDQU)).toBeUndefined();
    const expected = new Array(16).fill(0x55);
    Object.assign(expected, { 0: 1, 7: 8, 9: 10 });
    expect([...machine.bytes.subarray(0, 16)]).toEqual(expected);
    setXmm(1, 0n, 0n);
    state.setGpr(7, 0n); // nothing is mapped there
    expect(machine.execute(MASKMOVDQU)).toBeUndefined();
  });
});

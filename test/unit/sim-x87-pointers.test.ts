import { describe, expect, it } from 'vitest';
import { supportedCpuid } from '../../src/sim/cpu/system/claims.ts';
import { Machine, type Mode, type Options, Place, R } from './sim-cpu-integer.ts';

const hex = (code: string) => code.split(' ').map((byte) => Number.parseInt(byte, 16));
const FLDZ = 'd9 ee';
const FNSTENV = 'd9 73 40'; // fnstenv [rbx+0x40]
const FLDENV = 'd9 63 40';
const FXSAVE = '0f ae 43 40';
const FXSAVE64 = '48 0f ae 43 40';
const FXRSTOR64 = '48 0f ae 4b 40';
const FNCLEX = 'db e2';
const FLD1 = 'd9 e8';
const FLD_M64 = 'dd 03'; // fld qword [rbx]
const FLDCW = 'd9 6b 10'; // fldcw [rbx+0x10]
const FDIV = 'dc f9'; // fdiv st1, st0

/** Where x87's instructions are executed: one after the other, each at another address. */
class Fpu {
  readonly machine: Machine;
  #at = 0;
  constructor(mode: Mode, options?: Options) {
    this.machine = new Machine(mode, options);
    this.machine.cpu.cr4 |= 0x200;
    this.machine.set(R.bx, this.machine.flat ? Place.data : 0);
    this.machine.poke(Place.data + 0x10, [0x7b, 0x03]); // a control word that lets a division by zero through
  }
  /** Gives the address of the last one. */
  run(...codes: string[]): number {
    const { machine } = this;
    let rip = 0;
    for (const code of codes) {
      rip = (machine.flat ? Place.code : 0) + this.#at;
      machine.poke(Place.code + this.#at, hex(code));
      this.#at += 0x10;
      machine.rip = rip;
      machine.cpu.code.begin();
      machine.step();
    }
    return rip;
  }
  /** Words of what was stored, from the one at `from` on. */
  words(size: 2 | 4, from: number, count: number): number[] {
    const bytes = this.machine.bytes(Place.data + 0x40 + from, size * count);
    const view = new DataView(Uint8Array.from(bytes).buffer);
    return Array.from({ length: count }, (_, i) =>
      size === 2 ? view.getUint16(2 * i, true) : view.getUint32(4 * i, true),
    );
  }
}
const CS = 0x10;
const SS = 0x18;
const DS = 0x20;
const NOTHING = 0xffff_0000;

describe("the x87's instruction and data pointers", () => {
  it.each(['protected32', 'long'] as const)('%s: FNSTENV gives those of the last instruction', (mode) => {
    const fpu = new Fpu(mode);
    const load = fpu.run(FLD_M64);
    fpu.run(FNSTENV);
    expect(fpu.words(4, 12, 4)).toEqual([load, (0x503 << 16) | CS, Place.data, NOTHING + DS]);
    const fldz = fpu.run(FLDZ);
    fpu.run(FNSTENV);
    // Of the operand in memory, the last one's.
    expect(fpu.words(4, 12, 4)).toEqual([fldz, (0x1ee << 16) | CS, Place.data, NOTHING + DS]);
  });

  it('point to the first prefix, and tell the stack segment from the data segment', () => {
    const fpu = new Fpu('protected32');
    fpu.machine.set(R.bp, Place.data);
    const rip = fpu.run('36 36 dd 45 08'); // fld qword ss:[ebp+8]
    fpu.run(FNSTENV);
    expect(fpu.words(4, 12, 4)).toEqual([rip, (0x545 << 16) | CS, Place.data + 8, NOTHING + SS]);
  });

  it('are offsets in FS, and of DS or SS whatever other override there is, in 64-bit mode', () => {
    const fpu = new Fpu('long');
    fpu.machine.cpu.segments[4] = { ...fpu.machine.cpu.segments[4]!, base: BigInt(Place.data) };
    fpu.machine.cpu.changed();
    fpu.run('64 dd 04 25 18 00 00 00', FNSTENV); // fld qword fs:[0x18]
    expect(fpu.words(4, 20, 2)).toEqual([0x18, NOTHING + 0x28]);
    fpu.run('26 dd 03', FNSTENV);
    expect(fpu.words(4, 20, 2)).toEqual([Place.data, NOTHING + DS]);
  });

  it('are 16 bits without the opcode in the short form', () => {
    const fpu = new Fpu('protected32');
    const rip = fpu.run(FLD_M64);
    fpu.run(`66 ${FNSTENV}`);
    expect(fpu.words(2, 6, 4)).toEqual([rip & 0xffff, CS, Place.data & 0xffff, DS]);
  });

  it('are linear addresses in real mode, which share words with the opcode', () => {
    const fpu = new Fpu('real');
    const rip = Place.code + fpu.run('dd 07'); // fld qword [bx]
    fpu.run('d9 77 40'); // fnstenv [bx+0x40]
    const upper = (linear: number) => (linear >>> 16) << 12;
    expect(fpu.words(2, 6, 4)).toEqual([
      rip & 0xffff,
      upper(rip) | 0x507,
      Place.data & 0xffff,
      upper(Place.data),
    ]);
    fpu.run('66 d9 77 40');
    expect(fpu.words(4, 12, 4)).toEqual([
      rip & 0xffff,
      upper(rip) | 0x507,
      Place.data & 0xffff,
      upper(Place.data),
    ]);
  });

  it.each([
    ['fnop', 'd9 d0', true],
    ['fincstp', 'd9 f7', true],
    ['fdecstp', 'd9 f6', true],
    ['ffree', 'dd c1', true],
    ['ffreep', 'df c1', true],
    ['fxch', 'd9 c9', true],
    ['fxam', 'd9 e5', true],
    ['fcmove', 'da c9', true],
    ['fldcw', FLDCW, false],
    ['fnstcw', 'd9 7b 20', false],
    ['fnstsw', 'dd 7b 20', false],
    ['fnstsw ax', 'df e0', false],
    ['fnclex', FNCLEX, false],
    ['fwait', '9b', false],
    ['feni', 'db e0', false],
    ['fsetpm', 'db e4', false],
    ['movd mm0', '0f 6e c0', false],
    ['emms', '0f 77', false],
  ])('are moved, or not, by control instructions as silicon does: %s', (_, code, moves) => {
    const fpu = new Fpu('long');
    const before = fpu.run(FLD_M64);
    const rip = fpu.run(code);
    fpu.run(FNSTENV);
    expect(fpu.words(4, 12, 1)).toEqual([moves ? rip : before]);
  });

  it('are zeroes after FNINIT and after FNSAVE, which stores them', () => {
    const fpu = new Fpu('long');
    const rip = fpu.run(FLD_M64);
    fpu.run('dd 73 40'); // fnsave [rbx+0x40]
    expect(fpu.words(4, 12, 4)).toEqual([rip, (0x503 << 16) | CS, Place.data, NOTHING + DS]);
    fpu.run(FNSTENV);
    expect(fpu.words(4, 12, 4)).toEqual([0, 0, 0, NOTHING]);
  });

  it('are what FLDENV loads, but for five bits of the opcode', () => {
    const fpu = new Fpu('long');
    fpu.run(FNSTENV);
    const words = new Uint32Array([0x1111_1111, 0xfabc_2222, 0x3333_3333, 0xffff_4444]);
    fpu.machine.poke(Place.data + 0x4c, [...new Uint8Array(words.buffer)]);
    fpu.run(FLDENV, FNSTENV);
    expect(fpu.words(4, 12, 4)).toEqual([0x1111_1111, 0x02bc_2222, 0x3333_3333, 0xffff_4444]);
  });

  it("stay where an instruction's operand cannot be read", () => {
    const fpu = new Fpu('long');
    const before = fpu.run(FLD_M64);
    fpu.machine.set(R.bx, 1n << 60n);
    expect(() => fpu.run(FLD_M64)).toThrow();
    fpu.machine.set(R.bx, Place.data);
    fpu.run(FNSTENV);
    expect(fpu.words(4, 12, 1)).toEqual([before]);
  });
});

describe('FXSAVE', () => {
  it.each(['intel', 'amd'] as const)('on the %s model: always, or of a pending exception only', (vendor) => {
    const fpu = new Fpu('long', { vendor });
    const fields = () => [...fpu.words(2, 6, 1), ...fpu.words(4, 8, 4)];
    const quiet = (...values: number[]) => (vendor === 'intel' ? values : [0, 0, 0, 0, 0]);
    let rip = fpu.run(FLD_M64);
    fpu.run(FXSAVE);
    expect(fields()).toEqual(quiet(0x503, rip, CS, Place.data, DS));
    fpu.run(FXSAVE64);
    expect(fields()).toEqual(quiet(0x503, rip, 0, Place.data, 0));
    fpu.run(FLDCW, FLD1, FLDZ);
    rip = fpu.run(FDIV);
    fpu.run(FXSAVE);
    expect(fields()).toEqual([0x4f9, rip, CS, Place.data, DS]);
    fpu.run(FXSAVE64);
    expect(fields()).toEqual([0x4f9, rip, 0, Place.data, 0]);
    fpu.run(FXRSTOR64, FNSTENV);
    expect(fpu.words(4, 12, 4)).toEqual([rip, 0x4f9 << 16, Place.data, NOTHING]);
  });

  it.each(['intel', 'amd'] as const)('and the %s model says so by CPUID', (vendor) => {
    const entries = supportedCpuid(vendor);
    const ebx = (leaf: number) => entries.find((entry) => entry.function === leaf)!.ebx;
    // FDP only with exceptions, and no FCS and FDS (SDM volume 2, CPUID): neither.
    expect(ebx(7) & ((1 << 6) | (1 << 13))).toBe(0);
    expect((ebx(0x8000_0008) >>> 2) & 1).toBe(vendor === 'amd' ? 1 : 0);
  });
});

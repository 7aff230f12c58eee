import { describe, expect, it } from 'vitest';
import { Seg } from '../../src/sim/cpu/processor/descriptors.ts';
import { Vector } from '../../src/sim/cpu/processor/fault.ts';
import { CR4, EFER } from '../../src/sim/cpu/processor/mode.ts';
import { Flag } from '../../src/sim/cpu/processor/state.ts';
import { Msr } from '../../src/sim/cpu/system/msrs.ts';
import { At, code, Machine } from './sim-cpu-system.ts';

const GP0: [number, number] = [Vector.GP, 0];
const UD: [number, undefined] = [Vector.UD, undefined];
const [RAX, RCX, RDX, RBX] = [0, 1, 2, 3];

describe('SYSCALL and SYSRET', () => {
  function ready(vendor: 'intel' | 'amd', level: 0 | 3, compatible = false): Machine {
    const m = new Machine({ vendor }).long(level, compatible);
    m.cpu.msrs.set(Msr.STAR, (0x1bn << 48n) | (0x08n << 32n));
    m.cpu.msrs.set(Msr.LSTAR, 0xffff_8000_0000_1000n);
    m.cpu.msrs.set(Msr.CSTAR, 0xffff_8000_0000_2000n);
    m.cpu.msrs.set(Msr.FMASK, BigInt(Flag.IF | Flag.DF));
    return m;
  }

  it('goes to LSTAR at level 0 with the flags masked, and comes back', () => {
    const m = ready('intel', 3);
    m.cpu.state.flags = Flag.IF | Flag.DF | Flag.CF | 2;
    expect(m.execute('0f 05')).toBeUndefined();
    expect([m.gpr(RCX), m.gpr(11)]).toEqual([BigInt(At.code + 2), BigInt(Flag.IF | Flag.DF | Flag.CF | 2)]);
    expect([m.cpu.state.rip, m.cpu.state.flags]).toEqual([0xffff_8000_0000_1000n, Flag.CF | 2]);
    expect([m.segment(Seg.CS).selector, m.segment(Seg.SS).selector, m.cpu.user]).toEqual([8, 0x10, false]);
    expect(m.execute('48 0f 07')).toBeUndefined();
    expect([m.segment(Seg.CS).selector, m.segment(Seg.SS).selector, m.cpu.user]).toEqual([0x2b, 0x23, true]);
    expect([m.cpu.state.rip, m.cpu.state.flags]).toEqual([
      BigInt(At.code + 2),
      Flag.IF | Flag.DF | Flag.CF | 2,
    ]);
  });

  it('is for AMD in compatibility mode, through CSTAR', () => {
    expect(code(ready('intel', 3, true).execute('0f 05'))).toEqual(UD);
    const amd = ready('amd', 3, true);
    expect(amd.execute('0f 05')).toBeUndefined();
    expect([amd.cpu.state.rip, amd.cpu.mode.bits]).toEqual([0xffff_8000_0000_2000n, 64]);
    expect(amd.execute('0f 07')).toBeUndefined();
    expect([amd.cpu.mode.bits, amd.cpu.state.rip]).toEqual([32, BigInt(At.code + 2)]);
  });

  it('needs EFER.SCE, and SYSRET level 0', () => {
    const m = ready('intel', 3);
    expect(code(m.execute('48 0f 07'))).toEqual(GP0);
    m.cpu.efer &= ~EFER.SCE;
    expect(code(m.execute('0f 05'))).toEqual(UD);
    expect(code(m.execute('48 0f 07'))).toEqual(UD);
  });

  it('SYSRET to an address that is not canonical faults before it on Intel, behind it on AMD', () => {
    for (const vendor of ['intel', 'amd'] as const) {
      const m = ready(vendor, 0);
      m.setGpr(RCX, 1n << 47n);
      const fault = m.execute('48 0f 07');
      expect([code(fault), m.cpu.user]).toEqual(vendor === 'intel' ? [GP0, false] : [undefined, true]);
    }
  });

  it('SYSRET leaves the attributes of SS alone on AMD', () => {
    for (const [vendor, base] of [
      ['intel', 0n],
      ['amd', 0x1000n],
    ] as const) {
      const m = ready(vendor, 0);
      m.cpu.segments[Seg.SS] = { ...m.segment(Seg.SS), base: 0x1000n };
      m.execute('48 0f 07');
      expect(m.segment(Seg.SS)).toMatchObject({ selector: 0x23, base, dpl: 3 });
    }
  });
});

describe('SYSENTER and SYSEXIT', () => {
  it('go to fixed flat segments and back', () => {
    const m = new Machine().protected(3);
    expect(code(m.execute('0f 34'))).toEqual(GP0);
    m.cpu.msrs.set(Msr.SYSENTER_CS, 8n);
    m.cpu.msrs.set(Msr.SYSENTER_ESP, 0x4_0000n);
    m.cpu.msrs.set(Msr.SYSENTER_EIP, 0x5_0000n);
    m.cpu.state.flags |= Flag.IF;
    expect(m.execute('0f 34')).toBeUndefined();
    expect([m.segment(Seg.CS).selector, m.segment(Seg.SS).selector, m.rsp, m.cpu.state.rip]).toEqual([
      8,
      16,
      0x4_0000n,
      0x5_0000n,
    ]);
    expect([m.cpu.state.flags & Flag.IF, m.cpu.user]).toEqual([0, false]);
    m.setGpr(RCX, 0x1111);
    m.setGpr(RDX, 0x2222);
    expect(m.execute('0f 35')).toBeUndefined();
    expect([m.segment(Seg.CS).selector, m.segment(Seg.SS).selector, m.rsp, m.cpu.state.rip]).toEqual([
      0x1b,
      0x23,
      0x1111n,
      0x2222n,
    ]);
  });

  it("are not AMD's in long mode", () => {
    for (const [vendor, expected] of [
      ['intel', undefined],
      ['amd', UD],
    ] as const) {
      const m = new Machine({ vendor }).long(3);
      m.cpu.msrs.set(Msr.SYSENTER_CS, 8n);
      expect(code(m.execute('0f 34'))).toEqual(expected);
    }
  });
});

describe('the bases of FS and GS', () => {
  it('are read and written with CR4.FSGSBASE, and exchanged by SWAPGS', () => {
    const m = new Machine().long();
    m.setGpr(RAX, 0xffff_8000_0000_0000n);
    expect(code(m.execute('f3 48 0f ae d8'))).toEqual(UD);
    m.cpu.cr4 |= CR4.FSGSBASE;
    expect(m.execute('f3 48 0f ae d8')).toBeUndefined();
    m.cpu.msrs.set(Msr.KERNEL_GS_BASE, 0x1234n);
    expect(m.execute('0f 01 f8')).toBeUndefined();
    expect([m.segment(Seg.GS).base, m.cpu.msrs.get(Msr.KERNEL_GS_BASE)]).toEqual([
      0x1234n,
      0xffff_8000_0000_0000n,
    ]);
    expect(m.execute('f3 48 0f ae cb')).toBeUndefined();
    expect(m.gpr(RBX)).toBe(0x1234n);
    m.setGpr(RAX, 1n << 47n);
    expect(code(m.execute('f3 48 0f ae d0'))).toEqual(GP0);
  });

  it('survive a null selector on AMD, not on Intel', () => {
    for (const [vendor, base] of [
      ['intel', 0n],
      ['amd', 0x5000n],
    ] as const) {
      const m = new Machine({ vendor }).long();
      m.cpu.segments[Seg.FS] = { ...m.segment(Seg.FS), base: 0x5000n };
      m.setGpr(RAX, 0);
      expect(m.execute('8e e0')).toBeUndefined();
      expect(m.segment(Seg.FS)).toMatchObject({ base, unusable: 1, selector: 0 });
    }
  });
});

/** Virtual-8086 mode (SDM volume 3, chapter 20), one instruction or event at a time. */
import { describe, expect, it } from 'vitest';
import { Seg } from '../../src/sim/cpu/processor/descriptors.ts';
import { Vector } from '../../src/sim/cpu/processor/fault.ts';
import { CR4 } from '../../src/sim/cpu/processor/mode.ts';
import { Flag } from '../../src/sim/cpu/processor/state.ts';
import { checkPorts } from '../../src/sim/cpu/segments/tss.ts';
import { deliver } from '../../src/sim/cpu/system/events.ts';
import { At, code, Gdt, gate, Machine } from './sim-cpu-system.ts';

const MAP = 0x80;
const SELECTORS = { ss: 0x2000, es: 0x2100, ds: 0x2200, fs: 0x2300, gs: 0x2400 } as const;

/** In virtual-8086 mode at 1000:0000, by IRETD. */
function virtual(flags = 0, cr4 = 0): Machine {
  const m = new Machine().protected();
  m.set16(At.tss + 102, MAP);
  m.cpu.cr4 = cr4;
  const { ss, es, ds, fs, gs } = SELECTORS;
  m.rsp = At.stack - 36;
  for (const [i, value] of [0, 0x1000, Flag.VM | flags | 2, 0x8000, ss, es, ds, fs, gs].entries())
    m.set32(At.stack - 36 + i * 4, value);
  expect(m.execute('cf')).toBeUndefined();
  return m;
}
const top = (m: Machine, index = 0) => m.u16(Number(m.segment(Seg.SS).base + (m.rsp & 0xffffn)) + index * 2);

describe('virtual-8086 mode', () => {
  it('is entered by IRETD, with segments as in real mode and the rights of a user', () => {
    const m = virtual(Flag.IOPL);
    expect([m.cpu.user, m.cpu.mode.bits, m.cpu.mode.codeBase, m.rsp]).toEqual([true, 16, 0x1_0000, 0x8000n]);
    expect(m.segment(Seg.GS)).toMatchObject({ selector: 0x2400, base: 0x2_4000n, limit: 0xffff, dpl: 3 });
    expect(m.execute('ea 34 12 00 15')).toBeUndefined();
    expect([m.segment(Seg.CS).base, m.cpu.state.rip]).toEqual([0x1_5000n, 0x1234n]);
  });

  it('is left by exceptions: the segments are on the stack of level 0, and null', () => {
    const m = virtual();
    m.set64(At.idt + 8 * Vector.GP, gate(Gdt.CODE0, 0x9_0000, 0x8e));
    deliver(m.cpu, { kind: 'exception', vector: Vector.GP, errorCode: 0 });
    const words = Array.from({ length: 10 }, (_, i) => m.u32(Number(m.rsp) + i * 4));
    const { ss, es, ds, fs, gs } = SELECTORS;
    expect(words).toEqual([0, 0, 0x1000, Flag.VM | Flag.RF | 2, 0x8000, ss, es, ds, fs, gs]);
    expect([m.cpu.state.flags, m.cpu.user, m.segment(Seg.DS).unusable]).toEqual([2, false, 1]);
  });

  it('lets no handler run at another level than 0', () => {
    const m = virtual(Flag.IOPL);
    m.set64(At.idt + 8 * 0x40, gate(Gdt.CONFORMING0, 0x9_0000, 0xee));
    expect(code(m.execute('cd 40'))).toEqual([Vector.GP, Gdt.CONFORMING0]);
  });

  it.each(['fa', 'fb', '9c', '9d', 'cf', 'cd 40'])('%s needs IOPL 3', (bytes) => {
    expect(code(virtual().execute(bytes))).toEqual([Vector.GP, 0]);
    const allowed = virtual(Flag.IOPL);
    allowed.set64(At.idt + 8 * 0x40, gate(Gdt.CODE0, 0x9_0000, 0xee));
    expect(allowed.execute(bytes)).toBeUndefined();
  });

  it.each(['0f 00 c0', '0f 00 c8', '0f 00 d0', '0f 00 d8', '0f 00 e0', '0f 02 c0', '63 c0'])(
    '%s is none of its instructions',
    (bytes) => {
      expect(code(virtual(Flag.IOPL).execute(bytes))).toEqual([Vector.UD, undefined]);
    },
  );

  it('looks at the map of ports whatever IOPL is', () => {
    const m = virtual(Flag.IOPL);
    m.set16(At.tss + MAP, 0b100);
    expect(m.fault(() => checkPorts(m.cpu, 1, 1))).toBeUndefined();
    expect(code(m.fault(() => checkPorts(m.cpu, 2, 1)))).toEqual([Vector.GP, 0]);
  });

  it('with VME has an interrupt flag of its own', () => {
    const m = virtual(0, CR4.VME);
    expect(m.execute('fb')).toBeUndefined();
    expect(m.cpu.state.flags & (Flag.VIF | Flag.IF)).toBe(Flag.VIF);
    expect(m.execute('9c')).toBeUndefined();
    expect(top(m)).toBe(Flag.IF | Flag.IOPL | 2);
    expect(m.execute('fa')).toBeUndefined();
    expect(m.execute('9d')).toBeUndefined();
    expect(m.cpu.state.flags & (Flag.VIF | Flag.IF | Flag.IOPL)).toBe(Flag.VIF);
    expect(code(m.execute('66 9c'))).toEqual([Vector.GP, 0]);
    const waiting = virtual(Flag.VIP, CR4.VME);
    expect(code(waiting.execute('fb'))).toEqual([Vector.GP, 0]);
  });

  it('with VME goes through its own table where the map of interrupts says so', () => {
    const m = virtual(Flag.VIF, CR4.VME);
    m.set16(4 * 0x21, 0x55);
    m.set16(4 * 0x21 + 2, 0x1800);
    expect(m.execute('cd 21')).toBeUndefined();
    expect([m.segment(Seg.CS).base, m.cpu.state.rip]).toEqual([0x1_8000n, 0x55n]);
    expect([top(m), top(m, 1), top(m, 2)]).toEqual([2, 0x1000, Flag.IF | Flag.IOPL | 2]);
    expect(m.cpu.state.flags & (Flag.VIF | Flag.VM)).toBe(Flag.VM);
    expect(m.execute('cf')).toBeUndefined();
    expect([m.cpu.state.rip, m.cpu.state.flags & Flag.VIF]).toEqual([2n, Flag.VIF]);
    m.set16(At.tss + MAP - 32 + 4, 0b10);
    expect(code(m.execute('cd 21'))).toEqual([Vector.GP, 0]);
  });

  it('level 3 of protected mode has one with PVI', () => {
    const m = new Machine().protected(3);
    expect(code(m.execute('fb'))).toEqual([Vector.GP, 0]);
    m.cpu.cr4 = CR4.PVI;
    expect(m.execute('fb')).toBeUndefined();
    expect(m.cpu.state.flags & (Flag.VIF | Flag.IF)).toBe(Flag.VIF);
  });
});

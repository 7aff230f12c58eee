/** Hardware task switches (SDM volume 3, chapter 8), one instruction or event at a time. */
import { describe, expect, it } from 'vitest';
import { Seg } from '../../src/sim/cpu/processor/descriptors.ts';
import { Vector } from '../../src/sim/cpu/processor/fault.ts';
import { CR0 } from '../../src/sim/cpu/processor/mode.ts';
import { Flag } from '../../src/sim/cpu/processor/state.ts';
import { deliver } from '../../src/sim/cpu/system/events.ts';
import { At, code, descriptor, Gdt, gate, Machine } from './sim-cpu-system.ts';

const OTHER = At.data;
const NEW = { ip: 0x1_2340, flags: Flag.CF | 2, esp: 0x3_4000 } as const;
const JUMP = `ea 00 00 00 00 ${Gdt.FREE.toString(16)} 00`;
const CALL = `9a 00 00 00 00 ${Gdt.FREE.toString(16)} 00`;
const access = (m: Machine, selector: number) => m.u8(At.gdt + selector + 5);

/** At level 0 of a task whose descriptor is busy, with another of 32 bits at Gdt.FREE. */
function machine(limit = 0x67, flags: number = NEW.flags): Machine {
  const m = new Machine().protected();
  m.set64(At.gdt + Gdt.TSS, descriptor(At.tss, 0x1fff, 0x8b, 0));
  m.set64(At.gdt + Gdt.FREE, descriptor(OTHER, limit, 0x89, 0));
  m.set32(OTHER + 28, 0x5000);
  m.set32(OTHER + 32, NEW.ip);
  m.set32(OTHER + 36, flags);
  for (let index = 0; index < 8; index++) m.set32(OTHER + 40 + index * 4, 0x100 + index);
  m.set32(OTHER + 56, NEW.esp);
  for (const offset of [72, 80, 84, 88, 92]) m.set32(OTHER + offset, Gdt.DATA0);
  m.set32(OTHER + 76, Gdt.CODE0);
  m.set32(OTHER + 96, Gdt.LDT);
  return m;
}

describe('a task switch', () => {
  it('by JMP saves the old task, loads the new one, and moves the busy bit', () => {
    const m = machine();
    m.setGpr(3, 0x1234_5678);
    expect(m.execute(JUMP, 'alone')).toBeUndefined();
    expect([m.u32(At.tss + 32), m.u32(At.tss + 52), m.u32(At.tss + 76)]).toEqual([
      At.code + 7,
      0x1234_5678,
      Gdt.CODE0,
    ]);
    expect([access(m, Gdt.TSS), access(m, Gdt.FREE), m.u16(OTHER)]).toEqual([0x89, 0x8b, 0]);
    const { cpu } = m;
    expect([cpu.state.rip, m.rsp, m.gpr(3), cpu.state.flags]).toEqual([
      BigInt(NEW.ip),
      BigInt(NEW.esp),
      0x103n,
      NEW.flags,
    ]);
    expect([cpu.tr.selector, cpu.tr.type, cpu.ldtr.base, cpu.cr3]).toEqual([
      Gdt.FREE,
      11,
      BigInt(At.ldt),
      0x5000n,
    ]);
    expect(cpu.cr0 & CR0.TS).toBe(CR0.TS);
  });

  it('by CALL nests: NT and a link, and IRET goes back', () => {
    const m = machine();
    expect(m.execute(CALL, 'alone')).toBeUndefined();
    expect([m.u16(OTHER), access(m, Gdt.TSS), access(m, Gdt.FREE)]).toEqual([Gdt.TSS, 0x8b, 0x8b]);
    expect(m.cpu.state.flags & Flag.NT).toBe(Flag.NT);
    for (const offset of [72, 80, 84, 88, 92]) m.set32(At.tss + offset, Gdt.DATA0);
    expect(m.execute('cf', 'alone')).toBeUndefined();
    expect([m.cpu.state.rip, m.cpu.tr.selector]).toEqual([BigInt(At.code + 7), Gdt.TSS]);
    expect([access(m, Gdt.TSS), access(m, Gdt.FREE), m.u32(OTHER + 36) & Flag.NT]).toEqual([0x8b, 0x89, 0]);
  });

  it('by a task gate of the IDT has the error code on the new stack, and RF in what a fault leaves', () => {
    const m = machine();
    m.set64(At.idt + 8 * Vector.GP, gate(Gdt.FREE, 0, 0x85));
    deliver(m.cpu, { kind: 'exception', vector: Vector.GP, errorCode: 0x1230 });
    expect([m.rsp, m.u32(NEW.esp - 4)]).toEqual([BigInt(NEW.esp - 4), 0x1230]);
    expect([m.u32(At.tss + 32), m.u32(At.tss + 36) & Flag.RF]).toEqual([At.code, Flag.RF]);
  });

  it('to a TSS of 16 bits leaves FS, GS and CR3 as they are', () => {
    const m = machine();
    m.set64(At.gdt + Gdt.FREE, descriptor(OTHER, 0x2b, 0x81, 0));
    m.set16(OTHER + 14, 0x1230);
    m.set16(OTHER + 16, 2);
    m.set16(OTHER + 26, 0x4000);
    for (const offset of [34, 38, 40]) m.set16(OTHER + offset, Gdt.DATA0);
    m.set16(OTHER + 36, Gdt.CODE16);
    m.set16(OTHER + 42, 0);
    expect(m.execute(JUMP, 'alone')).toBeUndefined();
    expect([m.cpu.state.rip, m.rsp, m.cpu.cr3, m.cpu.tr.type]).toEqual([0x1230n, 0x4000n, 0n, 3]);
    expect([m.segment(Seg.CS).selector, m.segment(Seg.FS).unusable]).toEqual([Gdt.CODE16, 0]);
  });

  it('to virtual-8086 mode takes selectors as real mode does', () => {
    const m = machine(0x67, Flag.VM | 2);
    m.set32(OTHER + 76, 0x1234);
    expect(m.execute(JUMP, 'alone')).toBeUndefined();
    expect([m.segment(Seg.CS).base, m.segment(Seg.CS).dpl, m.cpu.user]).toEqual([0x1_2340n, 3, true]);
  });

  it('that is wrong before the commit point changes nothing', () => {
    expect(code(machine(0x66).execute(JUMP, 'alone'))).toEqual([Vector.TS, Gdt.FREE]);
    const busy = machine();
    busy.set64(At.gdt + Gdt.FREE, descriptor(OTHER, 0x67, 0x8b, 0));
    expect(code(busy.execute(JUMP, 'alone'))).toEqual([Vector.GP, Gdt.FREE]);
    const absent = machine();
    absent.set64(At.gdt + Gdt.FREE, descriptor(OTHER, 0x67, 0x09, 0));
    expect(code(absent.execute(JUMP, 'alone'))).toEqual([Vector.NP, Gdt.FREE]);
    expect(absent.u32(At.tss + 32)).toBe(0);
  });

  it.each([
    ['a stack that is not there', 80, Gdt.ABSENT, Vector.TS],
    ['data that is not there', 84, Gdt.ABSENT, Vector.NP],
    ['code that is data', 76, Gdt.DATA0, Vector.TS],
    ['an LDT that is none', 96, Gdt.TSS, Vector.TS],
  ] as const)('with %s raises it in the new task', (_, offset, selector, vector) => {
    const m = machine();
    m.set64(At.gdt + Gdt.ABSENT, descriptor(0, 0xf_ffff, offset === 84 ? 0x13 : 0x11, 0xc));
    m.set32(OTHER + offset, selector);
    expect(m.execute(JUMP, 'alone')).toBeUndefined();
    expect(m.cpu.exception).toEqual({ vector, errorCode: selector, payload: undefined });
    expect([m.cpu.tr.selector, m.cpu.state.rip]).toEqual([Gdt.FREE, BigInt(NEW.ip)]);
  });

  it('whose tables lie in MMIO is an internal error, and has not happened', () => {
    const m = machine();
    m.readOnly.add(At.tss);
    expect(() => m.execute(JUMP, 'alone')).toThrow(expect.objectContaining({ suberror: 1 }));
    m.cpu.io.mode = undefined;
    expect([m.cpu.tr.selector, m.gpr(3), access(m, Gdt.FREE)]).toEqual([Gdt.TSS, 0n, 0x89]);
  });

  it("asks for a debug exception by the TSS's T bit", () => {
    const m = machine();
    m.set16(OTHER + 100, 1);
    expect(m.execute(JUMP, 'alone')).toBeUndefined();
    expect(m.cpu.debug.held).toBe(1n << 15n);
  });
});

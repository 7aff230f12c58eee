import { describe, expect, it } from 'vitest';
import { Seg } from '../../src/sim/cpu/processor/descriptors.ts';
import { Vector } from '../../src/sim/cpu/processor/fault.ts';
import { CR4 } from '../../src/sim/cpu/processor/mode.ts';
import { Flag } from '../../src/sim/cpu/processor/state.ts';
import { checkPorts } from '../../src/sim/cpu/segments/tss.ts';
import { At, code, Gdt, Machine } from './sim-cpu-system.ts';

const GP0: [number, number] = [Vector.GP, 0];
const UD: [number, undefined] = [Vector.UD, undefined];
const [RAX, RCX] = [0, 1];

describe('I/O rights', () => {
  const refused = (m: Machine, port: number, size: number) =>
    code(m.fault(() => checkPorts(m.cpu, port, size)));

  it('come with IOPL, or else with the bitmap of the TSS', () => {
    const m = new Machine().protected(3);
    m.set16(At.tss + 102, 0x68);
    m.bytes(At.tss + 0x68, 'ff'.repeat(0x200));
    expect(refused(m, 0x80, 1)).toEqual(GP0);
    m.bytes(At.tss + 0x68 + 0x10, 'f0');
    expect(refused(m, 0x80, 4)).toBeUndefined();
    expect(refused(m, 0x81, 4)).toEqual(GP0);
    m.bytes(At.tss + 0x68 + 0x10, '7f fe');
    expect(refused(m, 0x87, 2)).toBeUndefined();
    m.cpu.tr = { ...m.cpu.tr, limit: 0x68 + 0x10 };
    expect(refused(m, 0x87, 1)).toEqual(GP0);
    m.cpu.state.flags |= Flag.IOPL;
    expect(refused(m, 0x87, 1)).toBeUndefined();
    expect(refused(new Machine().protected(), 0x87, 1)).toBeUndefined();
  });
});

describe('flags', () => {
  it('POPF changes IOPL at level 0 alone, and IF where IOPL allows it', () => {
    for (const [level, iopl, expected] of [
      [0, 0, Flag.IOPL | Flag.IF],
      [3, 0, 0],
      [3, Flag.IOPL, Flag.IOPL | Flag.IF],
    ] as const) {
      const m = new Machine().protected(level);
      m.cpu.state.flags = iopl | 2;
      m.rsp = At.stack - 4;
      m.set32(At.stack - 4, 0xffff_ffff);
      expect(m.execute('9d')).toBeUndefined();
      expect(m.cpu.state.flags & (Flag.IOPL | Flag.IF | Flag.RF | Flag.VM | Flag.VIP)).toBe(expected);
      expect(m.cpu.state.flags & (Flag.AC | Flag.ID | Flag.TF)).toBe(Flag.AC | Flag.ID | Flag.TF);
    }
  });

  it('PUSHF shows neither RF nor VM', () => {
    const m = new Machine().protected();
    m.cpu.state.flags = Flag.RF | Flag.AC | Flag.CF | 2;
    expect(m.execute('9c')).toBeUndefined();
    expect(m.u32(At.stack - 4)).toBe(Flag.AC | Flag.CF | 2);
  });

  it('CLI and STI need IOPL, or have a virtual flag with CR4.PVI; STI casts a shadow when IF was clear', () => {
    const m = new Machine().protected();
    expect(m.execute('fb')).toBeUndefined();
    expect([m.cpu.state.flags & Flag.IF, m.cpu.shadow]).toEqual([Flag.IF, 'sti']);
    m.cpu.shadow = undefined;
    m.execute('fb');
    expect(m.cpu.shadow).toBeUndefined();
    const user = new Machine().protected(3);
    expect(code(user.execute('fa'))).toEqual(GP0);
    user.cpu.cr4 |= CR4.PVI;
    expect(user.execute('fb')).toBeUndefined();
    expect(user.cpu.state.flags & (Flag.VIF | Flag.IF)).toBe(Flag.VIF);
    user.cpu.state.flags |= Flag.VIP;
    expect(code(user.execute('fb'))).toEqual(GP0);
  });

  it('STAC and CLAC are for level 0', () => {
    const m = new Machine().protected();
    expect(m.execute('0f 01 cb')).toBeUndefined();
    expect(m.cpu.state.flags & Flag.AC).toBe(Flag.AC);
    expect(m.execute('0f 01 ca')).toBeUndefined();
    expect(m.cpu.state.flags & Flag.AC).toBe(0);
    expect(code(new Machine().protected(3).execute('0f 01 ca'))).toEqual(UD);
  });
});

describe('segment registers and descriptor tables', () => {
  it.each<[string, number, [number, number] | undefined]>([
    ['null', 0, undefined],
    ['data', Gdt.DATA0, undefined],
    ['code that can be read', Gdt.CODE0, undefined],
    ['conforming code with any RPL', Gdt.CONFORMING0 | 3, undefined],
    ['code that cannot be read', Gdt.EXECUTE_ONLY, [Vector.GP, Gdt.EXECUTE_ONLY]],
    ['data with an RPL above its DPL', Gdt.DATA0 | 3, [Vector.GP, Gdt.DATA0]],
    ['a TSS', Gdt.TSS, [Vector.GP, Gdt.TSS]],
    ['what is not present', Gdt.ABSENT, [Vector.NP, Gdt.ABSENT]],
    ['what is beyond the table', 0x400, [Vector.GP, 0x400]],
  ])('DS takes %s as it should', (_name, selector, expected) => {
    const m = new Machine().protected();
    m.setGpr(RAX, selector);
    expect(code(m.execute('8e d8'))).toEqual(expected);
    expect(m.segment(Seg.DS).selector).toBe(expected === undefined ? selector : Gdt.DATA0);
  });

  it.each<[string, number, [number, number] | undefined]>([
    ['data', Gdt.DATA0, undefined],
    ['null', 0, GP0],
    ['another RPL', Gdt.DATA0 | 1, [Vector.GP, Gdt.DATA0]],
    ['another DPL', Gdt.DATA3, [Vector.GP, Gdt.DATA3]],
    ['what cannot be written', Gdt.READ_ONLY, [Vector.GP, Gdt.READ_ONLY]],
    ['code', Gdt.CODE0, [Vector.GP, Gdt.CODE0]],
    ['what is not present', Gdt.ABSENT, [Vector.SS, Gdt.ABSENT]],
  ])('SS takes %s as it should', (_name, selector, expected) => {
    const m = new Machine().protected();
    m.setGpr(RAX, selector);
    expect(code(m.execute('8e d0'))).toEqual(expected);
    expect(m.cpu.shadow).toBe(expected === undefined ? 'mov-ss' : undefined);
  });

  it('POP SS adds to the stack pointer before the stack changes, and not at all when it faults', () => {
    const m = new Machine().protected();
    m.rsp = At.stack - 4;
    m.set32(At.stack - 4, Gdt.SMALL);
    expect(m.execute('17')).toBeUndefined();
    expect([m.rsp, m.segment(Seg.SS).limit]).toEqual([BigInt(At.stack), 0xfff]);
    const bad = new Machine().protected();
    bad.rsp = At.stack - 4;
    bad.set32(At.stack - 4, 0);
    expect(code(bad.execute('17'))).toEqual(GP0);
    expect(bad.rsp).toBe(BigInt(At.stack - 4));
  });

  it('LSS loads both or nothing', () => {
    const m = new Machine().protected();
    m.setGpr(RAX, At.data);
    m.set32(At.data, 0x1234);
    m.set16(At.data + 4, Gdt.DATA3);
    expect(code(m.execute('0f b2 20'))).toEqual([Vector.GP, Gdt.DATA3]);
    expect(m.rsp).toBe(BigInt(At.stack));
    m.set16(At.data + 4, Gdt.DATA0);
    expect(m.execute('0f b2 20')).toBeUndefined();
    expect(m.rsp).toBe(0x1234n);
  });

  it('LGDT takes 24 bits of the base with an operand of 16, SGDT stores all', () => {
    const m = new Machine().protected();
    m.setGpr(RAX, At.data);
    m.set16(At.data, 0x1ff);
    m.set32(At.data + 2, 0x1234_5678);
    expect(m.execute('66 0f 01 10')).toBeUndefined();
    expect(m.cpu.gdtr).toEqual({ base: 0x34_5678n, limit: 0x1ff });
    expect(m.execute('0f 01 10')).toBeUndefined();
    expect(m.cpu.gdtr.base).toBe(0x1234_5678n);
    m.setGpr(RAX, At.data + 16);
    expect(m.execute('66 0f 01 00')).toBeUndefined();
    expect([m.u16(At.data + 16), m.u32(At.data + 18)]).toEqual([0x1ff, 0x1234_5678]);
  });

  it('LIDT refuses a base that is not canonical in 64-bit mode', () => {
    const m = new Machine().long();
    m.setGpr(RAX, At.data);
    m.set64(At.data + 2, 1n << 50n);
    expect(code(m.execute('0f 01 18'))).toEqual(GP0);
  });

  it('LTR marks the task busy, and does not take it again', () => {
    const m = new Machine().long();
    m.setGpr(RAX, Gdt.TSS);
    m.set64(At.gdt + Gdt.TSS + 8, 0xffff_8000n);
    expect(m.execute('0f 00 d8')).toBeUndefined();
    expect(m.cpu.tr).toMatchObject({
      selector: Gdt.TSS,
      base: 0xffff_8000_0000_8000n,
      limit: 0x1fff,
      type: 11,
    });
    expect(m.u8(At.gdt + Gdt.TSS + 5)).toBe(0x8b);
    expect(code(m.execute('0f 00 d8'))).toEqual([Vector.GP, Gdt.TSS]);
    m.setGpr(RAX, 0);
    expect(code(m.execute('0f 00 d8'))).toEqual(GP0);
    expect(code(new Machine().real().execute('0f 00 d8'))).toEqual(UD);
  });

  it('LLDT makes local selectors usable', () => {
    const m = new Machine().protected();
    m.set64(At.ldt + 8, m.u64(At.gdt + Gdt.DATA0));
    m.setGpr(RAX, Gdt.LDT);
    expect(m.execute('0f 00 d0')).toBeUndefined();
    m.setGpr(RAX, 0x0c);
    expect(m.execute('8e d8')).toBeUndefined();
    m.setGpr(RAX, Gdt.CODE0);
    expect(code(m.execute('0f 00 d0'))).toEqual([Vector.GP, Gdt.CODE0]);
    m.setGpr(RAX, 0);
    expect(m.execute('0f 00 d0')).toBeUndefined();
    m.setGpr(RAX, 0x0c);
    expect(code(m.execute('8e d8'))).toEqual([Vector.GP, 0x0c]);
  });

  it('LAR, LSL, VERR and VERW tell in ZF whether the program may know', () => {
    const m = new Machine().protected(3);
    const ask = (hex: string, selector: number) => {
      m.setGpr(RCX, selector);
      m.setGpr(RAX, 0x5555);
      expect(m.execute(hex)).toBeUndefined();
      return (m.cpu.state.flags & Flag.ZF) !== 0;
    };
    expect(ask('0f 02 c1', Gdt.DATA3 | 3)).toBe(true);
    expect(m.gpr(RAX)).toBe(0x00cf_f300n);
    expect(ask('0f 02 c1', Gdt.DATA0 | 3)).toBe(false);
    expect(m.gpr(RAX)).toBe(0x5555n);
    expect(ask('0f 03 c1', Gdt.CONFORMING0)).toBe(true);
    expect(m.gpr(RAX)).toBe(0xffff_ffffn);
    expect(ask('0f 03 c1', 0)).toBe(false);
    expect(ask('0f 00 e1', Gdt.DATA3 | 3)).toBe(true);
    expect(ask('0f 00 e9', Gdt.DATA3 | 3)).toBe(true);
    expect(ask('0f 00 e9', Gdt.CODE3 | 3)).toBe(false);
    expect(ask('0f 00 e1', Gdt.DATA0)).toBe(false);
    expect(code(new Machine().real().execute('0f 02 c1'))).toEqual(UD);
  });

  it('ARPL raises the RPL of its first operand', () => {
    const m = new Machine().protected();
    m.setGpr(RAX, 0xabcd_1230n);
    m.setGpr(RCX, 2);
    expect(m.execute('63 c8')).toBeUndefined();
    expect([m.gpr(RAX), m.cpu.state.flags & Flag.ZF]).toEqual([0xabcd_1232n, Flag.ZF]);
    expect(m.execute('63 c8')).toBeUndefined();
    expect(m.cpu.state.flags & Flag.ZF).toBe(0);
  });
});

describe('translations and waiting', () => {
  it('INVPCID checks its type, its descriptor and its address', () => {
    const m = new Machine().long();
    const invpcid = (type: number, low: bigint, high: bigint) => {
      m.setGpr(RAX, type);
      m.setGpr(RCX, At.data);
      m.set64(At.data, low);
      m.set64(At.data + 8, high);
      return code(m.execute('66 0f 38 82 01'));
    };
    expect(invpcid(2, 0n, 0n)).toBeUndefined();
    expect(invpcid(4, 0n, 0n)).toEqual(GP0);
    expect(invpcid(2, 1n << 12n, 0n)).toEqual(GP0);
    expect(invpcid(0, 0n, 1n << 47n)).toEqual(GP0);
    expect(invpcid(1, 5n, 0n)).toEqual(GP0);
    m.cpu.cr4 |= CR4.PCIDE;
    expect(invpcid(1, 5n, 0n)).toBeUndefined();
  });

  it('CLFLUSH faults as a read does; MONITOR and MWAIT do nothing at level 0; RDPMC has no counters', () => {
    const m = new Machine().long();
    m.setGpr(RAX, 0x4000_0000);
    expect(m.execute('0f ae 38')).toMatchObject({ vector: Vector.PF, errorCode: 0, address: 0x4000_0000n });
    m.setGpr(RAX, At.data);
    for (const hex of ['0f ae 38', '0f 01 c8', '0f 01 c9', '0f 09', '0f 08'])
      expect(m.execute(hex), hex).toBeUndefined();
    expect(code(m.execute('0f 33'))).toEqual(GP0);
    expect(code(new Machine().long(3).execute('0f 01 c8'))).toEqual(UD);
  });

  it('HLT halts', () => {
    const m = new Machine().protected();
    expect(m.execute('f4')).toBeUndefined();
    expect([m.cpu.halted, m.cpu.state.rip]).toEqual([true, BigInt(At.code + 1)]);
  });
});

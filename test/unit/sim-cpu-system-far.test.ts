import { describe, expect, it } from 'vitest';
import { Seg } from '../../src/sim/cpu/processor/descriptors.ts';
import { Vector } from '../../src/sim/cpu/processor/fault.ts';
import { Flag } from '../../src/sim/cpu/processor/state.ts';
import { At, code, descriptor, Gdt, gate, Machine } from './sim-cpu-system.ts';

const hex = (value: number, bytes: number): string =>
  Array.from({ length: bytes }, (_, i) => ((value >>> (8 * i)) & 0xff).toString(16).padStart(2, '0')).join(
    '',
  );
const jump = (selector: number, offset: number) => `ea ${hex(offset, 4)} ${hex(selector, 2)}`;
const call = (selector: number, offset: number) => `9a ${hex(offset, 4)} ${hex(selector, 2)}`;

/** Puts values on the stack, so that the first is popped first. */
function pushed(m: Machine, size: 2 | 4 | 8, ...values: number[]): void {
  m.rsp = m.rsp - BigInt(size * values.length);
  values.forEach((value, i) => {
    const at = Number(m.rsp) + i * size;
    if (size === 2) m.set16(at, value);
    else if (size === 4) m.set32(at, value);
    else m.set64(at, BigInt(value));
  });
}

const CALL_GATE = 0x8c;
const cs = (m: Machine) => m.segment(Seg.CS).selector;

describe('a far jump', () => {
  it('in real mode moves the base and leaves the limit, which is unreal mode', () => {
    const m = new Machine().real();
    m.cpu.segments[Seg.CS] = { ...m.segment(Seg.CS), limit: 0xffff_ffff };
    expect(m.execute('ea 34 12 00 08')).toBeUndefined();
    expect([cs(m), m.segment(Seg.CS).base, m.segment(Seg.CS).limit, m.cpu.state.rip]).toEqual([
      0x800,
      0x8000n,
      0xffff_ffff,
      0x1234n,
    ]);
  });

  it('loads a code segment with its limit and sets the accessed flag', () => {
    const m = new Machine().protected();
    m.set64(At.gdt + Gdt.FREE, descriptor(0x1000, 0xfff, 0x9a, 4));
    expect(m.execute(jump(Gdt.FREE, 0x234))).toBeUndefined();
    expect([cs(m), m.segment(Seg.CS).base, m.segment(Seg.CS).limit]).toEqual([Gdt.FREE, 0x1000n, 0xfff]);
    expect(m.u8(At.gdt + Gdt.FREE + 5)).toBe(0x9b);
  });

  it('goes from compatibility mode to 64-bit mode', () => {
    const m = new Machine().long(0, true);
    expect(m.cpu.mode.bits).toBe(32);
    expect(m.execute(jump(Gdt.CODE64, 0x1_2345))).toBeUndefined();
    expect([m.cpu.mode.bits, m.cpu.state.rip]).toEqual([64, 0x1_2345n]);
  });

  it.each<[string, number, number, [number, number]]>([
    ['a null selector', 0, 0, [Vector.GP, 0]],
    ['a selector beyond the table', 0x200, 0, [Vector.GP, 0x200]],
    ['a selector of an LDT that is not there', 0x0f, 0, [Vector.GP, 0x0c]],
    ['a data segment', Gdt.DATA0, 0, [Vector.GP, Gdt.DATA0]],
    ['code of another level', Gdt.CODE3, 0, [Vector.GP, Gdt.CODE3]],
    ['an RPL above the CPL', Gdt.CODE0 | 3, 0, [Vector.GP, Gdt.CODE0]],
    ['an offset beyond the limit', Gdt.CODE16, 0x1_0000, [Vector.GP, 0]],
    ['an LDT', Gdt.LDT, 0, [Vector.GP, Gdt.LDT]],
  ])('to %s is refused', (_name, selector, offset, expected) => {
    const m = new Machine().protected();
    expect(code(m.execute(jump(selector, offset)))).toEqual(expected);
    expect([cs(m), m.cpu.state.rip]).toEqual([Gdt.CODE0, BigInt(At.code)]);
  });

  it('to a segment that is not present raises #NP', () => {
    const m = new Machine().protected();
    m.set64(At.gdt + Gdt.FREE, descriptor(0, 0xfff, 0x1b, 4));
    expect(code(m.execute(jump(Gdt.FREE, 0)))).toEqual([Vector.NP, Gdt.FREE]);
  });

  it('to a task is refused by name', () => {
    const m = new Machine().protected();
    expect(() => m.execute(jump(Gdt.TSS, 0))).toThrow(
      expect.objectContaining({ what: expect.stringMatching(/task/) }),
    );
  });

  it('into conforming code keeps the privilege level', () => {
    const m = new Machine().protected(3);
    expect(m.execute(jump(Gdt.CONFORMING0, 0x100))).toBeUndefined();
    expect(cs(m)).toBe(Gdt.CONFORMING0 | 3);
  });

  it('reads pointers of 16, 32 and 64 bits from memory', () => {
    const m = new Machine().long();
    m.setGpr(0, At.data);
    m.set64(At.data, 0xffff_8000_0000_1234n);
    m.set16(At.data + 8, Gdt.CODE64);
    expect(m.execute('48 ff 28')).toBeUndefined();
    expect(m.cpu.state.rip).toBe(0xffff_8000_0000_1234n);
    m.set64(At.data, 0x8000_0000_0000_1234n);
    expect(code(m.execute('48 ff 28'))).toEqual([Vector.GP, 0]);
    m.set32(At.data, 0x5678);
    m.set16(At.data + 4, Gdt.CODE0);
    expect(m.execute('ff 28')).toBeUndefined();
    expect([m.cpu.mode.bits, m.cpu.state.rip]).toEqual([32, 0x5678n]);
  });
});

describe('a far call', () => {
  it.each(['intel', 'amd'] as const)(
    'with REX.W pushes quadwords; its pointer in memory has 32 bits of offset on AMD (%s)',
    (vendor) => {
      const m = new Machine({ vendor }).long();
      m.setGpr(3, At.data);
      m.set64(At.data, BigInt(0x5678) | (BigInt(Gdt.CODE64) << 32n));
      if (vendor === 'intel') {
        m.set64(At.data, 0x5678n);
        m.set16(At.data + 8, Gdt.CODE64);
      }
      const before = m.rsp;
      expect(m.execute('48 ff 1b')).toBeUndefined();
      expect([m.cpu.state.rip, m.rsp]).toEqual([0x5678n, before - 16n]);
      expect([m.u64(Number(m.rsp)), m.u64(Number(m.rsp) + 8)]).toEqual([
        BigInt(At.code + 3),
        BigInt(Gdt.CODE64),
      ]);
      expect(m.execute('48 cb')).toBeUndefined();
      expect([m.cpu.state.rip, m.rsp, cs(m)]).toEqual([BigInt(At.code + 3), before, Gdt.CODE64]);
    },
  );

  it('pushes CS and the next instruction, and RETF comes back', () => {
    const m = new Machine().protected();
    expect(m.execute(call(Gdt.CONFORMING0, 0x5000))).toBeUndefined();
    expect([m.u32(Number(m.rsp)), m.u32(Number(m.rsp) + 4), m.rsp]).toEqual([
      At.code + 7,
      Gdt.CODE0,
      BigInt(At.stack - 8),
    ]);
    expect(m.execute('ca 08 00')).toBeUndefined();
    expect([cs(m), m.cpu.state.rip, m.rsp]).toEqual([Gdt.CODE0, BigInt(At.code + 7), BigInt(At.stack + 8)]);
  });

  it('without room on the stack changes nothing', () => {
    const m = new Machine().protected();
    m.cpu.segments[Seg.SS] = { ...m.segment(Seg.SS), limit: 0xfff, g: 0 };
    m.rsp = 0x2000;
    expect(code(m.execute(call(Gdt.CODE0, 0x5000)))).toEqual([Vector.SS, 0]);
    expect([m.rsp, m.cpu.state.rip]).toEqual([0x2000n, BigInt(At.code)]);
  });

  it('through a call gate goes to the inner stack with its parameters, and RETF drops them on both', () => {
    const m = new Machine().protected(3);
    m.set64(At.gdt + Gdt.GATE, gate(Gdt.CODE0, 0x5678, CALL_GATE | 0x60, 2));
    pushed(m, 4, 0x1111, 0x2222);
    const outer = m.rsp;
    expect(m.execute(call(Gdt.GATE, 0xdead))).toBeUndefined();
    expect([cs(m), m.cpu.state.rip, m.segment(Seg.SS).selector]).toEqual([Gdt.CODE0, 0x5678n, Gdt.DATA0]);
    const stack = Array.from({ length: 6 }, (_, i) => m.u32(Number(m.rsp) + 4 * i));
    expect(stack).toEqual([At.code + 7, Gdt.CODE3 | 3, 0x1111, 0x2222, Number(outer), Gdt.DATA3 | 3]);
    m.cpu.segments[Seg.DS] = { ...m.segment(Seg.DS), selector: Gdt.DATA0, dpl: 0 };
    expect(m.execute('ca 08 00')).toBeUndefined();
    expect([cs(m), m.cpu.state.rip, m.rsp]).toEqual([Gdt.CODE3 | 3, BigInt(At.code + 7), outer + 8n]);
    expect(m.segment(Seg.DS)).toMatchObject({ selector: 0, unusable: 1, type: 3 });
    expect(m.segment(Seg.ES).selector).toBe(Gdt.DATA3 | 3);
  });

  it('through a 64-bit call gate pushes quadwords and leaves SS null', () => {
    const m = new Machine().long(3);
    m.set64(At.gdt + Gdt.GATE, gate(Gdt.CODE64, 0x5678, CALL_GATE | 0x60));
    m.set64(At.gdt + Gdt.GATE + 8, 0xffff_8000n);
    m.setGpr(0, At.data);
    m.set16(At.data + 4, Gdt.GATE | 3);
    expect(m.execute('ff 18')).toBeUndefined();
    expect([m.cpu.state.rip, m.segment(Seg.SS).selector, m.cpu.user]).toEqual([
      0xffff_8000_0000_5678n,
      0,
      false,
    ]);
    const stack = Array.from({ length: 4 }, (_, i) => Number(m.u64(Number(m.rsp) + 8 * i)));
    expect(stack).toEqual([At.code + 2, Gdt.CODE64_3 | 3, At.stack, Gdt.DATA3 | 3]);
  });

  it.each<[string, bigint, [number, number]]>([
    ['a gate of an inner level', gate(Gdt.CODE0, 0, CALL_GATE), [Vector.GP, Gdt.GATE]],
    ['a gate that is not present', gate(Gdt.CODE0, 0, 0x6c), [Vector.NP, Gdt.GATE]],
    ['a gate without a selector', gate(0, 0, 0xec), [Vector.GP, 0]],
    ['a gate to data', gate(Gdt.DATA0, 0, 0xec), [Vector.GP, Gdt.DATA0]],
    ['a gate beyond the limit', gate(Gdt.CODE16, 0x1_0000, 0xec), [Vector.GP, 0]],
  ])('through %s is refused', (_name, value, expected) => {
    const m = new Machine().protected(3);
    m.set64(At.gdt + Gdt.GATE, value);
    expect(code(m.execute(call(Gdt.GATE, 0)))).toEqual(expected);
    expect([cs(m), m.rsp]).toEqual([Gdt.CODE3 | 3, BigInt(At.stack)]);
  });
});

describe('a far return', () => {
  it.each<[string, number[], [number, number]]>([
    ['a null selector', [0x100, 0], [Vector.GP, 0]],
    ['an inner level', [0x100, Gdt.CODE0], [Vector.GP, Gdt.CODE0]],
    ['a selector beyond the table', [0x100, 0x203], [Vector.GP, 0x200]],
    ['data', [0x100, Gdt.DATA3 | 3], [Vector.GP, Gdt.DATA3]],
  ])('to %s is refused', (_name, values, expected) => {
    const m = new Machine().protected(3);
    pushed(m, 4, ...values);
    const before = m.rsp;
    expect(code(m.execute('cb'))).toEqual(expected);
    expect(m.rsp).toBe(before);
  });

  it.each<[string, number, [number, number]]>([
    ['a null stack', 0, [Vector.GP, 0]],
    ['a stack of another RPL', Gdt.DATA3, [Vector.GP, Gdt.DATA3]],
    ['a stack of another level', Gdt.DATA0 | 3, [Vector.GP, Gdt.DATA0]],
  ])('to an outer level with %s is refused', (_name, ss, expected) => {
    const m = new Machine().protected();
    pushed(m, 4, 0x100, Gdt.CODE3 | 3, 0x2000, ss);
    expect(code(m.execute('cb'))).toEqual(expected);
    expect([cs(m), m.segment(Seg.SS).selector]).toEqual([Gdt.CODE0, Gdt.DATA0]);
  });

  it('in real mode releases what its immediate says', () => {
    const m = new Machine().real();
    pushed(m, 2, 0x1234, 0x0100);
    expect(m.execute('ca 04 00')).toBeUndefined();
    expect([cs(m), m.cpu.state.rip, m.rsp]).toEqual([0x100, 0x1234n, 0x3004n]);
  });
});

describe.each(['intel', 'amd'] as const)('a return to an outer level (%s)', (vendor) => {
  it.each([
    ['RETF', 'cb', []],
    ['IRET', 'cf', [2]],
  ])(
    'by %s takes the selectors of inner data segments, and leaves their bases and limits',
    (_, opcode, flags) => {
      const m = new Machine({ vendor }).protected();
      for (const index of [Seg.ES, Seg.DS, Seg.FS, Seg.GS])
        m.cpu.segments[index] = { ...m.segment(index), base: 0x1000n * BigInt(index + 1) };
      m.cpu.segments[Seg.FS] = { ...m.cpu.segments[Seg.FS]!, dpl: 3 };
      pushed(m, 4, 0x100, Gdt.CODE3 | 3, ...flags, 0x2000, Gdt.DATA3 | 3);
      expect(m.execute(opcode)).toBeUndefined();
      for (const index of [Seg.ES, Seg.DS, Seg.GS])
        expect(m.segment(index)).toMatchObject({
          selector: 0,
          unusable: 1,
          base: 0x1000n * BigInt(index + 1),
          limit: 0xffff_ffff,
        });
      expect(m.segment(Seg.FS)).toMatchObject({ selector: Gdt.DATA0, unusable: 0 });
    },
  );
});

describe('IRET', () => {
  it('takes all flags at level 0, and neither IOPL nor IF at level 3', () => {
    const kernel = new Machine().protected();
    pushed(kernel, 4, 0x100, Gdt.CODE0, 0x7fff_ffff & ~Flag.VM);
    expect(kernel.execute('cf')).toBeUndefined();
    expect(kernel.cpu.state.flags & (Flag.IOPL | Flag.IF | Flag.RF | Flag.VIF)).toBe(
      Flag.IOPL | Flag.IF | Flag.RF | Flag.VIF,
    );
    const user = new Machine().protected(3);
    pushed(user, 4, 0x100, Gdt.CODE3 | 3, 0x7fff_ffff);
    expect(user.execute('cf')).toBeUndefined();
    expect(user.cpu.state.flags & (Flag.IOPL | Flag.IF | Flag.VIF | Flag.VM)).toBe(0);
    expect(user.cpu.state.flags & (Flag.AC | Flag.ID | Flag.CF)).toBe(Flag.AC | Flag.ID | Flag.CF);
  });

  it('with an operand of 16 bits leaves the upper flags', () => {
    const m = new Machine().protected();
    m.cpu.state.flags |= Flag.AC;
    pushed(m, 2, 0x100, Gdt.CODE0, 0x0203);
    expect(m.execute('66 cf')).toBeUndefined();
    expect(m.cpu.state.flags).toBe(Flag.AC | 0x203);
  });

  it('in 64-bit mode pops the stack even within its level, and takes a null SS there', () => {
    const m = new Machine().long();
    pushed(m, 8, 0x100, Gdt.CODE64, 2, 0x4_1000, 0);
    expect(m.execute('48 cf')).toBeUndefined();
    expect([m.rsp, m.segment(Seg.SS).selector, m.segment(Seg.SS).unusable]).toEqual([0x4_1000n, 0, 1]);
    const user = new Machine().long();
    pushed(user, 8, 0x100, Gdt.CODE64_3 | 3, 2, 0x4_1000, 3);
    expect(code(user.execute('48 cf'))).toEqual([Vector.GP, 0]);
  });

  it('refuses NT in IA-32e mode, and elsewhere where the TSS links to no task', () => {
    const long = new Machine().long();
    long.cpu.state.flags |= Flag.NT;
    expect(code(long.execute('48 cf'))).toEqual([Vector.GP, 0]);
    const legacy = new Machine().protected();
    legacy.cpu.state.flags |= Flag.NT;
    expect(code(legacy.execute('cf', 'alone'))).toEqual([Vector.TS, 0]);
  });

  it('ends the blocking of NMIs, in real mode too', () => {
    const m = new Machine().real();
    m.cpu.nmiMasked = true;
    pushed(m, 2, 0x1234, 0x0100, Flag.IF | 2);
    expect(m.execute('cf')).toBeUndefined();
    expect([m.cpu.nmiMasked, m.cpu.state.flags, m.cpu.state.rip]).toEqual([false, Flag.IF | 2, 0x1234n]);
  });
});

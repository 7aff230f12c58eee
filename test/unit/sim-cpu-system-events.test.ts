import { describe, expect, it } from 'vitest';
import { Seg } from '../../src/sim/cpu/processor/descriptors.ts';
import { Vector } from '../../src/sim/cpu/processor/fault.ts';
import { Flag } from '../../src/sim/cpu/processor/state.ts';
import { deliver, type Event, tripleFault } from '../../src/sim/cpu/system/events.ts';
import { At, code, Gdt, gate, Machine, MEMORY } from './sim-cpu-system.ts';

const INTERRUPT = 0x8e;
const TRAP = 0x8f;
const HANDLER = 0x9_1230;

const interrupt = (vector: number): Event => ({ kind: 'interrupt', vector });
const exception = (vector: number, errorCode?: number, address?: bigint): Event => ({
  kind: 'exception',
  vector,
  errorCode,
  address,
});

/** What lies on the stack, from its top down, in words of `size` bytes. */
const stacked = (m: Machine, size: 2 | 4 | 8, count: number): number[] =>
  Array.from({ length: count }, (_, i) => {
    const at = Number(m.rsp) + i * size;
    return size === 2 ? m.u16(at) : size === 4 ? m.u32(at) : Number(m.u64(at));
  });

function setGate(m: Machine, vector: number, selector: number, access: number, offset = HANDLER): void {
  m.set64(At.idt + 8 * vector, gate(selector, offset, access));
}
function setGate64(
  m: Machine,
  vector: number,
  access: number,
  ist = 0,
  selector: number = Gdt.CODE64,
  high = 0,
): void {
  m.set64(At.idt + 16 * vector, gate(selector, HANDLER, access, ist));
  m.set64(At.idt + 16 * vector + 8, BigInt(high));
}

describe('in real mode', () => {
  it('an interrupt goes through the vector table with three words on the stack', () => {
    const m = new Machine().real();
    m.set16(4 * 0x21, 0x1234);
    m.set16(4 * 0x21 + 2, 0x0800);
    m.cpu.state.flags = Flag.IF | Flag.TF | Flag.CF | 2;
    const rip = Number(m.cpu.state.rip);
    deliver(m.cpu, interrupt(0x21));
    expect(stacked(m, 2, 3)).toEqual([rip, 0, Flag.IF | Flag.TF | Flag.CF | 2]);
    expect([m.segment(Seg.CS).selector, m.segment(Seg.CS).base, m.cpu.state.rip]).toEqual([
      0x800,
      0x8000n,
      0x1234n,
    ]);
    expect(m.cpu.state.flags).toBe(Flag.CF | 2);
  });

  it('an exception has no error code', () => {
    const m = new Machine().real();
    m.rsp = 0x3000;
    deliver(m.cpu, exception(Vector.GP, 0));
    expect(m.rsp).toBe(0x2ffan);
  });

  it('a table that is too short ends in a triple fault', () => {
    const m = new Machine().real();
    m.cpu.idtr = { base: 0n, limit: 4 * 3 - 1 };
    expect(() => deliver(m.cpu, interrupt(0x21))).toThrow(tripleFault as never);
  });
});

describe('in protected mode', () => {
  it('an interrupt gate clears IF and a trap gate does not', () => {
    for (const [access, left] of [
      [INTERRUPT, 0],
      [TRAP, Flag.IF],
    ] as const) {
      const m = new Machine().protected();
      setGate(m, 0x30, Gdt.CODE0, access);
      m.cpu.state.flags = Flag.IF | Flag.NT | Flag.TF | Flag.RF | 2;
      deliver(m.cpu, interrupt(0x30));
      expect(m.cpu.state.flags).toBe(left | 2);
      expect(stacked(m, 4, 3)).toEqual([At.code, Gdt.CODE0 | 0, Flag.IF | Flag.NT | Flag.TF | Flag.RF | 2]);
      expect([m.cpu.state.rip, m.segment(Seg.CS).selector]).toEqual([BigInt(HANDLER), Gdt.CODE0]);
    }
  });

  it('a gate of a 286 pushes words', () => {
    const m = new Machine().protected();
    setGate(m, 0x30, Gdt.CODE0, 0x86, 0x1230);
    deliver(m.cpu, { ...exception(Vector.GP, 0x18), vector: 0x30 });
    expect(stacked(m, 2, 4)).toEqual([0x18, At.code & 0xffff, Gdt.CODE0, 2]);
    expect(m.cpu.state.rip).toBe(0x1230n);
  });

  it('goes to the stack of the inner privilege level, and pushes the outer one', () => {
    const m = new Machine().protected(3);
    setGate(m, 14, Gdt.CODE0, INTERRUPT);
    deliver(m.cpu, exception(Vector.PF, 6, 0xdead_b000n));
    expect(m.cpu.cr2).toBe(0xdead_b000n);
    expect(stacked(m, 4, 6)).toEqual([6, At.code, Gdt.CODE3 | 3, Flag.RF | 2, At.stack, Gdt.DATA3 | 3]);
    expect(m.rsp).toBe(BigInt(At.inner - 24));
    expect([m.segment(Seg.SS).selector, m.segment(Seg.SS).dpl, m.cpu.user]).toEqual([Gdt.DATA0, 0, false]);
    expect(m.u8(At.gdt + Gdt.DATA0 + 5)).toBe(0x93);
  });

  it('stays on its privilege level in conforming code', () => {
    const m = new Machine().protected(3);
    setGate(m, 0x30, Gdt.CONFORMING0, INTERRUPT);
    deliver(m.cpu, interrupt(0x30));
    expect([m.segment(Seg.CS).selector, m.segment(Seg.SS).dpl]).toEqual([Gdt.CONFORMING0 | 3, 3]);
    expect(m.rsp).toBe(BigInt(At.stack - 12));
  });

  it.each<[string, (m: Machine) => void, number, number]>([
    [
      'a vector beyond the limit',
      (m) => (m.cpu.idtr = { base: BigInt(At.idt), limit: 0xff }),
      Vector.GP,
      0x40 * 8 + 3,
    ],
    ['no gate', (m) => setGate(m, 0x40, Gdt.CODE0, 0x8c), Vector.GP, 0x40 * 8 + 3],
    ['a gate that is not present', (m) => setGate(m, 0x40, Gdt.CODE0, 0x0e), Vector.NP, 0x40 * 8 + 3],
    ['a null selector in the gate', (m) => setGate(m, 0x40, 0, INTERRUPT), Vector.GP, 1],
    ['a selector beyond the GDT', (m) => setGate(m, 0x40, 0x200, INTERRUPT), Vector.GP, 0x201],
    ['a data segment in the gate', (m) => setGate(m, 0x40, Gdt.DATA0, INTERRUPT), Vector.GP, Gdt.DATA0 | 1],
    ['code of an outer level', (m) => setGate(m, 0x40, Gdt.CODE3, INTERRUPT), Vector.GP, Gdt.CODE3 | 1],
    ['an offset beyond the segment', (m) => setGate(m, 0x40, Gdt.CODE16, INTERRUPT), Vector.GP, 1],
  ])('%s is told with the EXT bit', (_name, prepare, vector, errorCode) => {
    const m = new Machine().protected();
    setGate(m, vector, Gdt.CODE0, INTERRUPT); // of another exception there is no handler
    prepare(m);
    deliver(m.cpu, interrupt(0x40));
    expect(stacked(m, 4, 2)).toEqual([errorCode, At.code]);
    expect(m.cpu.state.rip).toBe(BigInt(HANDLER));
  });

  it.each<[string, (m: Machine) => void, number, number]>([
    ['a TSS that is too short', (m) => (m.cpu.tr = { ...m.cpu.tr, limit: 8 }), Vector.TS, Gdt.TSS | 1],
    ['a null stack', (m) => m.set16(At.tss + 8, 0), Vector.TS, 1],
    ['a stack of another level', (m) => m.set16(At.tss + 8, Gdt.DATA3 | 3), Vector.TS, Gdt.DATA3 | 1],
    [
      'a stack that cannot be written',
      (m) => m.set16(At.tss + 8, Gdt.READ_ONLY),
      Vector.TS,
      Gdt.READ_ONLY | 1,
    ],
    ['a stack that is not present', (m) => m.set16(At.tss + 8, Gdt.ABSENT), Vector.SS, Gdt.ABSENT | 1],
    ['a stack without room', (m) => m.set16(At.tss + 8, Gdt.SMALL), Vector.SS, Gdt.SMALL | 1],
  ])(
    '%s on the way inwards raises its exception, through conforming code',
    (_name, prepare, vector, errorCode) => {
      const m = new Machine().protected(3);
      setGate(m, 0x40, Gdt.CODE0, INTERRUPT);
      setGate(m, vector, Gdt.CONFORMING0, INTERRUPT);
      prepare(m);
      deliver(m.cpu, interrupt(0x40));
      expect(stacked(m, 4, 2)).toEqual([errorCode, At.code]);
      expect(m.cpu.state.rip).toBe(BigInt(HANDLER));
    },
  );

  it('two contributory exceptions make a double fault, and one more ends it', () => {
    const m = new Machine().protected();
    setGate(m, Vector.DF, Gdt.CODE0, INTERRUPT);
    deliver(m.cpu, exception(Vector.GP, 0x10));
    expect(stacked(m, 4, 2)).toEqual([0, At.code]);
    m.set64(At.idt + 8 * Vector.DF, 0n);
    expect(() => deliver(m.cpu, exception(Vector.GP, 0x10))).toThrow(tripleFault as never);
  });

  it('a benign exception before a fault is just forgotten', () => {
    const m = new Machine().protected();
    setGate(m, Vector.GP, Gdt.CODE0, INTERRUPT);
    deliver(m.cpu, exception(Vector.UD));
    expect(stacked(m, 4, 1)).toEqual([Vector.UD * 8 + 3]);
  });

  it('a page fault on the way of a page fault is a double fault, with the later address in CR2', () => {
    const m = new Machine().long();
    setGate64(m, Vector.DF, INTERRUPT);
    m.cpu.idtr = { base: BigInt(At.idt), limit: 0xfff };
    m.set64(At.idt + 16 * 14, 0n);
    m.cpu.tr = { ...m.cpu.tr, base: 0x4000_0000n };
    setGate64(m, Vector.PF, INTERRUPT, 1);
    deliver(m.cpu, exception(Vector.PF, 0, 0x1234n));
    expect(m.cpu.cr2).toBe(0x4000_0024n);
    expect(stacked(m, 8, 2)).toEqual([0, At.code]);
  });

  it('INT n asks for the gate of its privilege level, and its faults have no EXT bit', () => {
    const m = new Machine().protected(3);
    setGate(m, 0x80, Gdt.CODE0, INTERRUPT);
    expect(code(m.execute('cd 80'))).toEqual([Vector.GP, 0x80 * 8 + 2]);
    expect([m.cpu.state.rip, m.rsp]).toEqual([BigInt(At.code), BigInt(At.stack)]);
    setGate(m, 0x80, Gdt.CODE0, INTERRUPT | 0x60);
    expect(m.execute('cd 80')).toBeUndefined();
    expect(stacked(m, 4, 5)).toEqual([At.code + 2, Gdt.CODE3 | 3, 2, At.stack, Gdt.DATA3 | 3]);
  });

  it('INT3 and INTO return behind themselves, INT1 has no look at the privilege', () => {
    const m = new Machine().protected(3);
    for (const vector of [1, 3, 4])
      setGate(m, vector, Gdt.CODE0, vector === 1 ? INTERRUPT : INTERRUPT | 0x60);
    expect(m.execute('ce')).toBeUndefined();
    expect(m.cpu.state.rip).toBe(BigInt(At.code + 1));
    m.cpu.state.flags |= Flag.OF;
    expect(m.execute('ce')).toBeUndefined();
    expect([m.cpu.state.rip, stacked(m, 4, 1)]).toEqual([BigInt(HANDLER), [At.code + 2]]);
    const other = new Machine().protected(3);
    setGate(other, 1, Gdt.CODE0, INTERRUPT);
    expect(other.execute('f1')).toBeUndefined();
    expect(stacked(other, 4, 1)).toEqual([At.code + 1]);
  });

  it('tables or stacks in memory that is not there are an internal error', () => {
    const m = new Machine().protected();
    m.cpu.idtr = { base: BigInt(MEMORY), limit: 0xfff };
    expect(() => deliver(m.cpu, interrupt(0x40))).toThrow(expect.objectContaining({ suberror: 3 }));
  });
});

describe('in 64-bit mode', () => {
  it('the stack is aligned and always pushed', () => {
    const m = new Machine().long();
    setGate64(m, 0x40, INTERRUPT);
    m.rsp = At.stack - 5;
    deliver(m.cpu, interrupt(0x40));
    expect(m.rsp).toBe(BigInt(At.stack - 16 - 40));
    expect(stacked(m, 8, 5)).toEqual([At.code, Gdt.CODE64, 2, At.stack - 5, Gdt.DATA0]);
  });

  it('an inner privilege level has a null stack segment', () => {
    const m = new Machine().long(3);
    setGate64(m, Vector.GP, INTERRUPT);
    deliver(m.cpu, exception(Vector.GP, 0x18));
    expect(m.rsp).toBe(BigInt(At.inner - 48));
    expect(m.segment(Seg.SS)).toMatchObject({ selector: 0, dpl: 0, unusable: 1 });
    expect(stacked(m, 8, 6)).toEqual([0x18, At.code, Gdt.CODE64_3 | 3, Flag.RF | 2, At.stack, Gdt.DATA3 | 3]);
  });

  it('a gate can name a stack of the interrupt stack table', () => {
    const m = new Machine().long();
    setGate64(m, Vector.NMI, INTERRUPT, 1);
    deliver(m.cpu, { kind: 'nmi', vector: 2 });
    expect(m.rsp).toBe(BigInt(At.inner + 0x1000 - 40));
    expect(m.segment(Seg.SS).selector).toBe(Gdt.DATA0); // the privilege has not changed
  });

  it.each<[string, (m: Machine) => void, number, number]>([
    ['code that is not 64-bit', (m) => setGate64(m, 0x40, INTERRUPT, 0, Gdt.CODE0), Vector.GP, Gdt.CODE0 | 1],
    ['a gate of a 286', (m) => setGate64(m, 0x40, 0x86), Vector.GP, 0x40 * 8 + 3],
    [
      'an offset that is not canonical',
      (m) => setGate64(m, 0x40, INTERRUPT, 0, Gdt.CODE64, 0x8000_0000),
      Vector.GP,
      1,
    ],
    [
      'a TSS without that stack',
      (m) => {
        setGate64(m, 0x40, INTERRUPT, 7);
        m.cpu.tr = { ...m.cpu.tr, limit: 0x50 };
      },
      Vector.TS,
      Gdt.TSS | 1,
    ],
    [
      'a stack that is not canonical',
      (m) => {
        setGate64(m, 0x40, INTERRUPT, 1);
        m.set64(At.tss + 36, 1n << 60n);
      },
      Vector.SS,
      1,
    ],
  ])('%s is refused', (_name, prepare, vector, errorCode) => {
    const m = new Machine().long();
    setGate64(m, vector, INTERRUPT);
    prepare(m);
    deliver(m.cpu, interrupt(0x40));
    expect(stacked(m, 8, 2)).toEqual([errorCode, At.code]);
  });

  it('the handler of compatibility mode is 64-bit code, and IRET goes back', () => {
    const m = new Machine().long(3, true);
    setGate64(m, 0x40, INTERRUPT);
    m.rsp = At.stack - 4;
    m.cpu.state.flags |= Flag.IF;
    deliver(m.cpu, interrupt(0x40));
    expect([m.cpu.mode.bits, m.cpu.user]).toEqual([64, false]);
    m.cpu.nmiMasked = true;
    expect(m.execute('48 cf')).toBeUndefined();
    expect([m.cpu.mode.bits, m.cpu.user, m.cpu.state.rip, m.rsp]).toEqual([
      32,
      true,
      BigInt(At.code),
      BigInt(At.stack - 4),
    ]);
    expect([m.cpu.state.flags & Flag.IF, m.cpu.nmiMasked]).toEqual([Flag.IF, false]);
  });
});

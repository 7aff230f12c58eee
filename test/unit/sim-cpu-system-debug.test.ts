import { describe, expect, it } from 'vitest';
import { noteDataAccess } from '../../src/sim/cpu/processor/debug.ts';
import { Vector } from '../../src/sim/cpu/processor/fault.ts';
import { Flag } from '../../src/sim/cpu/processor/state.ts';
import { instructionBreakpoint, trapsAfter } from '../../src/sim/cpu/system/breakpoints.ts';
import { deliver } from '../../src/sim/cpu/system/events.ts';
import { At, Gdt, gate, Machine } from './sim-cpu-system.ts';

const INTERRUPT = 0x8e;
const HANDLER = 0x9_1230;

/** What lies on the stack, from its top down, in words of `size` bytes. */
const stacked = (m: Machine, size: 2 | 4 | 8, count: number): number[] =>
  Array.from({ length: count }, (_, i) => {
    const at = Number(m.rsp) + i * size;
    return size === 2 ? m.u16(at) : size === 4 ? m.u32(at) : Number(m.u64(at));
  });

function setGate(m: Machine, vector: number, selector: number, access: number, offset = HANDLER): void {
  m.set64(At.idt + 8 * vector, gate(selector, offset, access));
}
describe('debug exceptions', () => {
  const stepping = () => {
    const m = new Machine().protected();
    setGate(m, Vector.DB, Gdt.CODE0, INTERRUPT);
    instructionBreakpoint(m.cpu, BigInt(At.code)); // as each step begins
    return m;
  };

  it('a single step is told in DR6 and returns to the next instruction', () => {
    const m = stepping();
    expect(trapsAfter(m.cpu, Flag.TF | 2)).toBeUndefined();
    expect(m.cpu.dr[6]).toBe(0xffff_4ff0n);
    expect([m.cpu.state.rip, stacked(m, 4, 1)]).toEqual([BigInt(HANDLER), [At.code]]);
  });

  it('MOV SS holds it back, and INT n takes it away', () => {
    const m = stepping();
    m.cpu.shadow = 'mov-ss';
    trapsAfter(m.cpu, Flag.TF | 2);
    expect(m.cpu.state.rip).toBe(BigInt(At.code));
    m.cpu.shadow = undefined;
    setGate(m, 0x80, Gdt.CODE0, INTERRUPT, 0x5000);
    m.cpu.state.flags |= Flag.TF;
    m.execute('cd 80');
    trapsAfter(m.cpu, Flag.TF | 2);
    expect(m.cpu.state.rip).toBe(0x5000n);
  });

  it('an instruction breakpoint comes before the instruction, unless RF is set', () => {
    const m = stepping();
    m.cpu.dr[2] = BigInt(At.code);
    m.cpu.dr[7] = 0x410n;
    m.cpu.state.flags |= Flag.RF;
    expect(instructionBreakpoint(m.cpu, BigInt(At.code))).toBe(false);
    expect(m.cpu.state.rip).toBe(BigInt(At.code));
    trapsAfter(m.cpu, Flag.RF | 2);
    expect(m.cpu.state.flags & Flag.RF).toBe(0);
    instructionBreakpoint(m.cpu, BigInt(At.code));
    expect([m.cpu.state.rip, m.cpu.dr[6]]).toEqual([BigInt(HANDLER), 0xffff_0ff4n]);
    expect(stacked(m, 4, 3)).toEqual([At.code, Gdt.CODE0, 2]);
  });

  it('a data breakpoint catches what touches any of its bytes, after the instruction', () => {
    const m = stepping();
    m.cpu.dr[0] = 0x2004n;
    m.cpu.dr[7] = 0x400n | 1n | (0xdn << 16n); // 4 bytes, writes
    instructionBreakpoint(m.cpu, 0n);
    noteDataAccess(m.cpu, 0x2003n, 1, true);
    noteDataAccess(m.cpu, 0x2008n, 8, true);
    noteDataAccess(m.cpu, 0x2004n, 4, false);
    trapsAfter(m.cpu, 2);
    expect(m.cpu.state.rip).toBe(BigInt(At.code));
    noteDataAccess(m.cpu, 0x2000n, 8, true);
    trapsAfter(m.cpu, 2);
    expect([m.cpu.state.rip, m.cpu.dr[6]]).toEqual([BigInt(HANDLER), 0xffff_0ff1n]);
  });

  it("userspace's single step and breakpoints are exits, not exceptions", () => {
    const m = stepping();
    m.cpu.debugging = { singleStep: true, softwareBreakpoints: false, hardware: undefined };
    expect(trapsAfter(m.cpu, 2)).toMatchObject({
      kind: 'debug',
      exception: 1,
      pc: BigInt(At.code),
      dr6: 0xffff_4ff0n,
    });
    m.cpu.debugging = {
      singleStep: false,
      softwareBreakpoints: true,
      hardware: { addresses: [0n, 0n, 0n, BigInt(At.code)], dr7: 0x440n },
    };
    expect(instructionBreakpoint(m.cpu, BigInt(At.code))).toBe(true);
    expect(m.cpu.stop).toMatchObject({ kind: 'debug', dr6: 0xffff_0ff8n });
    expect(m.execute('cc')).toBeUndefined();
    expect(m.cpu.stop).toMatchObject({ kind: 'debug', exception: 3, pc: BigInt(At.code) });
    expect(m.cpu.state.rip).toBe(BigInt(At.code));
  });

  it('MOV DR while DR7.GD is set is caught, and the handler finds GD clear', () => {
    const m = stepping();
    m.cpu.dr[7] = 0x2400n;
    const fault = m.execute('0f 21 c0')!;
    expect([fault.vector, fault.address]).toEqual([Vector.DB, 0x2000n]);
    deliver(m.cpu, { kind: 'exception', ...fault });
    expect([m.cpu.dr[6], m.cpu.dr[7]]).toEqual([0xffff_2ff0n, 0x400n]);
  });
});

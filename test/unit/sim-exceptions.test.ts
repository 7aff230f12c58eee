import { describe, expect, it } from 'vitest';
import { Exit, type Hypervisor, openHypervisor, Selector } from '../../src/index.ts';
import { Vector, viewOf } from '../../src/uapi/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { Agent, Layout } from '../support/agent.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { expectOutcome } from '../support/run.ts';

const IDT = Layout.free;
const HANDLER = Layout.free + 0x1000;
type Told = [vector: number, errorCode: number | undefined, offset: number, address: bigint | undefined];

/** What an observer is told while a snippet runs: RIP as an offset in it. `handled`: the vectors with a gate, to a HLT. */
function told(code: Uint8Array, handled: readonly number[], regs: object = {}): Told[] {
  using hv: Hypervisor = openHypervisor({ backend: 'sim' });
  using agent = Agent.boot(hv);
  const { ram, vcpu } = agent;
  const view = viewOf(ram.bytes);
  ram.bytes[HANDLER] = 0xf4;
  for (const vector of handled) {
    view.setUint16(IDT + 16 * vector, HANDLER & 0xffff, true);
    view.setUint16(IDT + 16 * vector + 2, Selector.CODE64, true);
    view.setUint16(IDT + 16 * vector + 4, 0x8e00, true);
    view.setUint16(IDT + 16 * vector + 6, HANDLER >>> 16, true);
  }
  vcpu.setSregs({ ...vcpu.getSregs(), idt: { base: BigInt(IDT), limit: 0xfff } });
  ram.bytes.set(code, Layout.snippet);
  vcpu.setRegs({ rip: Layout.snippet, rsp: Layout.stack, rflags: 2, ...regs });
  const all: Told[] = [];
  vcpu.observe({
    exception: (vector, errorCode, rip, address) =>
      all.push([vector, errorCode, Number(rip) - Layout.snippet, address]),
  });
  vcpu.run(DEADLINE_MS);
  expectOutcome(vcpu, Exit.HLT, Exit.SHUTDOWN);
  return all;
}

const missing = guest(
  64,
  `
 90    | 0: nop
 88 07 | 1: mov [rdi], al
`,
);
const RDI = 1n << 46n;

describe("an observer's exception()", () => {
  it('has the vector, the error code, RIP, and the address of a page fault', () => {
    const ud = guest(
      64,
      `
 90    | 0: nop
 0f 0b | 1: ud2
`,
    );
    expect(told(ud.code, [Vector.UD])).toEqual([[Vector.UD, undefined, 1, undefined]]);
    expect(told(missing.code, [Vector.PF], { rdi: RDI })).toEqual([[Vector.PF, 2, 1, RDI]]);
  });

  it('is told of traps, INT3 and INT1 with the RIP behind them, and not of INT n', () => {
    const traps = guest(
      64,
      `
 cc | 0: int3
`,
    );
    const int1 = guest(
      64,
      `
 f1 | 0: int1
`,
    );
    const int3 = guest(
      64,
      `
 cd 21 | 0: int 0x21
`,
    );
    expect(told(traps.code, [Vector.BP])).toEqual([[Vector.BP, undefined, 1, undefined]]);
    expect(told(int1.code, [Vector.DB])).toEqual([[Vector.DB, undefined, 1, undefined]]);
    expect(told(int3.code, [0x21])).toEqual([]);
    const stepped = told(Uint8Array.of(0x90, 0x90, 0xf4), [Vector.DB], { rflags: 0x102 });
    expect(stepped).toEqual([[Vector.DB, undefined, 1, undefined]]);
  });

  it('is told of all that leads to a triple fault, or to a double fault', () => {
    const gate = (vector: number) => vector * 8 + 3;
    expect(told(missing.code, [], { rdi: RDI })).toEqual([
      [Vector.PF, 2, 1, RDI],
      [Vector.GP, gate(Vector.PF), 1, undefined],
      [Vector.DF, 0, 1, undefined],
      [Vector.GP, gate(Vector.DF), 1, undefined],
    ]);
    expect(told(missing.code, [Vector.DF], { rdi: RDI }).map(([vector]) => vector)).toEqual([
      Vector.PF,
      Vector.GP,
      Vector.DF,
    ]);
    // A benign exception first: the fault on its way is delivered by itself.
    expect(told(Uint8Array.of(0x0f, 0x0b), [Vector.GP]).map(([vector]) => vector)).toEqual([
      Vector.UD,
      Vector.GP,
    ]);
  });
});

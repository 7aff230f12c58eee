/** Forms as functions of their own: what a guest can do to their number. */
import { describe, expect, it } from 'vitest';
import { Exit, flatImage, Machine, openHypervisor } from '../../src/index.ts';
import { DEADLINE_MS, TEST_MS } from '../support/limits.ts';

const START = 0x1000;
const MEMORY = 2 ** 20;
/** CR4.FSGSBASE. */
const FSGSBASE = 0x1_0000n;
/** More than there may be at once. */
const FORMS = 4200;

const u32 = (value: number) => [value, value >> 8, value >> 16, value >> 24].map((byte) => byte & 0xff);

/** For each number: sub rsp, 8 * number; call f, which is ret 8 * number. Each RET is a form of its own. Then hlt. */
function manyForms(): Uint8Array {
  const calls: number[] = [];
  const functions: number[] = [];
  const size = FORMS * 12 + 1;
  for (let i = 0; i < FORMS; i++) {
    calls.push(0x48, 0x81, 0xec, ...u32(8 * i));
    calls.push(0xe8, ...u32(size + functions.length - (calls.length + 5)));
    functions.push(0xc2, (8 * i) & 0xff, (8 * i) >> 8);
  }
  return Uint8Array.from([...calls, 0xf4, ...functions]);
}

describe('templates', () => {
  it(
    'of more forms than are kept do what they should, and so do those that come after them',
    () => {
      using hv = openHypervisor({ backend: 'sim', simulated: { tier: 'templates' } });
      using machine = new Machine(hv, { memory: MEMORY });
      machine.load(flatImage(manyForms(), 'long', 'forms', { at: START }));
      const { vcpu } = machine;
      const { rsp } = vcpu.getRegs();
      expect(vcpu.run(DEADLINE_MS)).toBe(Exit.HLT);
      expect(vcpu.getRegs().rsp).toBe(rsp);
    },
    TEST_MS,
  );

  it('know that a register is in r/m where the register field is a part of the opcode', () => {
    using hv = openHypervisor({ backend: 'sim', simulated: { tier: 'templates' } });
    using machine = new Machine(hv, { memory: MEMORY });
    // rdgsbase rcx (whose number is the opcode's extension); rdgsbase rdx; hlt
    const code = [0xf3, 0x48, 0x0f, 0xae, 0xc9, 0xf3, 0x48, 0x0f, 0xae, 0xca, 0xf4];
    machine.load(flatImage(Uint8Array.from(code), 'long', 'registers', { at: START }));
    const { vcpu } = machine;
    const { cr4, gs } = vcpu.getSregs();
    vcpu.changeSregs({ cr4: cr4 | FSGSBASE, gs: { ...gs, base: 0x1234_5678n } });
    expect(vcpu.run(DEADLINE_MS)).toBe(Exit.HLT);
    expect(vcpu.getRegs()).toMatchObject({ rcx: 0x1234_5678n, rdx: 0x1234_5678n });
  });
});

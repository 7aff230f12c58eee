/** String instructions that compare, many elements at once: the same as one by one, as an observer makes them go. */
import { describe, expect, it } from 'vitest';
import { Exit, flatImage, Machine, openHypervisor } from '../../src/index.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { randomOf } from './sim-fp-machine.ts';

const SEED = Number(process.env.VMEXIT_SEED ?? 1);
const MEMORY = 2 ** 20;
const [A, B] = [0x2_0000, 0x4_0000];
const LENGTH = 3 * 4096;

/** Prefix, operand size and opcode, with HLT behind it. */
const instructions = [
  ['repne scasb', 0xf2, 0xae],
  ['repe scasb', 0xf3, 0xae],
  ['repne scasw', 0x66, 0xf2, 0xaf],
  ['repe scasd', 0xf3, 0xaf],
  ['repe scasq', 0xf3, 0x48, 0xaf],
  ['repe cmpsb', 0xf3, 0xa6],
  ['repne cmpsw', 0x66, 0xf2, 0xa7],
  ['repe cmpsd', 0xf3, 0xa7],
  ['repe cmpsq', 0xf3, 0x48, 0xa7],
] as const;

describe.each(['amd', 'intel'] as const)('on the %s model', (vendor) => {
  it.each(instructions)('%s gives the registers and flags of its last element', (name, ...code) => {
    const random = randomOf(SEED * 100 + code.length);
    const run = (state: { bytes: readonly Uint8Array[]; regs: object }, observed: boolean) => {
      const simulated = observed ? { vendor, observer: { instruction() {} } } : { vendor };
      using hv = openHypervisor({ backend: 'sim', simulated });
      using machine = new Machine(hv, { memory: MEMORY });
      machine.load(flatImage(Uint8Array.from([...code, 0xf4]), 'long', name, { at: 0x1000 }));
      machine.memory.write(A, state.bytes[0]!);
      machine.memory.write(B, state.bytes[1]!);
      const { vcpu } = machine;
      vcpu.setRegs({ ...vcpu.getRegs(), ...state.regs });
      expect(vcpu.run(DEADLINE_MS)).toBe(Exit.HLT);
      return vcpu.getRegs();
    };
    for (let i = 0; i < 12; i++) {
      const ends = random.below(2 * 4096);
      const fill = name.startsWith('repne') ? 0x55 : 0xaa;
      const first = new Uint8Array(LENGTH).fill(fill);
      const second = new Uint8Array(LENGTH).fill(0xaa);
      // Where they begin or cease to be alike.
      first[ends] = fill ^ 0xff;
      second[ends] = name.startsWith('repne') ? 0xaa : 0x55;
      const offset = random.below(64);
      const rcx = BigInt(random.pick([0, 1, 2, 700, 5000]));
      const rax = name.startsWith('repne') ? 0x5555_5555_5555_5555n : 0xaaaa_aaaa_aaaa_aaaan;
      const regs = { rax, rcx, rsi: BigInt(A + offset), rdi: BigInt(B + random.below(64)), rflags: 2n };
      const state = { bytes: [first, second], regs };
      expect(run(state, false), `${name}, case ${i} (VMEXIT_SEED=${SEED})`).toEqual(run(state, true));
    }
  });
});

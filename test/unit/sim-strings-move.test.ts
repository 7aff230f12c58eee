/** MOVS and STOS of many elements at once, up and down, onto themselves and across pages: what one element after the other gives. */
import { describe, expect, it } from 'vitest';
import { Exit, flatImage, Machine, openHypervisor } from '../../src/index.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { randomOf } from './sim-fp-machine.ts';

const SEED = Number(process.env.VMEXIT_SEED ?? 1);
const MEMORY = 2 ** 20;
const A = 0x2_0000;
const LENGTH = 5 * 4096;
const DF = 0x400n;
const HLT = 0xf4;

const instructions = [
  ['rep movsb', 1, 0xf3, 0xa4],
  ['rep movsw', 2, 0x66, 0xf3, 0xa5],
  ['rep movsd', 4, 0xf3, 0xa5],
  ['rep movsq', 8, 0xf3, 0x48, 0xa5],
  ['rep stosb', 1, 0xf3, 0xaa],
  ['rep stosw', 2, 0x66, 0xf3, 0xab],
  ['rep stosd', 4, 0xf3, 0xab],
  ['rep stosq', 8, 0xf3, 0x48, 0xab],
] as const;

describe.each(['up', 'down'] as const)('%s', (way) => {
  it.each(instructions)('%s gives what its elements give one by one', (name, size, ...code) => {
    const random = randomOf(SEED * 100 + size);
    using hv = openHypervisor({ backend: 'sim' });
    const step = way === 'up' ? size : -size;
    for (let i = 0; i < 40; i++) {
      using machine = new Machine(hv, { memory: MEMORY });
      machine.load(flatImage(Uint8Array.from([...code, HLT]), 'long', name, { at: 0x1000 }));
      const bytes = Uint8Array.from({ length: LENGTH }, () => random.below(256));
      machine.memory.write(A, bytes);
      const rcx = random.pick([0, 1, 2, 7, 100, 600, Math.floor(8192 / size)]);
      // Both ends of all elements are in the bytes; the one side may be where the other is, or nearly so.
      const room = LENGTH - rcx * size;
      const start = random.below(room);
      const near = Math.min(Math.max(start + random.pick([-size, -3, -1, 0, 1, 3, size, 40]), 0), room - 1);
      const [from, to] = [start, random.pick([near, random.below(room)])];
      const first = way === 'up' ? 0 : (rcx - 1) * size;
      const rax = random.pick([0n, 0x8877_6655_4433_2211n]);
      const { vcpu } = machine;
      const [rsi, rdi] = [from, to].map((at) => BigInt(A + at + first));
      const rflags = 2n | (way === 'up' ? 0n : DF);
      vcpu.setRegs({ ...vcpu.getRegs(), rax, rcx, rsi, rdi, rflags });
      expect(vcpu.run(DEADLINE_MS)).toBe(Exit.HLT);

      const value = new Uint8Array(BigUint64Array.of(rax).buffer).subarray(0, size);
      for (let n = 0; n < rcx; n++) {
        const at = first + n * step;
        bytes.set(name.includes('movs') ? bytes.slice(from + at, from + at + size) : value, to + at);
      }
      const message = `case ${i} (VMEXIT_SEED=${SEED}): ${rcx} from ${from} to ${to}`;
      expect(machine.memory.read(A, LENGTH), message).toEqual(bytes);
      const moved = BigInt(rcx * step);
      const after = vcpu.getRegs();
      expect([after.rcx, after.rdi - rdi!], message).toEqual([0n, moved]);
      expect(after.rsi - rsi!, message).toBe(name.includes('movs') ? moved : 0n);
    }
  });
});

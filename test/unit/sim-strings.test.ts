/** String instructions that compare, with many elements at once: the registers and flags of their last element. */
import { describe, expect, it } from 'vitest';
import { Exit, flatImage, Machine, openHypervisor } from '../../src/index.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { randomOf } from './sim-fp-machine.ts';

const SEED = Number(process.env.VMEXIT_SEED ?? 1);
const MEMORY = 2 ** 20;
const [A, B] = [0x2_0000, 0x4_0000];
const LENGTH = 3 * 4096;
const [CF, ZF, SF] = [1n, 0x40n, 0x80n];

const instructions = [
  ['repne scasb', 1, 0xf2, 0xae],
  ['repe scasb', 1, 0xf3, 0xae],
  ['repne scasw', 2, 0x66, 0xf2, 0xaf],
  ['repe scasd', 4, 0xf3, 0xaf],
  ['repe scasq', 8, 0xf3, 0x48, 0xaf],
  ['repe cmpsb', 1, 0xf3, 0xa6],
  ['repne cmpsw', 2, 0x66, 0xf2, 0xa7],
  ['repe cmpsd', 4, 0xf3, 0xa7],
  ['repe cmpsq', 8, 0xf3, 0x48, 0xa7],
] as const;

/** What an instruction is given: memory at A and at B, and registers. */
interface Given {
  readonly a: Uint8Array;
  readonly b: Uint8Array;
  readonly rax: bigint;
  readonly rcx: number;
  readonly rsi: number;
  readonly rdi: number;
}

/** SDM volume 2, CMPS, SCAS and REP. */
function expected(name: string, size: number, { a, b, rax, rcx, rsi, rdi }: Given) {
  const element = (bytes: Uint8Array, at: number) => {
    let value = 0n;
    for (let i = size - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[at + i]!);
    return value;
  };
  const [compares, alike] = [name.includes('cmps'), name.startsWith('repe ')];
  let done = 0;
  let flags: bigint | undefined;
  while (done < rcx) {
    const at = size * done++;
    const left = compares ? element(a, rsi - A + at) : BigInt.asUintN(size * 8, rax);
    const right = element(b, rdi - B + at);
    const sign = BigInt.asIntN(size * 8, left - right) < 0n;
    flags = (left < right ? CF : 0n) | (left === right ? ZF : 0n) | (sign ? SF : 0n);
    if ((left === right) !== alike) break;
  }
  const moved = BigInt(size * done);
  return {
    rcx: BigInt(rcx - done),
    rsi: BigInt(rsi) + (compares ? moved : 0n),
    rdi: BigInt(rdi) + moved,
    flags: flags ?? 0n,
  };
}

describe.each(['amd', 'intel'] as const)('on the %s model', (vendor) => {
  it.each(instructions)(
    '%s ends where it should, with the flags of its last element',
    (name, size, ...code) => {
      const random = randomOf(SEED * 100 + code.length + size);
      using hv = openHypervisor({ backend: 'sim', simulated: { vendor } });
      for (let i = 0; i < 30; i++) {
        const differs = name.startsWith('repne');
        const a = new Uint8Array(LENGTH).fill(differs ? 0x55 : 0xaa);
        const b = new Uint8Array(LENGTH).fill(0xaa);
        // Where they begin or cease to be alike, by one element or more.
        const ends = random.below(LENGTH - 8);
        b.fill(random.pick([0x55, 0x55, 0x12, 0xfe]), ends, ends + random.pick([1, 2, 4, 8]));
        const given: Given = {
          a,
          b,
          rax: differs ? 0x5555_5555_5555_5555n : 0xaaaa_aaaa_aaaa_aaaan,
          rcx: random.pick([0, 1, 2, 100, 700, 1500]),
          rsi: A + random.below(64),
          rdi: B + random.below(64),
        };
        using machine = new Machine(hv, { memory: MEMORY });
        machine.load(flatImage(Uint8Array.from([...code, 0xf4]), 'long', name, { at: 0x1000 }));
        machine.memory.write(A, a);
        machine.memory.write(B, b);
        const { vcpu } = machine;
        const { rax, rcx, rsi, rdi } = given;
        vcpu.setRegs({ ...vcpu.getRegs(), rax, rcx, rsi, rdi, rflags: 2n });
        expect(vcpu.run(DEADLINE_MS)).toBe(Exit.HLT);
        const after = vcpu.getRegs();
        const found = {
          rcx: after.rcx,
          rsi: after.rsi,
          rdi: after.rdi,
          flags: after.rflags & (CF | ZF | SF),
        };
        expect(found, `${name}, case ${i} (VMEXIT_SEED=${SEED})`).toEqual(expected(name, size, given));
      }
    },
  );
});

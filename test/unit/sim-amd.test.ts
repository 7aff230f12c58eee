/** What AMD's processors alone have: SSE4a and RDPRU (APM volumes 3 and 4), on each vendor's model and in each tier. */
import { describe, expect, it } from 'vitest';
import { Exit, openHypervisor, type SimulatedHost } from '../../src/index.ts';
import { viewOf } from '../../src/uapi/index.ts';
import { type Guest, guest } from '../../src/vmm/guest.ts';
import { Agent, Layout } from '../support/agent.ts';

const tiers = ['closures', 'templates', 'wasm'] as const;
const TSD = 4n;
const DATA = Layout.free;

const extrq = guest(
  64,
  `
 f3 0f 6f 0f    | movdqu xmm1, [rdi]
 f3 0f 6f 57 10 | movdqu xmm2, [rdi + 16]
 66 0f 79 ca    | extrq xmm1, xmm2
 66 48 0f 7e c8 | movq rax, xmm1
 c3             | ret
`,
);
const extrqImmediates = guest(
  64,
  `
 f3 0f 6f 0f       | movdqu xmm1, [rdi]
 66 0f 78 c1 0c 14 | extrq xmm1, 12, 20
 66 48 0f 7e c8    | movq rax, xmm1
 c3                | ret
`,
);
const insertq = guest(
  64,
  `
 f3 0f 6f 0f    | movdqu xmm1, [rdi]
 f3 0f 6f 57 10 | movdqu xmm2, [rdi + 16]
 f2 0f 79 ca    | insertq xmm1, xmm2
 66 48 0f 7e c8 | movq rax, xmm1
 c3             | ret
`,
);
const insertqImmediates = guest(
  64,
  `
 f3 0f 6f 0f       | movdqu xmm1, [rdi]
 f3 0f 6f 57 10    | movdqu xmm2, [rdi + 16]
 f2 0f 78 ca 0c 14 | insertq xmm1, xmm2, 12, 20
 66 48 0f 7e c8    | movq rax, xmm1
 c3                | ret
`,
);
const stores = guest(
  64,
  `
 f3 0f 6f 0f    | movdqu xmm1, [rdi]
 f3 0f 2b 4f 21 | movntss [rdi + 33], xmm1
 f2 0f 2b 4f 29 | movntsd [rdi + 41], xmm1
 c3             | ret
`,
);
const rdpru = guest(
  64,
  `
 f9          | stc
 0f 01 fd    | rdpru
 9c          | pushfq
 5e          | pop rsi
 48 c1 e2 20 | shl rdx, 32
 48 09 d0    | or rax, rdx
 c3          | ret
`,
);

function withAgent<T>(
  simulated: SimulatedHost,
  privilege: 0 | 3,
  use: (agent: Agent) => T,
  words: readonly bigint[] = [],
): T {
  using hv = openHypervisor({ backend: 'sim', simulated });
  using agent = Agent.boot(hv, { privilege });
  agent.vcpu.changeSregs({ cr4: agent.vcpu.getSregs().cr4 | 0x600n });
  const view = viewOf(agent.ram.bytes);
  for (const [i, word] of words.entries()) view.setBigUint64(DATA + 8 * i, word, true);
  return use(agent);
}
const answer = (tier: (typeof tiers)[number], code: Guest, words: readonly bigint[]) =>
  withAgent(
    { tier },
    0,
    (agent) => {
      agent.beginCode(code, { rdi: DATA });
      return agent.answer;
    },
    words,
  );

const WORD = 0xfedc_ba98_7654_3210n;
const field = (length: number, index: number) => BigInt(length | (index << 8));

describe.each(tiers)('SSE4a (%s)', (tier) => {
  it('takes a field of bits out of the lower half', () => {
    const taken = (length: number, index: number) =>
      answer(tier, extrq, [WORD, 0n, 0xffff_c0c0_0000n | field(length, index), 0n]);
    expect(taken(8, 4)).toBe(0x21n);
    expect(taken(0, 0)).toBe(WORD); // 64 bits
    expect(taken(63, 1)).toBe(WORD >> 1n);
    expect(answer(tier, extrqImmediates, [WORD, 0n])).toBe(0x765n);
  });

  it('puts a field of bits into the lower half, its place in the upper half of the source', () => {
    const put = (length: number, index: number) =>
      answer(tier, insertq, [WORD, 0n, 0xabcd_ef01_2345_6789n, field(length, index)]);
    expect(put(8, 4)).toBe(0xfedc_ba98_7654_3890n);
    expect(put(0, 0)).toBe(0xabcd_ef01_2345_6789n);
    expect(answer(tier, insertqImmediates, [WORD, 0n, 0xabcn, 0n])).toBe(0xfedc_ba98_abc4_3210n);
  });

  it('stores one number where nothing is aligned', () => {
    withAgent(
      { tier },
      0,
      (agent) => {
        agent.beginCode(stores, { rdi: DATA });
        agent.answer;
        const view = viewOf(agent.ram.bytes);
        expect(view.getBigUint64(DATA + 33, true)).toBe(WORD & 0xffff_ffffn);
        expect(view.getBigUint64(DATA + 41, true)).toBe(WORD);
      },
      [WORD, 0n],
    );
  });

  it('is none of an Intel processor', () => {
    for (const code of [extrq, insertqImmediates, stores])
      withAgent({ tier, vendor: 'intel' }, 0, (agent) => {
        expect(agent.beginCode(code, { rdi: DATA })).toBe(Exit.SHUTDOWN);
      });
  });
});

describe.each(tiers)('RDPRU (%s)', (tier) => {
  const CF = 1n;
  const read = (agent: Agent, rcx: number) => {
    agent.beginCode(rdpru, { rcx });
    const value = agent.answer;
    return { value, carry: agent.vcpu.getRegs().rsi & CF };
  };
  it.each([0, 3] as const)('gives MPERF and APERF at privilege %i, which count instructions', (privilege) => {
    withAgent({ tier }, privilege, (agent) => {
      const first = read(agent, 0);
      const second = read(agent, 1);
      expect(first.carry & second.carry).toBe(CF);
      expect(second.value).toBeGreaterThan(first.value);
    });
  });
  it('gives nothing and no carry for a register that is not there', () => {
    withAgent({ tier }, 0, (agent) => {
      expect(read(agent, 2)).toEqual({ value: 0n, carry: 0n });
    });
  });
  it('is for privilege 0 alone when CR4.TSD is set: #UD', () => {
    const withTsd = (privilege: 0 | 3) =>
      withAgent({ tier }, privilege, (agent) => {
        agent.vcpu.changeSregs({ cr4: agent.vcpu.getSregs().cr4 | TSD });
        return agent.beginCode(rdpru, { rcx: 0 });
      });
    expect(withTsd(0)).toBe(Exit.IO);
    expect(withTsd(3)).toBe(Exit.SHUTDOWN);
  });
  it('is none of an Intel processor', () => {
    withAgent({ tier, vendor: 'intel' }, 0, (agent) => {
      expect(agent.beginCode(rdpru)).toBe(Exit.SHUTDOWN);
    });
  });
  it('is told by CPUID, with the last register that there is', () => {
    using amd = openHypervisor({ backend: 'sim' });
    using intel = openHypervisor({ backend: 'sim', simulated: { vendor: 'intel' } });
    const leaf = (hv: typeof amd) => hv.getSupportedCpuid().find((entry) => entry.function === 0x8000_0008)!;
    expect([leaf(amd).ebx & 0x10, leaf(amd).edx >>> 16]).toEqual([0x10, 1]);
    expect([leaf(intel).ebx, leaf(intel).edx]).toEqual([0, 0]);
  });
});

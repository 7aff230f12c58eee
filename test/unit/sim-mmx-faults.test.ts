/** What a store of an MMX register that faults leaves of the x87: on Intel's processors TOP is zero by then. */
import { expect, it } from 'vitest';
import { Exit, openHypervisor } from '../../src/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { Agent } from '../support/agent.ts';
import { expectOutcome } from '../support/run.ts';

/** Two values on the x87's stack, and a store to where nothing is mapped. */
const stores = [
  guest(64, 'd9 e8 d9 ee 0f 7e 06 | fld1; fldz; movd [rsi], mm0'),
  guest(64, 'd9 e8 d9 ee 0f 7f 06 | fld1; fldz; movq [rsi], mm0'),
  guest(64, 'd9 e8 d9 ee 48 0f 7e 06 | fld1; fldz; movq [rsi], mm0'),
  guest(64, 'd9 e8 d9 ee 0f e7 06 | fld1; fldz; movntq [rsi], mm0'),
];
/** Of FXSAVE's image: bits 11 to 13 of the status word, and one bit for each register that is not empty. */
const topOf = (fsw: number) => (fsw >>> 11) & 7;
const TWO = 0xc0;

for (const [vendor, top] of [
  ['intel', 0],
  ['amd', 6],
] as const) {
  it(`a store of an MMX register that faults leaves TOP ${top} and the tags on a processor of ${vendor}`, () => {
    using hv = openHypervisor({ backend: 'sim', simulated: { vendor } });
    expect(hv.backend).toBe('sim');
    for (const store of stores) {
      using agent = Agent.boot(hv, { privilege: 3 });
      agent.beginCode(store, { rsi: 2n ** 46n });
      expectOutcome(agent.vcpu, Exit.SHUTDOWN);
      const { fsw, ftwx } = agent.vcpu.getFpu();
      expect([topOf(fsw), ftwx]).toEqual([top, TWO]);
    }
  });
}

/** What the x87 says of its last instruction (SDM volume 1, 8.1.8): position-independent code asks it for its place. */
import { expect } from 'vitest';
import { guest } from '../../src/vmm/guest.ts';
import { Agent, Layout } from '../support/agent.ts';
import { conformance } from '../support/suite.ts';

/** The other words are above RSP, where the return address is not overwritten. */
const whereAmI = guest(
  64,
  `
 d9 ee          | fldz
 48 83 ec 20    | sub rsp, 32
 d9 34 24       | fnstenv [rsp]
 48 8b 44 24 0c | mov rax, [rsp+12]      # FIP, and above it FCS and FOP
 48 83 c4 20    | add rsp, 32
 c3             | ret
`,
);

conformance("the x87's pointers", ({ it }) => {
  it('FNSTENV gives the address of the last instruction', (hv) => {
    using agent = Agent.boot(hv);
    agent.beginCode(whereAmI);
    expect(agent.answer & 0xffff_ffffn).toBe(BigInt(Layout.snippet));
  });
});

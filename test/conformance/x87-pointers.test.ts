/** What the x87 says of its last instruction (SDM volume 1, 8.1.8): position-independent code asks it for its place. */
import { expect } from 'vitest';
import { Exit, enterProtectedMode, FLAT_ADDRESS, flatImage, Machine } from '../../src/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { Agent, Layout } from '../support/agent.ts';
import { runTo } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

const whereAmI = guest(
  32,
  `
 d9 ee       | fldz
 d9 74 24 f4 | fnstenv [esp-12]         # FIP is its fourth word
 58          | pop eax
 f4          | hlt
`,
);
/** The other words are above RSP, where the return address is not overwritten. */
const whereAmI64 = guest(
  64,
  `
 d9 ee          | fldz
 48 83 ec 20    | sub rsp, 32
 d9 34 24       | fnstenv [rsp]
 48 8b 44 24 0c | mov rax, [rsp+12]     # FIP, and above it FCS and FOP
 48 83 c4 20    | add rsp, 32
 c3             | ret
`,
);

const MIB = 2 ** 20;
const TABLES = 0x8_0000;
const STACK = 0x9000;

conformance("the x87's pointers", ({ it, needs }) => {
  // A PVM host emulates 32-bit code.
  needs('hardware-virtualization')(
    'FNSTENV gives the address of the last instruction, in 32-bit mode',
    (hv) => {
      using machine = new Machine(hv, { memory: MIB });
      const { memory, vcpu } = machine;
      machine.load(flatImage(whereAmI.code, 'real'));
      enterProtectedMode(vcpu, memory, { tables: TABLES });
      vcpu.setRegs({ rip: FLAT_ADDRESS, rsp: STACK, rflags: 2 });
      runTo(vcpu, Exit.HLT);
      expect(vcpu.getRegs().rax).toBe(BigInt(FLAT_ADDRESS));
    },
  );

  it('and in 64-bit mode', (hv) => {
    using agent = Agent.boot(hv, { privilege: 3 });
    agent.beginCode(whereAmI64);
    expect(agent.answer & 0xffff_ffffn).toBe(BigInt(Layout.snippet));
  });
});

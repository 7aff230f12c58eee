/** What one vCPU leaves undone is nothing to the next one that runs in the same process. */
import { expect, it } from 'vitest';
import { Exit, openHypervisor } from '../../src/index.ts';
import { GuestDebug } from '../../src/uapi/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { Agent, Layout } from '../support/agent.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { errnoOf, expectOutcome, runTo } from '../support/run.ts';

const DEVICE = 0x4000_0000;
const BS = 1n << 14n;

function place({ ram, vcpu }: Agent, code: Uint8Array, regs: object = {}): void {
  ram.bytes.set(code, Layout.snippet);
  vcpu.setRegs({ rip: Layout.snippet, rsp: Layout.stack, rflags: 2, ...regs });
}

it("a breakpoint that one's unfinished instruction has hit is not told of another's", () => {
  using hv = openHypervisor({ backend: 'sim' });
  using stepped = Agent.boot(hv);
  using watched = Agent.boot(hv);
  place(stepped, Uint8Array.of(0xe6, 0x80, 0xf4)); // out 0x80, al; hlt
  stepped.vcpu.setGuestDebug({ control: GuestDebug.ENABLE | GuestDebug.SINGLESTEP });
  runTo(stepped.vcpu, Exit.IO);
  place(watched, Uint8Array.of(0x8a, 0x07, 0xf4), { rdi: DEVICE }); // mov al, [rdi]; hlt
  watched.vcpu.setGuestDebug({
    control: GuestDebug.ENABLE | GuestDebug.USE_HW_BP,
    arch: { debugreg: [BigInt(DEVICE), 0n, 0n, 0n, 0n, 0n, 0n, 0x3_0402n] },
  });
  runTo(watched.vcpu, Exit.MMIO);

  runTo(stepped.vcpu, Exit.DEBUG);
  const { exit } = stepped.vcpu;
  expect(exit.reason === 'DEBUG' && exit.dr6 & 0xe00fn).toBe(BS);
  runTo(watched.vcpu, Exit.DEBUG);
  const { exit: other } = watched.vcpu;
  expect(other.reason === 'DEBUG' && other.dr6 & 0xe00fn).toBe(1n);
});

it('no other can run in the middle of an instruction, and what it has computed so far stays', () => {
  using hv = openHypervisor({ backend: 'sim' });
  using first = Agent.boot(hv);
  using second = Agent.boot(hv);
  const sum = guest(
    64,
    `
 f3 0f 58 07 | addss xmm0, dword ptr [rdi]
 f4          | hlt
`,
  );
  const another = guest(
    64,
    `
 0f 57 c0    | xorps xmm0, xmm0
 f3 0f 5c c1 | subss xmm0, xmm1
 f4          | hlt
`,
  );
  place(second, another.code);
  const data = Layout.free + 0x8000;
  place(first, sum.code, { rdi: data });
  const one = [0, 0, 0x80, 0x3f];
  first.ram.bytes.set(one, data);
  const fpu = first.vcpu.getFpu();
  const xmm = fpu.xmm.map((bytes) => Uint8Array.from(bytes));
  xmm[0]!.set(one);
  first.vcpu.setFpu({ ...fpu, xmm });
  const answers: string[] = [];
  first.vcpu.observe({
    secondStage: ({ access }) => {
      if (access === 'read') answers.push(errnoOf(() => second.vcpu.run(DEADLINE_MS)));
    },
    instruction: () => {},
  });
  runTo(first.vcpu, Exit.HLT);
  expect(answers).toContain('EBUSY');
  expect([...first.vcpu.getFpu().xmm[0]!.slice(0, 4)]).toEqual([0, 0, 0, 0x40]); // 2.0
  second.vcpu.run(DEADLINE_MS);
  expectOutcome(second.vcpu, Exit.HLT);
});

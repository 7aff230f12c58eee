/** RDMSR and WRMSR that userspace answers (api.rst, KVM_CAP_X86_USER_SPACE_MSR; x86.c, kvm_msr_user_space). */
import { expect } from 'vitest';
import { Cap, Exit, type Hypervisor, type Vm } from '../../src/index.ts';
import { MsrExitReason, Vector } from '../../src/uapi/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { Agent, Layout } from '../support/agent.ts';
import { handled, installHandlers } from '../support/handlers.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { errnoOf, expectOutcome } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

/** rax: edx and eax of RDMSR as one. */
const rdmsr = guest(
  64,
  `
 0f 32       | rdmsr
 48 c1 e2 20 | shl rdx, 32
 48 09 d0    | or rax, rdx
 c3          | ret
`,
);
const wrmsr = guest(
  64,
  `
 0f 30 | wrmsr
 c3    | ret
`,
);

const { INVAL, UNKNOWN, FILTER } = MsrExitReason;
/** An MSR that nobody has (the kernel's own selftest takes it too). */
const NONE = 0x474f_4f00;
const MSR_PAT = 0x277;
/** No memory type has number 2. */
const BAD_PAT = 0x0202_0202_0202_0202n;
const VALUE = 0x1122_3344_5566_7788n;

/** The agent, with exits for these reasons. */
function boot(hv: Hypervisor, reasons: number): Agent {
  const agent = Agent.boot(hv, {
    prepare: (vm: Vm) => vm.enableCap({ cap: Cap.X86_USER_SPACE_MSR, args: [reasons] }),
  });
  installHandlers(agent);
  return agent;
}

const read = (agent: Agent, index: number) => agent.beginCode(rdmsr, { rcx: index });
const write = (agent: Agent, index: number, value: bigint) =>
  agent.beginCode(wrmsr, { rcx: index, rax: value & 0xffff_ffffn, rdx: value >> 32n });

conformance('MSR exits', ({ it }) => {
  it('a RDMSR of an unknown MSR is answered with a value', (hv) => {
    using agent = boot(hv, UNKNOWN);
    const { vcpu } = agent;
    read(agent, NONE);
    expectOutcome(vcpu, Exit.X86_RDMSR);
    expect(vcpu.exit).toMatchObject({ index: NONE, data: 0n, cause: UNKNOWN, error: 0 });
    expect([vcpu.msr.index, vcpu.msr.reason, vcpu.msr.error]).toEqual([NONE, UNKNOWN, 0]);
    vcpu.msr.data = VALUE;
    expect(agent.resume()).toBe(VALUE);
  });

  it('a RDMSR is answered with #GP', (hv) => {
    using agent = boot(hv, UNKNOWN);
    read(agent, NONE);
    expectOutcome(agent.vcpu, Exit.X86_RDMSR);
    agent.vcpu.msr.error = 1;
    agent.vcpu.run(DEADLINE_MS);
    expect(handled(agent)).toBe(Vector.GP);
  });

  it('a WRMSR of an unknown MSR is seen with its value, and the guest goes on', (hv) => {
    using agent = boot(hv, UNKNOWN);
    const { vcpu } = agent;
    write(agent, NONE, VALUE);
    expectOutcome(vcpu, Exit.X86_WRMSR);
    expect([vcpu.msr.index, vcpu.msr.reason, vcpu.msr.data]).toEqual([NONE, UNKNOWN, VALUE]);
    expect(agent.resume()).toBe(VALUE & 0xffff_ffffn);
  });

  it('a WRMSR is answered with #GP at the instruction', (hv) => {
    using agent = boot(hv, UNKNOWN);
    const { vcpu } = agent;
    write(agent, NONE, VALUE);
    expectOutcome(vcpu, Exit.X86_WRMSR);
    vcpu.msr.error = 1;
    vcpu.complete(() => expect.unreachable());
    expect(vcpu.getRegs().rip).toBe(BigInt(Layout.snippet));
    expect(vcpu.getVcpuEvents().exception).toMatchObject({ nr: Vector.GP, hasErrorCode: 1, errorCode: 0 });
    vcpu.run(DEADLINE_MS);
    expect(handled(agent)).toBe(Vector.GP);
  });

  it('a value that an MSR refuses is told as INVAL, and what was answered does not reach the MSR', (hv) => {
    using agent = boot(hv, INVAL);
    const { vcpu } = agent;
    const [before] = vcpu.getMsrs([MSR_PAT]);
    write(agent, MSR_PAT, BAD_PAT);
    expectOutcome(vcpu, Exit.X86_WRMSR);
    expect([vcpu.msr.index, vcpu.msr.reason, vcpu.msr.data]).toEqual([MSR_PAT, INVAL, BAD_PAT]);
    agent.resume();
    expect(vcpu.getMsrs([MSR_PAT])).toEqual([before]);
  });

  it('a failure whose reason was not asked for stays #GP, and one that succeeds is no exit', (hv) => {
    for (const [reasons, index] of [
      [INVAL | FILTER, NONE],
      [0, NONE],
      [UNKNOWN | FILTER, MSR_PAT],
    ] as const) {
      using agent = boot(hv, reasons);
      write(agent, index, BAD_PAT);
      expect(handled(agent), `${reasons} ${index}`).toBe(Vector.GP);
    }
    using agent = boot(hv, INVAL | UNKNOWN | FILTER);
    read(agent, MSR_PAT);
    expect(agent.answer).toBe(agent.vcpu.getMsrs([MSR_PAT])[0]?.data);
  });

  it('registers set while a RDMSR waits are kept, but for rax and rdx, and the guest goes on behind it', (hv) => {
    using agent = boot(hv, UNKNOWN);
    const { vcpu } = agent;
    read(agent, NONE);
    expectOutcome(vcpu, Exit.X86_RDMSR);
    const regs = vcpu.getRegs();
    expect(regs.rip).toBe(BigInt(Layout.snippet));
    vcpu.setRegs({ ...regs, rax: -1, rdx: -1, rsi: 0x51n, rcx: 1n });
    vcpu.msr.data = VALUE;
    vcpu.complete(() => expect.unreachable());
    const after = vcpu.getRegs();
    expect(after).toMatchObject({ rax: VALUE & 0xffff_ffffn, rdx: VALUE >> 32n, rsi: 0x51n, rcx: 1n });
    expect(after.rip).toBe(BigInt(Layout.snippet + 2));
  });

  it('KVM_CAP_X86_USER_SPACE_MSR takes the reasons that there are, and no other', (hv) => {
    using vm = hv.createVm();
    expect(vm.checkExtension(Cap.X86_USER_SPACE_MSR)).toBe(1);
    const enable = (reasons: number) =>
      errnoOf(() => vm.enableCap({ cap: Cap.X86_USER_SPACE_MSR, args: [reasons] }));
    expect([enable(INVAL | UNKNOWN | FILTER), enable(0), enable(FILTER << 1)]).toEqual([
      'ok',
      'ok',
      'EINVAL',
    ]);
  });
});

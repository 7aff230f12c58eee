/** RDMSR and WRMSR that userspace answers (api.rst, KVM_CAP_X86_USER_SPACE_MSR; x86.c, kvm_msr_user_space). */
import { describe, expect } from 'vitest';
import { Cap, Exit, type Hypervisor, type Vm } from '../../src/index.ts';
import { MsrExitReason, MsrFilter, Vector } from '../../src/uapi/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { captureState } from '../../src/vmm/snapshot/index.ts';
import { Agent, Layout } from '../support/agent.ts';
import { handled, installHandlers } from '../support/handlers.ts';
import { type It, on } from '../support/host.ts';
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
const MSR_EFER = 0xc000_0080;
const MSR_LSTAR = 0xc000_0082;
/** No memory type has number 2; in EFER its second bit is reserved (SDM volume 3, 2.2.1), as others are. */
const BAD = 0x0202_0202_0202_0202n;
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

conformance('MSR exits', ({ it, needs }) => {
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

  const refusing: readonly (readonly [string, number, It])[] = [
    ['EFER', MSR_EFER, it],
    // A PVM host takes any value.
    ['PAT', MSR_PAT, needs('hardware-virtualization')],
  ];
  for (const [name, index, itThere] of refusing) {
    itThere(
      `a value that ${name} refuses is told as INVAL, and what was answered does not reach it`,
      (hv) => {
        using agent = boot(hv, INVAL);
        const { vcpu } = agent;
        const [before] = vcpu.getMsrs([index]);
        write(agent, index, BAD);
        expectOutcome(vcpu, Exit.X86_WRMSR);
        expect([vcpu.msr.index, vcpu.msr.reason, vcpu.msr.data]).toEqual([index, INVAL, BAD]);
        agent.resume();
        expect(vcpu.getMsrs([index])).toEqual([before]);
      },
    );
  }

  it('a failure whose reason was not asked for stays #GP, and one that succeeds is no exit', (hv) => {
    for (const [reasons, index] of [
      [INVAL | FILTER, NONE],
      [0, NONE],
      [UNKNOWN | FILTER, MSR_EFER],
    ] as const) {
      using agent = boot(hv, reasons);
      write(agent, index, BAD);
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

  it('a filter denies what its bitmap has no bit for, reads and writes apart', (hv) => {
    using agent = boot(hv, 0);
    const { vcpu, vm } = agent;
    const pat = vcpu.getMsrs([MSR_PAT])[0]!.data;
    // Of 0x276 to 0x279 all but 0x277 may be written.
    const range = { base: MSR_PAT - 1, nmsrs: 4, bitmap: Uint8Array.of(0b1101) };
    vm.setMsrFilter({ ranges: [{ ...range, flags: MsrFilter.WRITE }] });
    read(agent, MSR_PAT);
    expect(agent.answer).toBe(pat);
    write(agent, MSR_PAT, 0n);
    expect(handled(agent)).toBe(Vector.GP);
    vm.setMsrFilter({ ranges: [{ ...range, flags: MsrFilter.READ }] });
    expect(agent.begin('hlt')).toBe(Exit.HLT);
    write(agent, MSR_PAT, 0x0606_0606_0606_0606n);
    expect(agent.answered).toBe(true);
    expect(vcpu.getMsrs([MSR_PAT])[0]?.data).toBe(0x0606_0606_0606_0606n);
    read(agent, MSR_PAT);
    expect(handled(agent)).toBe(Vector.GP);
  });

  it('a filter that denies by default allows what a range allows, and what is denied is an exit', (hv) => {
    using agent = boot(hv, FILTER);
    const { vcpu, vm } = agent;
    const both = MsrFilter.READ | MsrFilter.WRITE;
    vm.setMsrFilter({
      flags: MsrFilter.DEFAULT_DENY,
      ranges: [
        { flags: both, base: MSR_PAT, nmsrs: 1, bitmap: Uint8Array.of(1) },
        { flags: both, base: MSR_PAT, nmsrs: 1, bitmap: Uint8Array.of(0) },
      ],
    });
    read(agent, MSR_PAT);
    expect(agent.answered).toBe(true);
    // The processor has it without KVM, as long as the filter allows it.
    read(agent, MSR_LSTAR);
    expectOutcome(vcpu, Exit.X86_RDMSR);
    expect([vcpu.msr.index, vcpu.msr.reason]).toEqual([MSR_LSTAR, FILTER]);
    vcpu.msr.data = VALUE;
    expect(agent.resume()).toBe(VALUE);
    write(agent, MSR_LSTAR, 0x1000n);
    expectOutcome(vcpu, Exit.X86_WRMSR);
    expect([vcpu.msr.reason, vcpu.msr.data]).toEqual([FILTER, 0x1000n]);
    agent.resume();
    expect(vcpu.getMsrs([MSR_LSTAR])[0]?.data).toBe(0n);
    vm.setMsrFilter({});
    write(agent, MSR_LSTAR, 0x1000n);
    expect(agent.answered).toBe(true);
    expect(vcpu.getMsrs([MSR_LSTAR])[0]?.data).toBe(0x1000n);
  });

  it('a filter that denies an unknown MSR is told as FILTER, and an answer stands when the filter is gone', (hv) => {
    using agent = boot(hv, FILTER | UNKNOWN);
    const { vcpu, vm } = agent;
    vm.setMsrFilter({
      ranges: [{ flags: MsrFilter.READ, base: MSR_PAT, nmsrs: 1, bitmap: new Uint8Array(1) }],
    });
    read(agent, NONE);
    expect(vcpu.msr.reason).toBe(UNKNOWN);
    agent.resume();
    read(agent, MSR_PAT);
    expect([vcpu.msr.index, vcpu.msr.reason]).toEqual([MSR_PAT, FILTER]);
    vm.setMsrFilter({});
    vcpu.msr.data = VALUE;
    expect(agent.resume()).toBe(VALUE);
  });

  it('a filter that KVM does not know is refused, and the last one stays', (hv) => {
    using agent = boot(hv, 0);
    const { vm } = agent;
    expect(vm.checkExtension(Cap.X86_MSR_FILTER)).toBe(1);
    const range = { flags: MsrFilter.READ, base: MSR_PAT, nmsrs: 1, bitmap: new Uint8Array(1) };
    vm.setMsrFilter({ ranges: [range] });
    for (const filter of [
      { flags: 2 },
      { flags: MsrFilter.DEFAULT_DENY },
      { flags: MsrFilter.DEFAULT_DENY, ranges: [{ ...range, nmsrs: 0 }] },
      { ranges: [{ ...range, flags: 0 }] },
      { ranges: [{ ...range, flags: 4 }] },
    ])
      expect(
        errnoOf(() => vm.setMsrFilter(filter)),
        JSON.stringify(filter),
      ).toBe('EINVAL');
    read(agent, MSR_PAT);
    expect(handled(agent)).toBe(Vector.GP);
    const given = (filter: object) => () => vm.setMsrFilter(filter);
    expect(given({ ranges: [{ ...range, nmsrs: 9 }] })).toThrow(/ranges\[0\]\.bitmap's length/);
    expect(given({ ranges: [{ ...range, nmsrs: 12_289 }] })).toThrow(/ranges\[0\]\.nmsrs/);
    expect(given({ ranges: [{ ...range, bitmap: [1] }] })).toThrow(TypeError);
    expect(given({ ranges: Array(17).fill(range) })).toThrow(/at most 16/);
  });

  it('a VM with a filter is not saved without it', (hv) => {
    using agent = boot(hv, 0);
    const { vcpu, vm } = agent;
    const save = () => captureState(hv, vm, [vcpu]);
    vm.setMsrFilter({
      ranges: [{ flags: MsrFilter.READ, base: MSR_PAT, nmsrs: 1, bitmap: new Uint8Array(1) }],
    });
    expect(save).toThrow(/a filter of MSRs/);
    vm.setMsrFilter({});
    expect(save().state.vcpus.length).toBe(1);
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

describe('MSR exits (sim)', () => {
  // Processors of Intel's and old ones of AMD's let KVM find the next instruction from rip as it was set.
  on('sim')(
    'rip that is set while a RDMSR waits does not count where the processor has saved the next',
    (hv) => {
      using agent = boot(hv, UNKNOWN);
      const { vcpu } = agent;
      read(agent, NONE);
      vcpu.setRegs({ ...vcpu.getRegs(), rip: 0x7777n, rsi: 0x51n });
      vcpu.msr.data = VALUE;
      vcpu.complete(() => expect.unreachable());
      const after = { rip: BigInt(Layout.snippet + 2), rsi: 0x51n, rax: VALUE & 0xffff_ffffn };
      expect(vcpu.getRegs()).toMatchObject(after);
    },
  );
});

/** A guest that expects Hyper-V (the TLFS; api.rst, KVM_CAP_HYPERV_SYNIC, KVM_GET_SUPPORTED_HV_CPUID, KVM_EXIT_HYPERV). */
import { expect } from 'vitest';
import { Cap, Exit, HypervExit, type Hypervisor } from '../../src/index.ts';
import { Agent, Layout } from '../support/agent.ts';
import { on } from '../support/host.ts';
import { rdmsr, wrmsr } from '../support/msr-guest.ts';
import { errnoOf, expectOutcome } from '../support/run.ts';

const Msr = { GUEST_OS_ID: 0x4000_0000, HYPERCALL: 0x4000_0001, SCONTROL: 0x4000_0080 } as const;
const Syndbg = { CONTROL: 0x4000_00f1, STATUS: 0x4000_00f2 } as const;
const Leaf = { INTERFACE: 0x4000_0001, FEATURES: 0x4000_0003 } as const;
/** `Hv#1`: what a guest knows the interface by. */
const SIGNATURE = 0x3123_7648;
const Call = { POST_MESSAGE: 0x5c, SIGNAL_EVENT: 0x5d, FAST: 1 << 16, UNKNOWN: 0x1000 } as const;
const Status = { INVALID_HYPERCALL_CODE: 2n, INVALID_PORT_ID: 0x12n } as const;

const PAGE = Layout.free + 0x1000;
const [INPUT, OUTPUT] = [Layout.free + 0x2000, Layout.free + 0x3000];

const it = on('kvm', 'hyperv');

/** A guest that is shown Hyper-V in place of KVM. The synthetic interrupt controller needs APICs in the kernel. */
function boot(hv: Hypervisor): Agent {
  const agent = Agent.boot(hv, { prepare: (vm) => vm.createIrqchip() });
  const own = hv.getSupportedCpuid().filter((leaf) => leaf.function >>> 28 !== 4);
  agent.vcpu.setCpuid2([...own, ...agent.vcpu.getSupportedHvCpuid()]);
  agent.vcpu.enableCap({ cap: Cap.HYPERV_SYNIC2 });
  return agent;
}
const write = (agent: Agent, msr: number, value: number) =>
  agent.beginCode(wrmsr, { rcx: msr, rax: value, rdx: 0 });

/** The guest says who it is, and has its page of hypercalls made. */
function bootWithPage(hv: Hypervisor): Agent {
  const agent = boot(hv);
  for (const [msr, value] of [
    [Msr.GUEST_OS_ID, 0x8100],
    [Msr.HYPERCALL, PAGE | 1],
  ] as const) {
    write(agent, msr, value);
    agent.answer;
  }
  return agent;
}
const call = (agent: Agent, code: number, input: number, output = 0) =>
  agent.begin('call', { r15: PAGE, rcx: code, rdx: input, r8: output });

it('KVM_GET_SUPPORTED_HV_CPUID gives the leaves by which a guest knows Hyper-V, of /dev/kvm and of a vCPU', (hv) => {
  using agent = boot(hv);
  for (const leaves of [hv.getSupportedHvCpuid(), agent.vcpu.getSupportedHvCpuid()]) {
    expect(leaves.find((leaf) => leaf.function === Leaf.INTERFACE)?.eax).toBe(SIGNATURE);
    expect(leaves.find((leaf) => leaf.function === Leaf.FEATURES)?.eax).not.toBe(0);
    expect(leaves.every((leaf) => leaf.function >>> 28 === 4)).toBe(true);
  }
});

it('a guest that writes its OS id and the hypercall MSR gets a page that calls, and KVM answers what it knows', (hv) => {
  using agent = bootWithPage(hv);
  expect(agent.ram.bytes[PAGE]).not.toBe(0);
  call(agent, Call.UNKNOWN, 0);
  expect(agent.answer).toBe(Status.INVALID_HYPERCALL_CODE);
});

it('a message that the guest posts is Exit.HYPERV, and the guest receives the result that is set', (hv) => {
  using agent = bootWithPage(hv);
  const { vcpu } = agent;
  call(agent, Call.POST_MESSAGE, INPUT, OUTPUT);
  expectOutcome(vcpu, Exit.HYPERV);
  const { hyperv } = vcpu;
  expect([hyperv.type, hyperv.hcall.input, ...hyperv.hcall.params]).toEqual([
    HypervExit.HCALL,
    BigInt(Call.POST_MESSAGE),
    BigInt(INPUT),
    BigInt(OUTPUT),
  ]);
  expect(vcpu.exit).toMatchObject({ reason: 'HYPERV', hcall: { input: BigInt(Call.POST_MESSAGE) } });
  hyperv.hcall.result = 0x77n;
  expect(agent.resume()).toBe(0x77n);
});

it('a signal to a connection that has no eventfd is Exit.HYPERV', (hv) => {
  using agent = bootWithPage(hv);
  call(agent, Call.SIGNAL_EVENT | Call.FAST, 0x42);
  expectOutcome(agent.vcpu, Exit.HYPERV);
  expect(agent.vcpu.hyperv.hcall.params[0]).toBe(0x42n);
  agent.vcpu.hyperv.hcall.result = Status.INVALID_PORT_ID;
  expect(agent.resume()).toBe(Status.INVALID_PORT_ID);
});

it('KVM_HYPERV_EVENTFD takes back only what a connection has, and refuses ids that cannot be', (hv) => {
  using vm = hv.createVm();
  expect(errnoOf(() => vm.hypervEventfd({ connId: 5 }))).toBe('ENOENT');
  expect(errnoOf(() => vm.hypervEventfd({ connId: 0x100_0000 }))).toBe('EINVAL');
});

it("the guest's change of its synthetic interrupt controller is Exit.HYPERV, with what it has now", (hv) => {
  using agent = boot(hv);
  write(agent, Msr.SCONTROL, 1);
  expectOutcome(agent.vcpu, Exit.HYPERV);
  expect(agent.vcpu.exit).toMatchObject({
    type: HypervExit.SYNIC,
    synic: { msr: Msr.SCONTROL, control: 1n },
  });
  agent.resume();
});

it('what the guest asks of its synthetic debugger is Exit.HYPERV, and the status that is set is what it reads', (hv) => {
  using agent = boot(hv);
  write(agent, Syndbg.CONTROL, 1);
  expectOutcome(agent.vcpu, Exit.HYPERV);
  expect(agent.vcpu.exit).toMatchObject({
    type: HypervExit.SYNDBG,
    syndbg: { msr: Syndbg.CONTROL, control: 1n },
  });
  agent.vcpu.hyperv.syndbg.status = 0x55n;
  agent.resume();
  agent.beginCode(rdmsr, { rcx: Syndbg.STATUS });
  expect(agent.answer).toBe(0x55n);
});

on('sim')('the simulator has no Hyper-V, and says so', (hv) => {
  using agent = Agent.boot(hv);
  for (const cap of [Cap.HYPERV, Cap.HYPERV_SYNIC2, Cap.SYS_HYPERV_CPUID, Cap.HYPERV_EVENTFD])
    expect(hv.checkExtension(cap)).toBe(0);
  for (const issue of [
    () => hv.getSupportedHvCpuid(),
    () => agent.vcpu.getSupportedHvCpuid(),
    () => agent.vm.hypervEventfd({ connId: 1 }),
  ])
    expect(errnoOf(issue)).toBe('ENOTTY');
});

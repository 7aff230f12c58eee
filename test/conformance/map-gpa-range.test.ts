/** KVM_HC_MAP_GPA_RANGE: Documentation/virt/kvm/x86/hypercalls.rst; __kvm_emulate_hypercall in arch/x86/kvm/x86.c. */
import { expect } from 'vitest';
import { Cap, Exit, type Hypervisor } from '../../src/index.ts';
import { Hypercall, HypercallErrno, HypercallFlag, MapGpaRange } from '../../src/uapi/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { Agent, type AgentOptions, Layout } from '../support/agent.ts';
import { expectOutcome, runTo } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

const { MAP_GPA_RANGE } = Hypercall;
const GPA = 0x12_3456_7000n;

function withAgent(
  hv: Hypervisor,
  use: (agent: Agent) => void,
  options?: AgentOptions,
  enabled = true,
): void {
  using agent = Agent.boot(hv, options);
  if (enabled) agent.vm.enableCap({ cap: Cap.EXIT_HYPERCALL, args: [1 << MAP_GPA_RANGE] });
  use(agent);
}

/** What KVM refuses by itself, with -KVM_EINVAL: address, number of pages. */
const invalid: readonly (readonly [string, bigint, bigint])[] = [
  ['an address inside a page', GPA + 1n, 1n],
  ['no page', GPA, 0n],
  ['a range whose page numbers wrap', GPA, 2n ** 64n - 1n],
  ['a range that ends at the last page number and one', 2n ** 64n - 4096n, 2n ** 64n - 2n ** 52n + 1n],
];

/** What KVM hands on as it is: address, number of pages, attributes. Only the VMM knows what can be converted. */
const handedOn: readonly (readonly [string, bigint, bigint, bigint])[] = [
  ['a page to private', GPA, 1n, BigInt(MapGpaRange.ENCRYPTED)],
  ['512 pages to shared', GPA, 512n, BigInt(MapGpaRange.DECRYPTED)],
  ['a wish for 2 MiB pages', GPA, 512n, BigInt(MapGpaRange.ENCRYPTED | MapGpaRange.PAGE_SZ_2M)],
  ['attributes that nobody knows', GPA, 1n, 0xffff_ffff_ffff_ffffn],
  ['memory that no processor can address', 2n ** 63n, 1n, BigInt(MapGpaRange.ENCRYPTED)],
  [
    'a size that overflows 64 bits in bytes, though not in pages',
    0n,
    2n ** 63n,
    BigInt(MapGpaRange.ENCRYPTED),
  ],
];

/** vmmcall in 32-bit mode; the arguments are in the registers already. */
const calls32 = guest(
  32,
  `
 0f 01 d9 | vmmcall
 f4       | hlt
`,
);

/** 32-bit protected mode without paging. */
function enter32(agent: Agent): void {
  const { vcpu } = agent;
  const sregs = vcpu.getSregs();
  vcpu.setSregs({ ...sregs, cr0: 1n, cr3: 0n, cr4: 0n, efer: 0n, cs: { ...sregs.cs, l: 0, db: 1 } });
  agent.ram.bytes.set(calls32.code, Layout.snippet);
}

conformance('KVM_HC_MAP_GPA_RANGE', ({ it, needs }) => {
  const itCalls = needs('map-gpa-range');

  for (const [name, gpa, pages, attributes] of handedOn) {
    itCalls(`the exit has the guest's arguments as they are: ${name}`, (hv) => {
      withAgent(hv, (agent) => {
        agent.beginHypercall(MAP_GPA_RANGE, gpa, pages, attributes);
        expectOutcome(agent.vcpu, Exit.HYPERCALL);
        const { hypercall } = agent.vcpu;
        const args = [0, 1, 2].map((i) => hypercall.arg(i));
        expect([hypercall.nr, ...args]).toEqual([MAP_GPA_RANGE, gpa, pages, attributes]);
        expect(hypercall.flags).toBe(HypercallFlag.LONG_MODE);
        hypercall.ret = -HypercallErrno.EINVAL;
        expect(BigInt.asIntN(64, agent.resume())).toBe(BigInt(-HypercallErrno.EINVAL));
      });
    });
  }

  for (const ret of [0n, 1n, BigInt(-HypercallErrno.EINVAL), 0x0123_4567_89ab_cdefn]) {
    itCalls(`what the VMM writes to ret is what the guest gets in rax: ${ret}`, (hv) => {
      withAgent(hv, (agent) => {
        agent.beginHypercall(MAP_GPA_RANGE, GPA, 1);
        expectOutcome(agent.vcpu, Exit.HYPERCALL);
        agent.vcpu.hypercall.ret = ret;
        expect(BigInt.asIntN(64, agent.resume())).toBe(ret);
      });
    });
  }

  for (const [name, gpa, pages] of invalid) {
    itCalls(`${name} is refused by KVM with -KVM_EINVAL, without an exit`, (hv) => {
      withAgent(hv, (agent) => {
        expect(agent.hypercall(MAP_GPA_RANGE, gpa, pages)).toBe(BigInt(-HypercallErrno.EINVAL));
      });
    });
  }

  itCalls('without KVM_CAP_EXIT_HYPERCALL the guest gets -KVM_ENOSYS', (hv) => {
    const use = (agent: Agent) =>
      expect(agent.hypercall(MAP_GPA_RANGE, GPA, 1)).toBe(BigInt(-HypercallErrno.ENOSYS));
    withAgent(hv, use, {}, false);
  });

  itCalls('the capability can be taken back: -KVM_ENOSYS again', (hv) => {
    withAgent(hv, (agent) => {
      agent.vm.enableCap({ cap: Cap.EXIT_HYPERCALL, args: [0] });
      expect(agent.hypercall(MAP_GPA_RANGE, GPA, 1)).toBe(BigInt(-HypercallErrno.ENOSYS));
    });
  });

  itCalls('a hypercall that KVM does not know gets -KVM_ENOSYS', (hv) => {
    withAgent(hv, (agent) => expect(agent.hypercall(0xffff)).toBe(BigInt(-HypercallErrno.ENOSYS)));
  });

  it('from privilege 3 the guest gets -KVM_EPERM, before anything else is looked at', (hv) => {
    withAgent(
      hv,
      (agent) => {
        expect(agent.hypercall(MAP_GPA_RANGE, GPA, 1)).toBe(BigInt(-HypercallErrno.EPERM));
        expect(agent.hypercall(0xffff)).toBe(BigInt(-HypercallErrno.EPERM));
      },
      { privilege: 3 },
    );
  });

  itCalls('outside of 64-bit mode arguments and ret have 32 bits', (hv) => {
    withAgent(hv, (agent) => {
      const { vcpu } = agent;
      enter32(agent);
      const above = 0xdead_0000_0000n;
      vcpu.setRegs({
        rip: Layout.snippet,
        rflags: 2n,
        rax: MAP_GPA_RANGE,
        rbx: above | 0x4000n,
        rcx: above | 3n,
        rdx: above | BigInt(MapGpaRange.ENCRYPTED),
      });
      runTo(vcpu, Exit.HYPERCALL);
      expect([0, 1, 2].map((i) => vcpu.hypercall.arg(i))).toEqual([
        0x4000n,
        3n,
        BigInt(MapGpaRange.ENCRYPTED),
      ]);
      expect(vcpu.hypercall.flags).toBe(0);
      vcpu.hypercall.ret = 0x1_2345_6789n;
      runTo(vcpu, Exit.HLT);
      expect(vcpu.getRegs().rax).toBe(0x2345_6789n);
    });
  });

  itCalls('completing the call gives the guest ret and moves rip beyond it, and runs nothing else', (hv) => {
    withAgent(hv, (agent) => {
      const { vcpu } = agent;
      agent.beginHypercall(MAP_GPA_RANGE, GPA, 1);
      expectOutcome(vcpu, Exit.HYPERCALL);
      const { rip } = vcpu.getRegs();
      vcpu.hypercall.ret = 7;
      vcpu.complete((exit) => expect.unreachable(`exit ${exit}`));
      const after = vcpu.getRegs();
      expect([after.rax, after.rip - rip]).toEqual([7n, 3n]);
    });
  });
});

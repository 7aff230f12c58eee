/** What a PC has beside its processor, and KVM's own places in it (api.rst, the ioctls named). */
import { describe, expect } from 'vitest';
import { Cap, Exit, type Hypervisor, type Vm } from '../../src/index.ts';
import { KvmMsr, RunFlag } from '../../src/uapi/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { Agent, Layout } from '../support/agent.ts';
import { handled, installHandlers } from '../support/handlers.ts';
import { onKvm } from '../support/host.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { timeInfo } from '../support/pvclock.ts';
import { errnoOf, expectOutcome } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

/** The first vector of the master PIC, as `program` tells it. */
const PIC_BASE = 0x20;

/** Programs the master PIC, all lines unmasked (8259A), says so, and waits for an interrupt. */
const awaitPic = guest(
  64,
  `
 b0 11 | mov al, 0x11
 e6 20 | out 0x20, al
 b0 20 | mov al, 0x20
 e6 21 | out 0x21, al
 b0 04 | mov al, 4
 e6 21 | out 0x21, al
 b0 01 | mov al, 1
 e6 21 | out 0x21, al
 b0 00 | mov al, 0
 e6 21 | out 0x21, al
 e6 f2 | out 0xf2, al
 fb    | sti
 f4    | again: hlt
 eb fd | jmp again
`,
);
const WAITS_PORT = 0xf2;

/** Starts counter 0 of the 8254 in mode 2, from 0x1000 (a pulse about every 3.4 ms), and goes on at r14. */
const startPit = guest(
  64,
  `
 b0 34    | mov al, 0x34
 e6 43    | out 0x43, al
 b0 00    | mov al, 0
 e6 40    | out 0x40, al
 b0 10    | mov al, 0x10
 e6 40    | out 0x40, al
 41 ff e6 | jmp r14
`,
);

const rdpid = guest(
  64,
  `
 f3 0f c7 f8 | rdpid rax
 c3          | ret
`,
);
const MSR_TSC_AUX = 0xc000_0103;
/** In ECX of CPUID leaf 1, and of leaf 7. */
const MOVBE = 1 << 22;
const RDPID = 1 << 22;

/** A handler of system-management mode: its first instructions are of 16 bits. */
const smm = guest(
  16,
  `
 b0 5a | mov al, 0x5a
 e6 f1 | out 0xf1, al
 0f aa | rsm
`,
);
/** SMBASE after a reset, and where the handler begins (SDM volume 3, 33.4). */
const SMM_ENTRY = 0x3_0000 + 0x8000;

const GUEST_STOPPED = 1 << 1;

function withAgent(hv: Hypervisor, use: (agent: Agent) => void, prepare?: (vm: Vm) => void): void {
  using agent = Agent.boot(hv, prepare === undefined ? {} : { prepare });
  use(agent);
}

function expectWaiting({ vcpu }: Agent): void {
  expectOutcome(vcpu, Exit.IO);
  expect(vcpu.io.port).toBe(WAITS_PORT);
}

/** Turns kvmclock on, and gives what reads what KVM writes of it at the next run. */
function kvmclock(agent: Agent) {
  const address = Layout.free;
  agent.vcpu.setMsrs([{ index: KvmMsr.SYSTEM_TIME_NEW, data: BigInt(address) | 1n }]);
  return () => {
    agent.read(Layout.stack);
    return timeInfo.decode(agent.ram.bytes.slice(address, address + timeInfo.size));
  };
}

const HOUR = 3_600_000_000_000n;

describe('the platform (kvm)', () => {
  const it = onKvm;

  it('KVM_IRQ_LINE raises a line of the PIC, whose vector the guest handles', (hv) => {
    withAgent(
      hv,
      (agent) => {
        installHandlers(agent);
        agent.beginCode(awaitPic);
        expectWaiting(agent);
        agent.vm.irqLine({ irq: 4, level: 1 });
        agent.vcpu.run(DEADLINE_MS);
        expect(handled(agent)).toBe(PIC_BASE + 4);
      },
      (vm) => vm.createIrqchip(),
    );
  });

  it('KVM_CREATE_PIT2 makes a timer, whose interrupt comes by itself', (hv) => {
    withAgent(
      hv,
      (agent) => {
        installHandlers(agent);
        const next = Layout.snippet + 0x100;
        agent.ram.bytes.set(awaitPic.code, next);
        agent.beginCode(startPit, { r14: next });
        expectWaiting(agent);
        agent.vcpu.run(DEADLINE_MS);
        expect(handled(agent)).toBe(PIC_BASE);
      },
      (vm) => {
        vm.createIrqchip();
        vm.createPit2();
      },
    );
  });

  it('without KVM_CREATE_PIT2 the ports of the timer are exits', (hv) => {
    withAgent(
      hv,
      (agent) => {
        agent.beginCode(startPit);
        expect([agent.vcpu.outcome, agent.vcpu.io.port]).toEqual([Exit.IO, 0x43]);
      },
      (vm) => vm.createIrqchip(),
    );
  });

  it('KVM_SET_CLOCK sets what KVM_GET_CLOCK and the guest read', (hv) => {
    withAgent(hv, (agent) => {
      const read = kvmclock(agent);
      const set = 1_000n * HOUR;
      expect(agent.vm.getClock().clock).toBeLessThan(set);
      agent.vm.setClock({ clock: set });
      for (const now of [agent.vm.getClock().clock, read().systemTime]) {
        expect(now).toBeGreaterThanOrEqual(set);
        expect(now).toBeLessThan(set + HOUR);
      }
    });
  });

  it('KVM_KVMCLOCK_CTRL tells the guest that it stood still, where it has a clock', (hv) => {
    withAgent(hv, (agent) => {
      expect(errnoOf(() => agent.vcpu.kvmclockCtrl())).toBe('EINVAL');
      const read = kvmclock(agent);
      expect(read().flags & GUEST_STOPPED).toBe(0);
      agent.vcpu.kvmclockCtrl();
      expect(read().flags & GUEST_STOPPED).toBe(GUEST_STOPPED);
    });
  });

  it('KVM_SET_TSC_KHZ changes what KVM_GET_TSC_KHZ gives, of this vCPU and no other', (hv) => {
    withAgent(hv, (agent) => {
      using other = agent.vm.createVcpu(1);
      const khz = agent.vcpu.getTscKhz();
      agent.vcpu.setTscKhz(2 * khz);
      expect([agent.vcpu.getTscKhz(), other.getTscKhz()]).toEqual([2 * khz, khz]);
      expect(agent.read(Layout.free)).toBe(0n);
    });
  });

  it('KVM_GET_EMULATED_CPUID gives what KVM emulates where the processor lacks it: MOVBE and RDPID', (hv, context) => {
    const emulated = (leaf: number, bit: number) =>
      hv.getEmulatedCpuid().some(({ function: number, ecx }) => number === leaf && (ecx & bit) !== 0);
    expect(emulated(1, MOVBE)).toBe(true);
    context.skip(!emulated(7, RDPID), 'this processor has no TSC_AUX, which RDPID reads');
    withAgent(hv, (agent) => {
      const leaves = hv.getSupportedCpuid();
      const cpuid = leaves.map((leaf) =>
        leaf.function === 7 && leaf.index === 0 ? { ...leaf, ecx: (leaf.ecx | RDPID) >>> 0 } : leaf,
      );
      agent.vcpu.setCpuid2(cpuid);
      expect(agent.vcpu.setMsrs([{ index: MSR_TSC_AUX, data: 0x77n }])).toBe(1);
      agent.beginCode(rdpid);
      expect(agent.answer).toBe(0x77n);
    });
  });

  it('KVM_SMI brings the guest into system-management mode, and RSM back', (hv, context) => {
    context.skip(hv.checkExtension(Cap.X86_SMM) === 0, 'this kernel has no CONFIG_KVM_SMM');
    withAgent(hv, (agent) => {
      const { vcpu } = agent;
      agent.ram.bytes.set(smm.code, SMM_ENTRY);
      // System-management mode has an address space of its own, and so slots of its own.
      agent.vm.setUserMemoryRegion({ slot: 0, addressSpace: 1, guestPhysAddr: 0, memory: agent.ram });
      agent.prepare('read', { rdi: Layout.free });
      vcpu.smi();
      expect(vcpu.getVcpuEvents().smi.pending).toBe(1);
      vcpu.run(DEADLINE_MS);
      expect([handled(agent), vcpu.raw.flags & RunFlag.SMM]).toEqual([0x5a, RunFlag.SMM]);
      expect(agent.resume()).toBe(0n);
      expect(vcpu.raw.flags & RunFlag.SMM).toBe(0);
    });
  });
});

conformance('the platform', ({ it }) => {
  it('KVM_GET_MSRS on /dev/kvm reads every MSR of its list, and ends at one that is none', (hv) => {
    const indices = hv.getMsrFeatureIndexList();
    const values = hv.getFeatureMsrs(indices);
    expect(values.map(({ index }) => index)).toEqual(indices);
    const [first] = values;
    if (first !== undefined) expect(hv.getFeatureMsrs([first.index, 0xdead_beef])).toEqual([first]);
  });

  it('KVM_SET_TSS_ADDR takes three pages below 4 GiB, and no others', (hv) => {
    using vm = hv.createVm();
    expect(errnoOf(() => vm.setTssAddr(0xffff_e000))).toBe('EINVAL');
    expect(errnoOf(() => vm.setTssAddr(0xfffb_d000))).toBe('ok');
  });

  it('KVM_SET_IDENTITY_MAP_ADDR is taken before the first vCPU, and not after', (hv) => {
    using vm = hv.createVm();
    expect(errnoOf(() => vm.setIdentityMapAddr(0xfffb_c000))).toBe('ok');
    using _vcpu = vm.createVcpu();
    expect(errnoOf(() => vm.setIdentityMapAddr(0xfffb_c000))).toBe('EINVAL');
  });
});

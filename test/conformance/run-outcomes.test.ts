/** What ends KVM_RUN besides I/O and memory (api.rst, KVM_RUN and "The kvm_run structure"). */
import { expect } from 'vitest';
import { Exit, type Hypervisor, type Vm } from '../../src/index.ts';
import { InternalError, MpState, Vector } from '../../src/uapi/index.ts';
import { Agent, Layout } from '../support/agent.ts';
import { AREA } from '../support/area.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { errnoOf, expectOutcome, runTo } from '../support/run.ts';
import * as code from '../support/snippets.ts';
import { conformance } from '../support/suite.ts';

function withAgent(hv: Hypervisor, use: (agent: Agent) => void): void {
  using agent = Agent.boot(hv);
  use(agent);
}

/** A VM with in-kernel interrupt controllers: its vCPUs but the first wait for INIT and SIPI. */
function withProcessors(hv: Hypervisor, use: (vm: Vm) => void): void {
  using vm = hv.createVm();
  vm.createIrqchip();
  using ram = vm.allocate(0x1_0000);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
  use(vm);
}

/** The SDM's message address and delivery modes (volume 3, "Message Signalled Interrupts"), to APIC id 1. */
const TO_ONE = { addressLo: 0xfee0_1000 };
const DeliveryMode = { INIT: 5 << 8, STARTUP: 6 << 8 } as const;

conformance('outcomes of KVM_RUN', ({ it, needs }) => {
  it('HLT ends the run where no interrupt controller of the kernel could wake it; rip is beyond it', (hv) => {
    withAgent(hv, (agent) => {
      agent.begin('hlt');
      expectOutcome(agent.vcpu, Exit.HLT);
      const at = Number(agent.vcpu.getRegs().rip);
      expect(agent.ram.bytes[at - 1]).toBe(0xf4);
    });
  });

  // KVM's emulator, which is what executes privilege 0 on a PVM host, does not tell.
  needs('two-dimensional-paging')(
    'a task priority that becomes lower ends the run with SET_TPR, rip beyond it; one that becomes higher does not',
    (hv) => {
      withAgent(hv, (agent) => {
        const { vcpu } = agent;
        const begun = agent.beginCode(code.priorities, { rdi: 9n, rsi: 5n });
        expect(begun).toBe(Exit.SET_TPR);
        expect(vcpu.raw.cr8).toBe(5n);
        expect(vcpu.getRegs().rip).toBe(BigInt(Layout.snippet + 8));
        expect(vcpu.exit).toMatchObject({ reason: 'SET_TPR', cr8: 5n });
        vcpu.run(DEADLINE_MS);
        expectOutcome(vcpu, Exit.IO);
        expect(vcpu.getRegs().rax).toBe(5n);
        expect(agent.beginCode(code.priorities, { rdi: 5n, rsi: 6n })).toBe(Exit.IO);
      });
    },
  );

  it('an exception that finds no IDT is a triple fault: SHUTDOWN', (hv) => {
    withAgent(hv, (agent) => {
      agent.beginCode(code.invalid);
      expectOutcome(agent.vcpu, Exit.SHUTDOWN);
    });
  });

  // sync_regs_test recovers in the same way from what its races do to the guest.
  it('after a shutdown the vCPU runs again once its state is loaded', (hv) => {
    withAgent(hv, (agent) => {
      const sregs = agent.vcpu.getSregs();
      agent.beginCode(code.invalid);
      expectOutcome(agent.vcpu, Exit.SHUTDOWN);
      agent.vcpu.setSregs(sregs);
      agent.vcpu.setVcpuEvents({});
      agent.write(Layout.free, 5n);
      expect(agent.read(Layout.free)).toBe(5n);
    });
  });

  // Kernels differ in how they say it: newer ones as suberror DELIVERY_EV.
  it('an exception whose IDT lies where no slot is ends the guest, and is no MMIO exit', (hv) => {
    withAgent(hv, (agent) => {
      agent.vcpu.setSregs({ ...agent.vcpu.getSregs(), idt: { base: BigInt(AREA), limit: 0xfff } });
      agent.beginCode(code.invalid);
      expectOutcome(agent.vcpu, Exit.SHUTDOWN, Exit.INTERNAL_ERROR);
    });
  });

  it('an access that the page tables do not map is a page fault of the guest, not an exit of its own', (hv) => {
    withAgent(hv, (agent) => {
      agent.begin('read', { rdi: 2n ** 46n });
      expectOutcome(agent.vcpu, Exit.SHUTDOWN);
    });
  });

  it('an instruction that KVM must emulate and cannot is an internal error of suberror EMULATION', (hv) => {
    withAgent(hv, (agent) => {
      // fldenv of MMIO: no emulator has it.
      agent.beginCode(code.unemulated, { rsi: AREA });
      expectOutcome(agent.vcpu, Exit.INTERNAL_ERROR);
      const { exit } = agent.vcpu;
      if (exit.reason !== 'INTERNAL_ERROR') throw new Error(exit.reason);
      expect(exit.suberror).toBe(InternalError.EMULATION);
      const { length } = code.unemulated.code;
      expect(exit.instruction?.subarray(0, length)).toEqual(code.unemulated.code);
      expect(agent.vcpu.getRegs().rip).toBe(BigInt(Layout.snippet));
    });
  });

  it('CMPXCHG16B of MMIO is one, after its operand was read', (hv) => {
    withAgent(hv, (agent) => {
      const { vcpu } = agent;
      agent.beginCode(code.compareExchange16, { rsi: AREA });
      for (const at of [AREA, AREA + 8]) {
        expectOutcome(vcpu, Exit.MMIO);
        expect(vcpu.mmio).toMatchObject({ physAddr: at, length: 8, isWrite: false });
        vcpu.mmio.value = 0n;
        vcpu.run(DEADLINE_MS);
      }
      expectOutcome(vcpu, Exit.INTERNAL_ERROR);
      expect(vcpu.exit).toMatchObject({ suberror: InternalError.EMULATION });
      expect(vcpu.getRegs()).toMatchObject({ rip: BigInt(Layout.snippet), rax: 0n });
    });
  });

  it('the bytes that come with it are not those of another page', (hv) => {
    withAgent(hv, (agent) => {
      const at = Layout.free - 4;
      agent.beginCode(code.unemulated, { rsi: AREA }, at);
      expectOutcome(agent.vcpu, Exit.INTERNAL_ERROR);
      const { exit } = agent.vcpu;
      if (exit.reason !== 'INTERNAL_ERROR') throw new Error(exit.reason);
      expect(exit.instruction).toEqual(agent.ram.bytes.slice(at, Layout.free));
    });
  });

  // A PVM host gives no #UD, and ends the run at privilege 3 as well.
  needs('hardware-virtualization')(
    'and the guest has #UD when it goes on; at privilege 3 it has nothing else',
    (hv) => {
      withAgent(hv, (agent) => {
        agent.beginCode(code.unemulated, { rsi: AREA });
        expectOutcome(agent.vcpu, Exit.INTERNAL_ERROR);
        expect(agent.vcpu.getVcpuEvents().exception).toMatchObject({ injected: 1, nr: Vector.UD });
        // There is no IDT.
        runTo(agent.vcpu, Exit.SHUTDOWN);
      });
      using user = Agent.boot(hv, { privilege: 3 });
      user.beginCode(code.unemulated, { rsi: AREA });
      expectOutcome(user.vcpu, Exit.SHUTDOWN);
    },
  );

  it('a vCPU number is given once: EEXIST; and below KVM_CAP_MAX_VCPU_ID: EINVAL', (hv) => {
    withAgent(hv, ({ vm }) => {
      expect(errnoOf(() => vm.createVcpu(0).close())).toBe('EEXIST');
      expect(errnoOf(() => vm.createVcpu(2 ** 31).close())).toBe('EINVAL');
    });
  });

  const itSmp = needs('irqchip');

  itSmp('an application processor begins UNINITIALIZED, the first one RUNNABLE', (hv) => {
    withProcessors(hv, (vm) => {
      using first = vm.createVcpu(0);
      using second = vm.createVcpu(1);
      expect([first.getMpState(), second.getMpState()]).toEqual([MpState.RUNNABLE, MpState.UNINITIALIZED]);
    });
  });

  itSmp('an UNINITIALIZED processor blocks in KVM_RUN until the deadline', (hv) => {
    withProcessors(hv, (vm) => {
      using _first = vm.createVcpu(0);
      using second = vm.createVcpu(1);
      second.run(50);
      expectOutcome(second, Exit.DEADLINE);
      expect(second.getMpState()).toBe(MpState.UNINITIALIZED);
    });
  });

  // kvm_arch_vcpu_ioctl_run: the run in which an event arrives ends with EAGAIN, and the next enters the guest.
  itSmp(
    'an UNINITIALIZED processor to which INIT comes gives EAGAIN, whatever stands in exit_reason',
    (hv) => {
      withProcessors(hv, (vm) => {
        using _first = vm.createVcpu(0);
        using second = vm.createVcpu(1);
        // KVM looks for the APICs that there are when one of them is set, not when a vCPU is made.
        second.setLapic(second.getLapic());
        expect(vm.signalMsi({ ...TO_ONE, data: DeliveryMode.INIT })).toBe(1);
        expect(vm.signalMsi({ ...TO_ONE, data: DeliveryMode.STARTUP | 1 })).toBe(1);
        second.raw.exitReason = Exit.MEMORY_FAULT;
        runTo(second, Exit.AGAIN);
        expect(second.raw.exitReason).toBe(Exit.MEMORY_FAULT);
        expect(second.getMpState()).toBe(MpState.RUNNABLE);
        expect(second.getSregs().cs.base).toBe(0x1000n);
      });
    },
  );
});

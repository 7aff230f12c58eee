/** Events that the VMM brings into the guest, and what it sees of the guest's steps (api.rst, the ioctls named). */
import { expect } from 'vitest';
import { Exit, type Hypervisor } from '../../src/index.ts';
import { GuestDebug, MpState, Vector, viewOf } from '../../src/uapi/index.ts';
import { Agent, breakAt, Layout } from '../support/agent.ts';
import { handled, installHandlers } from '../support/handlers.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { errnoOf, expectOutcome, runTo } from '../support/run.ts';
import * as code from '../support/snippets.ts';
import { conformance } from '../support/suite.ts';

const VECTOR = 0x40;
const NMI = 2;

function withAgent(hv: Hypervisor, use: (agent: Agent) => void): void {
  using agent = Agent.boot(hv);
  use(agent);
}

function withHandlers(hv: Hypervisor, use: (agent: Agent) => void): void {
  withAgent(hv, (agent) => {
    installHandlers(agent);
    use(agent);
  });
}

/** Debug exits: an instruction's address, and DR6 (SDM volume 3, 18.2.3) without the bits that are always set. */
function debugOf({ vcpu }: Agent) {
  expectOutcome(vcpu, Exit.DEBUG);
  const { exit } = vcpu;
  if (exit.reason !== 'DEBUG') throw new Error(exit.reason);
  return { exception: exit.exception, pc: exit.pc, dr6: exit.dr6 & 0xe00fn };
}

const SINGLE_STEP = 1n << 14n;

conformance('interrupts and debugging', ({ it, needs }) => {
  const itWindow = needs('interrupt-window');

  itWindow('a guest with interrupts off is not ready for one; the window opens after STI', (hv) => {
    withHandlers(hv, (agent) => {
      const { vcpu } = agent;
      agent.read(Layout.free);
      expect([vcpu.raw.readyForInterruptInjection, vcpu.raw.ifFlag]).toEqual([false, false]);
      vcpu.raw.requestInterruptWindow = true;
      agent.beginCode(code.interruptible);
      expectOutcome(vcpu, Exit.IRQ_WINDOW_OPEN);
      expect([vcpu.raw.readyForInterruptInjection, vcpu.raw.ifFlag]).toEqual([true, true]);
      expect(vcpu.getRegs().rip).toBeGreaterThan(BigInt(Layout.snippet));
    });
  });

  itWindow('KVM_INTERRUPT brings an interrupt to its handler, and the guest goes on', (hv) => {
    withHandlers(hv, (agent) => {
      const { vcpu } = agent;
      vcpu.raw.requestInterruptWindow = true;
      agent.beginCode(code.interruptible);
      expectOutcome(vcpu, Exit.IRQ_WINDOW_OPEN);
      vcpu.raw.requestInterruptWindow = false;
      vcpu.interrupt(VECTOR);
      vcpu.run(DEADLINE_MS);
      expect(handled(agent)).toBe(VECTOR);
      agent.resume();
    });
  });

  // Without it KVM does not look for an open window before it executes on.
  needs('interrupt-window', 'hardware-virtualization')(
    'HLT ends the run as HLT, also where the window is open then; the next run tells of that',
    (hv) => {
      withHandlers(hv, (agent) => {
        const { vcpu } = agent;
        vcpu.raw.requestInterruptWindow = true;
        agent.beginCode(code.halt);
        const after = BigInt(Layout.snippet + 2);
        for (const outcome of [Exit.HLT, Exit.IRQ_WINDOW_OPEN]) {
          expectOutcome(vcpu, outcome);
          expect(vcpu.getRegs().rip).toBe(after);
          vcpu.run(DEADLINE_MS);
        }
        expectOutcome(vcpu, Exit.IRQ_WINDOW_OPEN);
        vcpu.raw.requestInterruptWindow = false;
        agent.resume();
      });
    },
  );

  it("HLT that the guest itself steps ends the run as HLT; the guest's #DB comes with the next", (hv) => {
    withHandlers(hv, (agent) => {
      const { vcpu } = agent;
      agent.ram.bytes.set(code.halt.code, Layout.snippet);
      agent.prepare('call', { r15: Layout.snippet });
      vcpu.setRegs({ ...vcpu.getRegs(), rip: Layout.snippet + 1, rflags: 0x102n });
      runTo(vcpu, Exit.HLT);
      expect(vcpu.getRegs().rip).toBe(BigInt(Layout.snippet + 2));
      vcpu.run(DEADLINE_MS);
      expect(handled(agent)).toBe(Vector.DB);
    });
  });

  needs('irqchip')('KVM_INTERRUPT gives ENXIO where the interrupt controllers are in the kernel', (hv) => {
    using vm = hv.createVm();
    vm.createIrqchip();
    using vcpu = vm.createVcpu();
    expect(errnoOf(() => vcpu.interrupt(VECTOR))).toBe('ENXIO');
  });

  it('KVM_NMI brings an NMI, also with interrupts off', (hv) => {
    withHandlers(hv, (agent) => {
      agent.prepare('hlt');
      agent.vcpu.nmi();
      agent.vcpu.run(DEADLINE_MS);
      expect(handled(agent)).toBe(NMI);
      runTo(agent.vcpu, Exit.HLT);
    });
  });

  it("an exception of the guest's own reaches its handler, with the instruction's address on the stack", (hv) => {
    withHandlers(hv, (agent) => {
      agent.beginCode(code.invalid);
      expect(handled(agent)).toBe(Vector.UD);
      const { rsp } = agent.vcpu.getRegs();
      const rip = viewOf(agent.ram.bytes).getBigUint64(Number(rsp), true);
      expect(rip).toBe(BigInt(Layout.snippet));
    });
  });

  it('KVM_SET_VCPU_EVENTS injects an exception', (hv) => {
    withHandlers(hv, (agent) => {
      const { vcpu } = agent;
      agent.prepare('hlt');
      const events = vcpu.getVcpuEvents();
      vcpu.setVcpuEvents({ ...events, exception: { ...events.exception, injected: 1, nr: Vector.UD } });
      expect(vcpu.getVcpuEvents().exception).toMatchObject({ injected: 1, nr: Vector.UD });
      vcpu.run(DEADLINE_MS);
      expect(handled(agent)).toBe(Vector.UD);
    });
  });

  it('KVM_SET_VCPU_EVENTS of an exception that there is not gives EINVAL', (hv) => {
    withAgent(hv, ({ vcpu }) => {
      const events = vcpu.getVcpuEvents();
      for (const nr of [NMI, 32, 255]) {
        const exception = { ...events.exception, injected: 1, nr };
        expect
          .soft(
            errnoOf(() => vcpu.setVcpuEvents({ ...events, exception })),
            `exception ${nr}`,
          )
          .toBe('EINVAL');
      }
      expect(errnoOf(() => vcpu.setVcpuEvents({ ...events, flags: 0x8000_0000 }))).toBe('EINVAL');
    });
  });

  needs('single-step')(
    'single-stepping ends the run after each instruction, until it is turned off',
    (hv) => {
      withAgent(hv, (agent) => {
        const { vcpu } = agent;
        agent.ram.bytes.set(code.nops.code, Layout.snippet);
        agent.prepare('call', { r15: Layout.snippet });
        vcpu.setRegs({ ...vcpu.getRegs(), rip: Layout.snippet });
        vcpu.setGuestDebug({ control: GuestDebug.ENABLE | GuestDebug.SINGLESTEP });
        for (let step = 1; step <= 3; step++) {
          vcpu.run(DEADLINE_MS);
          const pc = BigInt(Layout.snippet + step);
          expect(debugOf(agent)).toEqual({ exception: Vector.DB, pc, dr6: SINGLE_STEP });
          expect(vcpu.getRegs().rip).toBe(pc);
        }
        vcpu.setGuestDebug({ control: 0 });
        runTo(vcpu, Exit.HLT);
      });
    },
  );

  // KVM's emulator tells HLT as any other step.
  needs('single-step', 'hardware-virtualization')('HLT ends the run as HLT, though it is a step', (hv) => {
    withAgent(hv, (agent) => {
      const { vcpu } = agent;
      agent.ram.bytes.set(code.halt.code, Layout.snippet);
      agent.prepare('call', { r15: Layout.snippet });
      vcpu.setRegs({ ...vcpu.getRegs(), rip: Layout.snippet + 1 });
      vcpu.setGuestDebug({ control: GuestDebug.ENABLE | GuestDebug.SINGLESTEP });
      runTo(vcpu, Exit.HLT);
      vcpu.run(DEADLINE_MS);
      expect(debugOf(agent)).toMatchObject({ pc: BigInt(Layout.snippet + 3), dr6: SINGLE_STEP });
    });
  });

  needs('hardware-breakpoint')(
    'a hardware breakpoint ends the run before the instruction at its address',
    (hv) => {
      withAgent(hv, (agent) => {
        const at = Layout.snippet + 2;
        agent.vcpu.setGuestDebug(breakAt(at));
        agent.beginCode(code.nops);
        expect(debugOf(agent)).toEqual({ exception: Vector.DB, pc: BigInt(at), dr6: 1n });
        agent.vcpu.setGuestDebug({ control: 0 });
        runTo(agent.vcpu, Exit.HLT);
      });
    },
  );

  it('KVM_SET_DEBUGREGS is what KVM_GET_DEBUGREGS gives', (hv) => {
    withAgent(hv, ({ vcpu }) => {
      const regs = { ...vcpu.getDebugRegs(), db: [0x1000n, 0x2000n, 0x3000n, 0x4000n], dr7: 0x400n };
      vcpu.setDebugRegs(regs);
      expect(vcpu.getDebugRegs()).toEqual(regs);
    });
  });

  it("KVM_TRANSLATE walks the guest's page tables", (hv) => {
    withAgent(hv, ({ vcpu }) => {
      expect(vcpu.translate(Layout.free + 5)).toMatchObject({
        valid: 1,
        physicalAddress: BigInt(Layout.free + 5),
      });
      expect(vcpu.translate(2n ** 46n)).toMatchObject({ valid: 0 });
    });
  });

  it('an MSR keeps what KVM_SET_MSRS wrote; a list ends at the first that KVM does not know', (hv) => {
    withAgent(hv, ({ vcpu }) => {
      const kernelGsBase = { index: 0xc000_0102, data: 0xffff_8000_0000_1234n };
      const unknown = { index: 0x1234_5678, data: 0n };
      expect(vcpu.setMsrs([kernelGsBase, unknown, kernelGsBase])).toBe(1);
      expect(vcpu.getMsrs([kernelGsBase.index])).toMatchObject([kernelGsBase]);
      expect(vcpu.getMsrs([unknown.index, kernelGsBase.index])).toEqual([]);
    });
  });

  it('the guest sees the CPUID that KVM_SET_CPUID2 gave', (hv) => {
    withAgent(hv, (agent) => {
      const [leaf] = agent.vcpu.getCpuid2().filter((entry) => entry.function === 0);
      agent.beginCode(code.cpuid, { rax: 0, rcx: 0 });
      expect(agent.answer).toBe(BigInt(leaf!.ebx));
    });
  });

  it('without interrupt controllers in the kernel a vCPU can only be RUNNABLE', (hv) => {
    withAgent(hv, ({ vcpu }) => {
      expect(vcpu.getMpState()).toBe(MpState.RUNNABLE);
      vcpu.setMpState(MpState.RUNNABLE);
      for (const state of [MpState.UNINITIALIZED, MpState.INIT_RECEIVED, MpState.SIPI_RECEIVED]) {
        expect
          .soft(
            errnoOf(() => vcpu.setMpState(state)),
            `state ${state}`,
          )
          .toBe('EINVAL');
      }
    });
  });
});

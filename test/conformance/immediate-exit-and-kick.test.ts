/** What interrupts KVM_RUN: kvm_run.immediate_exit (api.rst, "The kvm_run structure"), signals, and with them kicks. */
import { expect } from 'vitest';
import { Exit, type Hypervisor } from '../../src/index.ts';
import { Agent, Layout } from '../support/agent.ts';
import { kicker } from '../support/kicker.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { expectOutcome, runTo } from '../support/run.ts';
import { spin } from '../support/snippets.ts';
import { conformance } from '../support/suite.ts';

/** How long a guest spins before it is stopped; long enough to have begun. */
const SPIN_MS = 50;

async function withAgent(hv: Hypervisor, use: (agent: Agent) => void | Promise<void>): Promise<void> {
  using agent = Agent.boot(hv);
  await use(agent);
}

/** A guest in an endless loop, which counts in rax. */
function prepareSpin(agent: Agent): void {
  agent.ram.bytes.set(spin.code, Layout.snippet);
  agent.prepare('call', { r15: Layout.snippet, rax: 0 });
}

/** The loop can be ended and the guest be used as before. */
function expectUsable(agent: Agent): void {
  agent.write(Layout.free, 99n);
  expect(agent.read(Layout.free)).toBe(99n);
}

conformance('immediate_exit and kick', ({ it, needs }) => {
  const itExits = needs('immediate-exit');

  itExits('with immediate_exit set no instruction of the guest is executed', async (hv) => {
    await withAgent(hv, (agent) => {
      const { vcpu } = agent;
      agent.prepare('hlt');
      const before = vcpu.getRegs();
      vcpu.immediateExit = true;
      runTo(vcpu, Exit.INTERRUPTED);
      expect(vcpu.getRegs()).toEqual(before);
    });
  });

  itExits('KVM never clears immediate_exit: every run is interrupted until the VMM does', async (hv) => {
    await withAgent(hv, (agent) => {
      agent.prepare('hlt');
      agent.vcpu.immediateExit = true;
      for (let i = 0; i < 3; i++) {
        runTo(agent.vcpu, Exit.INTERRUPTED);
        expect(agent.vcpu.immediateExit).toBe(true);
      }
      agent.vcpu.immediateExit = false;
      runTo(agent.vcpu, Exit.HLT);
    });
  });

  it('a kick before a run interrupts that run, and no other', async (hv) => {
    await withAgent(hv, (agent) => {
      agent.prepare('hlt');
      agent.vcpu.kick();
      agent.vcpu.kick();
      runTo(agent.vcpu, Exit.INTERRUPTED);
      runTo(agent.vcpu, Exit.HLT);
    });
  });

  it('a kick leaves immediate_exit as the VMM has it', async (hv) => {
    await withAgent(hv, ({ vcpu }) => {
      vcpu.kick();
      runTo(vcpu, Exit.INTERRUPTED);
      expect(vcpu.immediateExit).toBe(false);
    });
  });

  it('a kick from another thread interrupts a guest that spins, and the guest goes on afterwards', async (hv) => {
    await withAgent(hv, async (agent) => {
      prepareSpin(agent);
      const { kicked } = await kicker(hv.backend, agent.vcpu.kickId, SPIN_MS);
      runTo(agent.vcpu, Exit.INTERRUPTED);
      expect(await kicked).toBe(true);
      expect(agent.vcpu.getRegs().rip - BigInt(Layout.snippet)).toBeLessThan(BigInt(spin.code.length));
      expectUsable(agent);
    });
  });

  it('a kick of a vCPU that is closed says that there is none', async (hv) => {
    let kickId = 0;
    await withAgent(hv, ({ vcpu }) => {
      kickId = vcpu.kickId;
      expect(hv.kick(kickId)).toBe(true);
    });
    expect(hv.kick(kickId)).toBe(false);
  });

  it('a deadline ends a run that does not end by itself, and the guest goes on where it was', async (hv) => {
    await withAgent(hv, (agent) => {
      prepareSpin(agent);
      agent.vcpu.run(SPIN_MS);
      expectOutcome(agent.vcpu, Exit.DEADLINE);
      const { rax } = agent.vcpu.getRegs();
      expect(rax > 0n).toBe(true);
      agent.vcpu.run(SPIN_MS);
      expectOutcome(agent.vcpu, Exit.DEADLINE);
      expect(agent.vcpu.getRegs().rax > rax).toBe(true);
      expectUsable(agent);
    });
  });

  // exit_reason is INTR where the signal came while the run was in the guest; immediate_exit leaves it alone.
  it('a signal inside the run leaves INTR in exit_reason', async (hv) => {
    await withAgent(hv, (agent) => {
      prepareSpin(agent);
      agent.vcpu.run(SPIN_MS);
      expectOutcome(agent.vcpu, Exit.DEADLINE);
      expect(agent.vcpu.raw.exitReason).toBe(Exit.INTR);
    });
  });

  it('a deadline that is not reached changes nothing', async (hv) => {
    await withAgent(hv, (agent) => {
      agent.prepare('hlt');
      agent.vcpu.run(DEADLINE_MS);
      expectOutcome(agent.vcpu, Exit.HLT);
      expectUsable(agent);
    });
  });

  it('while one vCPU is stopped another of the VM runs', async (hv) => {
    await withAgent(hv, (agent) => {
      prepareSpin(agent);
      agent.vcpu.run(SPIN_MS);
      expectOutcome(agent.vcpu, Exit.DEADLINE);
      const other = agent.sibling(1);
      expectUsable(other);
      other.vcpu.close();
    });
  });
});

/**
 * An exit in the middle of an instruction is finished by the next KVM_RUN (api.rst, "The kvm_run structure", the note
 * on pending operations). With immediate_exit set that run does nothing else.
 */
import { expect } from 'vitest';
import { Exit, type Hypervisor, type Vcpu } from '../../src/index.ts';
import { Agent, Layout } from '../support/agent.ts';
import { AREA } from '../support/area.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { expectOutcome } from '../support/run.ts';
import * as code from '../support/snippets.ts';
import { conformance } from '../support/suite.ts';

const PORT = 0x80;
const VALUE = 0x8877_6655_4433_2211n;

function withAgent(hv: Hypervisor, use: (agent: Agent) => void): void {
  using agent = Agent.boot(hv);
  use(agent);
}

/** Answers a read with VALUE. */
function answer(vcpu: Vcpu): void {
  if (vcpu.outcome === Exit.IO) vcpu.io.value = Number(VALUE & 0xffn);
  else if (!vcpu.mmio.isWrite) vcpu.mmio.value = VALUE;
}

/** The exits that completing the last one takes, by name of what is accessed. */
function completion(vcpu: Vcpu): string[] {
  const exits: string[] = [];
  vcpu.complete((exit) => {
    expect(exit).toBe(Exit.MMIO);
    exits.push(vcpu.mmio.isWrite ? `write ${vcpu.mmio.value}` : 'read');
    answer(vcpu);
  });
  return exits;
}

/** A snippet, the length of its first instruction, the exit that it begins with, and those of its completion. */
const instructions = [
  ['OUT', code.out8, 1, Exit.IO, []],
  ['IN', code.in8, 1, Exit.IO, []],
  ['a read of MMIO', code.load64, 3, Exit.MMIO, []],
  ['a write of MMIO', code.store64, 3, Exit.MMIO, []],
  ['a read of 16 bytes of MMIO', code.load128, 4, Exit.MMIO, ['read']],
  ['a read-modify-write of MMIO', code.increment, 3, Exit.MMIO, [`write ${VALUE + 1n}`]],
  ['a copy from MMIO to MMIO', code.copy, 2, Exit.MMIO, [`write ${VALUE}`]],
] as const;

const registers = { rsi: AREA, rdi: AREA + 0x100, rdx: PORT, rax: VALUE };

conformance('completion', ({ needs }) => {
  const it = needs('immediate-exit');

  for (const [name, snippet, length, first, rest] of instructions) {
    const runs = rest.length + 1;
    it(`${name} is completed by ${runs} runs with immediate_exit, and rip is then at the next instruction`, (hv) => {
      withAgent(hv, (agent) => {
        agent.beginCode(snippet, registers);
        expectOutcome(agent.vcpu, first);
        answer(agent.vcpu);
        expect(completion(agent.vcpu)).toEqual(rest);
        expect(agent.vcpu.getRegs().rip).toBe(BigInt(Layout.snippet + length));
      });
    });
  }

  it('what was read is in the register once the access is complete', (hv) => {
    withAgent(hv, (agent) => {
      agent.beginCode(code.load64, { ...registers, rax: 0 });
      answer(agent.vcpu);
      expect(agent.vcpu.getRegs().rax).toBe(0n);
      completion(agent.vcpu);
      expect(agent.vcpu.getRegs().rax).toBe(VALUE);
    });
  });

  // The second exit comes with result 0, like any: a VMM that runs once and takes EINTR for granted loses the write.
  it('a read-modify-write of MMIO exits again for its write while immediate_exit is set', (hv) => {
    withAgent(hv, (agent) => {
      const { vcpu } = agent;
      agent.beginCode(code.increment, registers);
      expectOutcome(vcpu, Exit.MMIO);
      expect(vcpu.mmio.isWrite).toBe(false);
      vcpu.mmio.value = 41n;
      vcpu.immediateExit = true;
      vcpu.run(DEADLINE_MS);
      expectOutcome(vcpu, Exit.MMIO);
      expect([vcpu.mmio.isWrite, vcpu.mmio.value]).toEqual([true, 42n]);
      vcpu.run(DEADLINE_MS);
      expectOutcome(vcpu, Exit.INTERRUPTED);
    });
  });

  // SET_REGS empties the emulator's cache of registers, so the answer goes nowhere; rip comes from the instruction.
  it('setting registers while a read is pending loses: rip is overridden, and the answer gone', (hv) => {
    withAgent(hv, (agent) => {
      const { vcpu } = agent;
      agent.beginCode(code.load64, registers);
      vcpu.mmio.value = VALUE;
      vcpu.setRegs({ ...vcpu.getRegs(), rip: Layout.code, rax: 7n });
      completion(vcpu);
      const { rip, rax } = vcpu.getRegs();
      expect({ rip, rax }).toEqual({ rip: BigInt(Layout.snippet + 3), rax: 7n });
    });
  });

  it('registers that are set after completion stay', (hv) => {
    withAgent(hv, (agent) => {
      const { vcpu } = agent;
      agent.beginCode(code.load64, registers);
      answer(vcpu);
      completion(vcpu);
      vcpu.setRegs({ ...vcpu.getRegs(), rax: 7n });
      expect(agent.resume()).toBe(7n);
    });
  });

  it('completing when nothing is pending runs no instruction', (hv) => {
    withAgent(hv, (agent) => {
      agent.prepare('read', { rdi: Layout.free });
      const before = agent.vcpu.getRegs();
      expect(completion(agent.vcpu)).toEqual([]);
      expect(agent.vcpu.getRegs()).toEqual(before);
    });
  });
});

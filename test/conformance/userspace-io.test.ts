/** KVM_EXIT_IO (api.rst, "The kvm_run structure"); the kernel's userspace_io_test. */
import { expect } from 'vitest';
import { Exit, type Hypervisor, type Vcpu } from '../../src/index.ts';
import { IoDirection, PIO_PAGE_OFFSET } from '../../src/uapi/index.ts';
import { Agent, Layout } from '../support/agent.ts';
import { PAGE } from '../support/area.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { expectOutcome, filledWith } from '../support/run.ts';
import * as code from '../support/snippets.ts';
import { conformance } from '../support/suite.ts';

const PORT = 0x80;
const BUFFER = Layout.free;

const outs = [
  [1, code.out8],
  [2, code.out16],
  [4, code.out32],
] as const;

/** What rax is afterwards: a byte or a word leaves the rest as it was, a doubleword clears it. */
const ins = [
  [1, code.in8, 0x1111_1111_1111_1144n],
  [2, code.in16, 0x1111_1111_1111_3344n],
  [4, code.in32, 0x1122_3344n],
] as const;

function withAgent(hv: Hypervisor, use: (agent: Agent) => void): void {
  using agent = Agent.boot(hv);
  use(agent);
}

/** Serves exits of the port until the agent answers. */
function serve(agent: Agent, each: (vcpu: Vcpu) => void): bigint {
  while (!agent.answered) {
    expectOutcome(agent.vcpu, Exit.IO);
    expect(agent.vcpu.io.port).toBe(PORT);
    each(agent.vcpu);
    agent.vcpu.run(DEADLINE_MS);
  }
  return agent.answer;
}

const fields = ({ io: { direction, port, count, size } }: Vcpu) => ({ direction, port, count, size });

conformance('port I/O', ({ it }) => {
  for (const [size, snippet] of outs) {
    it(`OUT of ${size} bytes exits with the port, the size and the bytes`, (hv) => {
      withAgent(hv, (agent) => {
        agent.beginCode(snippet, { rdx: PORT, rax: 0x1122_3344 });
        expectOutcome(agent.vcpu, Exit.IO);
        expect(fields(agent.vcpu)).toEqual({ direction: IoDirection.OUT, port: PORT, count: 1, size });
        expect(agent.vcpu.io.value).toBe(0x1122_3344 % 2 ** (8 * size));
        expect([...agent.vcpu.io.data]).toEqual([0x44, 0x33, 0x22, 0x11].slice(0, size));
        agent.resume();
      });
    });
  }

  for (const [size, snippet, rax] of ins) {
    it(`IN of ${size} bytes takes what the VMM writes, and changes rax as the processor does`, (hv) => {
      withAgent(hv, (agent) => {
        agent.beginCode(snippet, { rdx: PORT, rax: 0x1111_1111_1111_1111n });
        expectOutcome(agent.vcpu, Exit.IO);
        expect(fields(agent.vcpu)).toEqual({ direction: IoDirection.IN, port: PORT, count: 1, size });
        agent.vcpu.io.value = 0x1122_3344 % 2 ** (8 * size);
        expect(agent.resume()).toBe(rax);
      });
    });
  }

  it('the bytes begin at data_offset: in the page after kvm_run', (hv) => {
    withAgent(hv, (agent) => {
      agent.beginCode(code.out32, { rdx: PORT, rax: 0x1122_3344 });
      expectOutcome(agent.vcpu, Exit.IO);
      const { exit, raw } = agent.vcpu;
      const at = PIO_PAGE_OFFSET * PAGE;
      expect(exit).toMatchObject({ reason: 'IO', dataOffset: at });
      expect([...raw.bytes.subarray(at, at + 4)]).toEqual([0x44, 0x33, 0x22, 0x11]);
    });
  });

  // KVM sends what it has read of the guest's memory when the exit is made, so the order is the guest's.
  it('REP OUTS brings every element, in order, with the direction OUT', (hv) => {
    withAgent(hv, (agent) => {
      const text = Uint8Array.from({ length: 64 }, (_, i) => i);
      agent.ram.bytes.set(text, BUFFER);
      const seen: number[] = [];
      agent.beginCode(code.outsb, { rdx: PORT, rsi: BUFFER, rcx: text.length });
      const left = serve(agent, (vcpu) => {
        expect(vcpu.io.direction).toBe(IoDirection.OUT);
        seen.push(...vcpu.io.data);
      });
      expect(left).toBe(0n);
      expect(seen).toEqual([...text]);
    });
  });

  it('REP OUTS of doublewords brings elements of four bytes', (hv) => {
    withAgent(hv, (agent) => {
      const text = Uint8Array.from({ length: 16 }, (_, i) => i);
      agent.ram.bytes.set(text, BUFFER);
      const seen: number[] = [];
      agent.beginCode(code.outsd, { rdx: PORT, rsi: BUFFER, rcx: text.length / 4 });
      serve(agent, ({ io }) => {
        expect(io.size).toBe(4);
        seen.push(...io.data);
      });
      expect(seen).toEqual([...text]);
    });
  });

  it('REP INSB of 8192 bytes arrives whole, at most a page of it with each exit', (hv) => {
    withAgent(hv, (agent) => {
      const size = 2 * PAGE;
      agent.beginCode(code.insb, { rdx: PORT, rdi: BUFFER, rcx: size });
      let exits = 0;
      const left = serve(agent, ({ io }) => {
        exits++;
        expect(io.direction).toBe(IoDirection.IN);
        expect(io.data.length).toBeLessThanOrEqual(PAGE);
        io.data.fill(0xaa);
      });
      expect(left).toBe(0n);
      expect(exits).toBeGreaterThan(1);
      expect(filledWith(agent.ram.bytes.subarray(BUFFER, BUFFER + size), 0xaa)).toBe(true);
      expect(filledWith(agent.ram.bytes.subarray(BUFFER + size, BUFFER + size + PAGE), 0)).toBe(true);
    });
  });

  // What KVM has read ahead is its own business; that the count is changed under it must do no harm.
  for (const [from, to] of [
    [2, 1],
    [3, 8192],
  ] as const) {
    it(`a VMM that changes RCX from ${from} to ${to} within REP INSB harms nobody, and the guest goes on`, (hv) => {
      withAgent(hv, (agent) => {
        agent.beginCode(code.insb, { rdx: PORT, rdi: BUFFER, rcx: from });
        let changed = false;
        const left = serve(agent, (vcpu) => {
          vcpu.io.data.fill(0xaa);
          if (changed) return;
          changed = true;
          const regs = vcpu.getRegs();
          if (regs.rcx === BigInt(from)) vcpu.setRegs({ ...regs, rcx: to });
        });
        expect(left).toBe(0n);
        expect(filledWith(agent.ram.bytes.subarray(BUFFER + 8192, BUFFER + 8192 + PAGE), 0)).toBe(true);
      });
    });
  }

  it('a port access that the VMM does not answer gives the guest what lay in the buffer, and no fault', (hv) => {
    withAgent(hv, (agent) => {
      agent.beginCode(code.in8, { rdx: PORT, rax: 0 });
      expectOutcome(agent.vcpu, Exit.IO);
      expect(agent.resume()).toBeLessThan(256n);
    });
  });
});

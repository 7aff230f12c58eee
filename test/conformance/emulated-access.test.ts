/**
 * What KVM itself reads and writes for the guest, when it emulates an instruction, is always shared memory, also of a
 * page that is private (virt/kvm/kvm_main.c, __kvm_read_guest_page and its like go by the slot's host address). There
 * is no fault. So guests keep code that does MMIO, and the buffers of INS and OUTS, in shared memory.
 */
import { expect } from 'vitest';
import { Exit, type Hypervisor } from '../../src/index.ts';
import { AREA, Area, PAGE } from '../support/area.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { expectOutcome, filledWith, setWord, wordAt } from '../support/run.ts';
import * as code from '../support/snippets.ts';
import { conformance } from '../support/suite.ts';

const PORT = 0x80;
const NOWHERE = 2 * AREA - PAGE;
const SIZE = 64;

/** An area whose first page is private, with a snippet's bytes in it. */
function withPrivatePage(hv: Hypervisor, use: (area: Area) => void): void {
  using area = new Area(hv);
  area.make('private', 0, PAGE);
  use(area);
}

/** A snippet of at most eight bytes as the guest writes it. */
const asWord = (snippet: { readonly code: Uint8Array }) => {
  const bytes = new Uint8Array(8);
  bytes.set(snippet.code);
  return wordAt(bytes);
};

conformance('emulated accesses', ({ needs }) => {
  const it = needs('private-memory');

  // Private: a read of eight bytes. Shared, at the same place: a read of four.
  needs('private-memory', 'instruction-fetch')(
    'an instruction that does MMIO and lies in a private page is decoded from the shared bytes',
    (hv) => {
      withPrivatePage(hv, (area) => {
        const { agent } = area;
        agent.write(AREA, asWord(code.load64));
        setWord(area.shared.bytes, 0, asWord(code.load32));
        agent.begin('call', { r15: AREA, rsi: NOWHERE });
        expectOutcome(agent.vcpu, Exit.MMIO);
        expect(agent.vcpu.mmio.length).toBe(4);
      });
    },
  );

  it('an instruction in a private page that needs no emulation is the private one', (hv) => {
    withPrivatePage(hv, (area) => {
      const { agent } = area;
      agent.write(AREA, asWord(code.load64));
      setWord(area.shared.bytes, 0, asWord(code.load32));
      setWord(area.shared.bytes, PAGE, 0x1122_3344_5566_7788n);
      agent.begin('call', { r15: AREA, rsi: AREA + PAGE });
      expect(agent.answer).toBe(0x1122_3344_5566_7788n);
    });
  });

  it('REP INS into a private page writes the shared memory, and leaves the private as it was', (hv) => {
    withPrivatePage(hv, (area) => {
      const { agent } = area;
      agent.fill(AREA, SIZE, 0x33);
      agent.beginCode(code.insb, { rdx: PORT, rdi: AREA, rcx: SIZE });
      while (!agent.answered) {
        expectOutcome(agent.vcpu, Exit.IO);
        agent.vcpu.io.data.fill(0xaa);
        agent.vcpu.run(DEADLINE_MS);
      }
      expect(filledWith(area.host(0, SIZE), 0xaa)).toBe(true);
      expect(agent.holds(AREA, SIZE, 0x33)).toBe(true);
    });
  });

  it('REP OUTS from a private page sends what the shared memory holds', (hv) => {
    withPrivatePage(hv, (area) => {
      const { agent } = area;
      agent.fill(AREA, SIZE, 0x33);
      area.host(0, SIZE).fill(0x55);
      agent.beginCode(code.outsb, { rdx: PORT, rsi: AREA, rcx: SIZE });
      const sent: number[] = [];
      while (!agent.answered) {
        expectOutcome(agent.vcpu, Exit.IO);
        sent.push(...agent.vcpu.io.data);
        agent.vcpu.run(DEADLINE_MS);
      }
      expect(filledWith(Uint8Array.from(sent), 0x55)).toBe(true);
      expect(sent.length).toBe(SIZE);
    });
  });

  it('a copy from MMIO to a private page writes the shared memory', (hv) => {
    withPrivatePage(hv, (area) => {
      const { agent } = area;
      agent.write(AREA, 1n);
      agent.beginCode(code.copy, { rsi: NOWHERE, rdi: AREA });
      expectOutcome(agent.vcpu, Exit.MMIO);
      agent.vcpu.mmio.value = 2n;
      agent.resume();
      expect([wordAt(area.shared.bytes), agent.read(AREA)]).toEqual([2n, 1n]);
    });
  });
});

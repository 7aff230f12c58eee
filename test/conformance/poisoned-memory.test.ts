/**
 * EHWPOISON: a page of guest_memfd with a hardware memory error (guest_memfd.c, kvm_gmem_error_folio). A poisoned page
 * of shared memory is a SIGBUS for the VMM instead (arch/x86/kvm/mmu/mmu.c, kvm_send_hwpoison_signal).
 */
import { expect } from 'vitest';
import { Exit, Hypervisor, MemoryFaultFlag } from '../../src/index.ts';
import { simulator } from '../../src/open.ts';
import { AREA, Area, PAGE } from '../support/area.ts';
import { frameTakenBy, poison } from '../support/hwpoison.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { expectOutcome } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

/** More than the kernel collects on one processor before it puts pages on their list. */
const PAGES = 128;
const VALUE = 0x0123_4567_89ab_cdefn;

/** A private area of which one page is poisoned, and the address of that page. */
function withPoison(hv: Hypervisor, use: (area: Area, address: number) => void): void {
  if (hv.backend === 'kvm') withInjection(hv, use);
  else withSimulation(use);
}

function withSimulation(use: (area: Area, address: number) => void): void {
  const backend = simulator();
  using hv = new Hypervisor(backend);
  using area = new Area(hv, PAGES * PAGE);
  area.make('private');
  const offset = (PAGES / 2) * PAGE;
  area.agent.write(AREA + offset, VALUE);
  backend.poison(area.secret.fd.handle, offset);
  area.agent.begin('read', { rdi: AREA + offset });
  use(area, AREA + offset);
}

function withInjection(hv: Hypervisor, use: (area: Area, address: number) => void): void {
  using area = new Area(hv, PAGES * PAGE);
  area.make('private');
  poison(frameTakenBy(() => area.secret.allocate()));
  for (let page = 0; page < PAGES; page++) {
    area.agent.begin('read', { rdi: AREA + page * PAGE });
    if (area.agent.vcpu.outcome === Exit.MEMORY_POISONED) {
      use(area, AREA + page * PAGE);
      return;
    }
    area.agent.answer;
  }
  throw new Error('the guest could read every page');
}

conformance('poisoned memory', ({ needs }) => {
  const it = needs('private-memory', 'hwpoison-injection');

  it('an access to a poisoned private page gives EHWPOISON with the fault: PRIVATE, the page, 4096 bytes', (hv) => {
    withPoison(hv, ({ agent: { vcpu } }, address) => {
      expectOutcome(vcpu, Exit.MEMORY_POISONED);
      const { flags, gpa, size } = vcpu.memoryFault;
      expect({ flags, gpa, size }).toEqual({ flags: MemoryFaultFlag.PRIVATE, gpa: address, size: PAGE });
      expect(vcpu.exit).toMatchObject({ reason: 'MEMORY_POISONED', gpa: address });
    });
  });

  it('it comes again until the page is replaced; punching it gives the guest a fresh one, of zeroes', (hv) => {
    withPoison(hv, ({ agent, secret }, address) => {
      agent.vcpu.run(DEADLINE_MS);
      expectOutcome(agent.vcpu, Exit.MEMORY_POISONED);
      secret.punchHole(address - AREA, PAGE);
      expect(agent.resume()).toBe(0n);
      agent.write(address, VALUE);
      expect(agent.read(address)).toBe(VALUE);
    });
  });

  it('the other pages of the file are not touched by it', (hv) => {
    withPoison(hv, ({ agent }, address) => {
      const other = address === AREA ? AREA + PAGE : AREA;
      agent.write(other, VALUE);
      expect(agent.read(other)).toBe(VALUE);
    });
  });
});

/**
 * What is left of a page's time as MMIO (arch/x86/kvm/mmu/mmu.c, 6.12). An access where no slot is leaves an MMIO SPTE,
 * which is good for the slots of its generation. After any slot has changed, the access faults with PFERR_RSVD_MASK, for
 * which kvm_mmu_page_fault() does not derive PFERR_PRIVATE_ACCESS from the attribute. So it is a shared access to a page
 * that is private by now: kvm_mmu_faultin_pfn() ends it with a memory fault without PRIVATE, before anything is mapped
 * in the SPTE's place. Nothing zaps that either, for tdp_mmu_zap_leafs() passes over what is not shadow-present.
 */
import { expect } from 'vitest';
import { Exit, type Hypervisor } from '../../src/index.ts';
import { AREA, AREA_SLOT, Area, PAGE } from '../support/area.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { expectOutcome } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

const SECRET = 0x0123_4567_89ab_cdefn;
const SHARED = 0x5a5a_5a5a_5a5a_5a5an;
const OTHER_SLOT = AREA_SLOT + 1;

/** The area's first page, private and with a guest_memfd that holds SECRET, but with a stale MMIO SPTE. */
function withStalePage(hv: Hypervisor, use: (area: Area) => void): void {
  using area = new Area(hv);
  area.make('private', 0, PAGE);
  area.agent.write(AREA, SECRET);
  area.make('shared', 0, PAGE);
  area.unbind();
  area.agent.begin('read', { rdi: AREA });
  expectOutcome(area.agent.vcpu, Exit.MMIO);
  area.agent.vcpu.mmio.value = SHARED;
  expect(area.agent.resume()).toBe(SHARED);
  area.bind();
  area.make('private', 0, PAGE);
  use(area);
}

/** Runs the guest into the fault, or on into it. */
function expectStale({ agent }: Area, outcome: number): void {
  expect(outcome).toBe(Exit.MEMORY_FAULT);
  const { flags, gpa, size } = agent.vcpu.memoryFault;
  expect({ flags, gpa, size }).toEqual({ flags: 0, gpa: AREA, size: PAGE });
}

/** What leaves the attribute and the slots as they were, and does not help. */
const vain: readonly (readonly [string, (area: Area) => void])[] = [
  ['making it private, which it is', (area) => area.make('private', 0, PAGE)],
  [
    'making it shared and private again, with no access between',
    (area) => {
      area.make('shared', 0, PAGE);
      area.make('private', 0, PAGE);
    },
  ],
  [
    'deleting its slot and making it anew',
    (area) => {
      area.unbind();
      area.bind();
    },
  ],
  ['punching the page out of the guest_memfd', (area) => area.secret.punchHole(0, PAGE)],
  ['pre-faulting the page beside it', ({ agent }) => void agent.vcpu.preFaultMemory(AREA + PAGE, PAGE)],
];

conformance('a page that was MMIO before it became private', ({ needs }) => {
  const it = needs('private-memory', 'memory-fault', 'pre-fault');

  for (const command of ['read', 'write', 'call'] as const) {
    it(`gives a ${command} a fault without PRIVATE, again and again`, (hv) => {
      withStalePage(hv, (area) => {
        expectStale(area, area.agent.begin(command, { rdi: AREA, r15: AREA }));
        for (let i = 0; i < 3; i++) expectStale(area, area.agent.vcpu.run(DEADLINE_MS));
      });
    });
  }

  for (const [what, change] of vain) {
    it(`is not healed by ${what}`, (hv) => {
      withStalePage(hv, (area) => {
        expectStale(area, area.agent.begin('read', { rdi: AREA }));
        change(area);
        expectStale(area, area.agent.vcpu.run(DEADLINE_MS));
      });
    });
  }

  // KVM_PRE_FAULT_MEMORY asks the attribute itself, and there is no access with a reserved bit in it.
  it('is healed by a pre-fault, with the contents of the private memory', (hv) => {
    withStalePage(hv, (area) => {
      expectStale(area, area.agent.begin('read', { rdi: AREA }));
      expect(area.agent.vcpu.preFaultMemory(AREA, PAGE)).toBe(0);
      expect(area.agent.resume()).toBe(SECRET);
    });
  });

  it('is healed by an access that finds it shared', (hv) => {
    withStalePage(hv, (area) => {
      area.make('shared', 0, PAGE);
      area.agent.write(AREA, SHARED);
      area.make('private', 0, PAGE);
      expect(area.agent.read(AREA)).toBe(SECRET);
    });
  });

  it('is MMIO still, though it is private, until a slot changes', (hv) => {
    using area = new Area(hv);
    area.unbind();
    area.agent.begin('read', { rdi: AREA });
    area.make('private', 0, PAGE);
    area.agent.resume();
    area.agent.begin('read', { rdi: AREA });
    expectOutcome(area.agent.vcpu, Exit.MMIO);
    area.agent.resume();
    area.bind({ slot: OTHER_SLOT, offset: 2 * PAGE, size: PAGE });
    expectStale(area, area.agent.begin('read', { rdi: AREA }));
  });
});

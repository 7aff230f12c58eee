/**
 * Implicit conversion: the guest accesses a page as the kind that it is not, and the VMM makes it that kind. What the
 * guest wants stands in its page tables, on SNP and TDX. The lab's kernel `userfault` has a stand-in for them in
 * SW_PROTECTED VMs, a test's own (lab/kernel/patches/userfault): from there on, the fault path is the kernel's.
 */
import { expect } from 'vitest';
import {
  Cap,
  Exit,
  type GuestMemfd,
  type GuestMemory,
  type Hypervisor,
  MemoryAttribute,
  MemoryFaultService,
  type Vm,
  VmType,
} from '../../src/index.ts';
import { Agent } from '../support/agent.ts';
import { AREA, AREA_SLOT, PAGE } from '../support/area.ts';
import { CAP_TEST_PRIVATE_ACCESS } from '../support/conditions.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { PRIVATE, USERFAULT } from '../support/paged-area.ts';
import { errnoOf, expectOutcome, setWord, wordAt } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

/** KVM_MEMORY_ATTRIBUTE_TEST_PRIVATE_ACCESS and _TEST_SHARED_ACCESS: how the guest accesses the page from now on. */
const WANTS = { private: 1 << 30, shared: 1 << 29 } as const;
type Kind = keyof typeof WANTS;
const VALUE = 0x0123_4567_89ab_cdefn;
const OTHER = 0x5a5a_5a5a_5a5a_5a5an;
const PAGES = 4;

const optIn = (vm: Vm) => vm.enableCap({ cap: CAP_TEST_PRIVATE_ACCESS });

class ChoosingArea implements Disposable {
  readonly agent: Agent;
  readonly vm: Vm;
  readonly shared: GuestMemory;
  readonly secret: GuestMemfd;

  constructor(hv: Hypervisor) {
    this.agent = Agent.boot(hv, { type: VmType.SW_PROTECTED, prepare: optIn });
    this.vm = this.agent.vm;
    this.shared = this.vm.allocate(PAGES * PAGE);
    this.secret = this.vm.createGuestMemfd(PAGES * PAGE);
    const { shared: memory, secret: guestMemfd } = this;
    this.vm.setUserMemoryRegion2({ slot: AREA_SLOT, guestPhysAddr: AREA, memory, guestMemfd });
  }

  /** What the page is, and what the guest takes it for. */
  set(page: number, is: Kind, wants: Kind): void {
    const attributes = WANTS[wants] | (is === 'private' ? MemoryAttribute.PRIVATE : 0);
    this.vm.setMemoryAttributes({ address: AREA + page * PAGE, size: PAGE, attributes });
  }

  /** The flags of the fault that the last run ended with, which is one of the page. */
  faultOf(page: number): number {
    const { vcpu } = this.agent;
    expectOutcome(vcpu, Exit.MEMORY_FAULT);
    const { flags, gpa, size } = vcpu.memoryFault;
    expect({ gpa, size }).toEqual({ gpa: AREA + page * PAGE, size: PAGE });
    return flags;
  }

  [Symbol.dispose](): void {
    this.agent[Symbol.dispose]();
    this.secret.close();
    this.shared.close();
  }
}

const mismatches = [
  ['private', 'shared', PRIVATE],
  ['shared', 'private', 0],
] as const;

conformance('implicit conversion', ({ needs }) => {
  const it = needs('test-private-access', 'private-memory');

  it('the stand-in is asked for before the first vCPU, and of no other VM', (hv) => {
    using plain = hv.createVm({ type: VmType.SW_PROTECTED });
    const range = { address: AREA, size: PAGE };
    const set = (vm: Vm, attributes: number) =>
      errnoOf(() => vm.setMemoryAttributes({ ...range, attributes }));
    expect(set(plain, WANTS.private)).toBe('EINVAL');
    using vcpu = plain.createVcpu();
    expect(vcpu.closed).toBe(false);
    expect(errnoOf(() => optIn(plain))).toBe('EINVAL');
    using other = hv.createVm();
    expect(errnoOf(() => optIn(other))).toBe('EINVAL');
    using area = new ChoosingArea(hv);
    expect(area.vm.checkExtension(Cap.MEMORY_ATTRIBUTES)).toBe(
      MemoryAttribute.PRIVATE | WANTS.private | WANTS.shared,
    );
    expect(set(area.vm, WANTS.private | WANTS.shared)).toBe('EINVAL');
  });

  for (const [wants, is, flags] of mismatches) {
    for (const [name, command] of [
      ['a read', 'read'],
      ['a write', 'write'],
      ['an instruction fetch', 'call'],
    ] as const) {
      it(`${name} as ${wants} of a page that is ${is} is a memory fault with flags ${flags}`, (hv) => {
        using area = new ChoosingArea(hv);
        area.set(1, is, wants);
        area.agent.begin(command, { rdi: AREA + PAGE, r15: AREA + PAGE, rsi: VALUE });
        expect(area.faultOf(1)).toBe(flags);
        expect(wordAt(area.shared.bytes, PAGE)).toBe(0n);
      });
    }

    it(`the service makes a page that is ${is} ${wants}, and the access happens`, (hv) => {
      using area = new ChoosingArea(hv);
      const service = new MemoryFaultService(area.vm, { guestsChoose: true });
      area.set(1, is, is);
      area.agent.write(AREA + PAGE, OTHER);
      area.set(1, is, wants);
      const exit = area.agent.begin('write', { rdi: AREA + PAGE, rsi: VALUE });
      expect(service.handle(area.agent.vcpu, exit)).toBe(true);
      area.agent.resume();
      expect(area.agent.read(AREA + PAGE)).toBe(VALUE);
      expect(area.vm.memoryMap.isPrivate(AREA + PAGE)).toBe(wants === 'private');
      // The host sees it only where it is shared; what the other copy held is given back.
      expect(wordAt(area.shared.bytes, PAGE)).toBe(wants === 'private' ? 0n : VALUE);
      const { toPrivate, toShared } = service.counters.conversions;
      expect([toPrivate, toShared]).toEqual(wants === 'private' ? [1, 0] : [0, 1]);
    });

    it(`a pre-fault as ${wants} of a page that is ${is} is EFAULT, and tells of it in kvm_run`, (hv) => {
      using area = new ChoosingArea(hv);
      area.set(1, is, wants);
      const { vcpu } = area.agent;
      expect(errnoOf(() => vcpu.preFaultMemory(AREA + PAGE, PAGE))).toBe('EFAULT');
      expect(vcpu.raw.exitReason).toBe(Exit.MEMORY_FAULT);
      expect(vcpu.memoryFault.flags).toBe(flags);
    });
  }

  it('an access as what the page is happens, and goes to that copy', (hv) => {
    using area = new ChoosingArea(hv);
    area.set(0, 'private', 'private');
    area.set(1, 'shared', 'shared');
    setWord(area.shared.bytes, 0, OTHER);
    area.agent.write(AREA, VALUE);
    area.agent.write(AREA + PAGE, VALUE);
    expect([wordAt(area.shared.bytes), wordAt(area.shared.bytes, PAGE)]).toEqual([OTHER, VALUE]);
    expect(area.agent.read(AREA)).toBe(VALUE);
  });

  it('a guest that goes back and forth over all pages is served each time', (hv) => {
    using area = new ChoosingArea(hv);
    const service = new MemoryFaultService(area.vm, { guestsChoose: true });
    const { agent } = area;
    for (let round = 0; round < 4; round++) {
      const wants: Kind = round % 2 === 0 ? 'private' : 'shared';
      for (let page = 0; page < PAGES; page++)
        area.set(page, wants === 'private' ? 'shared' : 'private', wants);
      agent.begin('fill', { rdi: AREA, rcx: PAGES * PAGE, rsi: 0x30 + round });
      for (; !agent.answered; agent.vcpu.run(DEADLINE_MS))
        expect(service.handle(agent.vcpu, agent.vcpu.outcome)).toBe(true);
      expect(agent.holds(AREA, PAGES * PAGE, 0x30 + round)).toBe(true);
    }
    expect(service.counters.conversions).toEqual({ toPrivate: 2 * PAGES, toShared: 2 * PAGES });
  });

  needs(
    'test-private-access',
    'private-memory',
    'userfault',
  )('a page that is also awaited exits for that first: it is brought in, and then converted', (hv) => {
    using area = new ChoosingArea(hv);
    const service = new MemoryFaultService(area.vm, { guestsChoose: true });
    using userfaultBitmap = area.vm.createUserfaultBitmap(PAGES);
    userfaultBitmap.set(0, PAGES);
    const { shared: memory, secret: guestMemfd } = area;
    area.vm.setUserMemoryRegion2({
      slot: AREA_SLOT,
      guestPhysAddr: AREA,
      memory,
      guestMemfd,
      userfaultBitmap,
    });
    area.set(0, 'private', 'private');
    area.set(1, 'private', 'shared');
    const { vcpu } = area.agent;
    area.agent.begin('read', { rdi: AREA + PAGE });
    expect(area.faultOf(1)).toBe(USERFAULT);
    expect(service.handle(vcpu, vcpu.outcome)).toBe(false);
    userfaultBitmap.release(1);
    vcpu.run(DEADLINE_MS);
    expect(area.faultOf(1)).toBe(0);
    expect(service.handle(vcpu, vcpu.outcome)).toBe(true);
    expect(area.agent.resume()).toBe(0n);
    area.agent.begin('read', { rdi: AREA });
    expect(area.faultOf(0)).toBe(USERFAULT | PRIVATE);
  });
});

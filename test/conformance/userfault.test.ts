/**
 * KVM_MEM_USERFAULT, a proposal that no release has: "KVM: Introduce KVM Userfault" on the KVM list, its text for
 * api.rst, and the tests that came with it. Where its versions differ, and in what they leave open, these cases say
 * what the lab's kernel `userfault` does (lab/kernel/patches/userfault).
 */
import { expect } from 'vitest';
import {
  Cap,
  Exit,
  type Hypervisor,
  MemFlag,
  MemoryFaultService,
  type UserfaultBitmap,
  VmType,
} from '../../src/index.ts';
import { Quirk } from '../../src/uapi/index.ts';
import { Layout } from '../support/agent.ts';
import { AREA, AREA_SLOT, PAGE } from '../support/area.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { faultAt, PagedArea, PRIVATE, USERFAULT } from '../support/paged-area.ts';
import { errnoOf, expectOutcome, filledWith, setWord, wordAt } from '../support/run.ts';
import { copy, insb } from '../support/snippets.ts';
import { conformance } from '../support/suite.ts';

/** KVM_CAP_USERFAULT in the proposal's third version; in released kernels something else. */
const CAP_USERFAULT = 243;
const VALUE = 0x0123_4567_89ab_cdefn;
const NOWHERE = 2 * AREA - PAGE;
const PORT = 0x80;

const accesses = [
  ['a read', 'read'],
  ['a write', 'write'],
  ['an instruction fetch', 'call'],
] as const;

/** The guest reads the page twice: the fault, then, when its contents are there, these. */
function bringIn(area: PagedArea, page: number, flags: number = USERFAULT): void {
  expect(area.read(page)).toEqual(faultAt(page, flags));
  setWord(area.memory.bytes, page * PAGE, VALUE);
  area.bitmap.release(page);
}

conformance('userfault', ({ needs }) => {
  const it = needs('userfault');
  const itPrivate = needs('userfault', 'private-memory');

  // "If the bit for a page is set, any vCPU access to that page will exit to userspace with
  // KVM_MEMORY_EXIT_FLAG_USERFAULT."
  for (const [name, command] of accesses) {
    it(`${name} of a page whose bit is set exits with USERFAULT alone, for the page, and happens once it is clear`, (hv) => {
      using area = new PagedArea(hv);
      area.bitmap.set(2);
      area.agent.begin(command, { rdi: AREA + 2 * PAGE + 8, r15: AREA + 2 * PAGE + 8, rsi: VALUE });
      expect(area.fault).toEqual(faultAt(2));
      expect(filledWith(area.memory.bytes, 0)).toBe(true);
      area.memory.bytes.fill(0xc3, 2 * PAGE, 3 * PAGE); // RET
      area.bitmap.release(2);
      area.agent.resume();
      const expected = command === 'write' ? VALUE : 0xc3c3_c3c3_c3c3_c3c3n;
      expect(wordAt(area.memory.bytes, 2 * PAGE + 8)).toBe(expected);
    });
  }

  it('the guest reads what was there before the bit was cleared', (hv) => {
    using area = new PagedArea(hv);
    area.bitmap.set(0, 4);
    bringIn(area, 1);
    expect(area.agent.resume()).toBe(VALUE);
  });

  it('as long as the bit is set, each try exits again', (hv) => {
    using area = new PagedArea(hv);
    area.bitmap.set(1);
    for (let tries = 0; tries < 3; tries++) expect(area.read(1)).toEqual(faultAt(1));
  });

  it("the processor's walk of a page table is such an access", (hv) => {
    using area = new PagedArea(hv);
    const { agent, vm } = area;
    using bitmap = vm.createUserfaultBitmap(agent.ram.size / PAGE);
    bitmap.set(Layout.tables / PAGE, 16);
    vm.setUserMemoryRegion2({ slot: 0, memory: agent.ram, userfaultBitmap: bitmap });
    const seen: number[] = [];
    agent.begin('read', { rdi: AREA });
    for (; !agent.answered; agent.vcpu.run(DEADLINE_MS)) {
      expect(area.fault.flags).toBe(USERFAULT);
      seen.push(area.fault.gpa);
      bitmap.release(area.fault.gpa / PAGE);
    }
    expect(seen.length).toBeGreaterThan(1);
    for (const gpa of seen) expect(gpa).toBeGreaterThanOrEqual(Layout.tables);
  });

  // "userfault_bitmap should point to an array of longs where each bit in the array linearly corresponds to a single
  // gfn. Bit 0 in userfault_bitmap corresponds to guest_phys_addr".
  it('bit i is the page at guest_phys_addr + i pages, in words of 64 bits, and no other', (hv) => {
    using area = new PagedArea(hv, { pages: 200 });
    const marked = [0, 1, 7, 8, 31, 32, 63, 64, 65, 127, 128, 199];
    for (const page of marked) area.bitmap.set(page);
    const exited = Array.from({ length: 200 }, (_, page) => page).filter((page) => {
      const found = area.read(page);
      if (found === 0n) return false;
      expect(found).toEqual(faultAt(page));
      return true;
    });
    expect(exited).toEqual(marked);
  });

  it('bit 0 is the first page of the slot, wherever in its memory that begins', (hv) => {
    using area = new PagedArea(hv, { pages: 4 });
    area.vm.setUserMemoryRegion2({ slot: AREA_SLOT, memorySize: 0 });
    using bitmap = area.vm.createUserfaultBitmap(2);
    bitmap.set(1);
    const region = { slot: AREA_SLOT, guestPhysAddr: AREA, memory: area.memory, memoryOffset: 2 * PAGE };
    area.vm.setUserMemoryRegion2({ ...region, userfaultBitmap: bitmap });
    expect([area.read(0), area.read(1)]).toEqual([0n, faultAt(1)]);
  });

  // KVM Userfault's demand_paging_test: all bits set, each page brought in by an exit, until there is no fault.
  it('a guest that goes through memory with all bits set exits once for each page, and finds its contents', (hv) => {
    const pages = 70;
    using area = new PagedArea(hv, { pages });
    area.bitmap.set(0, pages);
    const { agent } = area;
    const seen: number[] = [];
    agent.begin('check', { rdi: AREA, rcx: pages * PAGE, rsi: 0x5a });
    for (; !agent.answered; agent.vcpu.run(DEADLINE_MS)) {
      expect(area.fault.flags).toBe(USERFAULT);
      const page = (area.fault.gpa - AREA) / PAGE;
      seen.push(page);
      area.memory.bytes.fill(0x5a, page * PAGE, (page + 1) * PAGE);
      area.bitmap.release(page);
    }
    expect(agent.answer).toBe(BigInt(pages * PAGE));
    expect(seen).toEqual(Array.from({ length: pages }, (_, page) => page));
  });

  // "If an invalid pointer is provided, at fault time, KVM_RUN will return -EFAULT."
  it('a null pointer is accepted, and ends KVM_RUN with an EFAULT that says nothing', (hv) => {
    using area = new PagedArea(hv, { armed: false });
    area.place(undefined, { flags: MemFlag.USERFAULT });
    area.agent.begin('read', { rdi: AREA });
    expectOutcome(area.agent.vcpu, Exit.FAULT);
    expect(area.agent.vcpu.raw.exitReason).toBe(Exit.UNKNOWN);
    area.place(undefined);
    expect(area.agent.resume()).toBe(0n);
  });

  // "KVM_MEM_USERFAULT is only supported when KVM_CAP_USERFAULT is supported." "Informational only, -EINVAL on direct
  // KVM_ENABLE_CAP."
  it('KVM_CAP_USERFAULT is there, for KVM and for each VM, and cannot be enabled', (hv) => {
    using vm = hv.createVm();
    expect([hv.checkExtension(CAP_USERFAULT), vm.checkExtension(CAP_USERFAULT)]).toEqual([1, 1]);
    expect(errnoOf(() => vm.enableCap({ cap: CAP_USERFAULT }))).toBe('EINVAL');
  });

  it('KVM_SET_USER_MEMORY_REGION, the first version, refuses the flag', (hv) => {
    using area = new PagedArea(hv, { armed: false });
    const region = { slot: AREA_SLOT, guestPhysAddr: AREA, memory: area.memory };
    expect(errnoOf(() => area.vm.setUserMemoryRegion({ ...region, flags: MemFlag.USERFAULT }))).toBe(
      'EINVAL',
    );
    expect(area.read(0)).toBe(0n);
  });

  // "Setting bits in userfault_bitmap has no effect on pages that have already been mapped by KVM until
  // KVM_MEM_USERFAULT is disabled and re-enabled again."
  it('setting the bit of a page that is mapped has no effect, until the flag is off and on again', (hv) => {
    using area = new PagedArea(hv);
    expect([area.read(0), area.read(1)]).toEqual([0n, 0n]);
    area.bitmap.set(1);
    expect(area.read(1)).toBe(0n);
    area.rearm();
    expect([area.read(0), area.read(1)]).toEqual([0n, faultAt(1)]);
  });

  it('setting the bit of a page that is not mapped yet takes effect at once', (hv) => {
    using area = new PagedArea(hv);
    expect(area.read(0)).toBe(0n);
    area.bitmap.set(1);
    expect(area.read(1)).toEqual(faultAt(1));
  });

  it('turning the flag on unmaps what the guest has used before', (hv) => {
    using area = new PagedArea(hv, { armed: false });
    area.agent.write(AREA + PAGE, VALUE);
    area.bitmap.set(1);
    area.place(area.bitmap);
    expect(area.read(1)).toEqual(faultAt(1));
  });

  it('giving a page back to the host unmaps it: its bit is looked at again', (hv) => {
    using area = new PagedArea(hv);
    area.agent.write(AREA + PAGE, VALUE);
    area.agent.write(AREA + 2 * PAGE, VALUE);
    area.bitmap.set(0, 4);
    area.memory.discard(PAGE, PAGE);
    expect([area.read(1), area.read(2)]).toEqual([faultAt(1), VALUE]);
  });

  it('turning the flag off lets every access happen, and keeps the bits', (hv) => {
    using area = new PagedArea(hv);
    area.bitmap.set(0, 4);
    expect(area.read(1)).toEqual(faultAt(1));
    area.place(undefined);
    expect(area.agent.resume()).toBe(0n);
    area.place(area.bitmap);
    expect(area.read(1)).toEqual(faultAt(1));
  });

  it('another bitmap is EINVAL while the flag is on, the same one is no change, and another later is taken', (hv) => {
    using area = new PagedArea(hv);
    using other = area.vm.createUserfaultBitmap(4);
    other.set(0, 4);
    expect(errnoOf(() => area.place(other))).toBe('EINVAL');
    expect(errnoOf(() => area.place(undefined, { flags: MemFlag.USERFAULT }))).toBe('EINVAL');
    expect(errnoOf(() => area.place(area.bitmap))).toBe('ok');
    expect(area.read(0)).toBe(0n);
    area.place(undefined);
    area.place(other);
    expect(area.read(0)).toEqual(faultAt(0));
  });

  it('a slot that moves may bring another bitmap, whose bits count from where it is now', (hv) => {
    using area = new PagedArea(hv);
    using other = area.vm.createUserfaultBitmap(4);
    other.set(2);
    expect(area.read(0)).toBe(0n);
    area.place(other, { address: AREA - PAGE });
    expect([area.read(0), area.read(1)]).toEqual([0n, faultAt(1)]);
  });

  it('a slot keeps its bitmap when that is closed', (hv) => {
    using area = new PagedArea(hv);
    area.bitmap.set(3);
    area.bitmap.close();
    expect([area.read(0), area.read(3)]).toEqual([0n, faultAt(3)]);
  });

  it('two slots may share a bitmap: each counts from its own first page', (hv) => {
    using area = new PagedArea(hv);
    const second = { slot: AREA_SLOT + 1, guestPhysAddr: AREA + 4 * PAGE, memory: area.memory };
    area.vm.setUserMemoryRegion2({ ...second, userfaultBitmap: area.bitmap });
    area.bitmap.set(1);
    expect([area.read(0), area.read(1), area.read(4), area.read(5)]).toEqual([
      0n,
      faultAt(1),
      0n,
      faultAt(5),
    ]);
  });

  it('dirty logging may come and go beside it, and does not make bits be looked at again', (hv) => {
    using area = new PagedArea(hv);
    area.agent.write(AREA, VALUE);
    area.bitmap.set(0, 2);
    area.place(area.bitmap, { flags: MemFlag.LOG_DIRTY_PAGES });
    area.agent.write(AREA, VALUE);
    expect(area.read(1)).toEqual(faultAt(1));
    area.place(area.bitmap);
    expect(area.read(0)).toBe(VALUE);
  });

  it('a write to a page of a read-only slot that is mapped to be read faults, and looks at the bit', (hv) => {
    using area = new PagedArea(hv, { flags: MemFlag.READONLY });
    expect(area.read(0)).toBe(0n);
    area.bitmap.set(0);
    expect(area.read(0)).toBe(0n);
    area.agent.begin('write', { rdi: AREA, rsi: VALUE });
    expect(area.fault).toEqual(faultAt(0));
    area.bitmap.release(0);
    area.agent.vcpu.run(DEADLINE_MS);
    expectOutcome(area.agent.vcpu, Exit.MMIO);
  });

  // KVM_X86_QUIRK_SLOT_ZAP_ALL: a VM of the default type unmaps everything when any slot is deleted or moved.
  for (const [name, type, disabled, forgets] of [
    ['a default VM', VmType.DEFAULT, 0, true],
    ['a default VM without KVM_X86_QUIRK_SLOT_ZAP_ALL', VmType.DEFAULT, Quirk.SLOT_ZAP_ALL, false],
    ['a SW_PROTECTED VM', VmType.SW_PROTECTED, 0, false],
  ] as const) {
    const on =
      type !== VmType.DEFAULT ? itPrivate : disabled === 0 ? it : needs('userfault', 'slot-zap-quirk');
    on(
      `deleting another slot of ${name} ${forgets ? 'makes bits be looked at again' : 'unmaps nothing else'}`,
      (hv) => {
        using area = new PagedArea(hv, { type });
        const { vm } = area;
        if (disabled !== 0) vm.enableCap({ cap: Cap.DISABLE_QUIRKS2, args: [disabled] });
        vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: NOWHERE, memory: area.memory });
        expect(area.read(0)).toBe(0n);
        area.bitmap.set(0);
        vm.setUserMemoryRegion({ slot: 1, memorySize: 0 });
        expect(area.read(0)).toEqual(forgets ? faultAt(0) : 0n);
      },
    );
  }

  // "If the bit for a page is set, any vCPU access": not KVM's own, for which userfaultfd is.
  it('what KVM writes itself when it emulates an instruction does not exit', (hv) => {
    using area = new PagedArea(hv);
    area.bitmap.set(0, 4);
    const { agent } = area;
    agent.beginCode(insb, { rdx: PORT, rdi: AREA, rcx: 64 });
    for (; !agent.answered; agent.vcpu.run(DEADLINE_MS)) {
      expectOutcome(agent.vcpu, Exit.IO);
      agent.vcpu.io.data.fill(0xaa);
    }
    expect(filledWith(area.memory.bytes.subarray(0, 64), 0xaa)).toBe(true);
    agent.beginCode(copy, { rsi: NOWHERE, rdi: AREA + PAGE });
    expectOutcome(agent.vcpu, Exit.MMIO);
    agent.vcpu.mmio.value = VALUE;
    agent.resume();
    expect(wordAt(area.memory.bytes, PAGE)).toBe(VALUE);
    expect([area.read(0), area.read(1)]).toEqual([faultAt(0), faultAt(1)]);
  });

  // --- pre-faulting ---

  const itPreFault = needs('userfault', 'pre-fault');
  itPreFault('a pre-fault of a page whose bit is set gives EFAULT, and tells of it in kvm_run', (hv) => {
    using area = new PagedArea(hv);
    const { vcpu } = area.agent;
    area.bitmap.set(0);
    expect(errnoOf(() => vcpu.preFaultMemory(AREA, PAGE))).toBe('EFAULT');
    expect(vcpu.raw.exitReason).toBe(Exit.MEMORY_FAULT);
    const { flags, gpa, size } = vcpu.memoryFault;
    expect({ flags, gpa, size }).toEqual(faultAt(0));
  });
  itPreFault('a pre-fault goes as far as the first page whose bit is set', (hv) => {
    using area = new PagedArea(hv);
    area.bitmap.set(2);
    expect(area.agent.vcpu.preFaultMemory(AREA, 4 * PAGE)).toBe(2 * PAGE);
    area.bitmap.release(2);
    expect(area.agent.vcpu.preFaultMemory(AREA, 4 * PAGE)).toBe(0);
    area.bitmap.set(0, 4);
    expect(area.read(3)).toBe(0n);
  });
  itPreFault(
    'a pre-fault looks at the bit of a page that is mapped, too, which the guest goes on using',
    (hv) => {
      using area = new PagedArea(hv);
      expect(area.read(0)).toBe(0n);
      area.bitmap.set(0);
      expect(errnoOf(() => area.agent.vcpu.preFaultMemory(AREA, PAGE))).toBe('EFAULT');
      expect(area.read(0)).toBe(0n);
    },
  );
  itPreFault('a pre-fault with a null pointer gives EFAULT and says no more', (hv) => {
    using area = new PagedArea(hv, { armed: false });
    area.place(undefined, { flags: MemFlag.USERFAULT });
    const { vcpu } = area.agent;
    expect(errnoOf(() => vcpu.preFaultMemory(AREA, PAGE))).toBe('EFAULT');
    expect(vcpu.raw.exitReason).not.toBe(Exit.MEMORY_FAULT);
  });

  // --- private memory ---

  const withSecret = (hv: Hypervisor, armed = true) =>
    new PagedArea(hv, { type: VmType.SW_PROTECTED, armed });

  itPrivate('a slot with a guest_memfd takes the flag and loses it, while the guest uses it', (hv) => {
    using area = withSecret(hv, false);
    area.make('private', 0);
    area.agent.write(AREA, VALUE);
    const steps: (UserfaultBitmap | undefined)[] = [area.bitmap, undefined, area.bitmap, undefined];
    for (const bitmap of steps) {
      expect(errnoOf(() => area.place(bitmap))).toBe('ok');
      expect(area.read(0)).toBe(VALUE);
    }
    expect(errnoOf(() => area.place(undefined, { flags: MemFlag.USERFAULT }))).toBe('ok');
    expect(errnoOf(() => area.place(undefined))).toBe('ok');
    area.secret!.punchHole(0, PAGE);
    expect(area.read(0)).toBe(0n);
  });

  itPrivate('nothing else of a slot with a guest_memfd can change', (hv) => {
    using area = withSecret(hv, false);
    using other = area.vm.createGuestMemfd(8 * PAGE);
    const { vm, memory, bitmap, secret } = area;
    const slot = { slot: AREA_SLOT, guestPhysAddr: AREA, memory, guestMemfd: secret };
    const refused = [
      slot,
      { ...slot, userfaultBitmap: bitmap, guestMemfd: other },
      { ...slot, userfaultBitmap: bitmap, guestMemfdOffset: PAGE },
      { ...slot, userfaultBitmap: bitmap, guestMemfd: undefined },
      { ...slot, userfaultBitmap: bitmap, guestPhysAddr: AREA + PAGE },
      { ...slot, userfaultBitmap: bitmap, flags: MemFlag.LOG_DIRTY_PAGES },
    ];
    for (const [i, region] of refused.entries())
      expect
        .soft(
          errnoOf(() => vm.setUserMemoryRegion2(region)),
          `region ${i}`,
        )
        .toBe('EINVAL');
    area.bitmap.set(0);
    expect(area.read(0)).toBe(0n);
  });

  itPrivate('a slot whose guest_memfd is closed cannot take the flag', (hv) => {
    using area = withSecret(hv, false);
    using other = area.vm.createGuestMemfd(4 * PAGE);
    const { vm, memory, bitmap } = area;
    area.secret!.close();
    const slot = { slot: AREA_SLOT, guestPhysAddr: AREA, memory, guestMemfd: other };
    expect(errnoOf(() => vm.setUserMemoryRegion2({ ...slot, userfaultBitmap: bitmap }))).toBe('EINVAL');
  });

  itPrivate(
    'a private access exits with PRIVATE too, and finds the private page once the bit is clear',
    (hv) => {
      using area = withSecret(hv);
      area.make('private', 1);
      area.bitmap.set(0, 4);
      expect(area.read(0)).toEqual(faultAt(0));
      expect(area.read(1)).toEqual(faultAt(1, USERFAULT | PRIVATE));
      area.bitmap.release(0, 4);
      area.agent.write(AREA + PAGE, VALUE);
      expect([area.read(1), wordAt(area.memory.bytes, PAGE)]).toEqual([VALUE, 0n]);
    },
  );

  itPrivate(
    'the bit is looked at before anything else: a page that could not be had either exits first for it',
    (hv) => {
      using area = withSecret(hv);
      area.secret!.close();
      area.make('private', 0);
      area.bitmap.set(0);
      expect(area.read(0)).toEqual(faultAt(0, USERFAULT | PRIVATE));
      area.bitmap.release(0);
      expect(area.read(0)).toEqual(faultAt(0, PRIVATE));
    },
  );

  itPrivate('making a page private makes its bit be looked at again', (hv) => {
    using area = withSecret(hv);
    expect(area.read(0)).toBe(0n);
    area.bitmap.set(0);
    expect(area.read(0)).toBe(0n);
    area.make('private', 0);
    expect(area.read(0)).toEqual(faultAt(0, USERFAULT | PRIVATE));
  });

  itPrivate('the memory-fault service leaves such a fault to whoever set the bit, and has the next', (hv) => {
    using area = withSecret(hv);
    const service = new MemoryFaultService(area.vm, { policy: () => 'allow' });
    area.secret!.close();
    area.make('private', 0);
    area.bitmap.set(0);
    const { agent } = area;
    expect(service.handle(agent.vcpu, agent.begin('read', { rdi: AREA }))).toBe(false);
    expect(service.counters.memoryFaults).toBe(0);
    area.bitmap.release(0);
    expect(service.handle(agent.vcpu, agent.vcpu.run(DEADLINE_MS))).toBe(true);
    expect(agent.resume()).toBe(0n);
    expect(service.counters.conversions.toShared).toBe(1);
  });
});

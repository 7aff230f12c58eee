/** api.rst, KVM_SET_USER_MEMORY_REGION and _REGION2; the kernel's set_memory_region_test. */
import { expect } from 'vitest';
import { Cap, type Hypervisor, MemFlag, type MemoryRegion, type Vm, VmType } from '../../src/index.ts';
import { lacking } from '../support/conditions.ts';
import { noTerabytes } from '../support/host.ts';
import { errnoOf } from '../support/run.ts';
import { conformance } from '../support/suite.ts';
import { Tap } from '../support/tap.ts';

const PAGE = 4096;
const BASE = 0x10_0000;
const PAGES = 4;

type Setter = 'setUserMemoryRegion' | 'setUserMemoryRegion2';
const setters: readonly Setter[] = ['setUserMemoryRegion', 'setUserMemoryRegion2'];

/** A VM with the first four of five pages at 1 MiB as slot 1. */
function withSlot<T>(
  hv: Hypervisor,
  use: (vm: Vm, region: (change: Partial<MemoryRegion>) => MemoryRegion) => T,
): T {
  using vm = hv.createVm();
  using ram = vm.allocate((PAGES + 1) * PAGE);
  const slot = { slot: 1, guestPhysAddr: BASE, memorySize: PAGES * PAGE, memory: ram };
  vm.setUserMemoryRegion(slot);
  return use(vm, (change) => ({ ...slot, ...change }));
}

/** What the kernel answers to a change of slot 1, or to a second slot of the same memory. */
const answers: readonly (readonly [string, Partial<MemoryRegion>, string])[] = [
  ['the same slot again changes nothing and succeeds', {}, 'ok'],
  ['dirty logging of a slot can be turned on', { flags: MemFlag.LOG_DIRTY_PAGES }, 'ok'],
  ['a slot can move to another guest-physical address', { guestPhysAddr: BASE + PAGE }, 'ok'],
  ['a slot cannot change its size: EINVAL', { memorySize: PAGE }, 'EINVAL'],
  ['a slot cannot change its memory: EINVAL', { memoryOffset: PAGE }, 'EINVAL'],
  ['a slot with memory size 0 is deleted', { memorySize: 0 }, 'ok'],
  ['a slot that is not there cannot be deleted: EINVAL', { slot: 2, memorySize: 0 }, 'EINVAL'],
  ['a slot may begin where another ends', { slot: 2, guestPhysAddr: BASE + PAGES * PAGE }, 'ok'],
  ['a slot may end where another begins', { slot: 2, guestPhysAddr: BASE - PAGES * PAGE }, 'ok'],
  ['the same host memory may be two slots', { slot: 2, guestPhysAddr: 2 * BASE }, 'ok'],
  ['a slot over another gives EEXIST', { slot: 2 }, 'EEXIST'],
  ['a slot over the front of another gives EEXIST', { slot: 2, guestPhysAddr: BASE - PAGE }, 'EEXIST'],
  ['a slot over the back of another gives EEXIST', { slot: 2, guestPhysAddr: BASE + PAGE }, 'EEXIST'],
  ['a slot inside another gives EEXIST', { slot: 2, guestPhysAddr: BASE + PAGE, memorySize: PAGE }, 'EEXIST'],
  ['an address that is not a multiple of 4096 gives EINVAL', { slot: 2, guestPhysAddr: 1 }, 'EINVAL'],
  [
    'a size that is not a multiple of 4096 gives EINVAL',
    { slot: 2, guestPhysAddr: 0, memorySize: 1 },
    'EINVAL',
  ],
  [
    'host memory that does not begin at a page gives EINVAL',
    { slot: 2, guestPhysAddr: 0, memoryOffset: 1, memorySize: PAGE },
    'EINVAL',
  ],
  // KVM_MEM_MAX_NR_PAGES is 2^31 - 1.
  [
    'a slot of 2^31 pages gives EINVAL',
    { slot: 2, guestPhysAddr: 2 * BASE, memory: undefined, memorySize: 2 ** 43 },
    'EINVAL',
  ],
];

conformance('memory slots', ({ it, needs }) => {
  for (const [sentence, change, errno] of answers) {
    it(sentence, (hv, context) => {
      context.skip(change.memorySize === 2 ** 43 && noTerabytes !== undefined, noTerabytes);
      for (const setter of setters) {
        withSlot(hv, (vm, region) => {
          expect(
            errnoOf(() => vm[setter](region(change))),
            setter,
          ).toBe(errno);
        });
      }
    });
  }

  it('a slot that ends above 2^64 gives EINVAL', (hv) => {
    using tap = new Tap(hv.backend);
    using vm = tap.hv.createVm();
    using ram = vm.allocate(2 * PAGE);
    const guestPhysAddr = 2n ** 64n - BigInt(PAGE);
    expect(tap.setRegion({ guestPhysAddr, memorySize: 2 * PAGE }, ram)).toBe('EINVAL');
  });

  it('deleting a slot makes room for another at the same place', (hv) => {
    withSlot(hv, (vm, region) => {
      vm.setUserMemoryRegion(region({ memorySize: 0 }));
      expect(vm.memoryMap.slots).toEqual([]);
      vm.setUserMemoryRegion(region({ slot: 2 }));
      expect(vm.memoryMap.slots).toMatchObject([{ slot: 2, start: BASE, end: BASE + PAGES * PAGE }]);
    });
  });

  it('a refused change leaves the slot as it was', (hv) => {
    withSlot(hv, (vm, region) => {
      const before = [...vm.memoryMap.slots];
      expect(errnoOf(() => vm.setUserMemoryRegion(region({ memorySize: PAGE })))).toBe('EINVAL');
      expect(vm.memoryMap.slots).toEqual(before);
      expect(errnoOf(() => vm.setUserMemoryRegion(region({})))).toBe('ok');
    });
  });

  needs('readonly-memory')('a slot cannot become READONLY, or stop being it: EINVAL', (hv) => {
    const { READONLY } = MemFlag;
    withSlot(hv, (vm, region) => {
      expect(errnoOf(() => vm.setUserMemoryRegion(region({ flags: READONLY })))).toBe('EINVAL');
      const other = region({ slot: 2, guestPhysAddr: 2 * BASE });
      vm.setUserMemoryRegion({ ...other, flags: READONLY });
      expect(errnoOf(() => vm.setUserMemoryRegion(other))).toBe('EINVAL');
    });
  });

  it('the first version takes the flags LOG_DIRTY_PAGES and READONLY, and no other bit', (hv) => {
    const known = MemFlag.LOG_DIRTY_PAGES | (hv.checkExtension(Cap.READONLY_MEM) ? MemFlag.READONLY : 0);
    for (let bit = 0; bit < 32; bit++) {
      const flags = (1 << bit) >>> 0;
      withSlot(hv, (vm, region) => {
        const set = () => vm.setUserMemoryRegion(region({ slot: 2, guestPhysAddr: 2 * BASE, flags }));
        expect.soft(errnoOf(set), `bit ${bit}`).toBe((flags & known) !== 0 ? 'ok' : 'EINVAL');
      });
    }
  });

  for (const type of [VmType.DEFAULT, VmType.SW_PROTECTED]) {
    const name = type === VmType.DEFAULT ? 'a default VM' : 'a SW_PROTECTED VM';
    (type === VmType.DEFAULT ? needs('user-memory2') : needs('private-memory'))(
      `the second version takes GUEST_MEMFD on ${name} exactly where KVM_CAP_GUEST_MEMFD says so, USERFAULT where ` +
        'there is userfault, and no unknown bit',
      (hv) => {
        using vm = hv.createVm({ type });
        using ram = vm.allocate(PAGE);
        const bindable = vm.checkExtension(Cap.GUEST_MEMFD) > 0;
        const known =
          MemFlag.LOG_DIRTY_PAGES |
          (vm.checkExtension(Cap.READONLY_MEM) ? MemFlag.READONLY : 0) |
          (bindable ? MemFlag.GUEST_MEMFD : 0) |
          (lacking(hv, 'userfault') === undefined ? MemFlag.USERFAULT : 0);
        for (let bit = 0; bit < 32; bit++) {
          const flags = (1 << bit) >>> 0;
          const fits = (flags & known) !== 0;
          using secret = flags === MemFlag.GUEST_MEMFD ? vm.createGuestMemfd(PAGE) : undefined;
          const region = { slot: 0, guestPhysAddr: 0, memory: ram, guestMemfd: secret, flags };
          expect
            .soft(
              errnoOf(() => vm.setUserMemoryRegion2(region)),
              `bit ${bit}`,
            )
            .toBe(fits ? 'ok' : 'EINVAL');
          if (fits) vm.setUserMemoryRegion2({ slot: 0, memorySize: 0 });
        }
      },
    );
  }

  it('slots are numbered below KVM_CAP_NR_MEMSLOTS; the next number gives EINVAL', (hv) => {
    const slots = hv.checkExtension(Cap.NR_MEMSLOTS);
    withSlot(hv, (vm, region) => {
      const set = (slot: number) =>
        errnoOf(() => vm.setUserMemoryRegion(region({ slot, guestPhysAddr: 2 * BASE })));
      expect([set(slots - 1), set(slots), set(0xffff)]).toEqual(['ok', 'EINVAL', 'EINVAL']);
    });
  });

  it('address spaces are numbered below KVM_CAP_MULTI_ADDRESS_SPACE, each with slots of its own', (hv) => {
    const spaces = hv.checkExtension(Cap.MULTI_ADDRESS_SPACE) || 1;
    withSlot(hv, (vm, region) => {
      for (let addressSpace = 1; addressSpace <= spaces; addressSpace++) {
        const set = () => vm.setUserMemoryRegion(region({ addressSpace }));
        expect(errnoOf(set), `address space ${addressSpace}`).toBe(addressSpace < spaces ? 'ok' : 'EINVAL');
      }
    });
  });

  needs('private-memory')('a VM with private memory has address space 0 only: 1 gives EINVAL', (hv) => {
    using vm = hv.createVm({ type: VmType.SW_PROTECTED });
    using ram = vm.allocate(PAGE);
    const set = (addressSpace: number) =>
      errnoOf(() => vm.setUserMemoryRegion2({ slot: 0, addressSpace, guestPhysAddr: 0, memory: ram }));
    expect([set(0), set(1)]).toEqual(['ok', 'EINVAL']);
  });

  it('as many slots as KVM_CAP_NR_MEMSLOTS says can be there at once, each with memory', (hv) => {
    using tap = new Tap(hv.backend);
    using vm = tap.hv.createVm();
    using ram = vm.allocate(PAGE);
    const count = tap.hv.checkExtension(Cap.NR_MEMSLOTS);
    let refused = 0;
    for (let slot = 0; slot < count; slot++) {
      if (tap.setRegion({ slot, guestPhysAddr: slot * PAGE, memorySize: PAGE }, ram) !== 'ok') refused++;
    }
    expect(refused).toBe(0);
  });
});

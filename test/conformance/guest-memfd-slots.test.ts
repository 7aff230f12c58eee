/** Slots with private memory: api.rst, KVM_SET_USER_MEMORY_REGION2; guest_memfd.c, kvm_gmem_bind. */
import { expect } from 'vitest';
import type { GuestMemfd, GuestMemory, Hypervisor, MemoryRegion2, Vm } from '../../src/index.ts';
import { ioctls, MemFlag } from '../../src/uapi/index.ts';
import { PAGE } from '../support/area.ts';
import { bindAt, bindableType } from '../support/conditions.ts';
import { errnoOf } from '../support/run.ts';
import { conformance } from '../support/suite.ts';
import { Tap } from '../support/tap.ts';

const BASE = 0x10_0000;
const SIZE = 4 * PAGE;
/** The file is twice as large as the slot. */
const FILE = 2 * SIZE;

interface Parts {
  readonly vm: Vm;
  readonly ram: GuestMemory;
  readonly secret: GuestMemfd;
  /** Slot 1, as it is bound already: four pages of memory and the file's first four at 1 MiB. */
  readonly slot: MemoryRegion2;
}

function withSlot(hv: Hypervisor, use: (parts: Parts) => void): void {
  using vm = hv.createVm({ type: bindableType(hv)! });
  using ram = vm.allocate(FILE);
  using secret = vm.createGuestMemfd(FILE);
  const slot = { slot: 1, guestPhysAddr: BASE, memorySize: SIZE, memory: ram, guestMemfd: secret };
  vm.setUserMemoryRegion2(slot);
  use({ vm, ram, secret, slot });
}

/** How the kernel answers a change of slot 1, or a second slot. */
const answers: readonly (readonly [string, (parts: Parts) => Partial<MemoryRegion2>, string])[] = [
  ['a bound slot cannot be set again, even as it is: EINVAL', () => ({}), 'EINVAL'],
  ['a bound slot cannot move: EINVAL', () => ({ guestPhysAddr: 2 * BASE }), 'EINVAL'],
  ['a bound slot cannot change its size: EINVAL', () => ({ memorySize: PAGE }), 'EINVAL'],
  ['a bound slot cannot take another part of the file: EINVAL', () => ({ guestMemfdOffset: SIZE }), 'EINVAL'],
  ['a bound slot cannot lose its file: EINVAL', () => ({ guestMemfd: undefined }), 'EINVAL'],
  [
    'a bound slot cannot have its dirty pages logged: EINVAL',
    () => ({ flags: MemFlag.LOG_DIRTY_PAGES }),
    'EINVAL',
  ],
  ['a bound slot can be deleted', () => ({ memorySize: 0, guestMemfd: undefined }), 'ok'],
  [
    'a slot with a file cannot have its dirty pages logged: EINVAL',
    () => ({ slot: 2, guestPhysAddr: 2 * BASE, guestMemfdOffset: SIZE, flags: MemFlag.LOG_DIRTY_PAGES }),
    'EINVAL',
  ],
  [
    'a slot with a file cannot be READONLY: EINVAL',
    () => ({ slot: 2, guestPhysAddr: 2 * BASE, guestMemfdOffset: SIZE, flags: MemFlag.READONLY }),
    'EINVAL',
  ],
  [
    'another part of the same file can be another slot',
    () => ({ slot: 2, guestPhysAddr: 2 * BASE, guestMemfdOffset: SIZE }),
    'ok',
  ],
  [
    'a slot over the front of another gives EEXIST',
    () => ({ slot: 2, guestPhysAddr: BASE - PAGE, guestMemfdOffset: SIZE }),
    'EEXIST',
  ],
  [
    'a slot over the back of another gives EEXIST',
    () => ({ slot: 2, guestPhysAddr: BASE + PAGE, guestMemfdOffset: SIZE }),
    'EEXIST',
  ],
  // The range of the file is looked at only when the guest-physical ranges do not overlap.
  ['a part of the file that is bound gives EINVAL', () => ({ slot: 2, guestPhysAddr: 2 * BASE }), 'EINVAL'],
  [
    'a part of the file of which one page is bound gives EINVAL',
    () => ({ slot: 2, guestPhysAddr: 2 * BASE, guestMemfdOffset: SIZE - PAGE }),
    'EINVAL',
  ],
  [
    'a slot beyond the end of the file gives EINVAL',
    () => ({ slot: 2, guestPhysAddr: 2 * BASE, guestMemfdOffset: FILE - SIZE + PAGE }),
    'EINVAL',
  ],
  [
    'a slot that begins at the end of the file gives EINVAL',
    () => ({ slot: 2, guestPhysAddr: 2 * BASE, guestMemfdOffset: FILE }),
    'EINVAL',
  ],
  [
    'the flag without a file gives EBADF',
    () => ({ slot: 2, guestPhysAddr: 2 * BASE, guestMemfd: undefined, flags: MemFlag.GUEST_MEMFD }),
    'EBADF',
  ],
];

conformance('guest_memfd slots', ({ needs }) => {
  const it = needs('guest-memfd-slots');

  for (const [sentence, change, errno] of answers) {
    it(sentence, (hv) => {
      withSlot(hv, (parts) => {
        const region = { ...parts.slot, ...change(parts) };
        expect(errnoOf(() => parts.vm.setUserMemoryRegion2(region))).toBe(errno);
      });
    });
  }

  it('an offset in the file that is not a multiple of 4096 gives EINVAL', (hv) => {
    withSlot(hv, ({ vm, slot }) => {
      const at = (guestMemfdOffset: number) => ({
        ...slot,
        slot: 2,
        guestPhysAddr: 2 * BASE,
        guestMemfdOffset: SIZE + guestMemfdOffset,
      });
      const accepted = Array.from({ length: PAGE - 1 }, (_, i) => i + 1).filter(
        (offset) => errnoOf(() => vm.setUserMemoryRegion2({ ...at(offset), memorySize: PAGE })) !== 'EINVAL',
      );
      expect(accepted).toEqual([]);
    });
  });

  for (const [name, offset] of [
    ['2^63', 1n << 63n],
    ['the last page below 2^64', (1n << 64n) - BigInt(PAGE)],
  ] as const) {
    it(`an offset in the file of ${name} gives EINVAL`, (hv) => {
      expect(bindAt(hv, offset)).toBe('EINVAL');
    });
  }

  // The sum of offset and size is then beyond what a file's size can be; older kernels saw a negative number.
  needs('guest-memfd-bounds')('an offset in the file of the last page below 2^63 gives EINVAL', (hv) => {
    expect(bindAt(hv, (1n << 63n) - BigInt(PAGE))).toBe('EINVAL');
  });

  it('a file that is no guest_memfd gives EINVAL: the KVM device, a VM, a memfd', (hv) => {
    using tap = new Tap(hv.backend);
    using vm = tap.hv.createVm({ type: bindableType(hv)! });
    using ram = vm.allocate(PAGE);
    const files = {
      'the KVM device': tap.handle(),
      'the VM': tap.handle(ioctls.KVM_CREATE_VM),
      'a memfd': ram.handle,
    };
    for (const [name, file] of Object.entries(files)) {
      const answer = tap.setRegion({ memorySize: PAGE, flags: MemFlag.GUEST_MEMFD }, ram, file);
      expect.soft(answer, name).toBe('EINVAL');
    }
  });

  it("another VM's guest_memfd gives EINVAL", (hv) => {
    withSlot(hv, ({ vm, slot }) => {
      withSlot(hv, ({ secret }) => {
        const region = {
          ...slot,
          slot: 2,
          guestPhysAddr: 2 * BASE,
          guestMemfd: secret,
          guestMemfdOffset: SIZE,
        };
        expect(errnoOf(() => vm.setUserMemoryRegion2(region))).toBe('EINVAL');
      });
    });
  });

  it('a deleted slot leaves its part of the file free to be bound again', (hv) => {
    withSlot(hv, ({ vm, slot }) => {
      vm.setUserMemoryRegion2({ slot: 1, memorySize: 0 });
      vm.setUserMemoryRegion2({ ...slot, slot: 2, guestPhysAddr: 2 * BASE });
    });
  });

  it('the file can be closed while a slot is bound to it, and the slot be deleted then', (hv) => {
    withSlot(hv, ({ vm, secret }) => {
      secret.close();
      vm.setUserMemoryRegion2({ slot: 1, memorySize: 0 });
      expect(vm.memoryMap.slots).toEqual([]);
    });
  });
});

/** The service's decisions, on a scripted backend: every state of the memory, whatever hosts can be brought to. */
import { describe, expect, it } from 'vitest';
import { Exit, MemoryAttribute, MemoryFaultFlag, type Policy, VmType } from '../../src/index.ts';
import { Errno } from '../../src/uapi/errno.ts';
import { mapGpaRange, memoryFault, type Step } from '../support/scripted-backend.ts';
import { machine, PAGE, thrown } from '../support/scripted-machine.ts';

const PRIVATE = MemoryFaultFlag.PRIVATE;

describe('a fault on a VM whose guests do not choose', () => {
  it('is retried when slot and attributes allow the access now, whatever its flags say', () => {
    const m = machine(VmType.SW_PROTECTED);
    expect(m.play(memoryFault({ gpa: 0x1000, flags: PRIVATE }))).toBe(true);
    m.makePrivate(0x2000);
    expect(m.play(memoryFault({ gpa: 0x2000, flags: 0 }))).toBe(true);
    expect(m.conversions()).toEqual([]);
    expect(m.punches()).toEqual([]);
    expect(m.service.counters).toMatchObject({ memoryFaults: 2, retries: 2, refusals: 0 });
    expect(m.events.map(({ cause, action }) => [cause, action])).toEqual([
      ['race', 'retry'],
      ['race', 'retry'],
    ]);
  });

  it('is refused by default when the page is private and its slot has no guest_memfd, and says so', () => {
    const m = machine(VmType.SW_PROTECTED);
    m.makePrivate(0x10_0000);
    const error = thrown(() => m.play(memoryFault({ gpa: 0x10_0000, flags: PRIVATE })));
    expect(error.code).toBe('ERR_KVM_REFUSED');
    expect(error.message).toContain('[0x100000, 0x101000)');
    expect(error.message).toContain('now private, slot 2 [0x100000, 0x110000) without guest_memfd');
    expect(error.message).toContain('bind a guest_memfd');
    expect(m.conversions()).toEqual([]);
    expect(m.service.counters.refusals).toBe(1);
  });

  it.each([
    ['its slot has no guest_memfd', 0x10_0000],
    ['it has no slot', 0x80_0000],
  ])(
    'is converted to shared, never to the private that it is already, when the policy allows and %s',
    (_, gpa) => {
      const m = machine(VmType.SW_PROTECTED, { policy: () => 'allow' });
      m.makePrivate(gpa);
      expect(m.play(memoryFault({ gpa, flags: PRIVATE }))).toBe(true);
      expect(m.conversions()).toEqual([{ address: gpa, size: PAGE, attributes: 0, flags: 0 }]);
      expect(m.service.counters.conversions).toEqual({ toPrivate: 0, toShared: 1 });
      expect(m.vm.memoryMap.isPrivate(gpa)).toBe(false);
    },
  );

  it('is unbacked once the guest_memfd is closed', () => {
    const m = machine(VmType.SW_PROTECTED);
    m.makePrivate(0x1000);
    m.secret.close();
    expect(thrown(() => m.play(memoryFault({ gpa: 0x1000, flags: PRIVATE }))).message).toContain(
      'whose guest_memfd was closed',
    );
  });

  it('is retried when the policy has bound a guest_memfd', () => {
    const policy: Policy = ({ cause, slot }) => {
      expect(cause).toBe('unbacked');
      m.vm.setUserMemoryRegion2({ slot: slot!.slot, memorySize: 0 });
      const { start: guestPhysAddr } = slot!;
      m.vm.setUserMemoryRegion2({ slot: 2, guestPhysAddr, memorySize: 0x10000, guestMemfd: m.secret });
      return 'retry';
    };
    const m = machine(VmType.SW_PROTECTED, { policy });
    m.makePrivate(0x10_0000);
    expect(m.play(memoryFault({ gpa: 0x10_0000, flags: PRIVATE }))).toBe(true);
    expect(m.conversions()).toEqual([]);
    expect(m.play(memoryFault({ gpa: 0x10_0000, flags: PRIVATE }))).toBe(true);
    expect(m.events.map(({ cause }) => cause)).toEqual(['unbacked', 'race']);
  });

  it('is not a request because of a flag bit that nobody knows', () => {
    const m = machine(VmType.SW_PROTECTED);
    expect(m.play(memoryFault({ gpa: 0x1000, flags: 2 ** 40 }))).toBe(true);
    expect(m.conversions()).toEqual([]);
  });
});

describe('a fault on a VM whose guests choose', () => {
  it.each([
    ['private', PRIVATE, MemoryAttribute.PRIVATE, { toPrivate: 1, toShared: 0 }],
    ['shared', 0, 0, { toPrivate: 0, toShared: 1 }],
  ])(
    'converts to %s, as its flags ask, over the whole range of the fault',
    (to, flags, attributes, counted) => {
      const m = machine(VmType.SNP);
      if (to === 'shared') m.makePrivate(0x4000, 4 * PAGE);
      expect(m.play(memoryFault({ gpa: 0x4000, size: 4 * PAGE, flags }))).toBe(true);
      expect(m.conversions()).toEqual([{ address: 0x4000, size: 4 * PAGE, attributes, flags: 0 }]);
      expect(m.service.counters.conversions).toEqual(counted);
      expect(m.events[0]).toMatchObject({ cause: 'mismatch', gpa: 0x4000, size: 4 * PAGE, action: to });
    },
  );

  it('is refused when it wants private memory where there is none, even if the policy allows', () => {
    const m = machine(VmType.TDX, { policy: () => 'allow' });
    expect(thrown(() => m.play(memoryFault({ gpa: 0x10_0000, flags: PRIVATE }))).code).toBe(
      'ERR_KVM_REFUSED',
    );
    expect(m.conversions()).toEqual([]);
  });

  it('ends the run when the policy denies', () => {
    const m = machine(VmType.SNP, { policy: () => 'deny' });
    expect(thrown(() => m.play(memoryFault({ gpa: 0, flags: PRIVATE }))).message).toContain(
      'the policy denies it',
    );
    expect(m.conversions()).toEqual([]);
  });
});

describe('a poisoned page', () => {
  it('is never replaced unless the policy says so', () => {
    const m = machine(VmType.SW_PROTECTED);
    m.makePrivate(0x3000);
    const error = thrown(() => m.play(memoryFault({ gpa: 0x3000, flags: PRIVATE }, Errno.EHWPOISON)));
    expect(error.message).toContain('hardware memory error');
    expect(m.punches()).toEqual([]);
    expect(m.service.counters).toMatchObject({ memoryFaults: 1, poisoned: 1, refusals: 1 });
  });

  it('is punched out of its guest_memfd when the policy allows, and of nothing else', () => {
    const m = machine(VmType.SW_PROTECTED, {
      policy: ({ cause }) => (cause === 'poisoned' ? 'allow' : 'deny'),
    });
    m.makePrivate(0x11000);
    expect(m.play(memoryFault({ gpa: 0x11000, flags: PRIVATE }, Errno.EHWPOISON))).toBe(true);
    expect(m.punches()).toEqual([{ mode: 3, offset: 0x21000, size: PAGE }]);
    expect(m.vm.memoryMap.isPrivate(0x11000)).toBe(true);
  });
});

describe('a request by KVM_HC_MAP_GPA_RANGE', () => {
  const ENC = 1n << 4n;
  const asked = (m: ReturnType<typeof machine>, step: Step) => {
    expect(m.play(step)).toBe(true);
    return BigInt.asIntN(64, m.vcpu.hypercall.ret);
  };

  it('is one KVM_SET_MEMORY_ATTRIBUTES over two slots, then a discard in each, and returns 0', () => {
    const m = machine(VmType.SW_PROTECTED);
    expect(asked(m, mapGpaRange(0xf000n, 2n, ENC))).toBe(0n);
    expect(m.conversions()).toEqual([{ address: 0xf000, size: 2 * PAGE, attributes: 8, flags: 0 }]);
    expect(m.punches()).toEqual([
      { mode: 3, offset: 0xf000, size: PAGE },
      { mode: 3, offset: 0x10000, size: PAGE },
    ]);
    expect(m.backend.calls[0]!.name).toBe('KVM_SET_MEMORY_ATTRIBUTES');
    expect(asked(m, mapGpaRange(0xf000n, 2n, 0n))).toBe(0n);
    expect(m.punches().slice(2)).toEqual([
      { mode: 3, offset: 0xf000, size: PAGE },
      { mode: 3, offset: 0x20000, size: PAGE },
    ]);
    expect(m.service.counters).toMatchObject({
      hypercalls: 2,
      conversions: { toPrivate: 1, toShared: 1 },
      bytes: { toPrivate: 2 * PAGE, toShared: 2 * PAGE },
    });
  });

  it.each([
    ['both', 1, 2],
    ['private', 0, 1],
    ['none', 0, 0],
  ] as const)('discards by the option %s', (discard, afterPrivate, afterShared) => {
    const m = machine(VmType.SW_PROTECTED, { discard });
    asked(m, mapGpaRange(0n, 1n, ENC));
    expect(m.punches()).toHaveLength(afterPrivate);
    asked(m, mapGpaRange(0n, 1n, 0n));
    expect(m.punches()).toHaveLength(afterShared);
  });

  it('for the state that all of the range has changes nothing, and discards nothing', () => {
    const m = machine(VmType.SW_PROTECTED);
    m.makePrivate(0, 4 * PAGE);
    expect(asked(m, mapGpaRange(0x1000n, 2n, ENC))).toBe(0n);
    expect(m.backend.calls).toEqual([]);
    expect(m.service.counters.conversions).toEqual({ toPrivate: 0, toShared: 0 });
  });

  it.each([
    ['unaligned', 0x1001n, 1n, ENC, -22n],
    ['empty', 0x1000n, 0n, ENC, -22n],
    ['of 2^60 bytes', 0n, 1n << 48n, ENC, -14n],
    ['of 2^60 bytes, to shared', 0n, 1n << 48n, 0n, -14n],
    ['of 2^64 pages', 0n, (1n << 64n) - 1n, ENC, -14n],
    ['beyond 52 bits', 1n << 63n, 1n, ENC, -14n],
    ['that ends outside of every slot', 0x1f000n, 2n, ENC, -14n],
    ['of memory that has no guest_memfd', 0x10_0000n, 1n, ENC, -95n],
  ])('that is %s gets its errno before any ioctl', (_, gpa, pages, attributes, ret) => {
    const m = machine(VmType.SW_PROTECTED);
    expect(asked(m, mapGpaRange(gpa, pages, attributes))).toBe(ret);
    expect(m.backend.calls).toEqual([]);
    expect(m.service.counters.refusals).toBe(1);
  });

  it("to share a guest's device memory, which is shared already, succeeds and does nothing", () => {
    const m = machine(VmType.SW_PROTECTED);
    expect(asked(m, mapGpaRange(0x80_0000n, 16n, 0n))).toBe(0n);
    expect(m.backend.calls).toEqual([]);
  });

  it('is told by bit 4 of the attributes, whatever the other 63 are', () => {
    const m = machine(VmType.SW_PROTECTED);
    expect(asked(m, mapGpaRange(0n, 1n, ENC | (1n << 63n)))).toBe(0n);
    expect(m.vm.memoryMap.isPrivate(0)).toBe(true);
    expect(asked(m, mapGpaRange(0n, 1n, ((1n << 64n) - 1n) & ~ENC))).toBe(0n);
    expect(m.vm.memoryMap.isPrivate(0)).toBe(false);
  });

  it('gets EPERM when the policy denies, and the run goes on', () => {
    const m = machine(VmType.SW_PROTECTED, { policy: () => 'deny' });
    expect(asked(m, mapGpaRange(0n, 1n, ENC))).toBe(-1n);
    expect(m.backend.calls).toEqual([]);
    expect(m.events[0]).toMatchObject({ cause: 'hypercall', action: 'deny', result: -1 });
  });

  it('has its ret written even when the policy throws', () => {
    const m = machine(VmType.SW_PROTECTED, {
      policy: () => {
        throw new Error('a bug in the policy');
      },
    });
    expect(() => m.play(mapGpaRange(0n, 1n, ENC))).toThrow('a bug in the policy');
    expect(BigInt.asIntN(64, m.vcpu.hypercall.ret)).toBe(-1n);
  });

  it('gets EFAULT, with nothing discarded, when the kernel refuses the attributes', () => {
    const m = machine(VmType.SW_PROTECTED);
    m.backend.results.KVM_SET_MEMORY_ATTRIBUTES = -Errno.ENOMEM;
    expect(asked(m, mapGpaRange(0n, 1n, ENC))).toBe(-14n);
    expect(m.punches()).toEqual([]);
    expect(m.vm.memoryMap.isPrivate(0)).toBe(false);
  });

  it('stands, counted, when the discard after it fails', () => {
    const m = machine(VmType.SW_PROTECTED);
    m.backend.results.fallocate = -Errno.ENOMEM;
    expect(asked(m, mapGpaRange(0n, 1n, ENC))).toBe(0n);
    expect(m.vm.memoryMap.isPrivate(0)).toBe(true);
    expect(m.service.counters.discardFailures).toBe(1);
  });

  it('is pre-faulted on demand, with ret written after it; a failure is counted and told to nobody', () => {
    const m = machine(VmType.SW_PROTECTED, { preFault: true });
    m.backend.results.KVM_PRE_FAULT_MEMORY = -Errno.EAGAIN;
    expect(asked(m, mapGpaRange(0n, 1n, ENC))).toBe(0n);
    expect(m.backend.calls.at(-1)!.name).toBe('KVM_PRE_FAULT_MEMORY');
    expect(m.service.counters.preFaultFailures).toBe(1);
  });

  it('is the only hypercall that the service takes', () => {
    const m = machine(VmType.SW_PROTECTED);
    expect(m.service.handle(m.vcpu, Exit.IO)).toBe(false);
    expect(m.service.handle(m.vcpu, Exit.FAULT)).toBe(false);
  });
});

describe('convert()', () => {
  it('says why a range cannot be converted, before anything changes', () => {
    const m = machine(VmType.SW_PROTECTED);
    expect(thrown(() => m.service.convert(0x10_0000, PAGE, 'private')).message).toContain(
      'cannot become private: a slot of the range has no open guest_memfd',
    );
    expect(thrown(() => m.service.convert(1, PAGE, 'private')).message).toContain('whole pages');
    expect(m.backend.calls).toEqual([]);
  });

  it("throws the kernel's errno", () => {
    const m = machine(VmType.SW_PROTECTED);
    m.backend.results.KVM_SET_MEMORY_ATTRIBUTES = -Errno.ENOMEM;
    expect(() => m.service.convert(0, PAGE, 'private')).toThrow(
      /KVM_SET_MEMORY_ATTRIBUTES failed with ENOMEM/,
    );
  });
});

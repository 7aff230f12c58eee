/**
 * The three ABIs by which KVM has told of memory faults, spoken by a simulated host: in each, the guest's implicit
 * conversions are told in that ABI's own way, and the memory-fault service does them without knowing which it is.
 */
import { describe, expect, it } from 'vitest';
import {
  Cap,
  Exit,
  Hypervisor,
  MemoryAttribute,
  MemoryFaultFlag,
  MemoryFaultService,
  VmType,
} from '../../src/index.ts';
import { simulator } from '../../src/open.ts';
import { type DialectName, Errno, exitArms, kvm_run } from '../../src/uapi/index.ts';
import { AREA, PAGE } from '../support/area.ts';
import { ChoosingGuest } from '../support/choosing.ts';
import { errnoOf, expectOutcome, wordAt } from '../support/run.ts';

const SHARED = 0x5a5a_5a5a_5a5a_5a5an;
const SECRET = 0x0123_4567_89ab_cdefn;
const { PRIVATE } = MemoryAttribute;

/** What is the ABI's own: the result of KVM_RUN, exit_reason beside it, and the flag word of a private access. */
const own: { readonly [name in DialectName]: readonly [result: number, reason: number, flags: number] } = {
  rfc: [-Errno.EPERM, 36, 1],
  v9: [38, 38, 1],
  mainline: [-Errno.EFAULT, 39, 8],
};

/** A run below Vcpu: what the ioctl itself gives, and what stands in kvm_run. */
function rawRun(guest: ChoosingGuest): {
  result: number;
  reason: number;
  flags: number;
  gpa: number;
  size: number;
} {
  const result = guest.rawRun();
  const { view } = guest.vcpu.raw;
  const { exit, exitReason } = kvm_run.fields;
  const u32 = (at: number) => view.getUint32(at, true);
  const { gpa, size } = exitArms.memoryFault.fields;
  return {
    result,
    reason: u32(exitReason.offset),
    flags: u32(exit.offset),
    gpa: Number(view.getBigUint64(exit.offset + gpa.offset, true)),
    size: u32(exit.offset + size.offset),
  };
}

describe.each(Object.keys(own) as DialectName[])('a simulated host that speaks %s', (dialect) => {
  const boot = () => new ChoosingGuest(VmType.TDX, { dialect });

  it('tells of a fault by its own number, bits and errno', () => {
    using guest = boot();
    const [result, reason, flags] = own[dialect];
    guest.beginRead(PAGE, 'private');
    expect(rawRun(guest)).toEqual({ result, reason, flags, gpa: AREA + PAGE, size: PAGE });
  });

  it("gives it to the VMM as Exit.MEMORY_FAULT in today's words", () => {
    using guest = boot();
    guest.beginRead(PAGE, 'private');
    expectOutcome(guest.vcpu, Exit.MEMORY_FAULT);
    const { gpa, size, flags, isPrivate } = guest.vcpu.memoryFault;
    expect({ gpa, size, flags, isPrivate }).toEqual({
      gpa: AREA + PAGE,
      size: PAGE,
      flags: MemoryFaultFlag.PRIVATE,
      isPrivate: true,
    });
    expect(guest.vcpu.exit).toMatchObject({ reason: 'MEMORY_FAULT', flags: { private: true, unknown: 0n } });
    expect(guest.vcpu.raw.exitReason).toBe(Exit.UNKNOWN);
  });

  it('has its conversions done by the memory-fault service, there and back', () => {
    using guest = boot();
    const service = new MemoryFaultService(guest.vm);
    const serve = (exit: number): bigint => {
      expect(service.handle(guest.vcpu, exit)).toBe(true);
      return guest.resume();
    };
    guest.beginWrite(0, 'shared', SHARED);
    guest.answer;
    serve(guest.beginWrite(0, 'private', SECRET));
    guest.beginRead(0, 'private');
    expect([guest.answer, wordAt(guest.shared.bytes)]).toEqual([SECRET, 0n]);
    expect(serve(guest.beginRead(0, 'shared'))).toBe(0n);
    expect(service.counters).toMatchObject({ memoryFaults: 2, conversions: { toPrivate: 1, toShared: 1 } });
  });

  it('has a guest that asks for memory that cannot be private refused, and not served for ever', () => {
    using guest = boot();
    const service = new MemoryFaultService(guest.vm);
    guest.secret.close();
    const exit = guest.beginRead(0, 'private');
    expect(() => service.handle(guest.vcpu, exit)).toThrow(
      expect.objectContaining({ code: 'ERR_KVM_REFUSED' }),
    );
  });

  it('converts by its own call alone', () => {
    using guest = boot();
    const range = { address: AREA, size: PAGE, attributes: PRIVATE };
    const today = dialect === 'mainline';
    expect(errnoOf(() => guest.vm.setMemoryAttributes(range))).toBe(today ? 'ok' : 'ENOTTY');
    expect(guest.vm.checkExtension(Cap.MEMORY_ATTRIBUTES)).toBe(today ? PRIVATE : 0);
    expect(guest.vm.checkExtension(Cap.MEMORY_FAULT_INFO)).toBe(today ? 1 : 0);
    expect(errnoOf(() => guest.vcpu.preFaultMemory(AREA, PAGE))).toBe(today ? 'ok' : 'ENOTTY');
  });

  it('has no word but errno for a poisoned page, unless it is mainline', () => {
    using guest = boot();
    guest.vm.tryConvert(AREA, PAGE, PRIVATE);
    guest.backend.poison(guest.secret.fd.handle, 0);
    guest.beginRead(0, 'private');
    expectOutcome(guest.vcpu, dialect === 'mainline' ? Exit.MEMORY_POISONED : Exit.FAULT);
  });
});

describe("the first ABI's conditions", () => {
  it('a private access faults when the page "has not been allocated in the private memory backend"', () => {
    using guest = new ChoosingGuest(VmType.SNP, { dialect: 'rfc' });
    guest.beginRead(0, 'private');
    expect(guest.vcpu.memoryFault.isPrivate).toBe(true);
    guest.secret.allocate(0, PAGE);
    expect(guest.resume()).toBe(0n);
  });

  it('a shared access faults when the page "has already been allocated in the private memory backend"', () => {
    using guest = new ChoosingGuest(VmType.SNP, { dialect: 'rfc' });
    guest.secret.allocate(0, PAGE);
    guest.beginRead(0, 'shared');
    expectOutcome(guest.vcpu, Exit.MEMORY_FAULT);
    expect(guest.vcpu.memoryFault.isPrivate).toBe(false);
    guest.secret.punchHole(0, PAGE);
    expect(guest.resume()).toBe(0n);
  });
});

describe('a conversion over several slots, where allocation decides', () => {
  it('that fails in one has converted those before it, and the record says so', () => {
    const backend = simulator({ dialect: 'rfc' });
    let calls = 0;
    const fallocate: typeof backend.fallocate = (...given) =>
      ++calls === 2 ? -Errno.ENOMEM : backend.fallocate(...given);
    using hv = new Hypervisor(Object.create(backend, { fallocate: { value: fallocate } }));
    using vm = hv.createVm({ type: VmType.SNP });
    using ram = vm.allocate(2 * PAGE);
    using secret = vm.createGuestMemfd(2 * PAGE);
    for (const slot of [0, 1]) {
      const place = { memoryOffset: slot * PAGE, guestMemfdOffset: slot * PAGE, memorySize: PAGE };
      vm.setUserMemoryRegion2({
        slot,
        guestPhysAddr: 2 * slot * PAGE,
        memory: ram,
        guestMemfd: secret,
        ...place,
      });
    }
    expect(vm.tryConvert(0, 3 * PAGE, PRIVATE)).toBe(-Errno.ENOMEM);
    expect([0, 1, 2].map((page) => vm.memoryMap.isPrivate(page * PAGE))).toEqual([true, true, false]);
    expect(vm.tryConvert(0, 3 * PAGE, PRIVATE)).toBe(0);
    expect(vm.memoryMap.hasAttributes(0, 3 * PAGE, PRIVATE)).toBe(true);
  });
});

describe("the ninth version's conditions", () => {
  it('a region is private as long as it is registered, and what is in it decides, not its allocation', () => {
    using guest = new ChoosingGuest(VmType.SNP, { dialect: 'v9' });
    guest.secret.allocate(0, PAGE);
    guest.beginRead(0, 'private');
    expectOutcome(guest.vcpu, Exit.MEMORY_FAULT);
    expect(guest.vm.tryConvert(AREA, PAGE, PRIVATE)).toBe(0);
    expect(guest.resume()).toBe(0n);
    expect(guest.vm.tryConvert(AREA, PAGE, 0)).toBe(0);
    guest.beginRead(0, 'private');
    expectOutcome(guest.vcpu, Exit.MEMORY_FAULT);
  });

  it('a region that is not whole pages is refused', () => {
    using guest = new ChoosingGuest(VmType.SNP, { dialect: 'v9' });
    expect([guest.vm.tryConvert(AREA + 1, PAGE, PRIVATE), guest.vm.tryConvert(AREA, 0, PRIVATE)]).toEqual([
      -Errno.EINVAL,
      -Errno.EINVAL,
    ]);
  });
});

describe('a VM whose guest does not choose', () => {
  it.each(['rfc', 'v9'] as const)('has memory as the state of its pages is, in %s', (dialect) => {
    using hv = new Hypervisor(simulator({ dialect }));
    using vm = hv.createVm({ type: VmType.SW_PROTECTED });
    using ram = vm.allocate(PAGE);
    using low = vm.allocate(PAGE);
    using secret = vm.createGuestMemfd(PAGE);
    vm.setUserMemoryRegion2({ slot: 0, guestPhysAddr: 0xffff_f000, memory: ram, guestMemfd: secret });
    vm.setUserMemoryRegion2({ slot: 1, guestPhysAddr: 0, memory: low });
    ram.bytes[0xff0] = 0xf4; // hlt, where a processor begins
    using vcpu = vm.createVcpu();
    expect(vcpu.run(1000)).toBe(Exit.HLT);
    using other = vm.createVcpu(1);
    expect(vm.tryConvert(0xffff_f000, PAGE, PRIVATE)).toBe(0);
    // Zeroes are ADDs to the byte at 0, up to where no slot is.
    other.run(1000);
    expectOutcome(other, Exit.INTERNAL_ERROR);
  });
});

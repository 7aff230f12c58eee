/**
 * VMs whose guests ask for private or shared memory by a bit of their page tables: SNP's C-bit, TDX's shared bit. What
 * they ask for and what the attribute says can differ, and then KVM_RUN ends with KVM_EXIT_MEMORY_FAULT: an implicit
 * conversion (the commit "KVM: x86/mmu: Handle page fault for private memory").
 */
import { describe, expect, it } from 'vitest';
import {
  Exit,
  type KvmError,
  MemoryAttribute,
  MemoryFaultFlag,
  MemoryFaultService,
  openHypervisor,
  VmType,
} from '../../src/index.ts';
import { simulator } from '../../src/open.ts';
import { Errno } from '../../src/uapi/index.ts';
import { AREA, PAGE } from '../support/area.ts';
import { ChoosingGuest, type ChoosingType } from '../support/choosing.ts';
import { errnoOf, expectOutcome, wordAt } from '../support/run.ts';

const SHARED = 0x5a5a_5a5a_5a5a_5a5an;
const SECRET = 0x0123_4567_89ab_cdefn;
const LARGE = 2 * 2 ** 20;

const faultOf = ({ vcpu }: ChoosingGuest) => {
  expectOutcome(vcpu, Exit.MEMORY_FAULT);
  const { gpa, size, flags } = vcpu.memoryFault;
  return { gpa, size, flags };
};

const types = [
  ['SNP', VmType.SNP, [{}, { cBit: 40 }]],
  ['TDX', VmType.TDX, [{}, { sharedBit: 51 }]],
] as const;

describe.each(types)('a guest of %s', (_, type: ChoosingType, hosts) => {
  it('that wants private memory where the attribute says shared gets a fault with PRIVATE', () => {
    using guest = new ChoosingGuest(type);
    guest.beginRead(PAGE + 8, 'private');
    expect(faultOf(guest)).toEqual({ gpa: AREA + PAGE, size: PAGE, flags: MemoryFaultFlag.PRIVATE });
  });

  it('that wants shared memory where the attribute says private gets a fault without PRIVATE', () => {
    using guest = new ChoosingGuest(type);
    guest.vm.setMemoryAttributes({ address: AREA, size: 2 * PAGE, attributes: MemoryAttribute.PRIVATE });
    guest.beginWrite(PAGE, 'shared', SHARED);
    expect(faultOf(guest)).toEqual({ gpa: AREA + PAGE, size: PAGE, flags: 0 });
  });

  it.each(hosts)('reports an address without its bit, wherever that is: %o', (host) => {
    using guest = new ChoosingGuest(type, host);
    guest.beginRead(0, 'private');
    expect(faultOf(guest).gpa).toBe(AREA);
    guest.beginWrite(0, 'shared', SHARED);
    expect(guest.answer).toBeDefined();
    expect(wordAt(guest.shared.bytes)).toBe(SHARED);
  });

  it('goes on where it was when the fault is resolved: the access is retried and succeeds', () => {
    using guest = new ChoosingGuest(type);
    guest.beginWrite(0, 'private', SECRET);
    faultOf(guest);
    guest.vm.setMemoryAttributes({ address: AREA, size: PAGE, attributes: MemoryAttribute.PRIVATE });
    guest.resume();
    guest.beginRead(0, 'private');
    expect([guest.answer, wordAt(guest.shared.bytes)]).toEqual([SECRET, 0n]);
  });

  it('faults again and again as long as nothing is done', () => {
    using guest = new ChoosingGuest(type);
    guest.beginRead(0, 'private');
    const first = faultOf(guest);
    guest.vcpu.run(1000);
    expect(faultOf(guest)).toEqual(first);
  });

  it('finds each kind of memory by its own bit, and the host sees only the shared one', () => {
    using guest = new ChoosingGuest(type);
    guest.beginWrite(0, 'shared', SHARED);
    guest.answer;
    guest.vm.setMemoryAttributes({ address: AREA + PAGE, size: PAGE, attributes: MemoryAttribute.PRIVATE });
    guest.beginWrite(PAGE, 'private', SECRET);
    guest.answer;
    expect([wordAt(guest.shared.bytes), wordAt(guest.shared.bytes, PAGE)]).toEqual([SHARED, 0n]);
  });

  it('has its conversions done by the memory-fault service, there and back', () => {
    using guest = new ChoosingGuest(type);
    const service = new MemoryFaultService(guest.vm);
    const serve = (exit: number): bigint => {
      expect(service.handle(guest.vcpu, exit)).toBe(true);
      return guest.resume();
    };
    guest.beginWrite(0, 'shared', SHARED);
    guest.answer;
    serve(guest.beginWrite(0, 'private', SECRET));
    expect(wordAt(guest.shared.bytes)).toBe(0n); // what the state does not use was discarded
    expect(serve(guest.beginRead(0, 'shared'))).toBe(0n);
    expect(service.counters).toMatchObject({ memoryFaults: 2, conversions: { toPrivate: 1, toShared: 1 } });
  });

  it('can have faults of more than a page, which one conversion resolves', () => {
    using guest = new ChoosingGuest(type, { faultSize: LARGE }, 2 * LARGE);
    const service = new MemoryFaultService(guest.vm);
    const exit = guest.beginRead(LARGE + PAGE, 'private');
    expect(faultOf(guest)).toEqual({ gpa: AREA + LARGE, size: LARGE, flags: MemoryFaultFlag.PRIVATE });
    expect(service.handle(guest.vcpu, exit)).toBe(true);
    guest.resume();
    for (const offset of [LARGE, 2 * LARGE - PAGE]) {
      guest.beginWrite(offset, 'private', SECRET);
      guest.answer;
    }
    guest.beginRead(LARGE - PAGE, 'shared');
    expect([guest.answer, service.counters.memoryFaults]).toEqual([0n, 1]);
  });

  it('gets MMIO for a shared access where no slot is, and a fault for a private one', () => {
    using guest = new ChoosingGuest(type);
    guest.beginRead(LARGE, 'private');
    expect(faultOf(guest)).toEqual({ gpa: AREA + LARGE, size: PAGE, flags: MemoryFaultFlag.PRIVATE });
    guest.beginRead(LARGE, 'shared');
    expectOutcome(guest.vcpu, Exit.MMIO);
    expect(guest.vcpu.mmio.physAddr).toBe(AREA + LARGE);
  });

  // kvm_gmem_get_pfn()'s errno is returned as it is, after the exit was annotated: by the errno ABI, no memory fault.
  it('gets ENOMEM as an error, and no memory fault, although that stands in exit_reason', () => {
    using guest = new ChoosingGuest(type);
    guest.vm.setMemoryAttributes({ address: AREA, size: PAGE, attributes: MemoryAttribute.PRIVATE });
    guest.backend.poison(guest.secret.fd.handle, 0, 'ENOMEM');
    expect(errnoOf(() => guest.beginRead(0, 'private'))).toBe('ENOMEM');
    expect(guest.vcpu.raw.exitReason).toBe(Exit.MEMORY_FAULT);
    guest.secret.punchHole(0, PAGE);
    expect(guest.resume()).toBe(0n);
  });

  it('is not launched: KVM_MEMORY_ENCRYPT_OP gives ENOTTY', () => {
    const backend = simulator();
    using guest = new ChoosingGuest(type);
    const KVM_MEMORY_ENCRYPT_OP = 0xc008_aeba;
    expect(guest.backend.name).toBe('sim');
    const system = backend.open();
    const vm = backend.create(system, 0xae01, type);
    if (typeof vm === 'number') throw new Error(`KVM_CREATE_VM gave ${vm}`);
    expect(backend.ioctl(vm, KVM_MEMORY_ENCRYPT_OP, new Uint8Array(8))).toBe(-Errno.ENOTTY);
    backend.close(vm);
    backend.close(system);
  });
});

describe('a simulated host', () => {
  it('tells the position of the C-bit by CPUID (APM volume 3, E.4.17)', () => {
    using hv = openHypervisor({ backend: 'sim', simulated: { cBit: 40 } });
    const leaf = hv.getSupportedCpuid().find((entry) => entry.function === 0x8000_001f);
    expect(leaf!.ebx & 0x3f).toBe(40);
  });

  it('refuses what no host can be', () => {
    const wrong = (simulated: object) => () => openHypervisor({ backend: 'sim', simulated });
    const invalid = expect.objectContaining<Partial<KvmError>>({ code: 'ERR_KVM_INVALID_ARG' });
    for (const host of [
      { cBit: 12 },
      { sharedBit: 52 },
      { vendor: 'via' },
      { dialect: 'v8' },
      { faultSize: 3 * PAGE },
      { faultSize: 2 ** 31 },
    ]) {
      expect(wrong(host), JSON.stringify(host)).toThrow(invalid);
    }
  });
});

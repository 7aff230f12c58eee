/** The memory-fault service at work: the guest asks and faults, the service answers, the guest goes on. */
import { describe, expect } from 'vitest';
import {
  Exit,
  type Hypervisor,
  type MemoryFaultOptions,
  MemoryFaultService,
  type Policy,
  VmexitError,
  VmType,
} from '../../src/index.ts';
import { Hypercall, MapGpaRange } from '../../src/uapi/index.ts';
import { Agent } from '../support/agent.ts';
import { backends, type It, on } from '../support/host.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { filledWith } from '../support/run.ts';

const GIB = 2 ** 30;
const AREA = 4 * GIB;
const SIZE = 0x40_0000;
const PAGE = 0x1000;
const LARGE = 0x20_0000;
const { ENCRYPTED, DECRYPTED } = MapGpaRange;

/** The hypervisor of the cases that run now. */
let hv: Hypervisor;

/** The agent with 4 MiB at 4 GiB, in two slots of one guest_memfd, and a page of plain RAM after them. */
function boot(options: MemoryFaultOptions = {}) {
  const agent = Agent.boot(hv, { type: VmType.SW_PROTECTED });
  const { vm, vcpu } = agent;
  const shared = vm.allocate(SIZE);
  const secret = vm.createGuestMemfd(SIZE);
  const plain = vm.allocate(PAGE);
  for (const half of [0, 1]) {
    const offset = (half * SIZE) / 2;
    vm.setUserMemoryRegion2({
      slot: 1 + half,
      guestPhysAddr: AREA + offset,
      memorySize: SIZE / 2,
      memory: shared,
      memoryOffset: offset,
      guestMemfd: secret,
      guestMemfdOffset: offset,
    });
  }
  vm.setUserMemoryRegion2({ slot: 3, guestPhysAddr: AREA + SIZE, memory: plain });
  vm.enableCap({ cap: 201, args: [1n << BigInt(Hypercall.MAP_GPA_RANGE)] });
  const service = new MemoryFaultService(vm, options);

  /** Runs on until the agent answers, with the service at every other exit. */
  const answer = (): bigint => {
    while (!agent.answered) {
      if (!service.handle(vcpu, vcpu.outcome)) return agent.answer;
      vcpu.run(DEADLINE_MS);
    }
    return agent.answer;
  };
  const map = (gpa: number | bigint, size: number | bigint, attributes: number): bigint => {
    agent.beginHypercall(Hypercall.MAP_GPA_RANGE, gpa, BigInt(size) / 4096n, attributes);
    return BigInt.asIntN(64, answer());
  };
  const fill = (gpa: number, size: number, byte: number) => {
    agent.begin('call', Agent.filling(gpa, size, byte));
    answer();
  };
  const holds = (gpa: number, size: number, byte: number) => {
    agent.begin('call', Agent.checking(gpa, size, byte));
    return answer() === BigInt(size / 8);
  };
  const close = () => {
    agent[Symbol.dispose]();
    secret.close();
    shared.close();
    plain.close();
  };
  return { agent, vm, vcpu, service, shared, secret, plain, map, fill, holds, [Symbol.dispose]: close };
}

const thrown = (run: () => unknown): VmexitError => {
  try {
    run();
  } catch (error) {
    if (error instanceof VmexitError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
};

describe.each(backends)('the service on %s', (backend) => {
  const it: It = (sentence, shows) =>
    on(backend, 'private-memory')(sentence, (host, context) => {
      hv = host;
      return shows(host, context);
    });

  for (const [range, gpa, size] of [
    ['a page', AREA, PAGE],
    ['2 MiB', AREA, LARGE],
    ['a range over two slots', AREA + LARGE - PAGE, 2 * PAGE],
  ] as const)
    it(`makes ${range} private when the guest asks, hides what the guest writes, and gives it back`, () => {
      using m = boot({ discard: 'private' });
      const view = m.shared.bytes.subarray(gpa - AREA, gpa - AREA + size);
      m.fill(gpa, size, 0x11);
      expect(filledWith(view, 0x11)).toBe(true);
      expect(m.map(gpa, size, ENCRYPTED)).toBe(0n);
      m.fill(gpa, size, 0x5e);
      expect(m.holds(gpa, size, 0x5e)).toBe(true);
      expect(filledWith(view, 0x11)).toBe(true);
      expect(m.map(gpa, size, DECRYPTED)).toBe(0n);
      expect(m.holds(gpa, size, 0x11)).toBe(true);
      expect(m.map(gpa, size, ENCRYPTED)).toBe(0n);
      expect(m.holds(gpa, size, 0)).toBe(true);
      expect(m.service.counters).toMatchObject({
        hypercalls: 3,
        conversions: { toPrivate: 2, toShared: 1 },
        bytes: { toPrivate: 2 * size, toShared: size },
        discardFailures: 0,
        memoryFaults: 0,
      });
    });

  it('gives the shared pages back to the host too when it discards both', () => {
    using m = boot({ discard: 'both' });
    m.fill(AREA, LARGE, 0x11);
    expect(m.map(AREA, LARGE, ENCRYPTED)).toBe(0n);
    expect(filledWith(m.shared.bytes.subarray(0, LARGE), 0)).toBe(true);
  });

  it('maps what became private at once when asked to pre-fault', () => {
    using m = boot({ preFault: true });
    expect(m.map(AREA, LARGE, ENCRYPTED)).toBe(0n);
    expect(m.service.counters.preFaultFailures).toBe(0);
    m.fill(AREA, LARGE, 0x5e);
    expect(m.holds(AREA, LARGE, 0x5e)).toBe(true);
  });

  for (const [range, gpa, size, errno] of [
    ['2^60 bytes', 0n, 1n << 60n, -14n],
    ['what begins before its slot', BigInt(AREA - PAGE), 2n * 4096n, -14n],
    ['memory without guest_memfd', BigInt(AREA + SIZE), 4096n, -95n],
  ] as const)
    it(`answers a request to make ${range} private with an errno`, () => {
      using m = boot();
      expect(m.map(gpa, size, ENCRYPTED)).toBe(errno);
      expect(m.service.counters.conversions).toEqual({ toPrivate: 0, toShared: 0 });
    });

  it('tells the guest EPERM when the policy denies, and the guest goes on', () => {
    using m = boot({ policy: () => 'deny' });
    expect(m.map(AREA, PAGE, ENCRYPTED)).toBe(-1n);
    m.fill(AREA, PAGE, 0x11);
    expect(m.shared.bytes[0]).toBe(0x11);
  });

  it('ends the run at a private page without a guest_memfd, by default, and says why', () => {
    using m = boot();
    m.vm.setMemoryAttributes({ address: AREA + SIZE, size: PAGE, attributes: 8 });
    const error = thrown(() => m.fill(AREA + SIZE, PAGE, 1));
    expect(error.code).toBe('ERR_KVM_REFUSED');
    expect(error.message).toContain('now private, slot 3');
  });

  it('shares such a page when the policy allows, and the access succeeds', () => {
    using m = boot({ policy: ({ cause }) => (cause === 'unbacked' ? 'allow' : 'deny') });
    m.vm.setMemoryAttributes({ address: AREA + SIZE, size: PAGE, attributes: 8 });
    m.fill(AREA + SIZE, PAGE, 0x77);
    expect(filledWith(m.plain.bytes, 0x77)).toBe(true);
    expect(m.service.counters).toMatchObject({
      memoryFaults: 1,
      conversions: { toPrivate: 0, toShared: 1 },
    });
  });

  it('runs on when the policy has bound a guest_memfd behind such a page', () => {
    const policy: Policy = ({ slot }) => {
      m.vm.setUserMemoryRegion2({ slot: slot!.slot, memorySize: 0 });
      const { start: guestPhysAddr } = slot!;
      m.vm.setUserMemoryRegion2({ slot: 3, guestPhysAddr, memory: m.plain, guestMemfd: file });
      return 'retry';
    };
    using m = boot({ policy });
    using file = m.vm.createGuestMemfd(PAGE);
    m.vm.setMemoryAttributes({ address: AREA + SIZE, size: PAGE, attributes: 8 });
    m.fill(AREA + SIZE, PAGE, 0x77);
    expect(m.holds(AREA + SIZE, PAGE, 0x77)).toBe(true);
    expect(filledWith(m.plain.bytes, 0)).toBe(true);
    expect(m.service.counters).toMatchObject({ memoryFaults: 1, retries: 1 });
  });

  it('ends the run when a policy mends nothing and the same fault comes again and again', () => {
    using m = boot({ policy: () => 'retry', maxRepeats: 5 });
    m.vm.setMemoryAttributes({ address: AREA + SIZE, size: PAGE, attributes: 8 });
    const error = thrown(() => m.fill(AREA + SIZE, PAGE, 1));
    expect(error.code).toBe('ERR_KVM_NO_PROGRESS');
    expect(m.service.counters.memoryFaults).toBe(7);
  });

  // test/conformance/stale-mmio.test.ts says why KVM faults there for ever.
  it('maps a private page that KVM takes for the MMIO that it was, with what it holds', () => {
    using m = boot({ discard: 'none', maxRepeats: 5 });
    expect(m.map(AREA, PAGE, ENCRYPTED)).toBe(0n);
    m.fill(AREA, PAGE, 0x5e);
    expect(m.map(AREA, PAGE, DECRYPTED)).toBe(0n);
    m.vm.setUserMemoryRegion2({ slot: 1, memorySize: 0 });
    expect(m.agent.begin('read', { rdi: AREA })).toBe(Exit.MMIO);
    m.agent.resume();
    m.vm.setUserMemoryRegion2({
      slot: 1,
      guestPhysAddr: AREA,
      memorySize: LARGE,
      memory: m.shared,
      guestMemfd: m.secret,
    });
    expect(m.map(AREA, PAGE, ENCRYPTED)).toBe(0n);
    expect(m.holds(AREA, PAGE, 0x5e)).toBe(true);
    expect(m.service.counters).toMatchObject({
      memoryFaults: 3,
      retries: 2,
      stale: 1,
      preFaultFailures: 0,
    });
  });

  it('ends the run when the guest_memfd is closed under a private page', () => {
    using m = boot();
    expect(m.map(AREA, PAGE, ENCRYPTED)).toBe(0n);
    m.fill(AREA, PAGE, 0x5e);
    m.secret.close();
    expect(thrown(() => m.fill(AREA, PAGE, 0x5f)).message).toContain('whose guest_memfd was closed');
  });
});

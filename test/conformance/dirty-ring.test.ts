/** api.rst, KVM_CAP_DIRTY_LOG_RING and KVM_RESET_DIRTY_RINGS (virt/kvm/dirty_ring.c). */
import { expect } from 'vitest';
import { Cap, Exit, type GuestMemory, guest, type Hypervisor, MemFlag, type Vm } from '../../src/index.ts';
import { Agent } from '../support/agent.ts';
import { onEachWith } from '../support/host.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { errnoOf, expectOutcome } from '../support/run.ts';

const PAGE = 4096;
const BASE = 0x4000_0000;
/** Bytes: enough for what Intel's processors log by themselves (PML), which is kept free. */
const RING = 16_384;
const ENTRIES = RING / 16;
const PAGES = 1500;
const it = onEachWith('dirty-ring');

// One word in each of rcx pages from rdi on.
const touch = guest(
  64,
  `
 48 89 3f             | next: mov [rdi], rdi
 48 81 c7 00 10 00 00 |       add rdi, 0x1000
 ff c9                |       dec ecx
 75 f2                |       jnz next
 c3                   |       ret
`,
);

const enable = (vm: Vm, bytes: number | bigint = RING) =>
  vm.enableCap({ cap: Cap.DIRTY_LOG_RING_ACQ_REL, args: [BigInt(bytes)] });

function withRing(
  hv: Hypervisor,
  use: (agent: Agent, take: () => number[], memory: GuestMemory) => void,
): void {
  // At privilege 3: KVM's emulator, which executes privilege 0 on a PVM host, tells of each of its writes, and does not stop for
  // a ring that is full.
  using agent = Agent.boot(hv, { prepare: enable, privilege: 3 });
  const { vm, vcpu } = agent;
  using memory = vm.allocate(PAGES * PAGE);
  vm.setUserMemoryRegion({ slot: 3, guestPhysAddr: BASE, memory, flags: MemFlag.LOG_DIRTY_PAGES });
  const take = () => {
    const pages: number[] = [];
    vcpu.dirtyRing!.harvest((slot, addressSpace, page) => {
      expect([slot, addressSpace]).toEqual([3, 0]);
      pages.push(page);
    });
    return pages;
  };
  use(agent, take, memory);
}

it('tells each page at its first write, and again once it was reset', (hv) =>
  withRing(hv, (agent, take) => {
    expect(agent.vcpu.dirtyRing!.entries).toBe(ENTRIES);
    expect(take()).toEqual([]);
    for (const page of [5, 3, 5]) agent.write(BASE + page * PAGE, 1);
    expect(take()).toEqual([5, 3]);
    // Taken, and not reset: they are writable still.
    agent.write(BASE + 5 * PAGE, 2);
    expect(take()).toEqual([]);
    expect(agent.vm.resetDirtyRings()).toBe(2);
    expect(agent.vm.resetDirtyRings()).toBe(0);
    agent.read(BASE + 3 * PAGE);
    agent.write(BASE + 5 * PAGE, 3);
    expect(take()).toEqual([5]);
  }));

it('a guest that fills it exits, is harvested, and goes on: no page is lost', (hv) =>
  withRing(hv, (agent, take, memory) => {
    const seen: number[] = [];
    let full = 0;
    let outcome = agent.beginCode(touch, { rdi: BASE, rcx: PAGES });
    while (outcome === Exit.DIRTY_RING_FULL) {
      full++;
      expect(agent.vcpu.exit).toMatchObject({ reason: 'DIRTY_RING_FULL' });
      const { rdi } = agent.vcpu.getRegs();
      // Until there is room it does not enter the guest.
      expect(agent.vcpu.run(DEADLINE_MS)).toBe(Exit.DIRTY_RING_FULL);
      expect(agent.vcpu.getRegs().rdi).toBe(rdi);
      const taken = take();
      seen.push(...taken);
      expect(agent.vcpu.run(DEADLINE_MS)).toBe(Exit.DIRTY_RING_FULL);
      expect(agent.vm.resetDirtyRings()).toBe(taken.length);
      outcome = agent.vcpu.run(DEADLINE_MS);
    }
    expectOutcome(agent.vcpu, Exit.IO);
    expect(agent.answered).toBe(true);
    seen.push(...take());
    expect(full).toBeGreaterThanOrEqual(1);
    expect([...new Set(seen)].sort((a, b) => a - b)).toEqual(
      Array.from({ length: PAGES }, (_, page) => page),
    );
    for (const page of [0, 191, 192, 448, PAGES - 1])
      expect(new DataView(memory.read(page * PAGE, 8).buffer).getBigUint64(0, true)).toBe(
        BigInt(BASE + page * PAGE),
      );
  }));

it('keeps the rings of vCPUs apart, and resets all at once', (hv) =>
  withRing(hv, (agent, take) => {
    const sibling = agent.sibling(1);
    agent.write(BASE, 1);
    sibling.write(BASE + PAGE, 1);
    sibling.write(BASE, 2); // writable for both
    const others: number[] = [];
    sibling.vcpu.dirtyRing!.harvest((_, __, page) => others.push(page));
    expect([take(), others]).toEqual([[0], [1]]);
    expect(agent.vm.resetDirtyRings()).toBe(2);
    sibling.vcpu.close();
  }));

it('takes the place of the log: KVM_GET_DIRTY_LOG gives ENXIO', (hv) =>
  withRing(hv, ({ vm }) => expect(errnoOf(() => vm.getDirtyLog(3))).toBe('ENXIO')));

it('is enabled once, before the first vCPU, with a size that KVM has', (hv) => {
  using vm = hv.createVm();
  const most = vm.checkExtension(Cap.DIRTY_LOG_RING_ACQ_REL);
  for (const bytes of [0, 2048, RING + PAGE, -1n])
    expect([bytes, errnoOf(() => enable(vm, BigInt.asUintN(64, BigInt(bytes))))]).toEqual([bytes, 'EINVAL']);
  expect(errnoOf(() => enable(vm, 2 * most))).toBe('E2BIG');
  expect(errnoOf(() => vm.resetDirtyRings())).toBe('EINVAL');
  // KVM takes 32 bits of it.
  enable(vm, (1n << 32n) + BigInt(RING));
  expect(errnoOf(() => enable(vm))).toBe('EINVAL');
  using vcpu = vm.createVcpu();
  expect(vcpu.dirtyRing!.entries).toBe(ENTRIES);
  expect(vm.resetDirtyRings()).toBe(0);

  using late = hv.createVm();
  using without = late.createVcpu();
  expect(errnoOf(() => enable(late))).toBe('EINVAL');
  expect(without.dirtyRing).toBeUndefined();
});

it('is closed with its vCPU', (hv) => {
  using vm = hv.createVm();
  enable(vm);
  const vcpu = vm.createVcpu();
  const ring = vcpu.dirtyRing!;
  expect(vcpu.dirtyRing).toBe(ring);
  vcpu.close();
  for (const use of [() => ring.harvest(() => {}), () => vcpu.dirtyRing])
    expect(use).toThrow(expect.objectContaining({ code: 'ERR_KVM_CLOSED' }));
});

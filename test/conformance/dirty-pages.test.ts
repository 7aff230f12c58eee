/** DirtyPages: what the guest, KVM and the VMM write, together, with logs and with rings. */
import { describe, expect } from 'vitest';
import {
  Cap,
  DirtyLog,
  DirtyPages,
  Exit,
  type GuestMemory,
  guest,
  type Hypervisor,
  MemFlag,
  VmType,
} from '../../src/index.ts';
import { Agent } from '../support/agent.ts';
import { onEachWith } from '../support/host.ts';
import { DEADLINE_MS } from '../support/limits.ts';

const PAGE = 4096;
const BASE = 0x4000_0000;
const it = onEachWith('dirty-log', 'dirty-ring');

type Prepare = NonNullable<Parameters<typeof Agent.boot>[1]>['prepare'];
const ways: Readonly<Record<string, Prepare>> = {
  log: () => {},
  'log, cleared by hand': (vm) =>
    vm.enableCap({
      cap: Cap.MANUAL_DIRTY_LOG_PROTECT2,
      args: [BigInt(DirtyLog.MANUAL_PROTECT_ENABLE | DirtyLog.INITIALLY_SET)],
    }),
  ring: (vm) => vm.enableCap({ cap: Cap.DIRTY_LOG_RING_ACQ_REL, args: [16_384n] }),
};

/**
 * An agent with 100 pages at BASE, which begin at page 3 of their memory. It runs at privilege 3: KVM's emulator, which executes
 * privilege 0 on a PVM host, does not stop for a ring that is full.
 */
function tracked(
  hv: Hypervisor,
  prepare: Prepare,
  use: (agent: Agent, pages: () => number[], memory: GuestMemory, dirty: DirtyPages) => void,
): void {
  using agent = Agent.boot(hv, { privilege: 3, ...(prepare && { prepare }) });
  const { vm, vcpu } = agent;
  using memory = vm.allocate(110 * PAGE);
  vm.setUserMemoryRegion({
    slot: 5,
    guestPhysAddr: BASE,
    memory,
    memoryOffset: 3 * PAGE,
    memorySize: 100 * PAGE,
  });
  agent.write(BASE, 1); // mapped before it is logged
  agent.write(BASE + PAGE, 1);
  using dirty = DirtyPages.start(vm, { vcpus: [vcpu] });
  const pages = () =>
    dirty
      .take()
      .filter((range) => range.memory === memory)
      .flatMap(({ offset, size }) => Array.from({ length: size / PAGE }, (_, i) => offset / PAGE + i));
  use(agent, pages, memory, dirty);
}

describe.each(Object.keys(ways))('DirtyPages (%s)', (way) => {
  const prepare = ways[way];

  it('tells what the guest has written since it was asked last', (hv) =>
    tracked(hv, prepare, (agent, pages) => {
      expect(pages()).toEqual([]);
      agent.write(BASE + PAGE, 2);
      agent.write(BASE + 64 * PAGE, 2);
      expect(pages()).toEqual([4, 67]);
      expect(pages()).toEqual([]);
      agent.write(BASE + 64 * PAGE, 3);
      expect(pages()).toEqual([67]);
    }));

  it('tells what the VMM writes, marks and discards, and none of what it reads', (hv) =>
    tracked(hv, prepare, (agent, pages, memory, dirty) => {
      memory.write(PAGE - 1, new Uint8Array(2));
      memory.discard(8 * PAGE, 2 * PAGE);
      expect(dirty.knows(memory)).toBe(true);
      memory.bytes[20 * PAGE] = 1;
      memory.markDirty(20 * PAGE, 1);
      memory.markDirty(30 * PAGE, 0);
      memory.advise(9, 25 * PAGE, PAGE); // MADV_REMOVE
      expect(dirty.knows(memory)).toBe(false); // for somebody has a view
      memory.read(40 * PAGE, PAGE);
      agent.write(BASE + 50 * PAGE, 1);
      expect(pages()).toEqual([0, 1, 8, 9, 20, 25, 53]);
      expect(pages()).toEqual([]);
    }));

  it('tells a slot that was made, moved or changed meanwhile whole', (hv) =>
    tracked(hv, prepare, (agent, pages, memory, dirty) => {
      const { vm } = agent;
      vm.setUserMemoryRegion({ slot: 5, memorySize: 0 });
      expect(pages()).toEqual(Array.from({ length: 100 }, (_, i) => 3 + i));
      memory.write(0, new Uint8Array(1)); // as a memory of no slot
      expect(pages()).toEqual([0]);
      vm.setUserMemoryRegion({ slot: 6, guestPhysAddr: BASE, memory, memorySize: 4 * PAGE });
      agent.write(BASE, 1);
      expect(pages()).toEqual([0, 1, 2, 3]);
      expect(dirty.knows(memory)).toBe(true);
      agent.write(BASE + PAGE, 1);
      expect(pages()).toEqual([1]);
      // Somebody takes the flag away: nobody knows what was written until it is back.
      vm.setUserMemoryRegion({ slot: 6, guestPhysAddr: BASE, memory, memorySize: 4 * PAGE });
      agent.write(BASE + PAGE, 2);
      expect(pages()).toEqual([0, 1, 2, 3]);
      agent.write(BASE + 2 * PAGE, 2);
      expect(pages()).toEqual([2]);
    }));

  it('takes its flag from the slots when it is closed', (hv) =>
    tracked(hv, prepare, (agent, _, memory, dirty) => {
      const flags = () => agent.vm.memoryMap.slotById(5)!.flags & MemFlag.LOG_DIRTY_PAGES;
      expect(flags()).toBe(MemFlag.LOG_DIRTY_PAGES);
      dirty.close();
      dirty.close();
      expect(flags()).toBe(0);
      expect(() => dirty.take()).toThrow(expect.objectContaining({ code: 'ERR_KVM_CLOSED' }));
      expect(dirty.knows(memory)).toBe(false);
      memory.write(0, new Uint8Array(1));
    }));
});

// One byte in each of rcx pages from rdi on.
const touch = guest(
  64,
  `
 c6 07 01             | next: mov byte ptr [rdi], 1
 48 81 c7 00 10 00 00 |       add rdi, 0x1000
 ff c9                |       dec ecx
 75 f2                |       jnz next
 c3                   |       ret
`,
);

it('serves a ring that is full, as a handler of the run loop', (hv) =>
  tracked(hv, ways.ring, (agent, _, __, dirty) => {
    const { vm, vcpu } = agent;
    const many = 1500;
    using memory = vm.allocate(many * PAGE);
    vm.setUserMemoryRegion({ slot: 7, guestPhysAddr: 2 * BASE, memory });
    dirty.take();
    let served = 0;
    let exit = agent.beginCode(touch, { rdi: 2 * BASE, rcx: many });
    for (; dirty.handle(vcpu, exit); served++) exit = vcpu.run(DEADLINE_MS);
    expect(exit).toBe(Exit.IO);
    expect(served).toBeGreaterThanOrEqual(1);
    const ranges = dirty.take().filter((range) => range.memory === memory);
    expect(ranges).toEqual([{ memory, offset: 0, size: many * PAGE }]);
  }));

it('refuses a VM with rings whose vCPUs it is not given', (hv) => {
  using vm = hv.createVm();
  ways.ring!(vm);
  expect(() => DirtyPages.start(vm)).toThrow(/vCPUs have rings of dirty pages: give all its `vcpus`/);
  expect(() => DirtyPages.start({} as never)).toThrow(
    expect.objectContaining({ code: 'ERR_KVM_INVALID_ARG' }),
  );
});

onEachWith(
  'dirty-log',
  'guest-memfd-slots',
  'private-memory',
)('refuses private memory, and names the slot', (hv) => {
  using vm = hv.createVm({ type: VmType.SW_PROTECTED });
  using memory = vm.allocate(PAGE);
  using secret = vm.createGuestMemfd(PAGE);
  vm.setUserMemoryRegion2({ slot: 4, guestPhysAddr: 0, memory, guestMemfd: secret });
  expect(() => DirtyPages.start(vm)).toThrow(
    expect.objectContaining({
      code: 'ERR_KVM_REFUSED',
      message: expect.stringMatching(/slot 4 has private memory/),
    }),
  );
});

/** Differential snapshots: a chain of files gives back every page, whoever has written or discarded it in between. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect } from 'vitest';
import {
  captureState,
  DirtyPages,
  dirtySince,
  Exit,
  type GuestMemory,
  type Hypervisor,
  openSnapshot,
  restoreLazily,
  restoreSnapshot,
  VmType,
  writeSnapshot,
} from '../../src/index.ts';
import { Agent } from '../support/agent.ts';
import { onEachWith } from '../support/host.ts';
import { DEADLINE_MS } from '../support/limits.ts';

const PAGE = 4096;
const BASE = 0x4000_0000;
const PAGES = 200;
const it = onEachWith('dirty-log');

const folder = mkdtempSync(join(tmpdir(), 'vmexit-since-'));
afterAll(() => rmSync(folder, { recursive: true }));
let files = 0;
const newFile = () => join(folder, `${files++}`);

const contents = (memories: readonly GuestMemory[]) =>
  memories.map((memory) => Buffer.from(memory.read(0, memory.size)));

/** How many pages differ. */
const differences = (before: readonly Buffer[], after: readonly Buffer[]): number =>
  before.reduce((sum, bytes, i) => {
    let count = 0;
    for (let at = 0; at < bytes.length; at += PAGE)
      if (!bytes.subarray(at, at + PAGE).equals(after[i]!.subarray(at, at + PAGE))) count++;
    return sum + count;
  }, 0);

/** A guest with a memory of 200 pages, of which every third is used. */
function withGuest(hv: Hypervisor, use: (agent: Agent, memory: GuestMemory) => Promise<void>): Promise<void> {
  const agent = Agent.boot(hv);
  const memory = agent.vm.allocate(PAGES * PAGE);
  agent.vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: BASE, memory });
  for (let page = 0; page < PAGES; page += 3) memory.write(page * PAGE, new Uint8Array(PAGE).fill(page + 1));
  agent.write(BASE + 5, 5);
  return use(agent, memory).finally(() => {
    agent[Symbol.dispose]();
    memory.close();
  });
}

it('the chain gives back what the guest, the VMM and discards have made of memory', (hv) =>
  withGuest(hv, async (agent, memory) => {
    const { vm, vcpu, ram } = agent;
    const memories = [ram, memory];
    using dirty = DirtyPages.start(vm, { vcpus: [vcpu], marksAll: true });
    const save = async (since?: string) => {
      const path = newFile();
      const capture = captureState(hv, vm, [vcpu]);
      const written = await writeSnapshot(path, capture, {
        dirty,
        ...(since === undefined ? {} : { since }),
      });
      return { path, written, now: contents(memories) };
    };
    const whole = await save();

    agent.write(BASE + 7 * PAGE, 7);
    memory.write(10 * PAGE - 4, Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8));
    memory.bytes[40 * PAGE + 17] = 9;
    memory.markDirty(40 * PAGE + 17, 1);
    memory.discard(60 * PAGE, 6 * PAGE); // used ones and others
    memory.write(90 * PAGE, memory.read(90 * PAGE, PAGE)); // as it was
    const first = await save(whole.path);
    expect(first.written.changed).toBe(differences(whole.now, first.now));
    expect(first.written.changed).toBeGreaterThanOrEqual(6);
    expect(first.written.stored).toBe(first.written.changed - 2);
    expect(first.written.size).toBeLessThan(whole.written.size / 2);

    memory.write(60 * PAGE, Uint8Array.of(6)); // once discarded
    agent.write(BASE + 7 * PAGE + 8, 77);
    memory.discard(0, PAGE);
    const second = await save(first.path);
    expect(second.written.changed).toBe(differences(first.now, second.now));
    const third = await save(second.path); // nothing but what the capture may write
    expect(third.written.changed).toBe(differences(second.now, third.now));

    for (const { path, now } of [first, second, third, whole]) {
      using snapshot = openSnapshot(path);
      using machine = restoreSnapshot(hv, snapshot);
      expect(contents(machine.memories).map((bytes, i) => bytes.equals(now[i]!))).toEqual([true, true]);
    }
    using snapshot = openSnapshot(third.path);
    expect(snapshot.chain).toEqual([third.path, second.path, first.path, whole.path]);
    using machine = restoreSnapshot(hv, snapshot);
    expect(machine.vcpus[0]!.getRegs()).toEqual(vcpu.getRegs());
    // It goes on.
    machine.vcpus[0]!.setRegs({ ...vcpu.getRegs(), rbx: 1n, rdi: BigInt(BASE + 7 * PAGE + 8) });
    expect(machine.vcpus[0]!.run(DEADLINE_MS)).toBe(Exit.IO);
    expect(machine.vcpus[0]!.getRegs().rax).toBe(77n);
  }));

it('compares all where a view was handed out: what nobody has marked is in the file, too', (hv) =>
  withGuest(hv, async (agent, memory) => {
    const { vm, vcpu, ram } = agent;
    using dirty = DirtyPages.start(vm, { vcpus: [vcpu] });
    const whole = newFile();
    await writeSnapshot(whole, captureState(hv, vm, [vcpu]), { dirty });
    memory.bytes[50 * PAGE] = 1;
    const [marked, compared] = [newFile(), newFile()];
    const capture = captureState(hv, vm, [vcpu]);
    const written = await writeSnapshot(marked, capture, { since: whole, dirty });
    // The same without anybody who knows what was written.
    expect(await writeSnapshot(compared, capture, { since: whole })).toEqual(written);
    using one = openSnapshot(marked);
    using other = openSnapshot(compared);
    expect(one.identity).toBe(other.identity);
    using machine = restoreSnapshot(hv, one);
    const now = contents([ram, memory]);
    expect(contents(machine.memories).map((bytes, i) => bytes.equals(now[i]!))).toEqual([true, true]);
  }));

it('a restored machine goes on with the chain, and is restored before its memory is there', async (hv) => {
  const [whole, first, second] = [newFile(), newFile(), newFile()];
  await withGuest(hv, async (agent, memory) => {
    const { vm, vcpu } = agent;
    await writeSnapshot(whole, captureState(hv, vm, [vcpu]));
    memory.discard(3 * PAGE, PAGE);
    await writeSnapshot(first, captureState(hv, vm, [vcpu]), { since: whole });
  });
  using snapshot = openSnapshot(first);
  using machine = restoreSnapshot(hv, snapshot);
  const { vm, vcpus, memories } = machine;
  using dirty = dirtySince(snapshot, machine);
  expect(memories.map((memory) => dirty.knows(memory))).toEqual([true, true]);
  const [vcpu] = vcpus;
  vcpu!.setRegs({ ...vcpu!.getRegs(), rbx: 2n, rdi: BigInt(BASE + 30 * PAGE), rsi: 0x55n });
  expect(vcpu!.run(DEADLINE_MS)).toBe(Exit.IO);
  memories[1]!.write(31 * PAGE, Uint8Array.of(1));
  const written = await writeSnapshot(second, captureState(hv, vm, vcpus), { since: first, dirty });
  expect(written.changed).toBe(2);

  const lazy = restoreLazily(hv, { path: second, state: openedState(second) });
  await lazy.pager.complete;
  const now = contents(memories);
  expect(contents(lazy.machine.memories).map((bytes, i) => bytes.equals(now[i]!))).toEqual([true, true]);
  lazy.machine.close();
  lazy.pager[Symbol.dispose]();
});

function openedState(path: string) {
  using snapshot = openSnapshot(path);
  return snapshot.state;
}

onEachWith('guest-memfd-slots', 'private-memory')(
  'refuses a VM with private memory, and names the slot',
  async (hv) => {
    using vm = hv.createVm({ type: VmType.SW_PROTECTED });
    using memory = vm.allocate(PAGE);
    using secret = vm.createGuestMemfd(PAGE);
    vm.setUserMemoryRegion2({ slot: 6, guestPhysAddr: 0, memory, guestMemfd: secret });
    using vcpu = vm.createVcpu();
    const capture = captureState(hv, vm, [vcpu]);
    const whole = newFile();
    await writeSnapshot(whole, capture);
    await expect(writeSnapshot(newFile(), capture, { since: whole })).rejects.toMatchObject({
      code: 'ERR_KVM_NOT_SAVABLE',
      message: expect.stringMatching(/slot 6 has private memory/),
    });
  },
);

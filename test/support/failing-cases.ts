/**
 * Each call at the waist fails in turn, with EINTR, EAGAIN, ENOMEM, EFAULT and EBUSY, before it is made: what is known of a VM
 * stays what the kernel has, no page is lost, nothing stays open, and the same once more works.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import {
  type BackendName,
  Cap,
  captureState,
  DirtyLog,
  DirtyPages,
  Exit,
  Machine,
  openSnapshot,
  restoreSnapshot,
  type Vm,
  writeSnapshot,
} from '../../src/index.ts';
import { flatImage } from '../../src/vmm/image.ts';
import { Bare } from './bare.ts';
import type { Condition } from './conditions.ts';
import { eachCallOf, Failing, type Rounds, unfailing } from './failing.ts';
import { backends, whyNot } from './host.ts';
import { DEADLINE_MS, TEST_MS } from './limits.ts';
import { MemoryPlay, PAGE } from './memory-play.ts';
import { playPager } from './pager-play.ts';
import { playRecorded } from './recorded-play.ts';
import { playStart } from './start-play.ts';

/** @param rounds how often each call fails: each time with another errno */
export function failingCases(rounds: number): void {
  const scratch = mkdtempSync(join(tmpdir(), 'vmexit-failing-'));
  afterAll(() => rmSync(scratch, { recursive: true }));
  for (const backend of backends)
    describe(`a call that fails (${backend})`, () => casesOn(backend, scratch, rounds));
}

function casesOn(backend: BackendName, scratch: string, rounds: number): void {
  const test = (
    sentence: string,
    shows: (failing: Failing, each: Rounds) => Promise<void>,
    ...needs: readonly Condition[]
  ) =>
    it(
      sentence,
      async (context) => {
        const why = whyNot(backend, ...needs);
        context.skip(why !== undefined, why);
        const failing = new Failing(backend as 'kvm' | 'sim');
        expect(failing.hv.backend).toBe(backend);
        await shows(failing, { rounds });
        failing.hv.close();
      },
      TEST_MS,
    );

  test(
    'while a machine is made leaves nothing open',
    async (failing, each) => {
      const calls = await eachCallOf(
        failing,
        () => {
          using machine = new Machine(failing.hv, { memory: 0x2_0000, privateMemory: true, cpus: 2 });
          machine.load(flatImage(Uint8Array.of(0xf4), 'real'));
        },
        each,
      );
      expect(calls).toEqual(
        expect.arrayContaining(['KVM_CREATE_VM', 'KVM_CREATE_VCPU', 'KVM_SET_CPUID2', 'allocate']),
      );
    },
    'guest-memfd-slots',
    'private-memory',
  );

  test(
    'leaves the record of slots, attributes and contents as the kernel has them',
    async (failing, each) => {
      const calls = await eachCallOf(
        failing,
        () => {
          using play = new MemoryPlay(failing);
          play.all();
        },
        each,
      );
      for (const name of [
        'KVM_SET_USER_MEMORY_REGION2',
        'KVM_SET_MEMORY_ATTRIBUTES',
        'KVM_GET_DIRTY_LOG',
        'fallocate',
      ])
        expect(calls).toContain(name);
    },
    'guest-memfd-slots',
    'private-memory',
  );

  for (const [what, prepare, ...needs] of logs)
    test(
      `loses no mark of a page that was written, by ${what}`,
      async (failing, each) => {
        await eachCallOf(failing, () => unfailing(failing, () => new Bare(failing.hv, prepare), marks), each);
      },
      ...needs,
    );

  test(
    'under a pager is made good or told, with nothing armed that was not, and no page lost',
    async (failing, each) => {
      const calls = await eachCallOf(failing, () => playPager(failing), {
        ...each,
        inLab: /^userfaults|REGION2$/,
      });
      const some =
        backend === 'sim'
          ? ['KVM_SET_USER_MEMORY_REGION2', 'allocate', 'fallocate', 'KVM_RUN']
          : ['userfaults.create', 'userfaults.share', 'fallocate', 'KVM_RUN'];
      expect(calls).toEqual(expect.arrayContaining(some));
    },
    ...(backend === 'kvm' ? (['userfaultfd'] as const) : []),
  );

  test('of start() or pause() is told or made good, and leaves nothing behind', async (failing, each) => {
    const play = () =>
      unfailing(
        failing,
        () => new Bare(failing.hv),
        (bare) => playStart(failing, bare),
      );
    const calls = await eachCallOf(failing, play, { ...each, inLab: /./ });
    expect(calls).toEqual(expect.arrayContaining(['start', 'KVM_RUN', 'pause', 'eventFds.create']));
  });

  for (const [what, prepare, ...needs] of logs)
    test(
      `in a session that is recorded, with ${what}, is replayed as it was`,
      async (failing, each) => {
        await eachCallOf(failing, () => playRecorded(failing, prepare), { ...each, inLab: /./ });
      },
      ...needs,
    );

  test('spoils no snapshot, and a machine that is not restored leaves nothing open', async (failing) => {
    using machine = new Machine(failing.hv, { memory: 0x4_0000, cpus: 2 });
    machine.load(flatImage(Uint8Array.of(0xfe, 0x06, 0x00, 0x90, 0xf4), 'real'));
    for (const vcpu of machine.vcpus) vcpu.run(TEST_MS);
    const { vm, vcpus } = machine;
    const path = join(scratch, `${backend}.snapshot`);
    await writeSnapshot(path, captureState(failing.hv, vm, vcpus));
    using snapshot = openSnapshot(path);
    await eachCallOf(
      failing,
      async () => {
        const other = join(scratch, `${backend}-again.snapshot`);
        await writeSnapshot(other, captureState(failing.hv, vm, vcpus));
        using again = openSnapshot(other);
        expect(again.state.vcpus[0]!.regs).toEqual(snapshot.state.vcpus[0]!.regs);
        using restored = restoreSnapshot(failing.hv, again);
        expect(restored.memories[0]!.read(0x9000, 1)[0]).toBe(2);
      },
      { rounds: 1 },
    );
  });
}

/** By which KVM tells of pages that were written. */
const logs: readonly [what: string, prepare: (vm: Vm) => void, ...needs: Condition[]][] = [
  ['a log', () => {}],
  [
    'a log that is cleared by hand',
    (vm) =>
      vm.enableCap({ cap: Cap.MANUAL_DIRTY_LOG_PROTECT2, args: [BigInt(DirtyLog.MANUAL_PROTECT_ENABLE)] }),
  ],
  ['rings', (vm) => vm.enableCap({ cap: Cap.DIRTY_LOG_RING_ACQ_REL, args: [16_384n] }), 'dirty-ring'],
];

/** Whatever fails is done once more. */
function marks({ vm, vcpu, memory, load }: Bare): void {
  const again = <T>(call: () => T): T => {
    try {
      return call();
    } catch {
      return call();
    }
  };
  const dirty = again(() => DirtyPages.start(vm, { vcpus: [vcpu] }));
  for (const round of [0, 1]) {
    // inc byte [0x9000]; inc byte [0xb000]; hlt
    again(() => load(Uint8Array.of(0xfe, 0x06, 0x00, 0x90, 0xfe, 0x06, 0x00, 0xb0, 0xf4)));
    while (again(() => vcpu.run(DEADLINE_MS)) !== Exit.HLT);
    memory.write(0xd000, Uint8Array.of(1));
    again(() => memory.discard(0xf000, PAGE));
    const told = again(() => dirty.take()).flatMap(({ offset, size }) =>
      Array.from({ length: size / PAGE }, (_, i) => offset / PAGE + i),
    );
    expect(told, `round ${round}`).toEqual(expect.arrayContaining([0x9, 0xb, 0xd, 0xf]));
    expect(told).not.toContain(0x11);
  }
  again(() => dirty.close());
  expect(vm.memoryMap.slots.map(({ flags }) => flags)).toEqual([0]);
}

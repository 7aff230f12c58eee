/**
 * Each call at the waist fails in turn, with EINTR, EAGAIN, ENOMEM, EFAULT and EBUSY, before it is made: what is known of a VM
 * stays what the kernel has, no page is lost, nothing stays open, and the same once more works.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import {
  captureState,
  DirtyPages,
  Machine,
  openSnapshot,
  restoreSnapshot,
  writeSnapshot,
} from '../../src/index.ts';
import { flatImage } from '../../src/vmm/image.ts';
import { eachCallOf, Failing } from '../support/failing.ts';
import { backends, whyNot } from '../support/host.ts';
import { TEST_MS } from '../support/limits.ts';
import { MemoryPlay, PAGE } from '../support/memory-play.ts';

const scratch = mkdtempSync(join(tmpdir(), 'vmexit-failing-'));
afterAll(() => rmSync(scratch, { recursive: true }));

for (const backend of backends) {
  const test = (sentence: string, shows: (failing: Failing) => Promise<void>, needs: boolean) =>
    it(
      `${sentence} (${backend})`,
      async (context) => {
        const why = needs ? whyNot(backend, 'guest-memfd-slots', 'private-memory') : whyNot(backend);
        context.skip(why !== undefined, why);
        const failing = new Failing(backend);
        expect(failing.hv.backend).toBe(backend);
        await shows(failing);
        failing.hv.close();
      },
      TEST_MS,
    );

  describe('a call that fails', () => {
    test(
      'while a machine is made leaves nothing open',
      async (failing) => {
        const calls = await eachCallOf(failing, () => {
          using machine = new Machine(failing.hv, { memory: 0x2_0000, privateMemory: true, cpus: 2 });
          machine.load(flatImage(Uint8Array.of(0xf4), 'real'));
        });
        expect(calls).toEqual(
          expect.arrayContaining(['KVM_CREATE_VM', 'KVM_CREATE_VCPU', 'KVM_SET_CPUID2', 'allocate']),
        );
      },
      true,
    );

    test(
      'leaves the record of slots, attributes and contents as the kernel has them',
      async (failing) => {
        const calls = await eachCallOf(failing, () => {
          using play = new MemoryPlay(failing);
          play.all();
        });
        for (const name of [
          'KVM_SET_USER_MEMORY_REGION2',
          'KVM_SET_MEMORY_ATTRIBUTES',
          'KVM_GET_DIRTY_LOG',
          'fallocate',
        ])
          expect(calls).toContain(name);
      },
      true,
    );

    test(
      'loses no mark of a page that was written',
      async (failing) => {
        using machine = new Machine(failing.hv, { memory: 0x4_0000 });
        // inc byte [0x9000]; inc byte [0xb000]; hlt
        const image = flatImage(Uint8Array.of(0xfe, 0x06, 0x00, 0x90, 0xfe, 0x06, 0x00, 0xb0, 0xf4), 'real');
        await eachCallOf(failing, () => {
          const again = <T>(call: () => T): T => {
            try {
              return call();
            } catch {
              return call();
            }
          };
          const dirty = again(() => DirtyPages.start(machine.vm, { vcpus: [machine.vcpu] }));
          again(() => machine.load(image));
          while (again(() => machine.vcpu.run(TEST_MS)) !== 5 /* HLT */);
          machine.memory.write(0xd000, Uint8Array.of(1));
          again(() => machine.memory.discard(0xf000, PAGE));
          const told = again(() => dirty.take()).flatMap(({ offset, size }) =>
            Array.from({ length: size / PAGE }, (_, i) => offset / PAGE + i),
          );
          expect(told).toEqual(expect.arrayContaining([0x9, 0xb, 0xd, 0xf]));
          expect(told).not.toContain(0x11);
          again(() => dirty.close());
        });
        expect(machine.vm.memoryMap.slots.map(({ flags }) => flags)).toEqual([0]);
      },
      false,
    );

    test(
      'spoils no snapshot, and a machine that is not restored leaves nothing open',
      async (failing) => {
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
          1,
        );
      },
      false,
    );
  });
}

/** A session that is recorded, and one of whose calls fails: the VMM's, or the recorder's own. Its replay is the same. */
import { expect } from 'vitest';
import { DirtyPages, Exit, Hypervisor, Replay, type Vm } from '../../src/index.ts';
import { recordingBackend } from '../../src/replay/record.ts';
import { Memo } from '../../src/replay/records.ts';
import { Bare } from './bare.ts';
import type { Failing } from './failing.ts';
import { DEADLINE_MS } from './limits.ts';

/** mov [0x9000], al; hlt; and again: al is 0 */
const CODE = Uint8Array.of(0xa2, 0x00, 0x90, 0xf4, 0xeb, 0xfa);
const DATA = 0x9000;
/** How often something is tried. */
const TRIES = 3;

/** A VMM, and all that it sees; what fails it does once more. */
async function vmm(hv: Hypervisor, prepare: (vm: Vm) => void): Promise<unknown[]> {
  const seen: unknown[] = [];
  const step = async <T>(act: () => T | Promise<T>): Promise<T> => {
    for (let tries = 1; ; tries++) {
      try {
        return await act();
      } catch (error) {
        seen.push(`${error}`);
        if (tries === TRIES) throw error;
      }
    }
  };
  const { vm, vcpu, memory, load } = await step(() => new Bare(hv, prepare));
  const { bytes } = memory;
  const ran = async (run: () => number | Promise<number>): Promise<void> => {
    // By a view, which only a log, a ring or a comparison tells from what the guest writes.
    bytes[DATA] = 77;
    for (let exit: number = Exit.AGAIN; exit !== Exit.HLT; ) {
      exit = await step(run);
      seen.push(exit, bytes[DATA]);
    }
    expect(bytes[DATA]).toBe(0);
  };
  await step(() => load(CODE));
  const dirty = await step(() => DirtyPages.start(vm, { vcpus: [vcpu] }));
  await ran(() => vcpu.run(DEADLINE_MS));
  const told = await step(() => dirty.take());
  seen.push(told.map(({ offset, size }) => [offset, size]));
  await step(() => dirty.close());
  await ran(() => vcpu.run(DEADLINE_MS));
  await ran(() => vcpu.runAsync(DEADLINE_MS));
  await step(() => vcpu.pause());
  vcpu.resume();
  const bell = await step(() => hv.createEventFd());
  bell.signal(3);
  seen.push(await step(() => bell.wait()), await step(() => vcpu.getRegs()));
  for (const object of [bell, vcpu, memory, vm, hv]) object.close();
  return seen;
}

export async function playRecorded(failing: Failing, prepare: (vm: Vm) => void): Promise<void> {
  const memo = new Memo();
  const seen = await vmm(new Hypervisor(recordingBackend(failing.backend, memo)), prepare);
  const replay = new Replay(memo);
  const again = await vmm(replay.hypervisor, prepare);
  expect(again).toEqual(seen);
  expect([replay.complete, replay.ended, replay.error]).toEqual([true, true, undefined]);
}

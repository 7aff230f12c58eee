/** A guest that is start()ed, paused and ended, where any of it may fail. */
import { getEventListeners } from 'node:events';
import { expect } from 'vitest';
import { Exit } from '../../src/index.ts';
import type { Bare } from './bare.ts';
import { type Failing, isFailure } from './failing.ts';
import { DEADLINE_MS } from './limits.ts';

/** out 0x10, al, three times; and then nothing more */
const CODE = Uint8Array.of(0xe6, 0x10, 0xe6, 0x10, 0xe6, 0x10, 0xeb, 0xfe);

/** Whatever fails is done once more; no exit is served twice, and nothing of what has failed is left behind. */
export async function playStart(failing: Failing, { vcpu, load }: Bare): Promise<void> {
  const again = async <T>(call: () => T): Promise<Awaited<T>> => {
    try {
      return await call();
    } catch (error) {
      if (!isFailure(error, failing.failure)) throw error;
      return await call();
    }
  };
  await again(() => load(CODE));
  const { signal, abort } = aborting();
  let exits = 0;
  let asks = () => {};
  const asked = new Promise<void>((resolve) => {
    asks = resolve;
  });
  let answer = () => {};
  const answered = new Promise<boolean>((resolve) => {
    answer = () => resolve(true);
  });
  const handle = (_: unknown, exit: number): boolean | Promise<boolean> => {
    if (exit !== Exit.IO) return false;
    if (++exits < 3) return true;
    asks();
    return answered;
  };
  const run = async (): Promise<number> => {
    for (let failures = 0; failures < 2; failures++) {
      const end = await again(() => vcpu.start([{ handle }], { signal, timeoutMs: DEADLINE_MS }));
      // EFAULT, of which KVM says no more, is an exit that nobody serves.
      if (end !== Exit.FAULT) return end;
    }
    throw new Error('one failure has ended two runs');
  };
  const ended = run();
  await Promise.race([asked, ended]);
  await again(() => {
    // While the exit waits for its answer: it does not stand still at once.
    const paused = vcpu.pause();
    answer();
    return paused;
  });
  expect(exits).toBe(3);
  vcpu.resume();
  abort();
  expect(await ended).toBe(Exit.STOPPED);
  expect(getEventListeners(signal, 'abort')).toEqual([]);
  expect(exits).toBe(3);
  // Neither a stop nor a pause is left.
  for (let end: number = Exit.FAULT; end !== Exit.DEADLINE; ) {
    end = await again(() => vcpu.run(1));
    expect([Exit.DEADLINE, Exit.FAULT, Exit.AGAIN, Exit.INTERRUPTED]).toContain(end);
  }
}

function aborting() {
  const controller = new AbortController();
  return { signal: controller.signal, abort: () => controller.abort() };
}

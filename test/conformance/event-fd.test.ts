/** eventfd(2) as the VMM has it: a counter between threads, the kernel and the event loop. */
import { Worker } from 'node:worker_threads';
import { expect } from 'vitest';
import { type EventFd, type EventFdToken, type Hypervisor, KvmError } from '../../src/index.ts';
import { errnoOf } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

const dist = new URL('../../dist/index.js', import.meta.url);

/** A thread that adds 1 to a counter and waits for another, which it sends back. */
const echo = `
  import('${dist}').then(async ({ openHypervisor }) => {
    const { parentPort, workerData } = require('node:worker_threads');
    const { backend, to, from } = workerData;
    const hv = openHypervisor({ backend });
    const [out, back] = [hv.openEventFd(to), hv.openEventFd(from)];
    out.signal();
    parentPort.postMessage(await back.wait());
    for (const opened of [out, back, hv]) opened.close();
  });
`;

const codeOf = (call: () => unknown): unknown => {
  try {
    return call();
  } catch (error) {
    return (error as { code?: string }).code;
  }
};

/** What comes of a turn of the event loop, and of another. */
const turn = () => new Promise<void>((resolve) => setTimeout(resolve, 1));

function withEventFd(hv: Hypervisor, use: (eventFd: EventFd) => Promise<void>): Promise<void> {
  const eventFd = hv.createEventFd();
  return use(eventFd).finally(() => eventFd.close());
}

conformance('an EventFd', ({ it }) => {
  it('counts signals until it is drained, and has nothing then', (hv) => {
    using eventFd = hv.createEventFd();
    expect(eventFd.drain()).toBeUndefined();
    eventFd.signal();
    eventFd.signal(41);
    expect([eventFd.drain(), eventFd.drain()]).toEqual([42, undefined]);
  });

  it('begins with a count, and as a semaphore gives 1 at a time', (hv) => {
    using eventFd = hv.createEventFd({ initial: 2, semaphore: true });
    expect([eventFd.drain(), eventFd.drain(), eventFd.drain()]).toEqual([1, 1, undefined]);
  });

  it('refuses with EAGAIN what would pass 2^64 - 2, and keeps what it has', (hv) => {
    using eventFd = hv.createEventFd();
    const most = Number.MAX_SAFE_INTEGER;
    for (let i = 0; i < 2048; i++) eventFd.signal(most);
    eventFd.signal(2046); // 2^64 - 2
    expect(errnoOf(() => eventFd.signal())).toBe('EAGAIN');
    expect(eventFd.drain()).toBe(2 ** 64);
    expect(errnoOf(() => eventFd.signal())).toBe('ok');
  });

  it('refuses what is no count, no option and no token', (hv) => {
    using eventFd = hv.createEventFd();
    const wrong = [
      () => eventFd.signal(0),
      () => eventFd.signal(-1),
      () => eventFd.signal(2 ** 53),
      () => eventFd.signal('1' as unknown as number),
      () => hv.createEventFd({ initial: 2 ** 32 }),
      () => hv.createEventFd({ semaphore: 1 as unknown as boolean }),
      () => eventFd.watch(1 as unknown as () => void),
      () => hv.openEventFd({} as EventFdToken),
      () => hv.openEventFd({ backend: hv.backend, number: 0 }),
    ];
    expect(wrong.map(codeOf)).toEqual(wrong.map(() => 'ERR_KVM_INVALID_ARG'));
    expect(eventFd.drain()).toBeUndefined();
  });

  it('wait() gives what is there, or what comes, to each in the order of waiting', (hv) =>
    withEventFd(hv, async (eventFd) => {
      eventFd.signal(3);
      expect(await eventFd.wait()).toBe(3);
      const [first, second] = [eventFd.wait(), eventFd.wait()];
      eventFd.signal(4);
      expect(await first).toBe(4);
      eventFd.signal(5);
      expect(await second).toBe(5);
    }));

  it('wait() ends without a count when its time has passed or the EventFd is closed, and by a signal', (hv) =>
    withEventFd(hv, async (eventFd) => {
      expect(await eventFd.wait({ timeoutMs: 1 })).toBeUndefined();
      const abort = new AbortController();
      const aborted = eventFd.wait({ signal: abort.signal });
      abort.abort(new Error('enough'));
      await expect(aborted).rejects.toThrow('enough');
      await expect(eventFd.wait({ signal: abort.signal })).rejects.toThrow('enough');
      // None of them takes what comes later.
      eventFd.signal();
      expect(eventFd.drain()).toBe(1);
      const waiting = eventFd.wait();
      await turn();
      eventFd.close();
      expect(await waiting).toBeUndefined();
      await expect(eventFd.wait()).rejects.toMatchObject({ code: 'ERR_KVM_CLOSED' });
    }));

  it('watch() tells of each count until it is taken back', (hv) =>
    withEventFd(hv, async (eventFd) => {
      const told: number[] = [];
      const tolds = () => new Promise<void>((resolve) => (next = resolve));
      let next = () => {};
      eventFd.watch((count) => {
        told.push(count);
        next();
      });
      for (const count of [7, 8]) {
        const wait = tolds();
        eventFd.signal(count);
        await wait;
      }
      eventFd.watch(undefined);
      eventFd.signal(9);
      await turn();
      expect([told, eventFd.drain()]).toEqual([[7, 8], 9]);
    }));

  it('is iterated over until it is closed', (hv) =>
    withEventFd(hv, async (eventFd) => {
      const counts: number[] = [];
      eventFd.signal(1);
      for await (const count of eventFd) {
        counts.push(count);
        if (count < 3) eventFd.signal(count + 1);
        else setTimeout(() => eventFd.close(), 1);
      }
      expect(counts).toEqual([1, 2, 3]);
    }));

  it('is the same counter in another thread', async (hv) => {
    using out = hv.createEventFd();
    using back = hv.createEventFd();
    const worker = new Worker(echo, {
      eval: true,
      workerData: { backend: hv.backend, to: out.share(), from: back.share() },
    });
    const answered = new Promise((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
    });
    // A busy main thread is told of the message and of the end in one go, before it goes on here.
    const ended = new Promise((resolve) => worker.once('exit', resolve));
    expect(await Promise.race([out.wait(), answered])).toBe(1);
    back.signal(6);
    expect(await answered).toBe(6);
    await ended;
    // The thread's are closed, this one's are not.
    out.signal();
    expect(out.drain()).toBe(1);
  });

  it('is not opened by its token once it is closed, not even where another took its place', (hv) => {
    const eventFd = hv.createEventFd();
    const token = eventFd.share();
    using second = hv.openEventFd(token);
    second.signal();
    expect(eventFd.drain()).toBe(1);
    second.close();
    eventFd.close();
    using _other = hv.createEventFd();
    expect(errnoOf(() => hv.openEventFd(token))).toBe('ESTALE');
    expect(() => hv.openEventFd(token)).toThrow(KvmError);
  });

  it('says that it is closed, whatever is asked of it', (hv) => {
    const eventFd = hv.createEventFd();
    eventFd.close();
    eventFd.close();
    const calls = [
      () => eventFd.signal(),
      () => eventFd.drain(),
      () => eventFd.share(),
      () => eventFd.watch(() => {}),
    ];
    expect(calls.map(codeOf)).toEqual(calls.map(() => 'ERR_KVM_CLOSED'));
    expect(eventFd.closed).toBe(true);
  });

  it('leaves the event loop alone where nobody waits, by thousands', (hv) => {
    for (let round = 0; round < 4; round++) {
      const many = Array.from({ length: 500 }, () => hv.createEventFd());
      for (const eventFd of many) {
        eventFd.watch(() => {});
        eventFd.signal();
      }
      for (const eventFd of many) eventFd.close();
    }
  });
});

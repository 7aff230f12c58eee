/** vCPUs on threads of their own, and in several threads, on whichever backend this host has. The programs are in vcpu-threads.mjs. */
import { describe, expect, it } from 'vitest';
import { TEST_MS } from '../support/limits.ts';
import { scenario } from './child.ts';

const run = (name: string) => scenario('vcpu-threads.mjs', name);
const test = (sentence: string, shows: () => Promise<void>) => it(sentence, shows, TEST_MS);

const RUNNING = 'ERR_KVM_VCPU_RUNNING';

describe('a vCPU on a thread of its own', () => {
  test('ends by its exit, a time limit, an abort, stop() and close()', async () => {
    const ends = ['HLT', 'HLT', 'DEADLINE', 'DEADLINE', 'STOPPED', 'STOPPED', 'STOPPED', 'ERR_KVM_CLOSED'];
    expect(await run('ends')).toEqual(ends);
  });

  test('leaves nothing of a limit that was met while an exit was served to the next run', async () => {
    const { ends, still } = await run('leftovers');
    expect(ends).toEqual([
      ...['IO', 'IO', 'IO', 'IO'],
      ...['ERR_OWN', 'IO', 'ERR_OWN', 'IO'],
      ...['STOPPED', 'IO', 'DEADLINE', 'IO'],
      'STOPPED',
    ]);
    expect(still).toBe(true);
  });

  test('is kicked, stopped, paused and closed where no more signals can be queued', async () => {
    const { backend, ends, closed } = await run('signals');
    // A deadline takes a place in that queue.
    const limited = backend === 'kvm' ? 'ENOMEM' : 'DEADLINE';
    expect({ ends, closed }).toEqual({
      ends: ['INTERRUPTED', 'STOPPED', 'INTERRUPTED', limited],
      closed: 'ERR_KVM_CLOSED',
    });
  });

  test('refuses every call while it runs, and none while it stands still, whenever it is paused', async () => {
    const { refused, standing, kicked } = await run('refusals');
    expect(refused).toEqual(Array(9).fill(RUNNING));
    expect(standing).toEqual(Array(7).fill('ok'));
    expect(kicked).toBe('INTERRUPTED');
  });

  test('has its exits served by handlers, by ones that take their time, and by a loop', async () => {
    expect(await run('handlers')).toEqual({
      end: 'IO',
      seen: 101,
      thrown: 'ERR_OWN',
      looped: 50,
      onlyPorts: true,
    });
  });

  test('stands still from pause() to resume(), whenever that is asked for', async () => {
    expect(await run('pauses')).toEqual({
      moved: 0,
      pending: 0,
      tooOften: 'EINVAL',
      still: true,
      goesOn: true,
      end: 'STOPPED',
      waits: 'DEADLINE',
    });
  });

  test('finishes a read-modify-write before it stands still', async () => {
    expect(await run('completes')).toEqual({ here: ['MMIO read 0', 'MMIO write 42'], immediate: false });
  });
});

describe('several threads', () => {
  test('open a vCPU and a VM: one runs it, and the other pauses it and owns the memory', async () => {
    const { codes, ...rest } = await run('worker');
    expect(rest).toEqual({ moved: 0, ran: true, end: 'STOPPED', back: 'ok', gone: false });
    expect(codes).toEqual([...Array(5).fill('ERR_KVM_NOT_OWNER'), 'ok']);
  });

  test('may be terminated in the middle of a run', async () => {
    expect(await run('terminated')).toBe(true);
  });

  test('end with their process, whatever runs', async () => {
    expect(await run('exits')).toBe('exiting');
  });

  test('leave vCPUs to the garbage collector', async () => {
    expect(await run('forgotten')).toBe(true);
  });
});

describe('several vCPUs in one loop', () => {
  test('end their guest when all have halted, or when one leaves memory', async () => {
    expect(await run('loops')).toEqual({
      end: { reason: 'halt' },
      again: { reason: 'halt' },
      heard: [0, 1, 2, 3],
      exits: { IO: 4, HLT: 4 },
      halted: [0, 1, 2, 3],
      stray: 'unhandled',
    });
  });
});

/** Several threads: workers, kicks, deadlines. The programs are in threads.mjs. */
import { describe, expect } from 'vitest';
import { onKvm as test } from '../support/host.ts';
import { scenario } from './child.ts';

const run = (name: string) => scenario('threads.mjs', name);

describe('the addon', () => {
  test('loads in several workers at once, again after they have ended, and then in the main thread', async () => {
    expect(await run('severalWorkers')).toEqual(Array(13).fill('HLT'));
  });

  test('shares a process with another build of itself: each refuses the handles of the other and has a signal of its own', async () => {
    expect(await run('anotherBuild')).toEqual({
      codes: Array(4).fill('ERR_KVM_INVALID_ARG'),
      deadlines: ['DEADLINE', -62, 'DEADLINE', -62],
    });
  });

  test('closes what an idle worker had when that is terminated', async () => {
    const { ended, exit } = await run('terminateIdle');
    expect(ended.map(({ alive, afterwards }: Record<string, boolean>) => [alive, afterwards])).toEqual(
      Array(3).fill([true, false]),
    );
    expect(ended[2].fds).toBe(ended[0].fds);
    expect(exit).toBe('HLT');
  });
});

describe('kick()', () => {
  test('ends the run of a guest that spins in another thread with INTERRUPTED', async () => {
    expect(await run('kickEndsSpin')).toEqual({ found: true, exit: 'INTERRUPTED', afterwards: false });
  });

  test('before run() is not lost, and interrupts one run only', async () => {
    expect(await run('kickIsNotLost')).toEqual({ found: true, exits: ['INTERRUPTED', 'DEADLINE'] });
  });

  test('works from the thread of the vCPU itself, and two at once are one', async () => {
    expect(await run('kickOneself')).toEqual(['INTERRUPTED', 'DEADLINE']);
  });

  test('takes the place of no exit', async () => {
    expect(await run('kickWaitsForARun')).toEqual(['IO', 'INTERRUPTED', 'IO']);
  });

  test('stays pending over an exit that comes first', async () => {
    expect(await run('kickBetweenTwoExits')).toEqual(['MMIO', 'MMIO', 'INTERRUPTED', 'MMIO']);
  });

  test('in a storm over many short runs loses no exit and interrupts no other system call', async () => {
    const { exits, interrupted, kicks, rounds } = await run('storm');
    expect(Object.keys(exits).sort()).toEqual(['INTERRUPTED', 'IO']);
    expect(exits.IO + exits.INTERRUPTED).toBe(rounds);
    expect(kicks).toBeGreaterThan(rounds / 100);
    expect(interrupted).toBe(0);
  });

  test('together with deadlines ends every run, with one or the other, and leaves nothing behind', async () => {
    const { exits, last, rounds } = await run('deadlinesAndKicks');
    expect(exits.DEADLINE + (exits.INTERRUPTED ?? 0)).toBe(rounds);
    expect(last).toBe('DEADLINE');
  });

  test('lets terminate() end a worker that is inside run()', async () => {
    expect(await run('terminateRunning')).toEqual({ code: 1, kicked: true, afterwards: false });
  });
});

describe('the bytes of guest memory', () => {
  test('can be given to another thread, and the one that made them can end', async (_, context) => {
    const result = await run('transferred');
    context.skip(typeof result === 'string', result);
    expect(result).toEqual({ usable: true });
  });
});

describe('a deadline', () => {
  test('ends a run that spins, never early, however short it is; one that has not passed ends none', async () => {
    const { passed, exits, longest } = await run('deadlines');
    for (const { timeoutMs, exit, ms } of passed) {
      expect(exit, `${timeoutMs} ms`).toBe('DEADLINE');
      expect(ms).toBeGreaterThanOrEqual(timeoutMs);
    }
    expect(exits).toEqual(['IO']);
    expect(longest).toBe('IO');
  });
});

describe('shared guest memory', () => {
  test('is the same bytes in the thread that opens its token, and stays there when the first closes it', async () => {
    expect(await run('sharedMemory')).toEqual({ seen: 55, written: 77, kept: [55, 77, 65_536] });
  });

  test('that was closed gives EBADF, or ESTALE when its number was given to another file', async () => {
    expect(await run('staleToken')).toEqual({
      free: 'EBADF',
      another: [true, 'ESTALE'],
      memory: [true, 'ESTALE'],
    });
  });
});

/**
 * Races that other VMMs have had between a vCPU's thread and who asks something of it: a pause lost between the last look and
 * KVM_RUN, immediate_exit left set behind EINTR, a pause acknowledged with an access pending, a loop over EINTR that swallows the
 * kick. In late-kvm.mjs the thread is held in each window; in vcpu-races.mjs they are met by number.
 */
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { noCompiler, whyNot } from '../support/host.ts';
import { TEST_MS } from '../support/limits.ts';
import { Preload } from '../support/preload.ts';
import { scenario } from './child.ts';

const test = (sentence: string, shows: () => Promise<void>) => it(sentence, shows, TEST_MS);

describe('a vCPU whose thread is held beside KVM_RUN (kvm)', () => {
  const why = noCompiler ?? whyNot('kvm');
  let preload: Preload | undefined;
  beforeAll(() => {
    if (why !== undefined) return;
    preload = new Preload('late-kvm');
    execFileSync(
      'mkfifo',
      ['at', 'go'].map((name) => join(preload!.folder, name)),
    );
  });
  afterAll(() => preload?.[Symbol.dispose]());
  const held = (sentence: string, name: string, result: unknown) =>
    it(sentence, { timeout: TEST_MS }, async (context) => {
      context.skip(why !== undefined, why);
      const env = { ...preload!.env, LATE_KVM: preload!.folder };
      expect(await scenario('late-kvm.mjs', name, { env })).toEqual(result);
    });

  held(
    'hears a kick, a stop, a time limit and a pause that come between its last look and KVM_RUN',
    'before',
    {
      ends: ['INTERRUPTED', 'STOPPED', 'DEADLINE', 'STOPPED'],
      flags: [false, false],
      rip: 0x1000,
    },
  );

  held(
    'gives its exit first and completes it before a pause, where they come behind KVM_RUN’s end',
    'behind',
    {
      kicked: ['IO', false, 'INTERRUPTED', false, 'IO'],
      stopped: ['IO', 'STOPPED', 'IO'],
      ends: ['IO', 'INTERRUPTED'],
      early: false,
      unfinished: false,
      rip: 0x1002,
      flag: false,
    },
  );

  held('has immediate_exit as the user has it after a kick, set or not', 'kept', [
    'INTERRUPTED',
    true,
    'INTERRUPTED',
    false,
  ]);

  held('tells EAGAIN and an EINTR of nobody’s, and start() goes on after both', 'errors', [
    'AGAIN',
    'INTERRUPTED',
    'HLT',
  ]);

  held('may be closed where KVM_RUN does not come back before the event loop turns', 'closed', {
    early: false,
    end: 'ERR_KVM_CLOSED',
    files: [3, 0],
  });
});

describe('a vCPU of which thousands of things are asked while it runs', () => {
  const run = (name: string) => scenario('vcpu-races.mjs', name);

  test('is ended by each kick once, while another thread borrows it for run(): none is swallowed', async () => {
    expect(await run('kicks')).toEqual({ missing: 0, tooMany: 0, end: 'STOPPED' });
  });

  test('acknowledges each pause though its guest never exits, and immediate_exit is not left set', async () => {
    expect(await run('pauses')).toEqual({ flags: 0, end: 'STOPPED' });
  });

  test('cuts short no system call of the program’s: reads, waits, the pool’s, and those for children', async () => {
    const { told, ...rest } = await run('signals');
    expect(told).toEqual([['INTERRUPTED 1'], ['read 1', 'wait timed-out']]);
    expect(rest).toEqual({ pool: [1], enough: true, children: [0], stopped: ['STOPPED', 'STOPPED'] });
  });
});

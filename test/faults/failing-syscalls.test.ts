/** Below the addon: each of its system calls fails in turn, in a process of its own. The program is failing-syscalls.mjs. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, type TestContext } from 'vitest';
import { noCompiler, onKvm, whyNot } from '../support/host.ts';
import { Preload } from '../support/preload.ts';
import { node, pathOf } from './child.ts';

/** Runs a play of the program's, and judges what is to be so of each. */
async function fails(play: string, context: TestContext) {
  context.skip(noCompiler !== undefined, noCompiler);
  using preload = new Preload('failing-syscalls');
  const words = join(preload.folder, 'words');
  writeFileSync(words, Buffer.alloc(4096));
  const env = { ...preload.env, FAILING_SYSCALLS: words };
  const { status, signal, stdout, stderr } = await node([pathOf('failing-syscalls.mjs'), play], { env });
  expect({ status, signal }, stderr).toEqual({ status: 0, signal: undefined });
  const { well, total, failed, leaked, wrong } = JSON.parse(stdout);
  expect({ wrong, leaked }).toEqual({ wrong: [], leaked: 0 });
  expect(failed.throughout).toBe(total);
  return { well, total, failed };
}

onKvm('a system call of the addon that fails is told or made good, and loses nothing', async (_, context) => {
  const { well, total, failed } = await fails('all', context);
  expect(well).toMatchObject({ boot: 'ok', run: 'IO', pause: 'ok', start: 'STOPPED', share: 'ok' });
  // Not that of a close-on-exec flag, for one.
  expect(failed.told).toBeGreaterThan(total / 2);
});

onKvm(
  'one that fails under a pager, in either thread, ends it by name or is made good',
  async (_, context) => {
    const lack = whyNot('kvm', 'userfaultfd');
    context.skip(lack !== undefined, lack);
    const { well, total, failed } = await fails('pager', context);
    expect(well).toEqual({ pager: 'ok' });
    expect(total).toBeGreaterThan(10);
    expect(failed.told).toBeGreaterThan(total / 4);
  },
);

/** Below the addon: each of its system calls fails in turn, in a process of its own. The program is failing-syscalls.mjs. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect } from 'vitest';
import { noCompiler, onKvm } from '../support/host.ts';
import { Preload } from '../support/preload.ts';
import { node, pathOf } from './child.ts';

onKvm('a system call of the addon that fails is told or made good, and loses nothing', async (_, context) => {
  context.skip(noCompiler !== undefined, noCompiler);
  using preload = new Preload('failing-syscalls');
  const words = join(preload.folder, 'words');
  writeFileSync(words, Buffer.alloc(4096));
  const env = { ...preload.env, FAILING_SYSCALLS: words };
  const { status, signal, stdout, stderr } = await node([pathOf('failing-syscalls.mjs')], { env });
  expect({ status, signal }, stderr).toEqual({ status: 0, signal: undefined });
  const { well, total, failed, leaked, wrong } = JSON.parse(stdout);
  expect({ wrong, leaked }).toEqual({ wrong: [], leaked: 0 });
  expect(well).toMatchObject({ boot: 'ok', run: 'IO', pause: 'ok', start: 'STOPPED', share: 'ok' });
  expect(failed.throughout).toBe(total);
  // Not that of a close-on-exec flag, for one.
  expect(failed.told).toBeGreaterThan(total / 2);
});

/** Below the addon: each of its system calls fails in turn, in a process of its own. The program is failing-syscalls.mjs. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'vitest';
import { noCompiler, onKvm } from '../support/host.ts';
import { node, pathOf } from './child.ts';

const support = (name: string) => fileURLToPath(new URL(`../support/${name}`, import.meta.url));

onKvm('a system call of the addon that fails is told or made good, and loses nothing', async (_, context) => {
  context.skip(noCompiler !== undefined, noCompiler);
  const folder = mkdtempSync(join(tmpdir(), 'vmexit-syscalls-'));
  try {
    const library = join(folder, 'failing-syscalls.so');
    execFileSync('gcc', ['-shared', '-fPIC', '-o', library, support('failing-syscalls.c'), '-ldl']);
    const words = join(folder, 'words');
    writeFileSync(words, Buffer.alloc(4096));
    const env = { ...process.env, LD_PRELOAD: library, FAILING_SYSCALLS: words };
    const { status, signal, stdout, stderr } = await node([pathOf('failing-syscalls.mjs')], { env });
    expect({ status, signal }, stderr).toEqual({ status: 0, signal: undefined });
    const { well, total, failed, leaked, wrong } = JSON.parse(stdout);
    expect({ wrong, leaked }).toEqual({ wrong: [], leaked: 0 });
    expect(well).toMatchObject({ boot: 'ok', run: 'IO', pause: 'ok', start: 'STOPPED', share: 'ok' });
    expect(failed.throughout).toBe(total);
    // Not that of a close-on-exec flag, for one.
    expect(failed.told).toBeGreaterThan(total / 2);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

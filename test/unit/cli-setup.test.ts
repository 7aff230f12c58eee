/** vmexit setup, as far as that goes without building anything: test/package builds. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { buildAddon } from '../../src/setup/addon.ts';
import { vmexit } from './cli-vmexit.ts';

const isHost = process.platform === 'linux' && process.arch === 'x64';
const refused = (message: RegExp) =>
  expect.objectContaining({ code: 'ERR_KVM_SETUP', message: expect.stringMatching(message) });

describe('vmexit setup', () => {
  it('has help, which says what it needs', () => {
    const { status, stdout } = vmexit(['setup', '--help']);
    expect(status).toBe(0);
    expect(stdout).toMatch(/Linux on x86-64, g\+\+, make and python3/);
  });

  it('refuses what it does not know', () => {
    const { status, stderr } = vmexit(['setup', 'everything']);
    expect(status).toBe(2);
    expect(stderr).toMatch(/'everything' is one argument too many/);
  });
});

describe('building the addon', () => {
  it('is refused on another processor, which has no KVM for it', async () => {
    const { arch } = process;
    Object.defineProperty(process, 'arch', { value: 'arm64' });
    try {
      await expect(buildAddon()).rejects.toEqual(
        refused(/the addon is for Linux on x86-64, and this is \w+ on arm64/),
      );
    } finally {
      Object.defineProperty(process, 'arch', { value: arch });
    }
  });

  it.for<[NodeJS.ProcessEnv, RegExp]>([
    [{ CXX: '/nonexistent/g++' }, /needs \/nonexistent\/g\+\+: apt-get install g\+\+ make python3/],
    [{ MAKE: '/nonexistent/make', PYTHON: '/nonexistent/python' }, /needs .*\/make and .*\/python: apt-get/],
  ])('is refused without its tools, with what brings them: %o', async ([env, message], { skip }) => {
    skip(!isHost, 'the addon is for Linux on x86-64');
    await expect(buildAddon({ env: { CXX: 'node', MAKE: 'node', PYTHON: 'node', ...env } })).rejects.toEqual(
      refused(message),
    );
  });

  it('is refused in a folder that is not there', async ({ skip }) => {
    skip(!isHost, 'the addon is for Linux on x86-64');
    const folder = join(import.meta.dirname, 'nowhere');
    const env = { CXX: 'node', MAKE: 'node', PYTHON: 'node' };
    await expect(buildAddon({ folder, env })).rejects.toEqual(refused(/nowhere cannot be written/));
  });
});

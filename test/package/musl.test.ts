/**
 * The addon for musl, on musl's loader: no Node for musl can be had here, so a program with as much of Node-API as it
 * takes stands in for it (musl/host.c), and g++'s static libstdc++ for the one that such a Node brings.
 */

import { existsSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { labStatus } from '../../src/lab/index.ts';
import { must, root, Workplace } from './packed.ts';

const MINUTES = 60_000;
const hasMusl = existsSync('/usr/bin/musl-gcc');
const NO_MUSL = 'musl-gcc is not there: apt-get install musl-tools';
const hasLab = hasMusl && labStatus().kernels.some(({ name, built }) => name === 'vanilla' && built);

const addon = join(root, 'prebuilds', 'linux-x64-musl', 'vmexit.node');
let work: Workplace;
beforeAll(() => {
  work = new Workplace();
  if (!hasMusl) return;
  must(root, process.execPath, [join(root, 'scripts', 'setup.mjs'), '--prebuild']);
  const cc = (...args: string[]) => must(work.path, 'musl-gcc', args);
  const source = (name: string) => join(root, 'test', 'package', 'musl', name);
  const wanted = must(root, 'nm', ['-D', '--undefined-only', addon]);
  const names = (pattern: RegExp) => [...wanted.matchAll(pattern)].map(([, name]) => name!);

  const archive = must(root, 'gcc', ['-print-file-name=libstdc++.a']).trim();
  const members = names(/(\S+)@(?:GLIBCXX|CXXABI)/g).map((name) => `-Wl,-u,${name}`);
  const library = ['-shared', '-fPIC', '-o', 'libstdc++.so.6', '-Wl,-soname,libstdc++.so.6'];
  cc(...library, source('libstdcxx.c'), ...members, archive);

  const kernel = join(work.path, 'kernel');
  mkdirSync(kernel);
  symlinkSync('/usr/include/linux', join(kernel, 'linux'));
  symlinkSync('/usr/include/asm-generic', join(kernel, 'asm-generic'));
  symlinkSync(`/usr/include/${must(root, 'gcc', ['-dumpmachine']).trim()}/asm`, join(kernel, 'asm'));
  cc('-Wall', '-Wextra', '-Werror', '-isystem', kernel, '-c', '-o', 'host.o', source('host.c'));
  const has = new Set([...must(work.path, 'nm', ['host.o']).matchAll(/ T (\S+)/g)].map(([, name]) => name));
  const rest = names(/ U ((?:napi|uv)_\S+)/g).filter((name) => !has.has(name));
  writeFileSync(join(work.path, 'rest.c'), rest.map((name) => `int ${name}(void) { return 9; }\n`).join(''));
  cc('-rdynamic', '-o', 'host', 'host.o', 'rest.c');
}, 10 * MINUTES);
afterAll(() => work[Symbol.dispose]());

describe('the addon for musl', () => {
  it('loads, and makes guest memory', ({ skip }) => {
    skip(!hasMusl, NO_MUSL);
    const said = must(work.path, join(work.path, 'host'), [addon], { LD_LIBRARY_PATH: work.path });
    expect(said).toMatch(/^functions \d\d, inode right\n$/);
  });

  it('runs a guest on the real KVM in the lab, until its deadline', { timeout: 5 * MINUTES }, ({ skip }) => {
    skip(!hasMusl, NO_MUSL);
    skip(!hasLab, "the lab's kernel is not built: npx vmexit lab build");
    const host = ['env', `LD_LIBRARY_PATH=${work.path}`, join(work.path, 'host'), addon, 'kvm'];
    const lab = [join(root, 'dist', 'cli', 'main.js'), 'lab', 'run', '--', ...host];
    const said = must(work.path, process.execPath, lab);
    expect(said).toMatch(/^functions \d\d, inode right, run ended by its deadline\n$/);
  });
});

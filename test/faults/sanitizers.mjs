// The hostile calls on an addon that is built with AddressSanitizer and UndefinedBehaviorSanitizer. Not one of the
// tests: it takes a compiler, and twice the time. node test/faults/sanitizers.mjs [SEED [CALLS]]
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const [, , seed = '1', calls = '100000'] = process.argv;
const root = fileURLToPath(new URL('../../', import.meta.url));
const work = mkdtempSync(join(tmpdir(), 'vmexit-sanitizers-'));
const flags = '-fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined -O1 -g';
const prefix = dirname(dirname(process.execPath));
const nodedir = existsSync(join(prefix, 'include', 'node', 'node_api.h')) ? [`--nodedir=${prefix}`] : [];

try {
  for (const part of ['native', 'binding.gyp', 'package.json'])
    cpSync(join(root, part), join(work, part), { recursive: true });
  symlinkSync(join(root, 'node_modules'), join(work, 'node_modules'));
  execFileSync(
    process.execPath,
    [join(root, 'node_modules/node-gyp/bin/node-gyp.js'), 'rebuild', '--silent', ...nodedir],
    {
      cwd: work,
      env: { ...process.env, CXXFLAGS: flags, LDFLAGS: flags },
      stdio: ['ignore', 'ignore', 'inherit'],
    },
  );
  const library = execFileSync('g++', ['-print-file-name=libasan.so'], { encoding: 'utf8' }).trim();
  const program = fileURLToPath(new URL('hostile-native.mjs', import.meta.url));
  const { status, signal } = spawnSync(process.execPath, ['--expose-gc', program, seed, calls], {
    stdio: 'inherit',
    env: {
      ...process.env,
      VMEXIT_ADDON: join(work, 'build', 'Release', 'vmexit.node'),
      LD_PRELOAD: library,
      // Node itself frees nothing when it ends.
      ASAN_OPTIONS: 'detect_leaks=0',
      UBSAN_OPTIONS: 'print_stacktrace=1',
    },
  });
  process.exitCode = status ?? 1;
  if (signal !== null) process.stderr.write(`ended by ${signal}\n`);
} finally {
  rmSync(work, { recursive: true, force: true });
}

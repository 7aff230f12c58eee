// Makes a clone ready to run: dependencies, the addon, the compiled TypeScript. Each step is skipped when
// nothing that it reads is newer than what it wrote, so a second run costs a few directory listings.
// It is plain JavaScript because it runs before there is a compiler.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const at = (...parts) => join(root, ...parts);

/** The newest modification time under the given files and folders, in ms; 0 when there are none. */
function newest(...paths) {
  let time = 0;
  for (const path of paths) {
    const stat = statSync(path, { throwIfNoEntry: false });
    if (!stat) continue;
    time = Math.max(time, stat.isDirectory() ? 0 : stat.mtimeMs);
    if (stat.isDirectory())
      time = Math.max(time, newest(...readdirSync(path).map((name) => join(path, name))));
  }
  return time;
}

function run(title, command, args, { optional = false } = {}) {
  process.stderr.write(`vmexit setup: ${title}\n`);
  const result = spawnSync(command, args, { cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
  if (result.status === 0) return true;
  process.stderr.write(
    `${result.stdout ?? ''}${result.stderr ?? ''}${result.error ? `${result.error.message}\n` : ''}`,
  );
  if (!optional) {
    process.stderr.write(`vmexit setup: ${title} failed: ${command} ${args.join(' ')}\n`);
    process.exit(result.status ?? 1);
  }
  return false;
}

/** Runs `build` unless `stamp` is newer than every input. A failed build leaves no stamp. */
function step(stamp, inputs, build) {
  const made = statSync(stamp, { throwIfNoEntry: false })?.mtimeMs ?? 0;
  if (made > newest(...inputs)) return;
  if (!build()) return;
  mkdirSync(dirname(stamp), { recursive: true });
  writeFileSync(stamp, '');
}

step(at('node_modules', '.vmexit-installed'), [at('package.json'), at('package-lock.json')], () =>
  run('installing dependencies', 'npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund']),
);

// The headers beside the node binary serve where there are any: no download then.
const prefix = dirname(dirname(process.execPath));
const nodedir = existsSync(join(prefix, 'include', 'node', 'node_api.h')) ? [`--nodedir=${prefix}`] : [];
const nodeGyp = at('node_modules', 'node-gyp', 'bin', 'node-gyp.js');
if (process.platform === 'linux') {
  step(at('build', 'Release', '.vmexit-built'), [at('native'), at('binding.gyp')], () => {
    const built = run('building the addon', process.execPath, [nodeGyp, 'rebuild', '--silent', ...nodedir], {
      optional: true,
    });
    if (!built)
      process.stderr.write('vmexit setup: going on without the addon: the KVM backend will say so\n');
    return built;
  });
}

step(at('dist', '.vmexit-compiled'), [at('src'), at('tsconfig.json')], () =>
  run('compiling the TypeScript', process.execPath, [
    at('node_modules', 'typescript', 'bin', 'tsc'),
    '-p',
    root,
  ]),
);

// They import the package by its own name, from what was just compiled.
step(at('dist', 'examples', '.vmexit-compiled'), [at('examples'), at('dist', '.vmexit-compiled')], () =>
  run('compiling the examples', process.execPath, [
    at('node_modules', 'typescript', 'bin', 'tsc'),
    '-p',
    at('examples'),
  ]),
);

// Makes a clone ready to run: dependencies, the addon, the compiled TypeScript. Each step is skipped when
// nothing that it reads is newer than what it wrote, so a second run costs a few directory listings.
// It is plain JavaScript because it runs before there is a compiler. With --strict a warning of the C++ compiler is
// an error, and a missing compiler too. --prebuild also makes the addons that the package brings (npm's prepack);
// --compile does no more than compile TypeScript (npm's prepare: an install from git packs what that leaves).
import { spawnSync } from 'node:child_process';
import {
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const at = (...parts) => join(root, ...parts);
const say = (text) => process.stderr.write(`vmexit setup: ${text}\n`);

const tsc = at('node_modules', 'typescript', 'bin', 'tsc');
const has = (option) => process.argv.includes(option);
const prebuild = has('--prebuild');
const strict = has('--strict') || prebuild;
const compileOnly = has('--compile');
const built = at('build', 'Release', '.vmexit-built');

const steps = [
  {
    title: 'installing dependencies',
    stamp: at('node_modules', '.vmexit-installed'),
    inputs: [at('package.json'), at('package-lock.json')],
    command: ['npm', 'ci', '--ignore-scripts', '--no-audit', '--no-fund'],
    skip: compileOnly,
  },
  {
    title: 'compiling the TypeScript',
    stamp: at('dist', '.vmexit-bundled'),
    inputs: [
      at('src'),
      at('scripts', 'bundle.mjs'),
      at('scripts', 'builtins.mjs'),
      at('scripts', 'pack-iced.mjs'),
      at('scripts', 'prepare-templates.mjs'),
    ],
    command: [process.execPath, at('scripts', 'bundle.mjs')],
  },
  {
    // By the command that an installed package has for it.
    title: 'building the addon',
    // What was built strictly serves in any case, and not the other way round; a rebuild removes both.
    stamp: strict ? at('build', 'Release', '.vmexit-strict') : built,
    also: built,
    inputs: [at('native'), at('binding.gyp')],
    command: [process.execPath, at('dist', 'cli', 'main.js'), 'setup', '--build'],
    env: strict ? { CXXFLAGS: `${process.env.CXXFLAGS ?? ''} -Werror` } : {},
    skip: process.platform !== 'linux' || compileOnly,
    otherwise: strict
      ? undefined
      : 'going on without the addon (it needs g++, make and python3): the KVM backend will say so',
  },
  {
    title: 'checking its types, and writing the declarations',
    stamp: at('dist', '.vmexit-compiled'),
    inputs: [at('src'), at('tsconfig.json')],
    command: [process.execPath, tsc, '-p', root],
  },
  {
    // They import the package by its own name, from what was just compiled.
    title: 'compiling the examples',
    stamp: at('dist', 'examples', '.vmexit-compiled'),
    inputs: [at('examples'), at('dist', '.vmexit-compiled')],
    command: [process.execPath, tsc, '-p', at('examples')],
  },
  {
    title: 'building the addons that the package brings',
    stamp: at('prebuilds', '.vmexit-prebuilt'),
    inputs: [at('native'), at('binding.gyp'), at('scripts', 'prebuild.mjs'), at('scripts', 'musl.h')],
    command: [process.execPath, at('scripts', 'prebuild.mjs')],
    skip: !prebuild,
  },
];

/** The newest modification time under the given files and folders, in ms; 0 when there are none. */
function newest(...paths) {
  let time = 0;
  for (const path of paths) {
    const stat = statSync(path, { throwIfNoEntry: false });
    if (!stat) continue;
    const below = stat.isDirectory() ? readdirSync(path).map((name) => join(path, name)) : [];
    time = Math.max(time, stat.isDirectory() ? newest(...below) : stat.mtimeMs);
  }
  return time;
}

const due = ({ stamp, inputs, skip }) =>
  !skip && (statSync(stamp, { throwIfNoEntry: false })?.mtimeMs ?? 0) <= newest(...inputs);

/** A failed step leaves no stamp. The stamp has the time of the start: what was edited meanwhile is newer. */
function perform({ title, stamp, also = stamp, command: [command, ...args], env, otherwise }) {
  say(title);
  const started = new Date();
  const { status, error, stdout, stderr } = spawnSync(command, args, {
    cwd: root,
    encoding: 'utf8',
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  if (status === 0) {
    for (const file of new Set([stamp, also])) {
      mkdirSync(dirname(file), { recursive: true });
      writeFileSync(file, '');
      utimesSync(file, started, started);
    }
    return;
  }
  process.stderr.write(`${stdout ?? ''}${stderr ?? ''}${error ? `${error.message}\n` : ''}`);
  if (otherwise) return say(otherwise);
  say(`${title} failed: ${command} ${args.join(' ')}`);
  process.exit(status ?? 1);
}

/** Waits until no other setup of this clone is at work: `npm test` and `npm start` may be begun together. */
function lock() {
  const file = at('dist', '.vmexit-setup');
  const own = `${file}.${process.pid}`;
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(own, String(process.pid));
  for (let waited = false; !taken(own, file); waited = true) {
    if (isGone(file)) rmSync(file, { force: true });
    else if (!waited) say('waiting for another setup of this clone');
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 200);
  }
  rmSync(own);
  process.on('exit', () => rmSync(file, { force: true }));
}

/** Whether the file, which then has its contents already, was put in the place that only one can have. */
function taken(own, file) {
  try {
    linkSync(own, file);
    return true;
  } catch (error) {
    if (error.code !== 'EEXIST') throw error;
    return false;
  }
}

/** Whether the setup that holds the place was killed. */
function isGone(file) {
  try {
    process.kill(Number(readFileSync(file, 'utf8')), 0);
    return false;
  } catch (error) {
    return error.code === 'ESRCH';
  }
}

if (compileOnly && !existsSync(tsc)) {
  say('the compilers are not installed, so dist/ stays as it is');
} else if (steps.some(due)) {
  lock();
  for (const step of steps) if (due(step)) perform(step);
}

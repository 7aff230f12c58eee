// The native suites on builds of the addon with sanitizers. Not one of the tests: it takes a compiler, and time.
//
//   node test/faults/sanitizers.mjs [--sanitizer NAME]... [--where PLACE]... [--calls N] [--seed N] [SUITE...]
//
// Sanitizers are `address`, with that of undefined behaviour, and `thread`; places are `here`, if this host has a KVM, and
// `lab`: without a KVM almost none of the addon runs. Each build has bugs of its own, one of each kind, which must be found
// first. The calls of the addon's functions are counted in every process, and a run in which there were none has failed;
// so has one with a report of the sanitizer's from any process, whatever the suite makes of that. Without SUITE all of the
// native ones run, and N hostile calls (default 20000; 0 leaves them out), half of them of one thread and half of several at
// once; with `none` for SUITE those calls alone. A SUITE is a file or folder of tests, or a program of test/faults and one of its
// scenarios, `test/faults/vcpu-races.mjs:pauses`, which starts in a tenth of the time.
// Needs `npm run setup`.
import { execFileSync, spawnSync } from 'node:child_process';
import {
  accessSync,
  constants,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const root = fileURLToPath(new URL('../../', import.meta.url));
const self = fileURLToPath(import.meta.url);
const parts = fileURLToPath(new URL('sanitizers/', import.meta.url));

const SUITES = [
  'test/conformance',
  ...[
    'threads',
    'vcpu-threads',
    'vcpu-races',
    'memory-owner',
    'lifetime',
    'endings',
    'exhaustion',
    'failing-calls',
    'kick-ids',
    'userfaultfd',
    'hostile',
  ].map((name) => `test/faults/${name}.test.ts`),
];

const SANITIZERS = {
  address: {
    flags: '-fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined',
    library: 'libasan.so',
    planted: { overflow: /heap-buffer-overflow/, undefined: /signed-integer-overflow/ },
  },
  thread: { flags: '-fsanitize=thread', library: 'libtsan.so', planted: { race: /data race/ } },
};

/** What of Node-API is a macro while the addon is compiled: see instrumented.cc. */
const INSTRUMENTED = {
  napi_create_function: 'instrumented_create_function',
  napi_get_cb_info: 'instrumented_get_cb_info',
  napi_register_module_v1: 'instrumented_register_module',
};

const STOPS = ['SIGINT', 'SIGTERM', 'SIGHUP'];

/** That are hostile at once. */
const THREADS = 3;

/** How long one run may take, and all of them in one place with one sanitizer, in ms. */
const RUN_LIMIT_MS = 150 * 60_000;
const TIME_LIMIT_MS = 240 * 60_000;

/** By how much longer the tests' watchdogs wait: test/support/limits.ts. */
const PATIENCE = { address: 1, thread: 2 };

const say = (text) => process.stdout.write(`sanitizers: ${text}\n`);

/** Builds the addon with a sanitizer in a copy of its sources; the path of the library. */
function build(name, work) {
  const tree = join(work, name);
  mkdirSync(tree);
  for (const part of ['native', 'binding.gyp', 'package.json'])
    cpSync(join(root, part), join(tree, part), { recursive: true });
  symlinkSync(join(root, 'node_modules'), join(tree, 'node_modules'));
  cpSync(join(parts, 'instrumented.cc'), join(tree, 'native', 'instrumented.cc'));
  const gyp = readFileSync(join(tree, 'binding.gyp'), 'utf8');
  writeFileSync(join(tree, 'binding.gyp'), gyp.replace('"native/addon.cc",', '$& "native/instrumented.cc",'));
  const flags = `${SANITIZERS[name].flags} -fno-omit-frame-pointer -O1 -g1`;
  const macros = Object.entries(INSTRUMENTED).map(([from, to]) => `-D${from}=${to}`);
  const prefix = dirname(dirname(process.execPath));
  const headers = existsSync(join(prefix, 'include', 'node', 'node_api.h')) ? [`--nodedir=${prefix}`] : [];
  execFileSync(
    process.execPath,
    [join(root, 'node_modules/node-gyp/bin/node-gyp.js'), 'rebuild', '--silent', '--jobs=max', ...headers],
    {
      cwd: tree,
      env: { ...process.env, CXXFLAGS: [flags, ...macros].join(' '), LDFLAGS: flags },
      stdio: ['ignore', 'ignore', 'inherit'],
    },
  );
  const addon = join(work, `${name}.node`);
  cpSync(join(tree, 'build', 'Release', 'vmexit.node'), addon);
  rmSync(tree, { recursive: true });
  return addon;
}

/** The environment in which node has a sanitizer: whatever it reports is a file of `reports`. */
function environment(name, { reports, calls }) {
  const { library } = SANITIZERS[name];
  const preload = execFileSync('g++', [`-print-file-name=${library}`], { encoding: 'utf8' }).trim();
  const options = readFileSync(join(parts, 'options'), 'utf8')
    .replace(/#.*$/gm, '')
    .split('\n')
    .map((line) => /^(\w+)\s+(\S+)/.exec(line))
    .filter((match) => match?.[1] === name)
    .map((match) => match[2]);
  const suppressions = join(parts, `${name}.suppressions`);
  if (existsSync(suppressions)) options.push(`suppressions=${suppressions}`);
  const text = [...options, `log_path=${join(reports, name)}`].join(':');
  const variables = { address: ['ASAN_OPTIONS', 'UBSAN_OPTIONS'], thread: ['TSAN_OPTIONS'] }[name];
  return {
    ...process.env,
    ...Object.fromEntries(variables.map((variable) => [variable, text])),
    LD_PRELOAD: preload,
    NODE_OPTIONS: `--require ${join(parts, 'preload.cjs')}`,
    VMEXIT_SANITIZER: preload,
    VMEXIT_PATIENCE: String(PATIENCE[name]),
    VMEXIT_CALLS: calls,
    VMEXIT_REPORTS: reports,
  };
}

function folders(work, place) {
  const made = { reports: join(work, place, 'reports'), calls: join(work, place, 'calls') };
  for (const folder of Object.values(made)) mkdirSync(folder, { recursive: true });
  return made;
}

const texts = (folder) =>
  readdirSync(folder, { withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => readFileSync(join(folder, entry.name), 'utf8'))
    .filter((text) => text.trim() !== '');

/** Calls by function, of all processes: the tables of instrumented.cc. */
function countsIn(folder) {
  const counts = {};
  for (const file of readdirSync(folder)) {
    const bytes = readFileSync(join(folder, file));
    for (let at = 0; at + 32 <= bytes.length && bytes[at] !== 0; at += 32) {
      const name = bytes.toString('latin1', at, at + 24).replace(/\0.*$/, '');
      counts[name] = (counts[name] ?? 0) + Number(bytes.readBigUInt64LE(at + 24));
    }
  }
  return counts;
}

/** Whether each planted bug of a build is found. */
function findsPlanted(name, addon, work) {
  const finds = Object.entries(SANITIZERS[name].planted).map(([kind, report]) => {
    const where = folders(work, `planted-${kind}`);
    const script = `require(${JSON.stringify(addon)}).planted(${JSON.stringify(kind)})`;
    spawnSync(process.execPath, ['--eval', script], { env: environment(name, where), stdio: 'ignore' });
    const found = texts(where.reports).some((text) => report.test(text));
    say(`${name}: the planted ${kind} is ${found ? 'found' : 'NOT FOUND'}`);
    return found;
  });
  return finds.every((found) => found);
}

// --- in the place ------------------------------------------------------------------------------------------------

/** Runs what is asked for on the addon, which is put in the place of the tree's; writes what came of it to `result`. */
function inside({ name, addon, suites, calls, seed, result }) {
  execFileSync('mount', ['--bind', addon, join(root, 'build', 'Release', 'vmexit.node')]);
  const work = mkdtempSync(join(tmpdir(), 'vmexit-sanitized-'));
  const vitest = [join(root, 'node_modules', 'vitest', 'vitest.mjs'), 'run', '--project', 'quick'];
  const runs = [];
  if (calls > 0) {
    const storm = (file, ...args) => ['--expose-gc', join(root, 'test/faults', file), ...args.map(String)];
    const half = Math.ceil(calls / 2);
    const each = Math.ceil(half / THREADS);
    runs.push({ what: `${half} hostile calls`, args: storm('hostile-native.mjs', seed, half) });
    runs.push({
      what: `${each} hostile calls in each of ${THREADS} threads`,
      args: storm('hostile-threads.mjs', seed, each, THREADS),
    });
  }
  for (const suite of suites.filter((name) => name.includes(':'))) {
    const [program, scenario] = suite.split(':');
    runs.push({ what: suite, args: ['--expose-gc', join(root, program), scenario] });
  }
  const tests = suites.filter((name) => !name.includes(':'));
  if (tests.length > 0) {
    // One vitest for all: to load what they import takes the lab longer than the tests. It has no sanitizer itself, which
    // would take minutes more: what runs the addon is what it starts.
    runs.push({ what: tests.join(' '), args: [...vitest, ...tests], without: { LD_PRELOAD: undefined } });
  }
  const done = [];
  for (const [index, { what, args, without }] of runs.entries()) {
    const own = folders(work, String(index));
    const started = Date.now();
    const { status, signal } = spawnSync(process.execPath, args, {
      cwd: root,
      env: { ...environment(name, own), ...without },
      stdio: 'inherit',
      timeout: RUN_LIMIT_MS,
      killSignal: 'SIGKILL',
    });
    const seconds = Math.round((Date.now() - started) / 1000);
    const end = status ?? signal;
    done.push({ what, end, seconds, counts: countsIn(own.calls), reports: texts(own.reports) });
    // Of a place that does not come to its end there is what came before.
    writeFileSync(result, JSON.stringify({ all: runs.length, done }));
  }
}

// --- from outside ------------------------------------------------------------------------------------------------

const abort = new AbortController();

const PLACES = {
  /** In a mount namespace, so that the tree's own addon stays. */
  async here(task) {
    const unshare = ['--mount', ...(process.getuid() === 0 ? [] : ['--map-root-user'])];
    spawnSync('unshare', [...unshare, process.execPath, self, '--inside', JSON.stringify(task)], {
      stdio: 'inherit',
      timeout: TIME_LIMIT_MS,
    });
  },
  async lab(task, share) {
    const { runInLabAgain } = await import('../../scripts/lab-again.mjs');
    const run = {
      command: process.execPath,
      args: [self, '--inside', JSON.stringify(task)],
      cwd: root,
      share,
      timeoutMs: TIME_LIMIT_MS,
      signal: abort.signal,
      onStart: say,
      onStdout: (chunk) => process.stdout.write(chunk),
      onStderr: (chunk) => process.stderr.write(chunk),
    };
    await runInLabAgain(run, say);
  },
};

const hasKvm = () => {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
    return true;
  } catch {
    return false;
  }
};

/** Runs the suites with one sanitizer in one place; whether all is well. */
async function runIn(place, name, addon, work, asked) {
  const result = join(work, `${name}-${place}.json`);
  await PLACES[place]({ name, addon, result, ...asked }, work).catch((error) => say(error.message));
  if (!existsSync(result)) {
    say(`${name}, ${place}: FAILED, it has not come to its end`);
    return false;
  }
  const { all, done } = JSON.parse(readFileSync(result, 'utf8'));
  const sumOf = (counts) => Object.values(counts).reduce((sum, count) => sum + count, 0);
  const sums = {};
  for (const { what, end, seconds, counts, reports } of done) {
    for (const [called, count] of Object.entries(counts)) sums[called] = (sums[called] ?? 0) + count;
    for (const text of reports) process.stdout.write(`${text}\n`);
    say(
      `${name}, ${place}: ${what}: ended with ${end} after ${seconds} s, ${reports.length} reports, ${sumOf(counts)} calls`,
    );
  }
  if (done.length < all)
    say(`${name}, ${place}: FAILED, ${all - done.length} of ${all} have not come to their end`);
  const most = Object.entries(sums).sort(([, a], [, b]) => b - a);
  const found = done.reduce((sum, { reports }) => sum + reports.length, 0);
  say(`${name}, ${place}: ${found} reports, ${sumOf(sums)} calls of ${most.length} functions of the addon`);
  say(`${name}, ${place}: ${most.map(([called, count]) => `${called} ${count}`).join(', ')}`);
  return (
    done.length === all &&
    done.every(({ end, reports, counts }) => end === 0 && reports.length === 0 && sumOf(counts) > 0)
  );
}

const HELP = `node test/faults/sanitizers.mjs [options] [SUITE...]: the native suites on builds of the addon with sanitizers

  --sanitizer NAME   ${Object.keys(SANITIZERS).join(' or ')}; may be repeated (default: each)
  --where PLACE      ${Object.keys(PLACES).join(' or ')}; may be repeated (default: each that there is)
  --calls N          hostile calls (default 20000; 0: none)
  --seed N           of those calls (default 1)

Without SUITE all of the native ones run; with \`none\` the planted bugs and the hostile calls alone. A SUITE is a file or folder
of tests, or a program of test/faults with one of its scenarios: test/faults/vcpu-races.mjs:pauses.
`;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    help: { type: 'boolean', short: 'h' },
    sanitizer: { type: 'string', multiple: true, default: Object.keys(SANITIZERS) },
    where: { type: 'string', multiple: true, default: Object.keys(PLACES) },
    calls: { type: 'string', default: '20000' },
    seed: { type: 'string', default: '1' },
    inside: { type: 'string' },
  },
});
if (values.help) process.stdout.write(HELP);
else if (values.inside !== undefined) inside(JSON.parse(values.inside));
else {
  const places = values.where.filter((place) => {
    if (place !== 'here' || hasKvm()) return true;
    say('this host has no KVM: its suites run in the lab alone');
    return false;
  });
  const work = mkdtempSync(join(tmpdir(), 'vmexit-sanitizers-'));
  const asked = {
    suites: positionals.includes('none') ? [] : positionals.length > 0 ? positionals : SUITES,
    calls: Number(values.calls),
    seed: Number(values.seed),
  };
  for (const signal of STOPS) process.once(signal, () => abort.abort());
  try {
    for (const name of values.sanitizer) {
      abort.signal.throwIfAborted();
      say(`building the addon with ${SANITIZERS[name].flags.split(' ')[0]}`);
      const addon = build(name, work);
      if (!findsPlanted(name, addon, work)) process.exitCode = 1;
      for (const place of places) if (!(await runIn(place, name, addon, work, asked))) process.exitCode = 1;
    }
  } catch (error) {
    // Stopped: a signal ends what it runs as well.
    if (error.name !== 'AbortError' && !STOPS.includes(error.signal)) throw error;
    process.exitCode = 130;
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

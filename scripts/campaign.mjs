// The attacks that take hours: the sanitizers on all native suites, hostile calls by the million, and soaks of several vCPUs
// and of the lab's emulated processors. CI runs a part of the first.
//
//   node scripts/campaign.mjs [--only STEP]... [--calls N] [--each N] [--seed N] [--boots N]
//
// --calls are all hostile calls together; --each is how many each of the addon's functions has at least, which takes longer: a
// million of each is some 55 million.
// Each step runs to its end whatever became of those before it; the last lines tell which failed. What is stopped (Ctrl-C)
// ends the step in progress and tells of those before it. A step can be run alone. Needs a compiler, and what the lab needs.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { accessSync, constants } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const root = fileURLToPath(new URL('..', import.meta.url));
const MINUTES = 60_000;

const { values } = parseArgs({
  options: {
    help: { type: 'boolean', short: 'h' },
    only: { type: 'string', multiple: true },
    calls: { type: 'string', default: '1000000' },
    each: { type: 'string', default: '0' },
    seed: { type: 'string', default: '1' },
    boots: { type: 'string', default: '200' },
  },
});
const { calls, each, seed, boots } = values;

function hasKvm() {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

/** Of hostile calls, on this host and in the lab, in minutes. */
const STORM = Number(each) > 0 ? { here: 24 * 60, lab: 48 * 60 } : { here: 240, lab: 600 };

const node = (...args) => [process.execPath, ...args];
const inLab = (minutes, command) =>
  node('dist/cli/main.js', 'lab', 'run', '--timeout', String(minutes * 60), '--', ...command);
const storm = node('--expose-gc', 'test/faults/hostile-native.mjs', seed, calls, '-', each);
const sanitizers = (name) =>
  node('test/faults/sanitizers.mjs', '--sanitizer', name, '--calls', calls, '--seed', seed);

/** What each does, how it is started, and after how many minutes it is ended. */
const STEPS = {
  'hostile-here': {
    about: `hostile calls on this host, of ${hasKvm() ? 'its KVM' : 'what needs no KVM: it has none'}`,
    command: storm,
    limit: STORM.here,
  },
  'hostile-lab': {
    about: 'hostile calls in the lab',
    command: inLab(STORM.lab, storm),
    limit: STORM.lab,
  },
  'hostile-threads': {
    about: 'hostile calls of three threads at once in the lab',
    command: inLab(
      600,
      node('--expose-gc', 'test/faults/hostile-threads.mjs', seed, String(Math.ceil(calls / 3)), '3'),
    ),
    limit: 600,
  },
  address: {
    about: 'the native suites with the sanitizers of addresses and of undefined behaviour',
    command: sanitizers('address'),
    limit: 900,
  },
  thread: {
    about: 'the native suites with the sanitizer of threads',
    command: sanitizers('thread'),
    limit: 900,
  },
  'soak-vcpus': {
    about: 'a million exits and 100,000 conversions over four vCPUs in the lab',
    command: inLab(240, node('scripts/soak-vcpus.mjs')),
    limit: 250,
  },
  soak: {
    about: `${boots} boots of the lab under stress`,
    command: node('scripts/lab-soak.mjs', '--boots', boots),
    limit: 300,
  },
};

const names = values.only ?? Object.keys(STEPS);
const unknown = names.find((name) => !Object.hasOwn(STEPS, name));
if (values.help || unknown !== undefined) {
  const steps = Object.entries(STEPS).map(([name, { about }]) => `  ${name.padEnd(17)}${about}\n`);
  process.stdout.write(
    `npm run test:campaign [-- --only STEP] [-- --calls N] [-- --each N] [-- --seed N] [-- --boots N]\n\n${steps.join('')}`,
  );
  if (unknown !== undefined) process.stderr.write(`campaign: no step is named ${unknown}\n`);
  process.exit(unknown === undefined ? 0 : 2);
}

const STOPS = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 };
/** What is still there so long after a step was told to end is killed. */
const GRACE_MS = 30_000;

let stopped;
let running;

/** A step with all that it has started: the terminal's signals reach it by here alone. */
function end(signal) {
  const { pid } = running;
  const send = (which) => {
    try {
      process.kill(-pid, which);
    } catch {
      // It has ended meanwhile.
    }
  };
  send(signal);
  return setTimeout(() => send('SIGKILL'), GRACE_MS);
}

for (const signal of Object.keys(STOPS)) {
  process.on(signal, () => {
    stopped ??= signal;
    if (running) end(signal).unref();
  });
}

/** Runs a step; how it ended. */
async function run({ command, limit }) {
  running = spawn(command[0], command.slice(1), {
    cwd: root,
    stdio: ['ignore', 'inherit', 'inherit'],
    detached: true,
  });
  let late;
  const timer = setTimeout(() => {
    late = end('SIGTERM');
  }, limit * MINUTES);
  const [status, signal] = await once(running, 'close');
  running = undefined;
  clearTimeout(timer);
  clearTimeout(late);
  return late ? 'its time limit' : (status ?? signal);
}

const results = [];
for (const [index, name] of names.entries()) {
  if (stopped) break;
  process.stdout.write(`campaign: step ${index + 1} of ${names.length}, ${name}: ${STEPS[name].about}\n`);
  const started = Date.now();
  const how = await run(STEPS[name]);
  const minutes = ((Date.now() - started) / MINUTES).toFixed(1);
  if (stopped) results.push([name, `stopped, ${minutes} min`]);
  else results.push([name, `${how === 0 ? 'well' : `FAILED with ${how}`}, ${minutes} min`]);
  if (how !== 0) process.exitCode = 1;
}
for (const [name, result] of results) process.stdout.write(`campaign: ${name}: ${result}\n`);
if (stopped) process.exitCode = STOPS[stopped];

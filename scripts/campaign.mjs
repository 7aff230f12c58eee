// The attacks that take hours: the sanitizers on all native suites, hostile calls by the million, and soaks of several vCPUs
// and of the lab's emulated processors. CI runs a part of the first.
//
//   node scripts/campaign.mjs [--only STEP]... [--calls N] [--each N] [--seed N] [--boots N]
//
// --calls are all hostile calls together; --each is how many each of the addon's functions has at least, which takes longer.
// Each step runs to its end whatever became of those before it; the last lines tell which failed. Stopping it keeps
// nothing: a step can be run alone. Needs a compiler, and what the lab needs.
import { spawnSync } from 'node:child_process';
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

const node = (...args) => [process.execPath, ...args];
const storm = node('--expose-gc', 'test/faults/hostile-native.mjs', seed, calls, '-', each);
const sanitizers = (name) =>
  node('test/faults/sanitizers.mjs', '--sanitizer', name, '--calls', calls, '--seed', seed);

/** What each does, how it is started, and after how many minutes it is ended; `kvm`: it needs one on this host. */
const STEPS = {
  'hostile-here': {
    about: `${calls} hostile calls on this host's KVM`,
    command: storm,
    limit: 240,
    kvm: true,
  },
  'hostile-lab': {
    about: `${calls} hostile calls in the lab`,
    command: node('dist/cli/main.js', 'lab', 'run', '--timeout', String(600 * 60), '--', ...storm),
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
    about: '100,000 exits and 10,000 conversions over four vCPUs in the lab',
    command: node(
      ...['dist/cli/main.js', 'lab', 'run', '--timeout', String(240 * 60), '--'],
      ...node('scripts/soak-vcpus.mjs', '--exits', '100000', '--conversions', '10000'),
    ),
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
  const steps = Object.entries(STEPS).map(([name, { about }]) => `  ${name.padEnd(14)}${about}\n`);
  process.stdout.write(
    `npm run test:campaign [-- --only STEP] [-- --calls N] [-- --each N] [-- --seed N] [-- --boots N]\n\n${steps.join('')}`,
  );
  if (unknown !== undefined) process.stderr.write(`campaign: no step is named ${unknown}\n`);
  process.exit(unknown === undefined ? 0 : 2);
}

function hasKvm() {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

const results = [];
for (const [index, name] of names.entries()) {
  const { about, command, limit, kvm } = STEPS[name];
  process.stdout.write(`campaign: step ${index + 1} of ${names.length}, ${name}: ${about}\n`);
  if (kvm && !hasKvm()) {
    results.push([name, 'left out: this host has no KVM']);
    continue;
  }
  const started = Date.now();
  const { status, signal, error } = spawnSync(command[0], command.slice(1), {
    cwd: root,
    stdio: 'inherit',
    timeout: limit * MINUTES,
  });
  const minutes = ((Date.now() - started) / MINUTES).toFixed(1);
  const end = status === 0 ? 'well' : `FAILED with ${error?.code ?? status ?? signal}`;
  results.push([name, `${end}, ${minutes} min`]);
  if (status !== 0) process.exitCode = 1;
}
for (const [name, result] of results) process.stdout.write(`campaign: ${name}: ${result}\n`);

// Runs the suites that ask what the host has, on hosts of each kind that there is, made here out of this one.
//
//   node scripts/test-hosts.mjs [--kind NAME]... [--all] [arguments of vitest]
//
// --kind leaves out the others. --all runs every quick suite and not only those that ask about the host; that is what
// `no-device` does in any case where this host has a /dev/kvm, since `npm test` has not run without it; where it has none, that
// was `npm test`, and the kind is left out unless it is asked for. The addon and dist/
// must be built (npm run setup), and for the lab's kinds the lab's kernel. Kinds that cannot be made here are left out by
// name. The last line is `N passed, N failed, N skipped` over all kinds.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { hostScript, kinds } from './hosts.mjs';
import { inTurns } from './in-turns.mjs';
import { readReport, Sum } from './report.mjs';

/** Those that ask about the host. */
const SUITES = [
  'test/conformance/capabilities.test.ts',
  'test/unit/unavailable.test.ts',
  'test/unit/cli-demo.test.ts',
  'test/unit/cli-run.test.ts',
  'test/unit/cli.test.ts',
  'test/unit/documents.test.ts',
  'test/unit/examples.test.ts',
  'test/unit/host.test.ts',
  'test/unit/native-table.test.ts',
  'test/unit/open.test.ts',
  'test/unit/probe.test.ts',
];
/** For each kind. */
const TIME_LIMIT_MS = 50 * 60_000;

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const vitest = join('node_modules', 'vitest', 'vitest.mjs');

const chosen = [];
const passed = [];
let all = false;
for (let rest = process.argv.slice(2); rest.length > 0; rest = rest.slice(1)) {
  if (rest[0] === '--help') {
    const rows = Object.entries(kinds).map(([name, { about }]) => `  ${name.padEnd(24)}${about}`);
    process.stdout.write(
      `npm run test:hosts [-- [--kind NAME]... [--all] [vitest's arguments]]\n\n${rows.join('\n')}\n`,
    );
    process.exit(0);
  }
  if (rest[0] === '--all') all = true;
  else if (rest[0] === '--kind') {
    if (!Object.hasOwn(kinds, rest[1] ?? '')) {
      process.stderr.write(
        `test-hosts: --kind is ${rest[1]}; it must be one of ${Object.keys(kinds).join(', ')}\n`,
      );
      process.exit(2);
    }
    chosen.push(rest[1]);
    rest = rest.slice(1);
  } else passed.push(rest[0]);
}
const names = chosen.length > 0 ? chosen : Object.keys(kinds);
const say = (text) => process.stderr.write(`test-hosts: ${text}\n`);

const abort = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.once(signal, () => abort.abort());

const argumentsOf = (suites, report) => [
  ...['run', '--project', 'quick', '--reporter=default', '--reporter=json'],
  ...[`--outputFile.json=${report}`, ...suites, ...passed],
];

/** In namespaces of its own: the status. */
async function runHere(name, folder, report, write) {
  const suites = all || (name === 'no-device' && existsSync('/dev/kvm')) ? [] : SUITES;
  const script = hostScript(kinds[name], { root, folder });
  const args = ['--mount', '--pid', '--fork', '--kill-child', '/bin/sh', '-euc', script, 'sh'];
  const child = spawn('unshare', [...args, process.execPath, vitest, ...argumentsOf(suites, report)], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, VMEXIT_HOST_KIND: name },
    signal: abort.signal,
    timeout: TIME_LIMIT_MS,
    killSignal: 'SIGKILL',
  });
  child.stdout.on('data', write);
  child.stderr.on('data', write);
  return await new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (status) => resolve(status ?? 1));
  });
}

async function runInTheLab(name, folder, report, write) {
  const { runInLab } = await import('../dist/lab/index.js');
  const { status } = await runInLab({
    command: process.execPath,
    args: [vitest, ...argumentsOf(kinds[name].suites, report)],
    cwd: root,
    share: folder,
    env: { VMEXIT_HOST_KIND: name },
    parameters: kinds[name].lab,
    timeoutMs: TIME_LIMIT_MS,
    signal: abort.signal,
    onStart: say,
    onStdout: write,
    onStderr: write,
  });
  return status;
}

/** Why this host cannot be made into one of that kind. */
async function whyNot(name, { lab, user }) {
  if (name === 'no-device' && chosen.length === 0 && !existsSync('/dev/kvm'))
    return 'this host is one, on which npm test runs';
  if (lab !== undefined) {
    const { labStatus } = await import('../dist/lab/index.js');
    const built = labStatus().kernels.some((kernel) => kernel.name === 'vanilla' && kernel.built);
    return built ? undefined : "the lab's kernel is not built: npx vmexit lab build --install";
  }
  if (process.platform !== 'linux')
    return `it is made by Linux's namespaces, and this is ${process.platform}`;
  if (process.getuid() !== 0) return 'only root can make it';
  const namespace = spawnSync('unshare', ['--mount', 'true'], { encoding: 'utf8' });
  if (namespace.status !== 0) return `this host gives no mount namespace: ${namespace.stderr?.trim()}`;
  if (user === undefined) return undefined;
  const node = spawnSync(process.execPath, ['--version'], { uid: user, gid: user });
  return node.status === 0 ? undefined : `user ${user} may not run ${process.execPath}`;
}

const sum = new Sum();

/** Runs the suites on a host of the kind; a line about it. */
async function test(name, write) {
  const kind = kinds[name];
  const reason = await whyNot(name, kind);
  if (reason !== undefined) return `${name}: left out: ${reason}`;
  write(`test-hosts: ${name}: ${kind.about}\n`);
  const folder = mkdtempSync(join(tmpdir(), 'vmexit-host-'));
  try {
    const report = join(folder, 'report.json');
    const run = kind.lab === undefined ? runHere : runInTheLab;
    const status = await run(name, folder, report, write);
    return sum.add(name, readReport(report), status);
  } catch (error) {
    if (abort.signal.aborted) process.exit(130);
    return `${sum.add(name, undefined, 1)}: ${error.message}`;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

const lines = await inTurns(names, availableParallelism(), test);
process.stdout.write(`${lines.join('\n')}\n${sum}\n`);
process.exitCode = sum.failed > 0 ? 1 : 0;

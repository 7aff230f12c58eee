// Runs the suites that need a kernel with private guest memory in the lab, on each of its kernels; builds them first
// if need be.
//
//   node scripts/test-lab.mjs [--install] [--kernel NAME]... [arguments of vitest]
//
// --install lets the build install missing Debian packages. --kernel leaves out the others. Test files or folders
// among the arguments replace the default ones. Suites that take minutes, and in which the kernels do not differ, run on one
// kernel of those that are tested. The addon and dist/ must be built (npm run setup). An emulated lab keeps
// one processor busy, so there are as many at a time as there are processors; the output of the first comes as it is
// written, that of the others when they have ended. The last line is `N passed, N failed, N skipped` over all kernels; the
// exit status is vitest's first that is not 0, 124 if a time limit passed.
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { inTurns } from './in-turns.mjs';
import { readReport, Sum } from './report.mjs';

// Beside the suites of the kernel's behaviour, what people see of private memory.
const SUITES = [
  'test/conformance',
  'test/faults',
  'test/unit/examples.test.ts',
  'test/unit/cli-demo.test.ts',
];
/** What starts a process for each case, most of them: by the kernel on which each runs, so that each has its share. */
const ON_ONE = {
  vanilla: ['hostile', 'lifetime', 'migration', 'endings', 'vcpu-races', 'vcpu-threads', 'memory-owner'],
  userfault: [
    'userfaultfd',
    'threads',
    'kick-ids',
    'exhaustion',
    'failing-syscalls',
    'pager',
    'soak-vcpus.long',
  ],
};
/** What is too long for here, unless it is named: each call that fails does so once here, with one errno. */
const NAMED_ONLY = ['test/faults/failing-calls.long.test.ts'];
const filesOf = (kernel) => ON_ONE[kernel]?.map((name) => `test/faults/${name}.test.ts`) ?? [];
/** For each kernel, on a machine that is busy, too. */
const TIME_LIMIT_MS = 50 * 60_000;

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const { buildKernels, kernelNames, LabError, labStatus, showProgress } = await import(
  '../dist/lab/index.js'
).catch((error) => {
  process.stderr.write(`test-lab: dist/ is not there (${error.code}): npm run setup\n`);
  process.exit(2);
});

const passed = [];
const chosen = [];
let install = false;
for (let rest = process.argv.slice(2); rest.length > 0; rest = rest.slice(1)) {
  if (rest[0] === '--install') install = true;
  else if (rest[0] === '--kernel' && rest.length > 1) {
    chosen.push(rest[1]);
    rest = rest.slice(1);
  } else passed.push(rest[0]);
}
const kernels = chosen.length > 0 ? chosen : kernelNames();
const isPath = (argument) => !argument.startsWith('-') && existsSync(join(root, argument));
/** What the arguments do not name: all of it, but for what another kernel of these runs. */
function suitesOn(kernel) {
  if (passed.some(isPath)) return [];
  const left = kernels.filter((other) => other !== kernel).flatMap(filesOf);
  return SUITES.flatMap((path) => (path.endsWith('.ts') ? [path] : testsIn(path))).filter(
    (file) => !left.includes(file) && !NAMED_ONLY.includes(file),
  );
}
const testsIn = (folder) =>
  readdirSync(join(root, folder))
    .filter((name) => name.endsWith('.test.ts'))
    .map((name) => `${folder}/${name}`);

const abort = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.once(signal, () => abort.abort());

/** Runs the suites on one kernel; gives their counts, undefined if there are none, and vitest's status. */
async function runSuites(kernel, write) {
  const share = mkdtempSync(join(tmpdir(), 'vmexit-test-lab-'));
  try {
    const report = join(share, 'report.json');
    const run = {
      command: process.execPath,
      args: [
        join(root, 'node_modules', 'vitest', 'vitest.mjs'),
        'run',
        ...['--reporter=default', '--reporter=json', `--outputFile.json=${report}`],
        ...suitesOn(kernel),
        ...passed,
      ],
      cwd: root,
      kernel,
      share,
      timeoutMs: TIME_LIMIT_MS,
      signal: abort.signal,
      onStart: (description) => process.stderr.write(`test-lab: ${description}\n`),
      onStdout: write,
      onStderr: write,
    };
    const { runInLabAgain } = await import('./lab-again.mjs');
    const { status, bootMs, elapsedMs } = await runInLabAgain(run, (what) => write(`test-lab: ${what}\n`));
    const seconds = (ms) => (ms / 1000).toFixed(1);
    write(
      `test-lab: ${kernel}: ${seconds(elapsedMs)} s, ${seconds(bootMs)} of them until the command started\n`,
    );
    return { status, found: readReport(report) };
  } finally {
    rmSync(share, { recursive: true, force: true });
  }
}

try {
  const isBuilt = (name) => labStatus().kernels.some((kernel) => kernel.name === name && kernel.built);
  if (install || !kernels.every(isBuilt)) {
    const progress = showProgress(process.stderr, 'test-lab');
    await buildKernels({ kernels, install, signal: abort.signal, report: progress.report }).finally(() =>
      progress[Symbol.dispose](),
    );
  }
  const sum = new Sum();
  const ends = await inTurns(kernels, availableParallelism(), runSuites);
  const lines = ends.map(({ status, found }, index) => {
    process.exitCode ||= status;
    return sum.add(kernels[index], found, status);
  });
  if (sum.failed > 0) process.exitCode ||= 1;
  process.stdout.write(`${lines.join('\n')}\n${sum}\n`);
} catch (error) {
  if (!(error instanceof LabError)) throw error;
  process.stderr.write(`test-lab: ${error.message}\n`);
  process.exitCode = { ERR_LAB_TIMEOUT: 124, ERR_LAB_ABORTED: 130 }[error.code] ?? 1;
}

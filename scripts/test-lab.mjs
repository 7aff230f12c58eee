// Runs the suites that need a kernel with private guest memory in the lab, on each of its kernels; builds them first
// if need be.
//
//   node scripts/test-lab.mjs [--install] [--kernel NAME]... [arguments of vitest]
//
// --install lets the build install missing Debian packages. --kernel leaves out the others. Test files or folders
// among the arguments replace the default ones. The addon and dist/ must be built (npm run setup). The last line is
// `N passed, N failed, N skipped` over all kernels; the exit status is vitest's first that is not 0, 124 if a time
// limit passed.
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

// Beside the suites of the kernel's behaviour, what people see of private memory.
const SUITES = [
  'test/conformance',
  'test/faults',
  'test/unit/examples.test.ts',
  'test/unit/cli-demo.test.ts',
];
/** For each kernel. */
const TIME_LIMIT_MS = 25 * 60_000;

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const { buildKernels, kernelNames, LabError, labStatus, runInLab, showProgress } = await import(
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
const suites = passed.some(isPath) ? [] : SUITES;

const abort = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.once(signal, () => abort.abort());

/** What vitest's JSON report counts; a file that failed before its first test counts as one failure. */
function counts(path) {
  const report = JSON.parse(readFileSync(path, 'utf8'));
  const broken = report.testResults.filter(
    (file) => file.status === 'failed' && file.assertionResults.length === 0,
  );
  return {
    passed: report.numPassedTests,
    failed: report.numFailedTests + broken.length,
    skipped: report.numPendingTests + report.numTodoTests,
  };
}

const text = ({ passed, failed, skipped }) => `${passed} passed, ${failed} failed, ${skipped} skipped`;

/** Runs the suites on one kernel; gives their counts, undefined if there are none, and vitest's status. */
async function runSuites(kernel) {
  const share = mkdtempSync(join(tmpdir(), 'vmexit-test-lab-'));
  try {
    const report = join(share, 'report.json');
    const { status, bootMs, elapsedMs } = await runInLab({
      command: process.execPath,
      args: [
        join(root, 'node_modules', 'vitest', 'vitest.mjs'),
        'run',
        ...['--reporter=default', '--reporter=json', `--outputFile.json=${report}`],
        ...suites,
        ...passed,
      ],
      cwd: root,
      kernel,
      share,
      timeoutMs: TIME_LIMIT_MS,
      signal: abort.signal,
      onStart: (description) => process.stderr.write(`test-lab: ${description}\n`),
      onStdout: (chunk) => process.stdout.write(chunk),
      onStderr: (chunk) => process.stderr.write(chunk),
    });
    const seconds = (ms) => (ms / 1000).toFixed(1);
    process.stderr.write(
      `test-lab: ${seconds(elapsedMs)} s, ${seconds(bootMs)} of them until the command started\n`,
    );
    return { status, found: existsSync(report) ? counts(report) : undefined };
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
  const sum = { passed: 0, failed: 0, skipped: 0 };
  for (const kernel of kernels) {
    const { status, found } = await runSuites(kernel);
    process.exitCode ||= status;
    if (found) {
      process.stdout.write(`${kernel}: ${text(found)}\n`);
      for (const key of Object.keys(sum)) sum[key] += found[key];
    } else {
      process.stderr.write('test-lab: vitest left no report\n');
      sum.failed += 1;
      process.exitCode ||= 1;
    }
  }
  process.stdout.write(`${text(sum)}\n`);
} catch (error) {
  if (!(error instanceof LabError)) throw error;
  process.stderr.write(`test-lab: ${error.message}\n`);
  process.exitCode = { ERR_LAB_TIMEOUT: 124, ERR_LAB_ABORTED: 130 }[error.code] ?? 1;
}

// Runs the suites that need a kernel with private guest memory in the lab; builds its kernel first if need be.
//
//   node scripts/test-lab.mjs [--install] [arguments of vitest]
//
// --install lets the build install missing Debian packages. Test files or folders among the arguments replace
// the default ones. The addon and dist/ must be built (npm run setup). The last line is
// `N passed, N failed, N skipped`; the exit status is vitest's, 124 if the time limit passed.
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
const TIME_LIMIT_MS = 40 * 60_000;

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const { buildKernel, LabError, labStatus, runInLab, showProgress } = await import(
  '../dist/lab/index.js'
).catch((error) => {
  process.stderr.write(`test-lab: dist/ is not there (${error.code}): npm run setup\n`);
  process.exit(2);
});

const install = process.argv.includes('--install');
const passed = process.argv.slice(2).filter((argument) => argument !== '--install');
const isPath = (argument) => !argument.startsWith('-') && existsSync(join(root, argument));
const suites = passed.some(isPath) ? [] : SUITES;

const abort = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.once(signal, () => abort.abort());

/** What vitest's JSON report counts; a file that failed before its first test counts as one failure. */
function totals(path) {
  const report = JSON.parse(readFileSync(path, 'utf8'));
  const broken = report.testResults.filter(
    (file) => file.status === 'failed' && file.assertionResults.length === 0,
  );
  const skipped = report.numPendingTests + report.numTodoTests;
  return `${report.numPassedTests} passed, ${report.numFailedTests + broken.length} failed, ${skipped} skipped`;
}

const share = mkdtempSync(join(tmpdir(), 'vmexit-test-lab-'));
try {
  if (install || !labStatus().kernels[0].built) {
    const progress = showProgress(process.stderr, 'test-lab');
    await buildKernel({ install, signal: abort.signal, report: progress.report }).finally(() =>
      progress[Symbol.dispose](),
    );
  }
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
    share,
    timeoutMs: TIME_LIMIT_MS,
    signal: abort.signal,
    onStart: (description) => process.stderr.write(`test-lab: ${description}\n`),
    onStdout: (chunk) => process.stdout.write(chunk),
    onStderr: (chunk) => process.stderr.write(chunk),
  });
  process.exitCode = status;
  process.stderr.write(
    `test-lab: ${(elapsedMs / 1000).toFixed(1)} s, ${(bootMs / 1000).toFixed(1)} of them until the command started\n`,
  );
  if (existsSync(report)) {
    process.stdout.write(`${totals(report)}\n`);
  } else {
    process.stderr.write('test-lab: vitest left no report\n');
    process.exitCode ||= 1;
  }
} catch (error) {
  if (!(error instanceof LabError)) throw error;
  process.stderr.write(`test-lab: ${error.message}\n`);
  process.exitCode = { ERR_LAB_TIMEOUT: 124, ERR_LAB_ABORTED: 130 }[error.code] ?? 1;
} finally {
  rmSync(share, { recursive: true, force: true });
}

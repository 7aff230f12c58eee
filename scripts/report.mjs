// Counts of tests and the names of those that failed: read from vitest's JSON report, added up, and told in a run's last lines.
import { readFileSync } from 'node:fs';
import { relative } from 'node:path';

/** What a report's line about a failed test begins with. */
export const FAILED = 'FAILED';

/**
 * What a report counts, and a line for each failure; a file that failed before its first test counts as one. Undefined
 * without a report.
 */
export function readReport(path) {
  let report;
  try {
    report = JSON.parse(readFileSync(path, 'utf8'));
  } catch {
    return undefined;
  }
  const failures = report.testResults.flatMap(({ name, status, message, assertionResults }) => {
    const file = relative(process.cwd(), name);
    if (status === 'failed' && assertionResults.length === 0) return [`${file}: ${inALine(message)}`];
    return assertionResults
      .filter((test) => test.status === 'failed')
      .map((test) => `${file}: ${test.fullName}: ${inALine(test.failureMessages[0])}`);
  });
  return {
    passed: report.numPassedTests,
    failed: failures.length,
    skipped: report.numPendingTests + report.numTodoTests,
    failures,
  };
}

/** A message without the stack of the test's own process. */
const inALine = (text = '') =>
  text
    .trim()
    .split('\n')
    .filter((line) => line.trim() !== '' && !/^\s+at /.test(line))
    .join(' | ')
    .slice(0, 1200);

export const describeCounts = ({ passed, failed, skipped }) =>
  `${passed} passed, ${failed} failed, ${skipped} skipped`;

/** The sum over several runs, each with its exit status. A run without a report, or with a status that its report does not explain, is a failure. */
export class Sum {
  passed = 0;
  failed = 0;
  skipped = 0;
  /** A line for each failed test. */
  failures = [];

  /** Adds a run, and gives a line about it. */
  add(name, report, status) {
    this.passed += report?.passed ?? 0;
    this.failed += report?.failed ?? 0;
    this.skipped += report?.skipped ?? 0;
    this.failures.push(...(report?.failures ?? []).map((line) => `${FAILED} ${name}: ${line}`));
    if (report === undefined || (status !== 0 && report.failed === 0)) {
      this.failed += 1;
      this.failures.push(`${FAILED} ${name}: ended with status ${status}`);
    }
    return `${name}: ${report === undefined ? 'no report' : describeCounts(report)}${status === 0 ? '' : `, status ${status}`}`;
  }

  /** The failures, each in a line, and in the last line the counts. */
  toString() {
    return [...this.failures, describeCounts(this)].join('\n');
  }
}

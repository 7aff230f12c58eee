// Counts of tests: read from vitest's JSON report, added up, and told in the words of a run's last line.
import { readFileSync } from 'node:fs';

/** What a report counts; a file that failed before its first test counts as one failure. Undefined without a report. */
export function readCounts(path) {
  let report;
  try {
    report = JSON.parse(readFileSync(path, 'utf8'));
  } catch {
    return undefined;
  }
  const broken = report.testResults.filter(
    (file) => file.status === 'failed' && file.assertionResults.length === 0,
  );
  return {
    passed: report.numPassedTests,
    failed: report.numFailedTests + broken.length,
    skipped: report.numPendingTests + report.numTodoTests,
  };
}

export const describeCounts = ({ passed, failed, skipped }) =>
  `${passed} passed, ${failed} failed, ${skipped} skipped`;

/** The sum over several runs, each with its exit status. A run without counts, or with a status that its counts do not explain, is a failure. */
export class Sum {
  passed = 0;
  failed = 0;
  skipped = 0;

  /** Adds a run, and gives a line about it. */
  add(name, counts, status) {
    this.passed += counts?.passed ?? 0;
    this.failed += counts?.failed ?? 0;
    this.skipped += counts?.skipped ?? 0;
    if (counts === undefined || (status !== 0 && counts.failed === 0)) this.failed += 1;
    return `${name}: ${counts === undefined ? 'no counts' : describeCounts(counts)}${status === 0 ? '' : `, status ${status}`}`;
  }

  toString() {
    return describeCounts(this);
  }
}

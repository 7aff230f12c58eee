// Adds up what the steps of .ci/run have counted: node scripts/ci-report.mjs FOLDER [NAME STATUS SECONDS]...
// What a step did is in FOLDER/NAME.json, a report of vitest's, or at the end of FOLDER/NAME.log: a line for each failure,
// and the counts. One of CHECKS has neither: it is one test, which its status judges.
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { FAILED, readReport, Sum } from './report.mjs';

const [, , folder, ...steps] = process.argv;
/** What runs no tests of its own. */
const CHECKS = ['setup', 'sanitizers', 'docs'];

function reportOf(name, status) {
  if (CHECKS.includes(name)) {
    const failures = status === 0 ? [] : [`ended with status ${status}`];
    return { passed: 1 - failures.length, failed: failures.length, skipped: 0, failures };
  }
  const report = join(folder, `${name}.json`);
  if (existsSync(report)) return readReport(report);
  const log = readFileSync(join(folder, `${name}.log`), 'utf8');
  const counts = [...log.matchAll(/^(\d+) passed, (\d+) failed, (\d+) skipped$/gm)].at(-1);
  if (counts === undefined) return undefined;
  const [passed, failed, skipped] = counts.slice(1).map(Number);
  const failures = [...log.matchAll(new RegExp(`^${FAILED} (.*)$`, 'gm'))].map(([, line]) => line);
  return { passed, failed, skipped, failures };
}

const sum = new Sum();
for (let at = 0; at < steps.length; at += 3) {
  const [name, status, seconds] = [steps[at], Number(steps[at + 1]), steps[at + 2]];
  console.log(`${sum.add(name, reportOf(name, status), status)} (${seconds} s)`);
}
console.log(`${sum}`);
process.exitCode = sum.failed > 0 ? 1 : 0;

// Adds up what the steps of .ci/run have counted: node scripts/ci-report.mjs FOLDER [NAME STATUS SECONDS]...
// A step's counts are in FOLDER/NAME.json, a report of vitest's, or in the last line of counts in FOLDER/NAME.log. A step
// without any is a check: one test, which its status judges.
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { readCounts, Sum } from './report.mjs';

const [, , folder, ...steps] = process.argv;
/** What runs no tests of its own. */
const CHECKS = ['setup', 'docs'];

function countsOf(name, status) {
  if (CHECKS.includes(name))
    return { passed: Number(status === 0), failed: Number(status !== 0), skipped: 0 };
  const report = join(folder, `${name}.json`);
  if (existsSync(report)) return readCounts(report);
  const line = /^(\d+) passed, (\d+) failed, (\d+) skipped$/gm;
  const [, passed, failed, skipped] =
    [...readFileSync(join(folder, `${name}.log`), 'utf8').matchAll(line)].at(-1) ?? [];
  return passed && { passed: Number(passed), failed: Number(failed), skipped: Number(skipped) };
}

const sum = new Sum();
for (let at = 0; at < steps.length; at += 3) {
  const [name, status, seconds] = [steps[at], Number(steps[at + 1]), steps[at + 2]];
  console.log(`${sum.add(name, countsOf(name, status), status)} (${seconds} s)`);
}
console.log(`${sum}`);
process.exitCode = sum.failed > 0 ? 1 : 0;

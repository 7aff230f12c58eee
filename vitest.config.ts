import { availableParallelism } from 'node:os';
import { defineConfig } from 'vitest/config';
import { inLab, TEST_MS } from './test/support/limits.ts';

// A name's ending says which suite a test file belongs to (CONTRIBUTING.md).
const long = 'test/**/*.long.test.ts';
const packed = 'test/package/**/*.test.ts';

const project = (name: string, include: string[], exclude: string[] = []) => ({
  extends: true as const,
  test: { name, include, exclude: ['**/node_modules/**', ...exclude] },
});

export default defineConfig({
  test: {
    projects: [
      project('quick', ['test/**/*.test.ts'], [long, packed]),
      project('long', [long]),
      project('package', [packed]),
    ],
    // A guest can hang in KVM_RUN, where no JS timer fires: a fork can be killed from outside, a thread cannot.
    pool: 'forks',
    testTimeout: TEST_MS,
    hookTimeout: TEST_MS,
    // In the lab the processor is emulated: loading the modules once per file would take longer than the tests. So files
    // share a process there, and what a module of test/support holds.
    isolate: !inLab,
    fileParallelism: !inLab,
    // By default one processor would be left alone.
    maxWorkers: inLab ? 1 : availableParallelism(),
  },
});

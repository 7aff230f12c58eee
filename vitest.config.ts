import { defineConfig } from 'vitest/config';

// In the lab the processor is emulated: loading the modules once per file would take longer than the tests.
const inLab = process.env.VMEXIT_LAB === '1';

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
    testTimeout: inLab ? 120_000 : 20_000,
    hookTimeout: 60_000,
    isolate: !inLab,
    fileParallelism: !inLab,
  },
});

import { defineConfig } from 'vitest/config';

// In the lab the processor is emulated: loading the modules once per file would take longer than the tests.
const inLab = process.env.VMEXIT_LAB === '1';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // A guest can hang in KVM_RUN, where no JS timer fires: a fork can be killed from outside, a thread cannot.
    pool: 'forks',
    testTimeout: inLab ? 120_000 : 20_000,
    hookTimeout: 60_000,
    isolate: !inLab,
    fileParallelism: !inLab,
  },
});

import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // A guest can hang in KVM_RUN, where no JS timer fires: a fork can be killed from outside, a thread cannot.
    pool: 'forks',
    testTimeout: 20_000,
    hookTimeout: 60_000,
  },
});

/** Drawn kernels (test/support/kernel-play.ts) in each executor: what is translated comes to what closures come to. */
import { expect, it } from 'vitest';
import { play } from '../support/kernel-compare.ts';

/** Each some tenths of a second. */
const SEEDS = 6;
const TIERS = ['both', 'templates'] as const;
const compare = (actual: unknown, expected: unknown, where: string) =>
  expect(actual, where).toEqual(expected);

for (const vendor of ['intel', 'amd'] as const) {
  for (const meddles of [false, true]) {
    it(`goes between privilege levels as its closures do (${vendor}${meddles ? ', meddled with' : ''})`, () => {
      let done = 0;
      for (let seed = 1; seed <= SEEDS; seed++)
        done += play(seed, {
          vendor,
          tiers: ['closures', TIERS[seed % TIERS.length]!],
          instructions: 12_000,
          meddles,
          compare,
        });
      expect(done).toBeGreaterThan(SEEDS * 500);
    });
  }
}

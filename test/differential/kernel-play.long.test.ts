/** More of the drawn kernels (test/support/kernel-play.ts) in each executor: what is translated comes to what closures come to. */
import { expect, it } from 'vitest';
import { play } from '../support/kernel-compare.ts';

const SEEDS = 150;
const LIMIT_MS = 600_000;
const TIERS = ['both', 'templates', 'wasm'] as const;
const compare = (actual: unknown, expected: unknown, where: string) =>
  expect(actual, where).toEqual(expected);

for (const vendor of ['intel', 'amd'] as const) {
  for (const meddles of [false, true]) {
    it(
      `goes between privilege levels as its closures do (${vendor}${meddles ? ', meddled with' : ''})`,
      () => {
        let done = 0;
        for (let seed = 100; seed < 100 + SEEDS; seed++)
          done += play(seed, {
            vendor,
            tiers: ['closures', TIERS[seed % TIERS.length]!],
            instructions: 12_000,
            meddles,
            compare,
          });
        expect(done).toBeGreaterThan(SEEDS * 500);
      },
      LIMIT_MS,
    );
  }
}

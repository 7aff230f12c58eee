/** The cases of drawn kernels (kernel-play.ts): each executor against closures, with a host that meddles and with one that does not. */
import { expect, it } from 'vitest';
import type { Tier } from '../../src/sim/cpu/translate/code.ts';
import { play } from './kernel-compare.ts';

const compare = (actual: unknown, expected: unknown, where: string) =>
  expect(actual, where).toEqual(expected);

/** @param limitMs a case's time limit, where it is not the suite's */
export function drawnKernels(first: number, seeds: number, tiers: readonly Tier[], limitMs?: number): void {
  for (const vendor of ['intel', 'amd'] as const) {
    for (const meddles of [false, true]) {
      it(
        `goes between privilege levels as its closures do (${vendor}${meddles ? ', meddled with' : ''})`,
        () => {
          let done = 0;
          for (let seed = first; seed < first + seeds; seed++)
            done += play(seed, {
              vendor,
              tiers: ['closures', tiers[seed % tiers.length]!],
              instructions: 12_000,
              meddles,
              compare,
            });
          expect(done).toBeGreaterThan(seeds * 500);
        },
        limitMs,
      );
    }
  }
}

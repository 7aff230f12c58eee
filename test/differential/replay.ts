/**
 * What oracles did, replayed: for hosts that cannot ask them. `npm test` replays a part of each recording, evenly taken;
 * `npm run test:all` the whole.
 */
import { readdirSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { Hypervisor, openHypervisor } from '../../src/index.ts';
import { loadIced, simulator } from '../../src/open.ts';
import { Prepared } from '../../src/sim/index.ts';
import { templates } from '../../src/sim/prepare.ts';
import { on } from '../support/host.ts';
import { formatCase } from './case.ts';
import { compare, shown } from './compare.ts';
import { inspect } from './forms.ts';
import { hasAvx } from './modes.ts';
import { oracleOf, processor } from './oracle.ts';
import { type About, aboutRecording, readRecording } from './recording.ts';
import { Runner } from './runner.ts';
import { Comparison, readSequences } from './sequences-command.ts';

const folder = new URL('fixtures/', import.meta.url);
const recordings = (ending: string): URL[] =>
  readdirSync(folder)
    .filter((name) => name.endsWith(ending))
    .map((name) => new URL(name, folder));

/** The limit for a whole recording, in milliseconds: a watchdog for a replay of minutes. */
const LIMIT_MS = 1_800_000;

/** One of `every` recorded cases: what is found to differ. */
function replay(runner: Runner, url: URL, { oracle }: About, every: number): string[] {
  const found: string[] = [];
  let number = 0;
  for (const { given, expected } of readRecording(url)) {
    if (number++ % every !== 0) continue;
    const what = inspect(given);
    const different = compare(expected, runner.run(given, what), what, oracle);
    if (different.length > 0) found.push(`${formatCase(given)} ${what.text}: ${shown(different)}`);
  }
  expect(number).toBeGreaterThan(1000);
  return found;
}

/** Who executes the instructions: the simulator in a tier, or KVM where it is the oracle. */
export type Way = 'closures' | 'templates' | 'prepared' | 'wasm' | 'kvm';

let file: Uint8Array | undefined;
/** The simulator in a tier; `prepared`: by templates, most of which were made before. */
function simulated(way: Exclude<Way, 'kvm'>, vendor: 'amd' | 'intel'): Hypervisor {
  if (way !== 'prepared') return openHypervisor({ backend: 'sim', simulated: { tier: way, vendor } });
  file ??= templates(loadIced());
  const prepared = new Prepared((start, length) => file!.slice(start, start + length));
  return new Hypervisor(simulator({ tier: 'templates', vendor }, prepared));
}

/** Instructions, one of `every` recorded cases. */
export function replayInstructions(every: number, ways: readonly Way[]): void {
  for (const url of recordings('.cases.gz')) {
    const about = aboutRecording(url);
    describe(`${about.mode} on ${about.oracle}`, () => {
      for (const tier of ways.filter((way) => way !== 'kvm'))
        it(`is what every instruction does (sim, ${tier})`, { timeout: LIMIT_MS }, () => {
          using hv = simulated(tier, about.vendor);
          using runner = new Runner(hv);
          expect(replay(runner, url, about, every)).toEqual([]);
        });
      if (!ways.includes('kvm')) return;
      on('kvm')(
        'is what every instruction does (kvm)',
        (hv, context) => {
          // A process of the host executed it, and PVM emulates the instructions that raise #GP.
          if (hasAvx(about.mode)) return context.skip(`recorded elsewhere (${about.text})`);
          if (oracleOf(hv, about.mode) !== about.oracle || !about.text.includes(processor))
            return context.skip(
              `recorded elsewhere (${about.text}); this is ${oracleOf(hv, about.mode)}, ${processor}`,
            );
          using runner = new Runner(hv);
          expect(replay(runner, url, about, every)).toEqual([]);
        },
        LIMIT_MS,
      );
    });
  }
}

/** Sequences of memory ioctls and guest accesses, one of `every` recorded ones, on the simulator. */
export function replaySequences(every: number): void {
  for (const url of recordings('.sequences.gz')) {
    const recording = readSequences(url);
    describe(recording.about, () => {
      on('sim')(
        'gives the same errnos, exits and bytes',
        (hv) => {
          using comparison = new Comparison(hv, recording.type, recording.seed, recording.userfault);
          const chosen = recording.results.filter((_, index) => index % every === 0);
          const found = chosen.flatMap(([number, expected]) => {
            const difference = comparison.compare(number, expected);
            return difference === undefined ? [] : [{ number, ...difference }];
          });
          const unexplained = found.filter(({ byOrder }) => !byOrder);
          expect(unexplained.map(({ number, text }) => `sequence ${number}\n${text}`)).toEqual([]);
          // Few sequences can tell in which order an instruction makes its accesses: were they many, the rule would hide more.
          expect(found.length).toBeLessThanOrEqual(Math.ceil(chosen.length / 100));
        },
        LIMIT_MS,
      );

      it('is about every kind of step', () => {
        expect(recording.results.length).toBeGreaterThanOrEqual(1000);
        const given = recording.results.flatMap(([, results]) => results);
        for (const kind of [
          /^ok$/,
          /^EINVAL$/,
          /^EEXIST$/,
          /^ENOENT$/,
          /^fault 8 /,
          /^read .*\+/,
          /^write /,
          /^hypercall .*ok/,
          ...(recording.userfault ? [/^fault 16 /, /^fault 24 /, /^served 16 .* [0-9a-f]+$/, /^FAULT$/] : []),
        ])
          expect(
            given.some((result) => kind.test(result)),
            String(kind),
          ).toBe(true);
      });
    });
  }
}

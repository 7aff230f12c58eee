/** What a kernel did with random sequences of memory ioctls and guest accesses, replayed on the simulator. */
import { readdirSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { type Hypervisor, openHypervisor } from '../../src/index.ts';
import { Comparison, readSequences } from './sequences-command.ts';

const folder = new URL('fixtures/', import.meta.url);
const recordings = readdirSync(folder).filter((name) => name.endsWith('.sequences.gz'));

function simulator(): Hypervisor | string {
  try {
    return openHypervisor({ backend: 'sim' });
  } catch (error) {
    return `sim: ${(error as Error).message}`;
  }
}

describe.each(recordings)('%s', (name) => {
  const recording = readSequences(new URL(name, folder));

  it(`gives the same errnos, exits and bytes (${recording.about})`, { timeout: 120_000 }, (context) => {
    const hv = simulator();
    if (typeof hv === 'string') return context.skip(hv);
    using _ = hv;
    expect(hv.backend).toBe('sim');
    using comparison = new Comparison(hv, recording.type, recording.seed, recording.userfault);
    const found = recording.results.flatMap(([number, expected]) => {
      const difference = comparison.compare(number, expected);
      return difference === undefined ? [] : [{ number, ...difference }];
    });
    const unexplained = found.filter(({ byOrder }) => !byOrder);
    expect(unexplained.map(({ number, text }) => `sequence ${number}\n${text}`)).toEqual([]);
    // Few sequences can tell in which order an instruction makes its accesses: were they many, the rule would hide more.
    expect(found.length).toBeLessThan(recording.results.length / 100);
  });

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

/** What a kernel did with random sequences of memory ioctls and guest accesses, replayed on the simulator. */
import { readdirSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { type Hypervisor, openHypervisor } from '../../src/index.ts';
import { Sequences } from './sequences.ts';
import { firstDifference, readSequences } from './sequences-command.ts';

const folder = new URL('fixtures/', import.meta.url);
const recordings = readdirSync(folder).filter((name) => name.endsWith('.sequences.gz'));

/** The recording's sequences in which the simulator is known to differ, and how. docs/simulator.md tells of them. */
const known: { readonly [number: number]: string } = {
  1287: 'a read-modify-write in a read-only slot without memory: the lab’s emulated processor reads first, which is EFAULT',
  2473: 'a fault that tells of private memory in the kernel tells of shared memory here; the cause is not known',
};

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
    using sequences = new Sequences(hv, recording.type, recording.seed);
    const found = recording.results.flatMap(([number, expected]) => {
      const difference = firstDifference(sequences.run(number), expected);
      return difference === undefined ? [] : [{ number, difference }];
    });
    const unknown = found.filter(({ number }) => known[number] === undefined);
    expect(unknown.map(({ number, difference }) => `sequence ${number}\n${difference}`)).toEqual([]);
    // What no longer differs is to be taken from the list.
    expect(found.map(({ number }) => String(number))).toEqual(Object.keys(known));
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
    ])
      expect(
        given.some((result) => kind.test(result)),
        String(kind),
      ).toBe(true);
  });
});

/** What silicon did, replayed: for hosts that cannot ask it. */
import { readdirSync, readFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { type BackendName, openHypervisor } from '../../src/index.ts';
import { inLab } from '../support/run.ts';
import { formatCase } from './case.ts';
import { compare, shown } from './compare.ts';
import { inspect } from './forms.ts';
import { processor } from './processor.ts';
import { readRecording } from './recording.ts';
import { Runner } from './runner.ts';

const folder = new URL('fixtures/', import.meta.url);
const recordings = readdirSync(folder).filter((name) => name.endsWith('.cases.gz'));
const backends: readonly BackendName[] = ['sim', 'kvm'];

describe.each(recordings)('%s', (name) => {
  const about = gunzipSync(readFileSync(new URL(name, folder)))
    .toString()
    .split('\n', 1)[0]!;

  it.for(backends)('is what every instruction does (%s)', { timeout: 120_000 }, (backend, context) => {
    if (backend === 'kvm' && (inLab || !about.includes(processor)))
      return context.skip(`recorded on another processor (${about}); this is ${processor}`);
    let hv: ReturnType<typeof openHypervisor>;
    try {
      hv = openHypervisor({ backend: backend as 'kvm' });
    } catch (error) {
      return context.skip(`${backend}: ${(error as Error).message}`);
    }
    using _ = hv;
    expect(hv.backend).toBe(backend);
    using runner = new Runner(hv);
    const found: string[] = [];
    for (const { given, expected } of readRecording(new URL(name, folder))) {
      const what = inspect(given);
      const different = compare(expected, runner.run(given, what), what);
      if (different.length > 0) found.push(`${formatCase(given)} ${what.text}: ${shown(different)}`);
    }
    expect(found).toEqual([]);
  });
});

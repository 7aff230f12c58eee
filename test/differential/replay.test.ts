/** A part of what oracles did, replayed; the whole is in the long suite. */
import { describe, expect, it } from 'vitest';
import { openHypervisor } from '../../src/index.ts';
import { parseCase } from './case.ts';
import { compare } from './compare.ts';
import { inspect } from './forms.ts';
import { replayInstructions, replaySequences } from './replay.ts';
import { Runner } from './runner.ts';

replayInstructions(32, ['closures', 'templates', 'prepared', 'wasm', 'kvm']);
replaySequences(32);

describe('what an oracle is no judge of', () => {
  it('is left out for that oracle alone', () => {
    const given = parseCase('long0 f3480fbdc3 1'); // lzcnt rax, rbx
    const what = inspect(given);
    using hv = openHypervisor({ backend: 'sim' });
    using runner = new Runner(hv);
    const actual = runner.run(given, what);
    const expected = { ...actual, registers: actual.registers.map((value) => value ^ 1n) };
    expect(compare(expected, actual, what, "KVM's emulator")).toEqual([]);
    expect(compare(expected, actual, what, 'QEMU TCG')).not.toEqual([]);
  });
});

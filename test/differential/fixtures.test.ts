/** What oracles did, replayed: for hosts that cannot ask them. */
import { readdirSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { type OpenOptions, openHypervisor } from '../../src/index.ts';
import { formatCase, parseCase } from './case.ts';
import { compare, shown } from './compare.ts';
import { inspect } from './forms.ts';
import { oracleOf, processor } from './oracle.ts';
import { aboutRecording, readRecording } from './recording.ts';
import { Runner } from './runner.ts';

const folder = new URL('fixtures/', import.meta.url);
const recordings = readdirSync(folder)
  .filter((name) => name.endsWith('.cases.gz'))
  .map((name) => ({ url: new URL(name, folder), ...aboutRecording(new URL(name, folder)) }));
const backends: readonly { readonly name: string; readonly options: OpenOptions }[] = [
  { name: 'sim, closures', options: { backend: 'sim', simulated: { tier: 'closures' } } },
  { name: 'sim, WebAssembly', options: { backend: 'sim', simulated: { tier: 'wasm' } } },
  { name: 'kvm', options: { backend: 'kvm' } },
];

describe.each(recordings)('$mode on $oracle', ({ url, mode, oracle, text }) => {
  it.for(backends)('is what every instruction does ($name)', { timeout: 240_000 }, ({ options }, context) => {
    let hv: ReturnType<typeof openHypervisor>;
    try {
      hv = openHypervisor(options);
    } catch (error) {
      return context.skip((error as Error).message);
    }
    using _ = hv;
    expect(hv.backend).toBe(options.backend);
    if (hv.backend === 'kvm' && (oracleOf(hv, mode) !== oracle || !text.includes(processor)))
      return context.skip(`recorded elsewhere (${text}); this is ${oracleOf(hv, mode)}, ${processor}`);
    using runner = new Runner(hv);
    const found: string[] = [];
    for (const { given, expected } of readRecording(url)) {
      const what = inspect(given);
      const different = compare(expected, runner.run(given, what), what, oracle);
      if (different.length > 0) found.push(`${formatCase(given)} ${what.text}: ${shown(different)}`);
    }
    expect(found).toEqual([]);
  });
});

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

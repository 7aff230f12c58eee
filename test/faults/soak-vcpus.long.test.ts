/** The soak of several vCPUs (scripts/soak-vcpus.mjs), in short: what takes hours there is shown to work here. */
import { expect } from 'vitest';
import { onEach, whyNot } from '../support/host.ts';
import { inLab } from '../support/limits.ts';
import { describeEnd } from '../support/program.ts';
import { node } from './child.ts';

/** An emulated processor is slow. A real one is fast: what is looked at now and then is looked at too seldom there. */
const EXITS = inLab ? 1000 : 20_000;
const exitsOf = (backend: string) => (backend === 'kvm' && !inLab ? 5 * EXITS : EXITS);

async function soak(backend: string, ...args: string[]) {
  const exits = exitsOf(backend);
  const numbers = ['--exits', String(exits), '--conversions', String(exits / 10)];
  return node(['scripts/soak-vcpus.mjs', '--backend', backend, ...numbers, ...args]);
}

onEach('four vCPUs, half of them in workers, lose no exit and no write, and leak nothing', async (hv) => {
  const ended = await soak(hv.backend);
  expect(ended.status, describeEnd(ended)).toBe(0);
  const [, exits, conversions] = /(\d+) exits \(\d+\/s\), (\d+) conversions/.exec(ended.stdout) ?? [];
  expect(Number(exits)).toBeGreaterThanOrEqual(EXITS);
  const none = whyNot(hv.backend, 'private-memory', 'map-gpa-range') !== undefined;
  expect(Number(conversions)).toBeGreaterThanOrEqual(none ? 0 : EXITS / 10);
});

for (const leak of inLab ? [] : ['fd', 'heap']) {
  onEach(`a leak is found: ${leak}`, async (hv) => {
    const { status, stdout } = await soak(hv.backend, '--plant', leak);
    expect([status, new RegExp(`FAILED: ${leak}s? has grown`).test(stdout)]).toEqual([1, true]);
  });
}

/** What the simulator lacks is no matter of the host: here of one that is too old for anything. */
import { expect, it, vi } from 'vitest';
import { missing, openHypervisor } from '../../src/index.ts';

vi.mock('../../src/host.ts', async (original) => {
  const host = await original<typeof import('../../src/host.ts')>();
  return { ...host, readHost: () => ({ ...host.readHost(), kernel: '2.6.20', config: {} }) };
});

it('the reasons of what the simulator lacks are its own, whatever the host is', () => {
  using hv = openHypervisor({ backend: 'sim' });
  const lacks = missing(hv, ['userfaultfd', 'irqchip']);
  expect(lacks.map(({ feature }) => feature)).toEqual(['userfaultfd', 'irqchip']);
  for (const { reason } of lacks) {
    expect(reason).toMatch(/the simulator has no/);
    expect(reason).not.toContain('Linux');
  }
});

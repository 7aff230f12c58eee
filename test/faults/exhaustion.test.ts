/** A host that has run out of something says so, loses nothing, and serves again later. The programs are in exhaustion.mjs. */
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { onKvm, whyNot } from '../support/host.ts';
import { TEST_MS } from '../support/limits.ts';
import { scenario } from './child.ts';

const run = (name: string) => scenario('exhaustion.mjs', name);
const here = () => (whyNot('kvm') === undefined ? 'kvm' : 'sim');

/** How many descriptors each step wants; the simulator has none. */
const WANTED = {
  open: 1,
  createVm: 1,
  createVcpu: 1,
  allocate: 1,
  createGuestMemfd: 1,
  createEventFd: 1,
  openMemory: 1,
  openEventFd: 1,
  share: 0,
  openVm: 0,
  openVcpu: 0,
  run: 0,
  start: 0,
  pause: 2, // the eventfd that is signalled, and the addon's own of the same
};
const CODES: Record<string, string> = { open: 'ERR_KVM_UNAVAILABLE' };

/** Why limits of threads cannot be set and given back here; undefined where they can. */
function whyNoLimits(): string | undefined {
  if (process.getuid?.() !== 0) return 'only root can become a user whose threads are counted';
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1];
  const resource = (BigInt(`0x${effective ?? 0}`) >> 24n) & 1n;
  return resource === 1n ? undefined : 'this root has no CAP_SYS_RESOURCE, by which limits are given back';
}

describe('a host that has run out', () => {
  it(
    'of descriptors refuses each step until there are enough',
    async () => {
      const { backend, said, leaked, after } = await run('descriptors');
      expect({ backend, leaked, after }).toEqual({ backend: here(), leaked: 0, after: 'IO' });
      const expected = Object.entries(WANTED).map(([name, count]) => [
        name,
        [...Array(backend === 'kvm' ? count : 0).fill(CODES[name] ?? 'EMFILE'), 'ok'],
      ]);
      expect(said).toEqual(Object.fromEntries(expected));
    },
    TEST_MS,
  );

  it(
    'of address space gives no memory and begins no thread',
    async () => {
      const { backend, ...rest } = await run('memory');
      expect(backend).toBe(here());
      const start = backend === 'kvm' ? 'EAGAIN' : 'ok';
      expect(rest).toEqual({
        said: { allocate: 'ENOMEM', start, run: 'IO' },
        leaked: 0,
        again: true,
        after: 'IO',
      });
    },
    TEST_MS,
  );

  onKvm(
    'of threads begins none, runs vCPUs on those that there are, and begins some later',
    async (_, context) => {
      const why = whyNoLimits();
      context.skip(why !== undefined, why);
      expect(await run('threads')).toEqual({
        backend: 'kvm',
        said: ['EAGAIN', 'EAGAIN'],
        ran: 'IO',
        after: 'IO',
      });
    },
  );
});

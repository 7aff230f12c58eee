/** Hostile guests: nothing that a guest does may hurt the VMM. */
import { describe, expect, test } from 'vitest';
import { inLab } from '../support/limits.ts';
import { node, pathOf } from './child.ts';

const SEED = process.env.VMEXIT_SEED ?? '1';
/** 50,000 take some minutes: VMEXIT_GUESTS=50000. */
const GUESTS = Number(process.env.VMEXIT_GUESTS ?? 2000);
const LIMIT_MS = 180_000 + GUESTS * 300;

// The lab is there for its kernel, and JS on its emulated processor is slow.
describe('the simulator', () => {
  test.skipIf(inLab)(
    `ends ${GUESTS} random guests (VMEXIT_SEED=${SEED}) in exits and errnos, each run in its time`,
    async () => {
      const { status, signal, stdout, stderr } = await node(
        [pathOf('hostile-guests.mjs'), SEED, String(GUESTS)],
        { limitMs: LIMIT_MS },
      );
      expect({ status, signal }, stderr).toEqual({ status: 0, signal: undefined });
      const { guests, counts, wrong } = JSON.parse(stdout);
      expect(wrong).toEqual([]);
      expect(guests).toBe(GUESTS);
      // They get somewhere: into I/O, memory faults and triple faults.
      for (const kind of ['SHUTDOWN', 'MMIO', 'IO', 'MEMORY_FAULT', 'HLT', 'INTERNAL_ERROR'])
        expect(counts[kind], kind).toBeGreaterThan(0);
    },
    LIMIT_MS,
  );
});

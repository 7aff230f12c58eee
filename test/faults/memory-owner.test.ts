/** Memory faults of several vCPUs' threads on whichever backend this host has. The programs are in memory-owner.mjs. */
import { describe, expect, it } from 'vitest';
import { TEST_MS } from '../support/limits.ts';
import { scenario } from './child.ts';

const run = (name: string) => scenario('memory-owner.mjs', name);
const test = (sentence: string, shows: () => Promise<void>) => it(sentence, shows, TEST_MS);

describe('vCPUs in workers', () => {
  test('have their vCPUs’ memory faults served by the owner of the memory', async () => {
    const { denied, allowed, count } = await run('owner');
    expect(denied.faults).toBe(3);
    for (const [exit, code, message] of denied.ends) {
      expect([exit, code]).toEqual(['MEMORY_FAULT', 'ERR_KVM_REFUSED']);
      expect(message).toMatch(/0x8000/);
    }
    expect(allowed).toEqual({ ends: [['MEMORY_FAULT', 'HLT'], ['HLT'], ['HLT']], faults: 1 });
    expect(count).toBe(3);
  });
});

describe('a vCPU that waits for the owner of its memory', () => {
  test('waits on when it is woken without an answer', async () => {
    expect(await run('woken')).toEqual(['MEMORY_FAULT', 'HLT']);
  });
});

describe('several vCPUs in workers at once', () => {
  test('have each page’s fault served once, though all of them meet it before any is served', async () => {
    expect(await run('crowd')).toEqual({
      ends: Array(4).fill('HLT'),
      once: true,
      memoryFaults: 4 * 8,
      retries: 3 * 8,
      counted: Array(8).fill(4),
    });
  });
});

import { expect, it } from 'vitest';
import { inLab } from '../support/limits.ts';
import { FloatComparison } from './floats.ts';
import { SiliconComparison } from './floats-silicon.ts';
import { X87Comparison } from './floats-x87.ts';
import { whyNoProcess } from './process.ts';

/** Of each form: scripts/differential.mjs floats makes more of them. */
const CASES = 300;

it.each([
  ['SSE', () => new FloatComparison(1)],
  ['the x87', () => new X87Comparison(1)],
] as const)('%s is in WebAssembly, by quicker arithmetic, what it is exactly', (_, compare) => {
  const comparison = compare();
  const found: string[] = [];
  for (let i = 0; i < CASES && found.length < 20; i++)
    for (const { text } of comparison.turn()) found.push(text);
  expect(found).toEqual([]);
  // What there is to be told apart has happened, and attempts have not all given up.
  expect(comparison.raised).toBeGreaterThan(comparison.cases / 200);
  expect(comparison.changed).toBeGreaterThan(comparison.cases / 10);
  expect(comparison.changed).toBeLessThan(comparison.cases / 2);
  expect(comparison.gaveUp).toBeLessThan(comparison.cases / 2);
});

it("the x87's functions do what the host's own x87 does", (context) => {
  const lacking = inLab ? 'process: emulated in the lab' : whyNoProcess();
  if (lacking !== undefined) return context.skip(lacking);
  using comparison = new SiliconComparison(1);
  const found: string[] = [];
  for (let i = 0; i < 4; i++) for (const { text } of comparison.turn()) found.push(text);
  expect(found).toEqual([]);
  expect(comparison.changed).toBeGreaterThan(comparison.cases / 10);
  expect(comparison.gaveUp).toBeLessThan(comparison.cases / 2);
});

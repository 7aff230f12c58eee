import { expect, it } from 'vitest';
import { FloatComparison } from './floats.ts';
import { X87Comparison } from './floats-x87.ts';

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
  // What there is to be told apart has happened.
  expect(comparison.raised).toBeGreaterThan(comparison.cases / 200);
  expect(comparison.changed).toBeGreaterThan(comparison.cases / 10);
  expect(comparison.changed).toBeLessThan(comparison.cases / 2);
});

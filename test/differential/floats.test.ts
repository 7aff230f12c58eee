import { expect, it } from 'vitest';
import { FloatComparison } from './floats.ts';

/** Of each form, with an operand in a register and in memory; scripts/differential.mjs floats makes more of them. */
const CASES = 300;

it('is in WebAssembly, by the arithmetic of the machine, what it is exactly', () => {
  const comparison = new FloatComparison(1);
  const found: string[] = [];
  for (let i = 0; i < CASES && found.length < 20; i++)
    for (const { text } of comparison.turn()) found.push(text);
  expect(found).toEqual([]);
  // What there is to be told apart has happened.
  expect(comparison.raised).toBeGreaterThan(comparison.cases / 100);
  expect(comparison.changed).toBeGreaterThan(comparison.cases / 10);
  expect(comparison.changed).toBeLessThan(comparison.cases / 2);
});

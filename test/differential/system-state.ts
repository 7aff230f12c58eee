/** The system's registers as text: what an instruction changed of them. */
import type { Sregs } from '../../src/index.ts';

const hex = (value: number | bigint) => value.toString(16);

/** Without CS and SS, of which an exception's handler has its own. */
export const segmentsOf = ({ ds, es, fs, gs }: Sregs): string =>
  Object.entries({ ds, es, fs, gs })
    .map(([name, { selector, base }]) => `${name}=${hex(selector)}:${hex(base)}`)
    .join(' ');

const SEGMENTS = ['cs', 'ss', 'ds', 'es', 'fs', 'gs', 'ldt', 'tr'] as const;
const TABLES = ['gdt', 'idt'] as const;
const CONTROL = ['cr0', 'cr3', 'cr4', 'cr8', 'efer'] as const;

/** `selector:base:limit:attributes`, with the attributes as a descriptor has them; a null segment has none. */
function segmentText(segment: Sregs['cs']): string {
  const { selector, base, limit, type, s, dpl, present, avl, l, db, g, unusable } = segment;
  if (unusable === 1 || present === 0) return `${hex(selector)}:null`;
  const bits = [s, dpl & 1, dpl >> 1, present, avl, l, db, g];
  const attributes = bits.reduce((value, bit, i) => value | (bit << (4 + i)), type);
  return [selector, base, limit, attributes].map(hex).join(':');
}

function* itemsOf(sregs: Sregs): Generator<readonly [name: string, text: string]> {
  for (const name of SEGMENTS) yield [name, segmentText(sregs[name])];
  for (const name of TABLES) yield [name, `${hex(sregs[name].base)}:${hex(sregs[name].limit)}`];
  for (const name of CONTROL) yield [name, hex(sregs[name])];
}

/** `name=text` of each register that is not as it was. */
export function changedRegisters(before: Sregs, after: Sregs): string[] {
  const old = new Map(itemsOf(before));
  return [...itemsOf(after)]
    .filter(([name, text]) => old.get(name) !== text)
    .map(([name, text]) => `${name}=${text}`);
}

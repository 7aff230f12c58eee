/** docs/undefined-results.md as the tests read it. */
import { readFileSync } from 'node:fs';

const text = readFileSync(new URL('../../docs/undefined-results.md', import.meta.url), 'utf8');

/** The cells of the rows of the table under a heading, without its head. */
function table(heading: string): string[][] {
  const section = text.split(/^## /m).find((part) => part.startsWith(`${heading}\n`));
  if (section === undefined) throw new Error(`docs/undefined-results.md has no section '${heading}'`);
  return section
    .split('\n')
    .filter((line) => line.startsWith('|'))
    .slice(2)
    .map((line) =>
      line
        .split('|')
        .slice(1, -1)
        .map((cell) => cell.trim()),
    );
}
const list = (cell: string): string[] => cell.split(',').map((item) => item.trim());
const mnemonics = (heading: string): ReadonlySet<string> =>
  new Set(table(heading).flatMap(([names]) => list(names!)));

export const neverCompared = mnemonics('Instructions that are not compared');
export const approximate = mnemonics('Approximate results');
export const changedByPvm = mnemonics('Instructions that a PVM host changes');

/** What a condition is about. */
export interface Operands {
  readonly count: number | undefined;
  /** In bits. */
  readonly size: number;
}

interface Row {
  readonly mnemonics: readonly string[];
  readonly when: (operands: Operands) => boolean;
  readonly undefined: readonly string[];
}

function condition(cell: string): Row['when'] {
  if (cell === 'always') return () => true;
  const match = /^(count|size) (=|>) (\d+|size)$/.exec(cell);
  if (match === null)
    throw new Error(`docs/undefined-results.md has a condition that is not understood: '${cell}'`);
  const [, left, relation, right] = match;
  return (operands) => {
    const value = operands[left as keyof Operands];
    if (value === undefined) return true; // not known: leave out rather than complain
    const other = right === 'size' ? operands.size : Number(right);
    return relation === '=' ? Number(value) === other : Number(value) > other;
  };
}

const rows: readonly Row[] = table('Undefined results').map(([names, when, what]) => ({
  mnemonics: list(names!),
  when: condition(when!),
  undefined: what === '-' ? [] : list(what!),
}));

/** What the page says is undefined; `undefined` when it says nothing of the instruction. */
export const undefinedResults = (mnemonic: string, operands: Operands): readonly string[] | undefined =>
  rows.find((row) => row.mnemonics.includes(mnemonic) && row.when(operands))?.undefined;

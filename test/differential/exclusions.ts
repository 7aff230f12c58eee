/** docs/undefined-results.md as the tests read it. */
import { readFileSync } from 'node:fs';
import type { Oracle } from './oracle.ts';

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

export const leftOutAtPrivilege0 = mnemonics('Instructions that are left out at privilege 0');

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

/** What an oracle is no judge of: of some instructions everything, of others a place that may differ. */
interface Change {
  readonly names: RegExp;
  readonly when: string;
  readonly where: RegExp;
}
/** Names with `*` for whatever may stand there. */
const patternOf = (names: readonly string[]): RegExp =>
  new RegExp(`^(${names.map((name) => (name === 'all' ? '.*' : name.replaceAll('*', '.*'))).join('|')})$`);
const changesOf = (heading: string): readonly Change[] =>
  table(heading).map(([names, when, where]) => ({
    names: patternOf(list(names!)),
    when: when!,
    where: patternOf(list(where!)),
  }));
const changes: { readonly [name in Oracle]: readonly Change[] } = {
  silicon: changesOf('What a PVM host changes'),
  'QEMU TCG': changesOf("What QEMU's TCG changes"),
  "KVM's emulator": changesOf("What KVM's emulator changes"),
};

/** The case of a difference. */
export interface Occasion {
  readonly mode: string;
  readonly form: string;
  readonly mnemonic: string;
  /** How it ended on the oracle, and on what is tested. */
  readonly ends: readonly [expected: string, actual: string];
}

const begins = (end: string, pattern: string) => pattern === '*' || end.startsWith(pattern);

/** `always`; a mode; how it began to end on both (`#14 / completed`); or a mode and that. */
const happens = (when: string, { mode, ends }: Occasion): boolean =>
  list(when).every((condition) => {
    const [expected, actual] = condition.split(' / ');
    if (actual === undefined) return condition === 'always' || condition === mode;
    return begins(ends[0], expected!) && begins(ends[1], actual);
  });

/** Whether an oracle's word on a place of an instruction's results is not to be taken; `CF+OF` are two places. */
export const isChanged = (oracle: Oracle, occasion: Occasion, where: string): boolean => {
  const rows = changes[oracle].filter(
    ({ names, when }) =>
      (names.test(occasion.form) || names.test(occasion.mnemonic)) && happens(when, occasion),
  );
  return where.split('+').every((place) => rows.some((row) => row.where.test(place)));
};

/** Who reads the reference, or points at a name in an editor, learns what each thing is. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { features } from '../../src/index.ts';
import { exitRows } from '../../src/uapi/index.ts';
import { entries, exported } from '../support/exported-api.ts';

const root = fileURLToPath(new URL('../../', import.meta.url)).replace(/\/$/, '');

/** Keys that say themselves what they are, in tables whose docstring says where they come from. */
const named: readonly RegExp[] = [
  /^Errno\./, // errno(3)
  /^exitRows\./, // the keys of Exit
  /^Cap\.(ARM|MIPS|PPC|RISCV|S390|SPAPR)_/, // other architectures'
];

it('reads an entry for each path that users import', () => {
  expect([...entries(root).keys()]).toEqual(expect.arrayContaining(['vmexit', 'vmexit/uapi']));
});

for (const [entry, source] of entries(root)) {
  it(`has a docstring on every name of ${entry}, and on every public member`, () => {
    const all = exported(root, source);
    const lacking = all.filter(({ name, doc }) => !doc && !named.some((pattern) => pattern.test(name)));
    expect(lacking.map(({ at, name }) => `${at} ${name}`)).toEqual([]);
    // What the main names are is known: a parser that finds nothing would find no fault.
    expect(all.length).toBeGreaterThan(10);
  });
}

it('sees classes with their members, constants with their keys, and interfaces', () => {
  const names = exported(root, entries(root).get('vmexit')!).map(({ name }) => name);
  expect(names).toEqual(
    expect.arrayContaining([
      'Vm',
      'Vm.createVcpu',
      'Exit.MEMORY_FAULT',
      'OpenOptions.needs',
      'openHypervisor',
    ]),
  );
  expect(names.filter((name) => name.includes('#'))).toEqual([]);
});

/** What is in the first column of the table in a file's docstrings. */
const rowsOf = (file: string): string[] =>
  Array.from(readFileSync(join(root, file), 'utf8').matchAll(/^ \* \| (.*?) \|/gm), ([, cell]) => cell!)
    .flatMap((cell) => Array.from(cell.matchAll(/`([\w-]+)`/g), ([, name]) => name!))
    .filter((name) => name !== 'reason');

it('lists every feature, and every exit that has fields, where a type alone would not tell', () => {
  expect(rowsOf('src/probe/features.ts')).toEqual(Object.keys(features));
  const withFields = Object.entries(exitRows).flatMap(([name, row]) =>
    'arm' in row || name === 'SET_TPR' ? [name] : [],
  );
  expect(rowsOf('src/uapi/exits.ts').toSorted()).toEqual([...withFields, 'OTHER'].toSorted());
});

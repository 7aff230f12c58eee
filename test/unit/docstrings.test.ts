/** Who reads the reference, or points at a name in an editor, learns what each thing is. */
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
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

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

/** Of a docstring: `name()`, `Class.member`, names in capitals or of several words. */
const NAMES =
  /\b(?:[A-Z]\w*\.)?[a-z]\w*\(\)|\b[A-Z]\w*[a-z]\w*[A-Z]\w*|\b[A-Z][a-z]\w+\.\w+|\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b/g;

/** Those that are nobody's here: the kernel's, the C library's, JavaScript's, and units. */
const foreign: readonly RegExp[] = [
  /^(KVM|ERR_KVM|GUEST_MEMFD_FLAG|CONFIG|MADV|MAP|PT|SEEK|UFFD|UFFDIO|HV_X64|IA32|MSR|HVCALL|VMEXIT)_/,
  /^(KEEP_SIZE|PUNCH_HOLE|EXIT_99|FREEZE_IN_SMM|Pit\.FLAGS_|KiB|MiB|GiB|PowerPC|LoongArch)$/,
  /^(AbortSignal|CompileError|DataView|JSON\.parse|postMessage|RangeError|SharedArrayBuffer|TypeError|Uint8Array|WebAssembly)$/,
];

for (const [entry, source] of entries(root)) {
  it(`names in the docstrings of ${entry} only what it exports, or vmexit`, () => {
    const all = exported(root, source);
    const main = entry === 'vmexit' ? [] : exported(root, entries(root).get('vmexit')!);
    const known = new Set([...all, ...main].flatMap(({ name }) => name.split('.')));
    const unknown = all.flatMap(({ text, at }) =>
      Array.from(text.matchAll(NAMES), ([found]) => found.replace('()', ''))
        .filter((name) => !name.split('.').every((part) => known.has(part)))
        .filter((name) => !foreign.some((pattern) => pattern.test(name)))
        .filter((name) => !new RegExp(`\\b${name}\\(?\\)? of vmexit/\\w+`).test(text))
        .map((name) => `${at} ${name}`),
    );
    expect(unknown).toEqual([]);
    expect(all.filter(({ text }) => NAMES.test(text)).length).toBeGreaterThan(10);
  });
}

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

/** The command: `node scripts/uapi.mjs`. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { type Comparison, compare, describeOtherwise } from './compare.ts';
import { debianHeaders } from './debian.ts';
import { DOCUMENT, documentOf } from './document.ts';
import { format } from './facts.ts';
import { RECORDED, readRecorded } from './fixture.ts';
import { readHeaders } from './headers.ts';

const USAGE = `Holds the tables of src/uapi against a kernel's headers, and prints what they lack or have otherwise.

  node scripts/uapi.mjs HEADER_DIR...
      The folder where the kernel's \`make headers_install\` has put linux/kvm.h and asm/kvm.h, or the folders, where they
      are in two. Needs gcc and readelf. Ends with status 1 where the tables lack something or differ.
  node scripts/uapi.mjs --recorded
      The same with the headers that were recorded for the tests. Needs no compiler.
  node scripts/uapi.mjs --record [--suite SUITE]
      Downloads Debian's newest linux-libc-dev of the suite (trixie-backports) from the mirror of this machine's own apt
      sources, unpacks it into a temporary folder, and records its facts for the tests.

  node scripts/uapi.mjs --document
      Makes docs/kvm-api.md of the tables. Needs no compiler.

  --newer    also names what the tables have and the headers do not
`;

const options = {
  recorded: { type: 'boolean' },
  record: { type: 'boolean' },
  document: { type: 'boolean' },
  suite: { type: 'string', default: 'trixie-backports' },
  newer: { type: 'boolean' },
  help: { type: 'boolean' },
} as const;

/** The process's status: 2 for a wrong call, or headers that cannot be read. */
export async function main(args: string[]): Promise<number> {
  try {
    const { values, positionals } = parseArgs({ args, options, allowPositionals: true });
    if (values.help) {
      process.stdout.write(USAGE);
      return 0;
    }
    const { record, recorded, document } = values;
    if ([recorded, record, document, positionals.length > 0].filter(Boolean).length !== 1)
      throw new Error('give either HEADER_DIR, --recorded, --record or --document; --help says more');
    if (record) return recordSuite(values.suite);
    if (document) {
      writeFileSync(DOCUMENT, documentOf(readRecorded()));
      return 0;
    }
    const facts = recorded ? readRecorded().facts : readHeaders(positionals);
    return report(compare(facts), values.newer ?? false);
  } catch (error) {
    process.stderr.write(`uapi: ${(error as Error).message}\n`);
    return 2;
  }
}

function recordSuite(suite: string): number {
  const folder = mkdtempSync(join(tmpdir(), 'vmexit-uapi-'));
  try {
    const { of, folders } = debianHeaders(suite, folder);
    const facts = readHeaders(folders);
    writeFileSync(RECORDED, format({ of, facts }));
    process.stdout.write(`${of}: ${facts.size} facts\n`);
    return 0;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function report({ lacking, otherwise, unknown }: Comparison, newer: boolean): number {
  const lines = [
    ...lacking.map((name) => `${name} is in no table`),
    ...otherwise.map(describeOtherwise),
    ...(newer ? unknown.map(({ label, name }) => `${name} of ${label} is not in the headers`) : []),
    `${lacking.length} lacking, ${otherwise.length} otherwise, ${unknown.length} that the headers do not have`,
  ];
  process.stdout.write(`${lines.join('\n')}\n`);
  return lacking.length + otherwise.length > 0 ? 1 : 0;
}

/** The command: `node scripts/differential.mjs`. */
import { parseArgs } from 'node:util';
import { type Hypervisor, type OpenOptions, openHypervisor } from '../../src/index.ts';
import { type Case, formatCase, type ModeName, modes, parseCase } from './case.ts';
import { compare, shown } from './compare.ts';
import { formsOf, inspect } from './forms.ts';
import { caseOf } from './generate.ts';
import { Runner } from './runner.ts';

const USAGE = `Executes random instructions on two backends, and shows where they differ.
  node scripts/differential.mjs [--backend sim] [--oracle kvm] [--mode long3] [--seed 1] [--cases 200000]
    [--from N] [--filter REGEXP] [--case 'LINE'] [--examples 3]
`;

const open = (name: string): Hypervisor =>
  openHypervisor({ backend: name as NonNullable<OpenOptions['backend']> });

/** Differences of one kind: the same places of the same form. */
interface Group {
  readonly where: string;
  count: number;
  readonly examples: string[];
}

export async function main(argv: string[]): Promise<number> {
  const { values } = parseArgs({
    args: argv,
    options: {
      backend: { type: 'string', default: 'sim' },
      oracle: { type: 'string', default: 'kvm' },
      mode: { type: 'string', default: 'long3' },
      seed: { type: 'string', default: '1' },
      cases: { type: 'string', default: '200000' },
      from: { type: 'string', default: '0' },
      filter: { type: 'string' },
      case: { type: 'string' },
      examples: { type: 'string', default: '3' },
      help: { type: 'boolean' },
    },
  });
  if (values.help) {
    process.stdout.write(USAGE);
    return 0;
  }
  const mode = values.mode as ModeName;
  if (!modes.includes(mode))
    throw new RangeError(`--mode is '${mode}'; it must be one of ${modes.join(', ')}`);
  using oracleHv = open(values.oracle);
  using backendHv = open(values.backend);
  using oracle = new Runner(oracleHv);
  using backend = new Runner(backendHv);

  const pattern = values.filter === undefined ? undefined : new RegExp(values.filter, 'i');
  const forms = formsOf(mode).filter(({ name }) => pattern?.test(name) ?? true);
  const [seed, from, count] = [values.seed, values.from, values.cases].map(Number) as [
    number,
    number,
    number,
  ];
  const numbers = values.case === undefined ? count : 1;
  const groups = new Map<string, Group>();
  const perForm = new Map<string, number>();
  const ends = new Map<string, number>();
  let different = 0;
  const began = performance.now();
  let said = began;
  for (let number = from; number < from + numbers; number++) {
    const given: Case =
      values.case === undefined ? caseOf(mode, seed, number, forms) : parseCase(values.case);
    const what = inspect(given);
    perForm.set(what.form, (perForm.get(what.form) ?? 0) + 1);
    const expected = oracle.run(given, what.changesSegments);
    const actual = backend.run(given, what.changesSegments);
    const end = expected.end.split(' ')[0]!;
    ends.set(end, (ends.get(end) ?? 0) + 1);
    const found = compare(expected, actual, what);
    if (values.case !== undefined) process.stdout.write(`${what.text} (${what.form}) ${expected.end}\n`);
    if (found.length > 0) {
      different++;
      const where = found.map((difference) => difference.where).join(' ');
      const key = `${what.form} ${where}`;
      const group = groups.get(key) ?? { where, count: 0, examples: [] };
      groups.set(key, group);
      group.count++;
      if (group.examples.length < Number(values.examples))
        group.examples.push(`--case '${formatCase(given)}'\n        ${what.text}: ${shown(found)}`);
    }
    const now = performance.now();
    if (now - said > 5000) {
      said = now;
      const done = number - from + 1;
      process.stderr.write(
        `${done} cases, ${different} different, ${Math.round((1000 * done) / (now - began))}/s\n`,
      );
    }
  }
  for (const [key, { count, examples }] of [...groups].sort((a, b) => a[0].localeCompare(b[0])))
    process.stdout.write(`${key}: ${count}\n${examples.map((line) => `    ${line}\n`).join('')}`);
  const counts = [...perForm.values()];
  process.stdout.write(
    `${numbers} cases of ${perForm.size} forms (each ${Math.min(...counts)} to ${Math.max(...counts)}), ` +
      `${different} different in ${groups.size} groups; oracle ${values.oracle} ended ` +
      `${[...ends]
        .sort((a, b) => b[1] - a[1])
        .map(([end, n]) => `${end} ${n}`)
        .join(', ')}; ` +
      `${((performance.now() - began) / 1000).toFixed(1)} s\n`,
  );
  return different === 0 ? 0 : 1;
}

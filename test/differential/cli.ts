/** The command: `node scripts/differential.mjs`. */
import { parseArgs } from 'node:util';
import { type Hypervisor, type OpenOptions, openHypervisor, type SimulatedHost } from '../../src/index.ts';
import { type Case, formatCase, parseCase } from './case.ts';
import { compare, shown } from './compare.ts';
import { floatsCommand } from './floats-command.ts';
import { formsOf, inspect } from './forms.ts';
import { caseOf } from './generate.ts';
import { type ModeName, modes } from './modes.ts';
import { type Oracle, oracleOf, PROCESS, processor, vendor } from './oracle.ts';
import { ProcessOracle } from './process.ts';
import { aboutRecording, type Recorded, readRecording, recordLine, writeRecording } from './recording.ts';
import { Runner } from './runner.ts';
import { sequencesCommand } from './sequences-command.ts';

const USAGE = `Executes random instructions on two backends, and shows where they differ.

  node scripts/differential.mjs [options]       (and: sequences --help, floats --help)
    --backend NAME    what is tested (sim)
    --oracle NAME     what it is compared with (kvm): by the host and the mode, that is the silicon, QEMU's TCG in the
                      lab, or KVM's emulator on a PVM host at privilege 0; or process: the silicon without KVM, for the
                      64-bit modes of privilege 3
    --tier TIER       of the simulator: closures, templates, wasm, or both as it likes (both)
    --vendor NAME     of the simulator's processor: amd or intel (the host's, where its silicon is the oracle, else amd)
    --mode MODE       ${modes.join(', ')} (long3)
    --seed N          the cases' seed (1)
    --cases N         how many (200000)
    --from N          the number of the first (0)
    --filter REGEXP   only forms with such a name, as iced-x86 has them
    --case LINE       only this case, as a difference shows it
    --examples N      how many cases to show of each kind of difference (3)
    --announce        show each case before the oracle executes it: some end the oracle itself
    --record FILE     only execute on the oracle, and write what it did
    --replay FILE     compare with what was written, instead of an oracle
`;

const options = {
  backend: { type: 'string', default: 'sim' },
  oracle: { type: 'string', default: 'kvm' },
  tier: { type: 'string', default: 'both' },
  vendor: { type: 'string' },
  mode: { type: 'string', default: 'long3' },
  seed: { type: 'string', default: '1' },
  cases: { type: 'string', default: '200000' },
  from: { type: 'string', default: '0' },
  filter: { type: 'string' },
  case: { type: 'string' },
  examples: { type: 'string', default: '3' },
  announce: { type: 'boolean' },
  record: { type: 'string' },
  replay: { type: 'string' },
  help: { type: 'boolean' },
} as const;

/** Says every five seconds how far it is. */
class Progress {
  readonly #began = performance.now();
  #said = this.#began;
  tick(done: number, different: number): void {
    const now = performance.now();
    if (now - this.#said < 5000) return;
    this.#said = now;
    process.stderr.write(`${done} cases, ${different} different, ${Math.round(done / this.seconds)}/s\n`);
  }
  get seconds(): number {
    return (performance.now() - this.#began) / 1000;
  }
}

/** Differences by the form and the places where they are, and what there was to differ. */
class Tally {
  readonly #limit: number;
  readonly #groups = new Map<string, { count: number; readonly examples: string[] }>();
  readonly #forms = new Map<string, number>();
  readonly #ends = new Map<string, number>();
  cases = 0;
  different = 0;

  constructor(limit: number) {
    this.#limit = limit;
  }

  add(form: string, end: string): void {
    this.cases++;
    const kind = end.split(' ')[0]!;
    this.#forms.set(form, (this.#forms.get(form) ?? 0) + 1);
    this.#ends.set(kind, (this.#ends.get(kind) ?? 0) + 1);
  }

  differs(key: string, example: string): void {
    this.different++;
    const group = this.#groups.get(key) ?? { count: 0, examples: [] };
    this.#groups.set(key, group);
    group.count++;
    if (group.examples.length < this.#limit) group.examples.push(example);
  }

  report(): string {
    const counts = [...this.#forms.values()];
    const ends = [...this.#ends].sort((a, b) => b[1] - a[1]).map(([end, count]) => `${end} ${count}`);
    const groups = [...this.#groups].sort(([a], [b]) => a.localeCompare(b));
    return [
      ...groups.flatMap(([key, { count, examples }]) => [`${key}: ${count}`, ...examples]),
      `${this.cases} cases of ${counts.length} forms, each ${Math.min(...counts)} to ${Math.max(...counts)} times; they ended ${ends.join(', ')}`,
      `${this.different} different, in ${groups.length} groups`,
    ].join('\n');
  }
}

/** @param open how backends are opened */
export async function main(argv: string[], open = openBackend): Promise<number> {
  if (argv[0] === 'floats') return floatsCommand(argv.slice(1));
  if (argv[0] === 'sequences') return sequencesCommand(argv.slice(1), open);
  const { values } = parseArgs({ args: argv, options });
  if (values.help) {
    process.stdout.write(USAGE);
    return 0;
  }
  const only = values.case === undefined ? undefined : parseCase(values.case);
  const mode = (only?.mode ?? values.mode) as ModeName;
  if (!modes.includes(mode)) throw new RangeError(`--mode is '${mode}'; it must be ${modes.join(', ')}`);
  const progress = new Progress();
  const tally = new Tally(Number(values.examples));

  // The oracle and its cases, or a recording of them.
  const isProcess = values.replay === undefined && values.oracle === PROCESS;
  using oracleProcess = isProcess ? new ProcessOracle() : undefined;
  using oracleHv = values.replay === undefined && !isProcess ? open(values.oracle) : undefined;
  using oracle = oracleHv && new Runner(oracleHv);
  const pattern = new RegExp(values.filter ?? '', 'i');
  function* cases(): Generator<Recorded> {
    if (values.replay !== undefined) {
      for (const recorded of readRecording(values.replay))
        if (pattern.test(inspect(recorded.given).form)) yield recorded;
      return;
    }
    const execute = (given: Recorded['given']) => {
      if (values.announce) process.stderr.write(`${formatCase(given)}\n`);
      return { given, expected: oracle!.run(given, inspect(given)) };
    };
    function* all(given: Iterable<Case>): Generator<Recorded> {
      if (oracleProcess !== undefined) yield* oracleProcess.run(given);
      else for (const one of given) yield execute(one);
    }
    if (only !== undefined) {
      yield* all([only]);
      return;
    }
    const forms = formsOf(mode).filter(
      // A process has no ports.
      ({ name, mnemonic }) => pattern.test(name) && !(isProcess && /^(in|out)/.test(mnemonic)),
    );
    if (forms.length === 0) throw new RangeError(`--filter is '${values.filter}'; no form has such a name`);
    const from = Number(values.from);
    function* made(): Generator<Case> {
      for (let i = from; i < from + Number(values.cases); i++)
        yield caseOf(mode, Number(values.seed), i, forms);
    }
    yield* all(made());
  }

  if (values.record !== undefined) {
    const lines: string[] = [];
    for (const recorded of cases()) {
      tally.add(inspect(recorded.given).form, recorded.expected.end);
      lines.push(recordLine(recorded));
      progress.tick(lines.length, 0);
    }
    writeRecording(
      values.record,
      `${mode} on ${oracleHv === undefined ? 'silicon' : oracleOf(oracleHv, mode)}, ${processor}, seed ${values.seed}`,
      lines,
    );
    process.stdout.write(`${tally.report()}\n`);
    return 0;
  }

  const judge =
    oracleHv !== undefined
      ? judgeOf(oracleOf(oracleHv, mode))
      : values.replay === undefined
        ? 'silicon'
        : aboutRecording(values.replay).oracle;
  const isSilicon = isProcess || (oracleHv !== undefined && oracleOf(oracleHv, mode) === 'silicon');
  using hv = open(values.backend, values.tier, values.vendor ?? (isSilicon ? vendor : 'amd'));
  using backend = new Runner(hv);
  for (const { given, expected } of cases()) {
    const what = inspect(given);
    tally.add(what.form, expected.end);
    const found = compare(expected, backend.run(given, what), what, judge);
    if (only !== undefined) process.stdout.write(`${what.text} (${what.form}): ${expected.end}\n`);
    if (found.length > 0) {
      const line = formatCase(given);
      tally.differs(
        `${what.form} ${found.map(({ where }) => where).join(' ')}`,
        `    --case '${line}'\n        ${what.text}: ${shown(found)}`,
      );
    }
    progress.tick(tally.cases, tally.different);
  }
  process.stdout.write(`${tally.report()}; ${progress.seconds.toFixed(1)} s\n`);
  return tally.different === 0 ? 0 : 1;
}

/** The simulator as the oracle of another, in tests of this, is as silicon. */
const judgeOf = (name: Oracle | 'sim'): Oracle => (name === 'sim' ? 'silicon' : name);

const openBackend = (name: string, tier = 'both', vendor = 'amd'): Hypervisor =>
  openHypervisor({
    backend: name as NonNullable<OpenOptions['backend']>,
    simulated: { tier, vendor } as SimulatedHost,
  });

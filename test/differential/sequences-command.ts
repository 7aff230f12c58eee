/** The command's other half: `node scripts/differential.mjs sequences`. */

import { readFileSync, writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { gunzipSync, gzipSync } from 'node:zlib';
import { type Hypervisor, VmType } from '../../src/index.ts';
import { type Line, Sequences } from './sequences.ts';

const USAGE = `Runs random sequences of ioctls and guest accesses on two backends, and shows the first step of each that differs.

  node scripts/differential.mjs sequences [options]
    --backend NAME   what is tested (sim)
    --oracle NAME    what it is compared with (kvm)
    --type N         the VM's type: 1 is KVM_X86_SW_PROTECTED_VM (1)
    --seed N         (1)
    --count N        how many sequences (1000)
    --from N         the number of the first (0)
    --userfault      with the steps that need KVM_MEM_USERFAULT
    --show           print every step of them, on the oracle
    --record FILE    only run on the oracle, and write what it gave
    --replay FILE    compare with what was written, instead of an oracle
`;

const options = {
  backend: { type: 'string', default: 'sim' },
  oracle: { type: 'string', default: 'kvm' },
  type: { type: 'string', default: String(VmType.SW_PROTECTED) },
  seed: { type: 'string', default: '1' },
  count: { type: 'string', default: '1000' },
  from: { type: 'string', default: '0' },
  userfault: { type: 'boolean', default: false },
  show: { type: 'boolean' },
  record: { type: 'string' },
  replay: { type: 'string' },
  help: { type: 'boolean' },
} as const;

/** So many differences are printed. */
const SHOWN = 20;
/** A lab that ends too early has not worked in vain. */
const SAVED_EVERY = 500;

/** What recorded sequences gave, and what they were run on. The steps follow from seed and number. */
export interface SequenceRecording {
  readonly about: string;
  readonly type: number;
  readonly seed: number;
  readonly userfault: boolean;
  readonly results: readonly (readonly [number: number, results: readonly string[]])[];
}

export function readSequences(path: string | URL): SequenceRecording {
  const [head, ...lines] = gunzipSync(readFileSync(path)).toString().trimEnd().split('\n') as [
    string,
    ...string[],
  ];
  const [, type, seed] = /type (\d+), seed (\d+)/.exec(head)!.map(Number) as [number, number, number];
  return {
    about: head.slice(2),
    type,
    seed,
    userfault: head.endsWith(', userfault'),
    results: lines.map((line) => {
      const [number, results] = line.split('\t') as [string, string];
      return [Number(number), results.split(';')];
    }),
  };
}

/** The first step that gives something else, with what led to it; undefined when all are the same. */
function firstDifference(lines: readonly Line[], expected: readonly string[]): string | undefined {
  const at = lines.findIndex(({ result }, i) => result !== expected[i]);
  if (at < 0) return undefined;
  const before = lines.slice(0, at).map(({ text, result }) => `      ${text}: ${result}`);
  return [...before, `    > ${lines[at]!.text}: ${expected[at]} / ${lines[at]!.result}`].join('\n');
}

export interface Difference {
  readonly text: string;
  /** It is gone when instructions make their accesses in the order of QEMU's processor (sequence-snippets.ts). */
  readonly byOrder: boolean;
}

/** Compares a backend with what another gave. */
export class Comparison implements Disposable {
  readonly #silicon: Sequences;
  readonly #qemu: Sequences;

  constructor(hv: Hypervisor, type: number, seed: number, userfault: boolean) {
    this.#silicon = new Sequences(hv, type, seed, { userfault });
    this.#qemu = new Sequences(hv, type, seed, { userfault, processor: 'QEMU' });
  }

  compare(number: number, expected: readonly string[]): Difference | undefined {
    const text = firstDifference(this.#silicon.run(number), expected);
    if (text === undefined) return undefined;
    return { text, byOrder: firstDifference(this.#qemu.run(number), expected) === undefined };
  }

  [Symbol.dispose](): void {
    this.#silicon[Symbol.dispose]();
    this.#qemu[Symbol.dispose]();
  }
}

export function sequencesCommand(argv: string[], open: (name: string) => Hypervisor): number {
  const { values } = parseArgs({ args: argv, options });
  if (values.help) {
    process.stdout.write(USAGE);
    return 0;
  }
  const recorded = values.replay === undefined ? undefined : readSequences(values.replay);
  const type = recorded?.type ?? Number(values.type);
  const seed = recorded?.seed ?? Number(values.seed);
  const userfault = recorded?.userfault ?? values.userfault;
  const [from, count] = [Number(values.from), Number(values.count)];
  using oracleHv = recorded ? undefined : open(values.oracle);
  using oracle = oracleHv && new Sequences(oracleHv, type, seed, { userfault });
  const results = (number: number) => oracle!.run(number).map(({ result }) => result);
  const numbers =
    recorded?.results.map(([number]) => number) ?? Array.from({ length: count }, (_, i) => from + i);

  if (values.show && oracle !== undefined) {
    for (const number of numbers) {
      const lines = oracle!.run(number);
      process.stdout.write(
        `sequence ${number}\n${lines.map(({ text, result }) => `  ${text}: ${result}\n`).join('')}`,
      );
    }
    return 0;
  }
  const began = performance.now();
  let said = began;
  const tick = (done: number, what: string) => {
    if (performance.now() - said < 5000) return;
    said = performance.now();
    process.stderr.write(`${done} sequences${what}, ${Math.round((1000 * done) / (said - began))}/s\n`);
  };
  if (values.record !== undefined) {
    const lines = [`# ${values.oracle}, type ${type}, seed ${seed}${userfault ? ', userfault' : ''}`];
    const write = () => writeFileSync(values.record!, gzipSync(`${lines.join('\n')}\n`, { level: 9 }));
    for (const [i, number] of numbers.entries()) {
      lines.push(`${number}\t${results(number).join(';')}`);
      tick(i, '');
      if (i % SAVED_EVERY === 0) write();
    }
    write();
    process.stdout.write(`${numbers.length} sequences written\n`);
    return 0;
  }

  using backendHv = open(values.backend);
  using comparison = new Comparison(backendHv, type, seed, userfault);
  const found: Difference[] = [];
  const unexplained = () => found.filter(({ byOrder }) => !byOrder).length;
  for (const [i, number] of numbers.entries()) {
    const difference = comparison.compare(number, recorded ? recorded.results[i]![1] : results(number));
    if (difference !== undefined) {
      found.push(difference);
      if (found.length <= SHOWN) {
        const why = difference.byOrder ? ' (the order of accesses: sequence-snippets.ts)' : '';
        process.stdout.write(`sequence ${number}${why}\n${difference.text}\n`);
      }
    }
    tick(i + 1, `, ${found.length} different, ${unexplained()} unexplained`);
  }
  process.stdout.write(
    `${numbers.length} sequences, ${found.length} different, ${unexplained()} of them not by the order of accesses\n`,
  );
  return unexplained() === 0 ? 0 : 1;
}

// What the benchmarks share: options, rounds, medians, and the form of a report.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { cpus, release, tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

export const MIB = 2 ** 20;
const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
/** The compiled package. */
export const packageEntry = join(root, 'dist', 'index.js');

export const median = (numbers) => numbers.toSorted((a, b) => a - b)[numbers.length >> 1];
export const nanoseconds = (start, count) => Number(process.hrtime.bigint() - start) / count;
export const expect = (ok, what = '') => {
  if (!ok) throw new Error(`the guest did something else${what && `: ${what}`}`);
};

/** kB of lines of /proc/self/status. */
export const resident = (...names) =>
  names.reduce(
    (sum, name) =>
      sum + Number(new RegExp(`${name}:\\s+(\\d+)`).exec(readFileSync('/proc/self/status', 'utf8'))[1]),
    0,
  );

/** Compiles a C file of bench/ into the folder and gives the program's path. */
export function compile(folder, source, flags = ['-O2', '-Wall', '-pthread']) {
  const program = join(folder, source.replace(/\W/g, '-'));
  execFileSync('gcc', [...flags, '-o', program, join(root, 'bench', source)]);
  return program;
}

/**
 * Runs the benchmarks that the command line names, each by `measure(name, bench, {folder, rounds, say})`, which gives
 * text, of one line in most cases, and the figures; `say` writes a line where lines are wanted. `more`: options of the
 * command's own, with their defaults, which `measure` gets too. What a bench is (`is`), --help tells.
 */
export async function main(command, benches, defaultRounds, measure, more = {}) {
  const own = Object.entries(more);
  const { values } = parseArgs({
    options: {
      only: { type: 'string' },
      rounds: { type: 'string', default: String(defaultRounds) },
      json: { type: 'boolean' },
      help: { type: 'boolean', short: 'h' },
      ...Object.fromEntries(own.map(([name, { value }]) => [name, { type: 'string', default: value }])),
    },
  });
  const names = Object.keys(benches);
  const wanted = values.only?.split(',') ?? names;
  const rounds = Number(values.rounds);
  const width = Math.max(...names.map((name) => name.length));
  if (values.help || !wanted.every((name) => names.includes(name)) || !(rounds >= 1)) {
    const usage = own.map(([name, { is }]) => ` [--${name} ${is}]`).join('');
    process.stdout.write(
      `${command} [-- --only NAME[,NAME]] [--rounds N]${usage} [--json]\n` +
        `${names.map((name) => `  ${name.padEnd(width)} ${benches[name].is ?? ''}`.trimEnd()).join('\n')}\n`,
    );
    process.exit(values.help ? 0 : 2);
  }
  const say = (text) => values.json || process.stdout.write(`${text}\n`);
  const machine = process.env.VMEXIT_LAB_MACHINE; // names its kernel and its QEMU
  const where = machine === undefined ? '' : `, in the lab: ${machine}`;
  const about = `${cpus()[0]?.model}, Linux ${release()}, Node ${process.version}${where}`;
  const results = {};
  const folder = mkdtempSync(join(tmpdir(), 'vmexit-bench-'));
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
  say(`${about}; ${rounds} rounds, medians\n`);
  for (const name of wanted) {
    const { text, figures } = await measure(name, benches[name], { ...values, folder, rounds, say });
    results[name] = figures;
    say(`${name.padEnd(width)} ${text}`);
  }
  if (values.json) process.stdout.write(`${JSON.stringify({ about, results }, null, 2)}\n`);
}

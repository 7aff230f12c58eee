// A program on every machine, in rounds that take turns, and its results compared. The time is that between two marks that the
// guest writes to port 0xe9, as they arrive here through a pipe: `S` at the program's start, `E` at its end. So neither a
// BIOS nor a process's start counts, and each machine is measured in the same way, all translation included.
import { median } from '../support.mjs';
import { progress, turn, watch } from './children.mjs';
import { image } from './images.mjs';
import { wideOnly } from './kinds.mjs';
import { machines } from './machines.mjs';

const LIMIT_MS = 600_000;
/** What the simulator may take of another's time. */
const bars = { tcg: 1.5, v86: 1 };
const rivals = { tcg: 'sim64', v86: 'sim32' };

async function run(command) {
  const marks = {};
  const { output, why } = await watch(command, LIMIT_MS, (text, now) => {
    for (const mark of 'SE') if (text.includes(mark)) marks[mark] ??= now;
    return false;
  });
  const [, result] = /^SE([0-9a-f]{8})\n$/.exec(output) ?? [];
  if (result === undefined) throw new Error(`${why}; it wrote ${JSON.stringify(output)}`);
  return { ms: marks.E - marks.S, result };
}

/** The machines that are named, and here. */
function present(names, say) {
  const chosen = names === 'all' ? Object.keys(machines) : names.split(',');
  const unknown = chosen.find((name) => !(name in machines));
  if (unknown !== undefined) {
    process.stderr.write(`--machines takes ${Object.keys(machines)}, not ${unknown}\n`);
    process.exit(2);
  }
  return chosen.filter((name) => {
    const missing = machines[name].missing();
    if (missing) say(`without ${machines[name].title}: ${missing}`);
    return !missing;
  });
}

const seconds = (ms) => (ms === undefined ? '-' : `${(ms / 1000).toFixed(2)} s`).padStart(9);
const ratio = (of, bar) =>
  of === undefined ? '       -  ' : `${of.toFixed(of < 0.095 ? 2 : 1).padStart(8)}${of > bar ? ' *' : '  '}`;

let here;
/** Once, above the first row: the machines that are missing, and the names of the columns. */
function head(names, say) {
  here = present(names, say);
  const titles = Object.values(machines).map(({ title }) => title.padStart(9));
  const columns = [titles[0], titles[1], '  of TCG  ', titles[2], titles[3], '  of v86  '];
  say(`medians; * takes more than ${bars.tcg} times TCG's time, or than v86's`);
  say(`${' '.repeat(12)}${columns.join(' ')}`);
}

async function compare(name, { folder, rounds, machines: names, say }) {
  if (here === undefined) head(names, say);
  const times = Object.fromEntries(here.map((machine) => [machine, []]));
  const results = new Map();
  const failures = {};
  for (let round = 0; round < rounds; round++) {
    for (const machine of here) {
      if (failures[machine]) continue;
      progress(`${name}: round ${round + 1} of ${rounds}, ${machine}`);
      await turn();
      const { bits, command } = machines[machine];
      if (bits === 32 && wideOnly.has(name)) continue;
      try {
        const { ms, result } = await run(command(image(name, bits, folder)));
        times[machine].push(ms);
        results.set(result, machine);
      } catch (error) {
        failures[machine] = error.message;
      }
    }
  }
  progress('');
  return report(times, results, failures);
}

function report(times, results, failures) {
  const ms = Object.fromEntries(
    Object.entries(times).map(([machine, of]) => [machine, of.length ? median(of) : undefined]),
  );
  const of = Object.fromEntries(
    Object.entries(rivals).map(([rival, ours]) => [
      rival,
      ms[rival] && ms[ours] ? ms[ours] / ms[rival] : undefined,
    ]),
  );
  const wrong = Object.entries(failures).map(([machine, why]) => `${machine} ${why}`);
  if (results.size > 1)
    wrong.push(`results differ: ${[...results].map(([what, who]) => `${what} by ${who}`)}`);
  if (wrong.length) process.exitCode = 1;
  const columns = [
    ...[seconds(ms.sim64), seconds(ms.tcg), ratio(of.tcg, bars.tcg)],
    ...[seconds(ms.sim32), seconds(ms.v86), ratio(of.v86, bars.v86)],
  ];
  return {
    text: [columns.join(' '), ...wrong].join(' '),
    figures: { ms, of, times, result: [...results.keys()].join(), wrong },
  };
}

/** The benchmark of a kind of work. */
export const kind = (name, is) => Object.assign((options) => compare(name, options), { is });

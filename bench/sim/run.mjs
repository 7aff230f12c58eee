// The simulator's benchmarks, each with its reasons in a file of its own: the kinds of work beside QEMU's TCG and v86
// (compare.mjs), a Linux kernel (linux/), the host's KVM (silicon.mjs), exits, cold start, memory. Medians of several rounds.
// npm run bench:sim [-- --only NAME[,NAME]] [--rounds N] [--machines NAME,NAME] [--json]; --help has the names.
import { main } from '../support.mjs';
import { cold } from './cold.mjs';
import { kind } from './compare.mjs';
import { exits } from './exits.mjs';
import { kinds } from './kinds.mjs';
import { linux } from './linux/boot.mjs';
import { machines } from './machines.mjs';
import { conversions, translations, untouched } from './memory.mjs';
import { loop, mixed } from './silicon.mjs';

const named = (is, bench) => Object.assign(bench, { is });

const benches = {
  ...Object.fromEntries(Object.entries(kinds).map(([name, is]) => [name, kind(name, is)])),
  linux: named('a stock kernel to /init, beside QEMU TCG', linux),
  loop: named("a hot loop of eight instructions, beside the host's KVM", loop),
  mixed: named("hashing, sorting and compression, beside the host's KVM", mixed),
  exits: named('run() of a guest that does nothing but exit', exits),
  cold: named("a process's start to its guest's first exit", cold),
  conversions: named('memory faults and their conversions', conversions),
  untouched: named('guest memory that nobody touches', untouched),
  translations: named('what a process holds of translated code', translations),
};

const measured = async (_, bench, options) => {
  const { text, target, met, figures } = await bench(options);
  if (target === undefined) return { text, figures };
  return { text: `${text}   (target ${target}: ${met ? 'met' : 'MISSED'})`, figures: { ...figures, met } };
};

await main('npm run bench:sim', benches, 3, measured, {
  machines: { value: 'all', is: Object.keys(machines).join() },
});

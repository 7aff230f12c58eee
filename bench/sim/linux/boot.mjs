// A stock Linux kernel from its first line to "Run /init", on the simulator and on QEMU's TCG, with the same command line. The
// first line is the kernel's own, "Linux version": what a BIOS does and the decompression before it are in the total, which
// begins with the process. There is no interrupt controller and no timer in the simulator yet, so it ends with its first HLT
// behind that; with lpj= among its parameters a kernel needs no interrupt until then.
import { writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { median } from '../../support.mjs';
import { progress, turn, watch } from '../children.mjs';
import { QEMU, QEMU_CPU, qemuMachine, qemuMissing } from '../machines.mjs';
import { filesMissing, initrd, kernel } from './files.mjs';

const MIB = 256;
const LIMIT_MS = 900_000;
/** What the simulator may take of TCG's time. */
const BAR = 2;
const [FIRST, LAST] = ['Linux version', 'Run /init'];

// lpj: without it the kernel counts what it does between two ticks, and waits for the first for ever. acpi=off: the simulator has
// no tables, so QEMU's are left aside too.
const COMMAND_LINE = 'console=ttyS0 earlyprintk=ttyS0 panic=-1 nokaslr acpi=off lpj=4000000';

const script = join(dirname(fileURLToPath(import.meta.url)), 'sim.mjs');
const qemu = (cpu) => (image, ramdisk) => [
  ...[QEMU, ...qemuMachine, ...cpu, '-m', String(MIB), '-serial', 'stdio'],
  ...['-kernel', image, '-initrd', ramdisk, '-append', COMMAND_LINE],
];
const machines = {
  sim: (image, ramdisk) => [process.execPath, script, image, ramdisk, String(MIB), COMMAND_LINE],
  tcg: qemu(['-cpu', QEMU_CPU]),
  plain: qemu([]),
};

/** Milliseconds: between the two lines, from the process's start to the second, and to its end where that comes of itself. */
async function boot(name, image, ramdisk) {
  const times = {};
  const start = performance.now();
  const { output, why } = await watch(machines[name](image, ramdisk), LIMIT_MS, (text, now) => {
    for (const line of [FIRST, LAST]) if (text.includes(line)) times[line] ??= now;
    return name !== 'sim' && times[LAST] !== undefined;
  });
  if (times[LAST] === undefined)
    throw new Error(`${name} ${why} without "${LAST}", behind: ${output.trim().split('\n').at(-1)}`);
  return { ms: times[LAST] - times[FIRST], total: times[LAST] - start, end: performance.now() - start };
}

const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;

export async function linux({ folder, rounds }) {
  const missing = filesMissing() ?? qemuMissing();
  if (missing) return { text: `left out: ${missing}`, figures: { missing } };
  const { path, version } = kernel();
  const ramdisk = join(folder, 'initrd');
  writeFileSync(ramdisk, initrd());
  const results = Object.fromEntries(Object.keys(machines).map((name) => [name, []]));
  for (let round = 0; round < rounds; round++) {
    for (const [name, of] of Object.entries(results)) {
      progress(`linux: round ${round + 1} of ${rounds}, ${name}`);
      await turn();
      of.push(await boot(name, path, ramdisk));
    }
  }
  progress('');
  const of = (name, field) => median(results[name].map((result) => result[field]));
  const ratio = of('sim', 'ms') / of('tcg', 'ms');
  const told = (name) => `${seconds(of(name, 'ms'))} (${seconds(of(name, 'total'))} in all)`;
  return {
    text:
      `${version}, "${FIRST}" to "${LAST}": ${told('sim')}, first HLT at ${seconds(of('sim', 'end'))}; ` +
      `TCG ${told('tcg')}, without -cpu ${told('plain')}: ${ratio.toFixed(1)} times TCG's`,
    target: `at most ${BAR} times`,
    met: ratio <= BAR,
    figures: { version, results, ratio },
  };
}

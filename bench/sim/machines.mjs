// The machines that run the programs. Each run is a process of its own, so that none profits from an earlier one: what is
// translated, is translated anew.
import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const MIB = 128;
const here = dirname(fileURLToPath(import.meta.url));
const node = (script) => (image) => [process.execPath, join(here, 'machines', script), image, String(MIB)];

export const QEMU = 'qemu-system-x86_64';
/** Without la57: a guest that knows of five levels of page tables would take them, and pay for them. */
export const QEMU_CPU = 'max,la57=off';
export const qemuMachine = ['-accel', 'tcg', '-M', 'pc', '-nodefaults', '-display', 'none', '-no-reboot'];

const qemu = (image) => [
  ...[QEMU, ...qemuMachine, '-cpu', QEMU_CPU, '-m', String(MIB), '-kernel', image],
  ...['-chardev', 'stdio,id=marks', '-device', 'isa-debugcon,iobase=0xe9,chardev=marks'],
  ...['-device', 'isa-debug-exit,iobase=0xf4,iosize=4'],
];

export function qemuMissing() {
  const { error } = spawnSync(QEMU, ['--version']);
  return error && `${QEMU} is not here: apt-get install qemu-system-x86`;
}

function v86Missing() {
  try {
    createRequire(import.meta.url).resolve('v86');
    return undefined;
  } catch {
    return 'v86 is not here: npm install';
  }
}

export const machines = {
  sim64: { title: 'simulator', bits: 64, command: node('sim.mjs'), missing: () => undefined },
  tcg: { title: 'QEMU TCG', bits: 64, command: qemu, missing: qemuMissing },
  sim32: { title: '32-bit', bits: 32, command: node('sim.mjs'), missing: () => undefined },
  v86: { title: 'v86', bits: 32, command: node('v86.mjs'), missing: v86Missing },
};

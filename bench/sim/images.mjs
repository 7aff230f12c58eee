// Builds the programs in programs/: one source each, in 64 and in 32 bits, as multiboot images. QEMU and v86 take those
// only as 32-bit ELF files, so the 64-bit ones are rewritten as such, which changes none of their code.
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const programs = join(dirname(fileURLToPath(import.meta.url)), 'programs');

// No vectors but those a program asks for, and no red zone, since handlers use the stack of what they interrupt.
const flags =
  '-O2 -ffreestanding -nostdlib -static -fno-pic -fno-pie -no-pie -mno-red-zone -fno-stack-protector ' +
  '-fcf-protection=none -fno-asynchronous-unwind-tables -fno-tree-vectorize -fno-tree-slp-vectorize ' +
  '-fno-tree-loop-distribute-patterns -fno-math-errno';
const link = `-Wl,-T,${join(programs, 'image.ld')},--build-id=none`;
const widths = { 64: ['-m64'], 32: ['-m32', '-msse2', '-mfpmath=sse'] };

function build(command, args) {
  try {
    execFileSync(command, args, { stdio: ['ignore', 'ignore', 'pipe'] });
  } catch (error) {
    if (error.code === 'ENOENT') throw new Error(`${command} is not here: apt-get install gcc`);
    throw error;
  }
}

/** The image of a program, in `bits`: built once. */
export function image(name, bits, folder) {
  const to = join(folder, `${name}-${bits}.elf`);
  if (existsSync(to)) return to;
  const sources = ['start.S', 'runtime.c', `${name}.c`].map((file) => join(programs, file));
  build('gcc', [...widths[bits], ...flags.split(' '), link, '-o', to, ...sources]);
  if (bits === 64) build('objcopy', ['-O', 'elf32-i386', to]);
  return to;
}

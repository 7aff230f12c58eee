/** Reads a guest's file. */
import { closeSync, fstatSync, openSync, readFileSync } from 'node:fs';
import { outOfRange } from '../hypervisor/errors.ts';
import { elfImage, hostedElf, isElf } from './elf.ts';
import { foreignFormat } from './formats.ts';
import { badGuest, type FlatOptions, flatImage, type GuestImage, type Mode } from './image.ts';

/** How a file is read as a guest. `at` and `entry` are a flat binary's: an ELF64 says itself where it goes. */
export interface LoadOptions extends FlatOptions {
  /** The mode that a flat binary begins in: `real` without it. An ELF64 begins in long mode. */
  readonly mode?: Mode | undefined;
  /** The largest file that makes sense, in bytes: the guest's memory. */
  readonly most?: number;
  /**
   * Takes a file as what it is not: one whose format is recognised and is no guest's as a flat binary, a program for Linux
   * as a guest.
   */
  readonly force?: boolean | undefined;
}

/** open(2)'s errnos, as what is wrong with the guest. */
const unreadable: { readonly [code: string]: string } = {
  ENOENT: 'does not exist',
  EACCES: 'may not be read by this user (chmod +r)',
  EISDIR: 'is a folder',
  ENOTDIR: 'does not exist: a part of its path is no folder',
};

/**
 * The program in a file: an ELF64 executable, or a flat binary. What is recognised as something else is refused: a kernel
 * for a boot loader, the image of a disk, a program for an operating system, a source. A boot sector, a ROM or a .COM
 * program is a flat binary with an address (`at`).
 * @throws VmexitError ERR_KVM_BAD_GUEST for a file that is missing, unreadable, empty, too large, truncated or of
 *   another format; TypeError, RangeError ERR_KVM_INVALID_ARG for the options
 * @example
 * ```ts
 * import { rmSync, writeFileSync } from 'node:fs';
 * import { tmpdir } from 'node:os';
 * import { join } from 'node:path';
 * import { exitName, loadGuest, Machine, openHypervisor } from 'vmexit';
 *
 * const path = join(tmpdir(), `halts-${process.pid}.bin`);
 * writeFileSync(path, Uint8Array.of(0xf4)); // hlt
 * const hv = openHypervisor();
 * const machine = new Machine(hv, { memory: 0x10_0000 });
 * machine.load(loadGuest(path, { most: machine.memory.size }));
 * console.log(exitName(machine.vcpu.run(5000)));
 * machine.close();
 * hv.close();
 * rmSync(path);
 * // prints: HLT
 * ```
 */
export function loadGuest(path: string, options: LoadOptions = {}): GuestImage {
  if (path === '') throw badGuest("''", 'is no path');
  return guestIn(readFile(path, options.most ?? Number.MAX_SAFE_INTEGER), path, options);
}

/** The program in the bytes of a file. @param name for errors */
export function guestIn(file: Uint8Array, name: string, options: LoadOptions = {}): GuestImage {
  const { mode, at, entry, force = false } = options;
  if (mode !== undefined && mode !== 'real' && mode !== 'long')
    throw outOfRange('mode', mode, "'real' or 'long'");
  if (!isElf(file)) {
    const foreign = force ? undefined : foreignFormat(file, name, at !== undefined);
    if (foreign !== undefined) throw badGuest(name, foreign);
    return flatImage(file, mode ?? 'real', name, { at, entry });
  }
  if (mode === 'real') throw badGuest(name, 'is an ELF file, which begins in long mode; leave the mode out');
  if (at !== undefined || entry !== undefined)
    throw badGuest(name, 'is an ELF file, which says itself where it goes; leave --at and --entry out');
  const image = elfImage(file, name);
  const hosted = force ? undefined : hostedElf(file, name);
  if (hosted !== undefined) throw badGuest(name, `${hosted}; --force runs it all the same`);
  return image;
}

function readFile(path: string, most: number): Uint8Array {
  let fd: number;
  try {
    fd = openSync(path, 'r');
  } catch (cause) {
    const { code = '' } = cause as NodeJS.ErrnoException;
    throw badGuest(path, unreadable[code] ?? `cannot be read (${code})`, { cause });
  }
  try {
    // Looked at before it is read: /dev/zero would never end, and a disk image is no guest.
    const stat = fstatSync(fd);
    if (stat.isDirectory()) throw badGuest(path, unreadable.EISDIR!);
    if (!stat.isFile()) throw badGuest(path, 'is no regular file');
    if (stat.size > most) {
      throw badGuest(
        path,
        `has ${stat.size} bytes, more than the guest's memory of ${most}: give it more (--memory)`,
      );
    }
    return readFileSync(fd);
  } finally {
    closeSync(fd);
  }
}

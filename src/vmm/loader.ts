/** Reads a guest's file. */
import { closeSync, fstatSync, openSync, readFileSync } from 'node:fs';
import { outOfRange } from '../hypervisor/errors.ts';
import { elfImage, isElf } from './elf.ts';
import { badGuest, flatImage, type GuestImage, type Mode } from './image.ts';

/** How a file is read as a guest. */
export interface LoadOptions {
  /** The mode that a flat binary begins in: `real` without it. An ELF64 begins in long mode. */
  readonly mode?: Mode | undefined;
  /** The largest file that makes sense, in bytes: the guest's memory. */
  readonly most?: number;
}

/** open(2)'s errnos, as what is wrong with the guest. */
const unreadable: { readonly [code: string]: string } = {
  ENOENT: 'does not exist',
  EACCES: 'may not be read by this user (chmod +r)',
  EISDIR: 'is a folder',
  ENOTDIR: 'does not exist: a part of its path is no folder',
};

/**
 * The program in a file: an ELF64 executable, or anything else as a flat binary.
 * @throws VmexitError ERR_KVM_BAD_GUEST for a file that is missing, unreadable, empty, too large, truncated or of
 *   another format
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
export function loadGuest(
  path: string,
  { mode, most = Number.MAX_SAFE_INTEGER }: LoadOptions = {},
): GuestImage {
  if (mode !== undefined && mode !== 'real' && mode !== 'long') {
    throw outOfRange('mode', mode, "'real' or 'long'");
  }
  const file = readFile(path, most);
  if (!isElf(file)) return flatImage(file, mode ?? 'real', path);
  if (mode === 'real') throw badGuest(path, 'is an ELF file, which begins in long mode; leave the mode out');
  return elfImage(file, path);
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

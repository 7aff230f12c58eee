/** Which QEMU runs the lab: its own one in the cache if that is there and starts, else the machine's. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { cacheFolder } from './recipe.ts';

export const QEMU = 'qemu-system-x86_64';

/** A QEMU that starts here. */
export interface Emulator {
  readonly program: string;
  /** Such as `10.0.2`. */
  readonly version: string;
  /** Whether it is the one in the lab's cache. */
  readonly own: boolean;
  /** Where its firmware is, as arguments that go before the machine's. */
  readonly arguments: readonly string[];
  /** What is added to the environment of its process. */
  readonly environment: Readonly<Record<string, string>>;
}

/** The folder of the lab's own QEMU in the cache; it exists only when it is complete. */
export const emulatorFolder = (cache = cacheFolder()): string => join(cache, 'qemu');

/** Relative to the lab's own folder, in the order in which Debian's QEMU and the loader look through their own. */
const FIRMWARE = ['usr/share/qemu', 'usr/share/seabios', 'usr/lib/ipxe/qemu'];
const LIBRARIES = ['usr/lib/x86_64-linux-gnu', 'lib/x86_64-linux-gnu'];

/** Debian's packages of a QEMU and its libraries that are unpacked in a folder, if they start here. */
export function ownEmulator(folder = emulatorFolder()): Emulator | undefined {
  return starting({
    program: join(folder, 'usr/bin', QEMU),
    own: true,
    arguments: FIRMWARE.flatMap((path) => ['-L', join(folder, path)]),
    environment: {
      LD_LIBRARY_PATH: [...LIBRARIES.map((path) => join(folder, path)), process.env.LD_LIBRARY_PATH]
        .filter(Boolean)
        .join(':'),
    },
  });
}

/** The QEMU that the lab runs; undefined if there is none. */
export function findEmulator(folder?: string): Emulator | undefined {
  return ownEmulator(folder) ?? starting({ program: QEMU, own: false, arguments: [], environment: {} });
}

function starting(emulator: Omit<Emulator, 'version'>): Emulator | undefined {
  const { program, environment } = emulator;
  const { stdout } = spawnSync(program, ['--version'], {
    encoding: 'utf8',
    env: { ...process.env, ...environment },
  });
  const version = /^QEMU emulator version (\d+(\.\d+)*)/.exec(stdout ?? '')?.[1];
  return version === undefined ? undefined : { ...emulator, version };
}

/**
 * Whether processors that QEMU emulates may replace the code that others are executing. Before 8.1 its translator did
 * not hold the pages that it was reading, and what it made of them went on being executed after they had been
 * written (QEMU's commit deba78709ae8): V8 was ended so within minutes, and a kernel panicked on an int3 that
 * text_poke_bp() had taken back.
 */
export function translatesSafely(version: string): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  return major > 8 || (major === 8 && minor >= 1);
}

/** In words: `QEMU 10.0.2 (the lab's own)`. */
export const describeEmulator = ({ version, own }: Emulator): string =>
  `QEMU ${version} (${own ? "the lab's own" : 'installed'})`;

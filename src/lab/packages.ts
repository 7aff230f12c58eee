/** The Debian packages that the lab needs, which of them are missing, and their installation. */
import { spawnSync } from 'node:child_process';
import { accessSync, constants, existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { LabError } from './errors.ts';
import { type Recipe, SOURCE_ARCHIVE, SOURCE_PACKAGE } from './recipe.ts';

interface Package {
  readonly name: string;
  /** What it is needed for: QEMU serves every run, the rest builds the kernel, `patch` only a patched one. */
  readonly for: 'run' | 'build' | 'patches';
  /** A program or file that shows that it is there, for systems without dpkg. */
  readonly shownBy: string;
}

export const PACKAGES: readonly Package[] = [
  { name: 'qemu-system-x86', for: 'run', shownBy: 'qemu-system-x86_64' },
  { name: SOURCE_PACKAGE, for: 'build', shownBy: SOURCE_ARCHIVE },
  { name: 'gcc', for: 'build', shownBy: 'gcc' },
  { name: 'libc6-dev', for: 'build', shownBy: '/usr/include/stdio.h' },
  { name: 'make', for: 'build', shownBy: 'make' },
  { name: 'flex', for: 'build', shownBy: 'flex' },
  { name: 'bison', for: 'build', shownBy: 'bison' },
  { name: 'bc', for: 'build', shownBy: 'bc' },
  { name: 'libelf-dev', for: 'build', shownBy: '/usr/include/libelf.h' },
  { name: 'xz-utils', for: 'build', shownBy: 'xz' },
  { name: 'patch', for: 'patches', shownBy: 'patch' },
];

/**
 * The packages needed to build these recipes and run the results; without recipes, only to run. Where the lab has a QEMU
 * of its own, none is needed to run.
 */
export function neededPackages(recipes: readonly Recipe[] = [], ownEmulator = false): Package[] {
  const needed = {
    run: !ownEmulator,
    build: recipes.length > 0,
    patches: recipes.some((recipe) => recipe.patches.length > 0),
  };
  return PACKAGES.filter((row) => needed[row.for]);
}

/** Versions by package name, of those that `dpkg-query` reports as installed (see {@link DPKG_FORMAT}). */
export function parseDpkg(output: string): Map<string, string> {
  const installed = new Map<string, string>();
  for (const line of output.split('\n')) {
    const [name, status, version] = line.split('\t');
    if (name && status === 'installed' && version) installed.set(name, version);
  }
  return installed;
}

// biome-ignore lint/suspicious/noTemplateCurlyInString: dpkg-query's own placeholders
const DPKG_FORMAT = '${Package}\\t${db:Status-Status}\\t${Version}\\n';

/** What dpkg knows of our packages; undefined where there is no dpkg. */
export function installedPackages(): Map<string, string> | undefined {
  const names = PACKAGES.map((row) => row.name);
  const query = spawnSync('dpkg-query', ['--show', `--showformat=${DPKG_FORMAT}`, ...names], {
    encoding: 'utf8',
  });
  // It exits 1 when it does not know one of them, and still lists the others.
  return query.error ? undefined : parseDpkg(query.stdout);
}

/** The version of the kernel source that is installed; undefined where it is not, or where there is no dpkg. */
export function sourceVersion(installed = installedPackages()): string | undefined {
  return installed?.get(SOURCE_PACKAGE);
}

/** Those of `needed` that are not there: dpkg says so, or without it their programs and files are looked for. */
export function missingPackages(
  needed: readonly Package[],
  installed: ReadonlyMap<string, string> | undefined,
): Package[] {
  const present = installed
    ? (row: Package) => installed.has(row.name)
    : (row: Package) => (row.shownBy.startsWith('/') ? existsSync(row.shownBy) : isProgram(row.shownBy));
  return needed.filter((row) => !present(row));
}

function isProgram(name: string): boolean {
  return (process.env.PATH ?? '').split(delimiter).some((folder) => {
    try {
      accessSync(join(folder, name), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/** What to say when packages are missing; `dpkg` tells whether this system is Debian's kind. */
export function missingMessage(missing: readonly Package[], dpkg: boolean): string {
  if (!dpkg) {
    const parts = missing.map((row) => `  ${row.shownBy}  (Debian: ${row.name})`);
    return `this system has no dpkg, and the lab misses\n${parts.join('\n')}\nInstall what provides them and try again.`;
  }
  const names = missing.map((row) => row.name).join(' ');
  return (
    `packages are missing: ${names}\n` +
    `  npx vmexit lab build --install                  installs them (as root) and builds the kernel\n` +
    `  apt-get install --no-install-recommends ${names}`
  );
}

/** The commands that install packages. Throws ERR_LAB_PACKAGES where that cannot work. */
export function installCommands(
  missing: readonly Package[],
  { dpkg, root }: { dpkg: boolean; root: boolean },
): string[][] {
  if (!dpkg) throw new LabError('ERR_LAB_PACKAGES', missingMessage(missing, dpkg));
  const install = [
    'apt-get',
    'install',
    '--yes',
    '--no-install-recommends',
    ...missing.map((row) => row.name),
  ];
  if (!root) {
    const command = `sudo apt-get update && sudo ${install.join(' ')}`;
    throw new LabError('ERR_LAB_PACKAGES', `--install needs root. Either run it as root, or: ${command}`);
  }
  return [['apt-get', 'update'], install];
}

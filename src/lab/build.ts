/**
 * Builds lab kernels, each once per recipe.
 *
 * A build works in a folder of its own inside the cache, and each kernel is renamed into place when it is done, so
 * whatever ends the build leaves nothing that looks complete, and two builds at a time only waste each other's
 * effort. The kernels of one build share a tree: make compiles for the next what its patches changed.
 */
import { closeSync, openSync } from 'node:fs';
import { cp, mkdir, mkdtemp, readdir, readFile, rename, rm, stat, statfs, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { basename, join } from 'node:path';
import { canFetchEmulator, emulatorNote, fetchEmulator } from './backports.ts';
import { emulatorFolder, findEmulator, translatesSafely } from './emulator.ts';
import { LabError } from './errors.ts';
import {
  installCommands,
  installedPackages,
  missingMessage,
  missingPackages,
  neededPackages,
  sourceVersion,
} from './packages.ts';
import type { Report } from './progress.ts';
import {
  type BuiltKernel,
  cacheFolder,
  DEFAULT_KERNEL,
  findKernel,
  kernelFolder,
  META_FILE,
  type Recipe,
  readKernel,
  readRecipe,
  recipeKey,
  SOURCE_ARCHIVE,
  SOURCE_PACKAGE,
} from './recipe.ts';
import { step, type Work } from './step.ts';

export interface BuildOptions {
  /** Which ones: `vanilla`, or folders of lab/kernel/patches. `['vanilla']` by default. */
  kernels?: readonly string[];
  /** Install missing packages with apt-get; needs root. */
  install?: boolean;
  /** On Debian bookworm, take a newer QEMU from its backports into the cache, which needs no root. So does `install`. */
  backports?: boolean;
  /** How many compilers run at a time, from 1; all processors by default. */
  jobs?: number;
  /** Ends the build: its processes are ended, its files removed, and ERR_LAB_ABORTED thrown. */
  signal?: AbortSignal;
  /** Told of each stage, and of what changes while it lasts. */
  report?: Report;
  /** Told of each line that the build's programs write. */
  onLine?: (line: string) => void;
  /** Told what is not as it could be, and how to mend it. */
  onNote?: (note: string) => void;
}

/** What the unpacked source and the objects take at their largest, in bytes. */
const DISK_BYTES = 2.5 * 2 ** 30;

/** Sources that no x86 kernel of ours compiles, two thirds of the archive; their Kconfig files must stay. */
const NOT_UNPACKED = [
  'Documentation/[!v]*.rst', // a patch may change those of virt/
  'Documentation/devicetree',
  'arch/[a-wyz]*/*.[chS]',
  'arch/[a-wyz]*/*.dts*',
  'drivers/gpu/*.[ch]',
  'drivers/net/ethernet/*.[ch]',
  'drivers/net/wireless/*.[ch]',
  'drivers/media/*.[ch]',
  'drivers/staging/*.[ch]',
  'sound/*.[ch]',
  'tools/perf',
  'tools/testing',
];

/**
 * What a build whose process is gone left behind is removed after this long, in ms. Not at once: with the cache
 * on a volume, the process may be alive in another container, and its pid say nothing here.
 */
const LEFT_OVER_MS = 60 * 60_000;

/**
 * The kernels of these names, from the cache or built now: some minutes for the first, a minute for each that
 * differs from it in little, and 2.5 GB of disk meanwhile.
 *
 * Throws LabError: ERR_LAB_ARGUMENT for an unknown name or a bad number of jobs, ERR_LAB_PLATFORM,
 * ERR_LAB_PACKAGES naming what is missing, ERR_LAB_BUILD naming the log, ERR_LAB_ABORTED. The kernels that are
 * built by then stay.
 */
export async function buildKernels(options: BuildOptions = {}): Promise<BuiltKernel[]> {
  const {
    kernels = [DEFAULT_KERNEL],
    install = false,
    backports = false,
    jobs = availableParallelism(),
    signal,
  } = options;
  if (!Number.isInteger(jobs) || jobs < 1) {
    throw new LabError('ERR_LAB_ARGUMENT', `jobs is ${jobs}: it must be an integer from 1`);
  }
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    throw new LabError(
      'ERR_LAB_PLATFORM',
      `the lab needs x86-64 Linux; this is ${process.arch} ${process.platform}`,
    );
  }
  const recipes = kernels.map((kernel) => readRecipe(kernel));
  const cache = cacheFolder();
  const folder = await makeFolder(cache);
  const log = join(folder, 'build.log');
  const failedLog = join(cache, 'build-failed.log');
  const work: Work = { cache, folder, log, failedLog, fd: openSync(log, 'w'), jobs, options };
  const tree: Tree = { path: join(folder, SOURCE_PACKAGE), applied: undefined };
  try {
    const note = await prepareEmulator(work, install || backports);
    const needed = neededPackages(recipes, findEmulator(emulatorFolder(cache))?.own);
    if (install) await installMissing(work, needed);
    if (note) options.onNote?.(note);
    const installed = installedPackages();
    const source = sourceVersion(installed) ?? (await archiveVersion());
    const built: BuiltKernel[] = [];
    for (const recipe of recipes) {
      const done = findKernel(recipe.kernel, source, { exact: true, cache });
      const missing = done ? [] : missingPackages(needed, installed);
      if (missing.length > 0) {
        throw new LabError('ERR_LAB_PACKAGES', missingMessage(missing, installed !== undefined));
      }
      built.push(done ?? (await buildRecipe(work, tree, recipe, source)));
    }
    if (tree.applied) options.report?.('removing the build tree');
    return built;
  } catch (error) {
    if (signal?.aborted) throw new LabError('ERR_LAB_ABORTED', 'the build was interrupted', { cause: error });
    throw error;
  } finally {
    closeSync(work.fd);
    await rm(folder, { recursive: true, force: true });
  }
}

/** A folder of the build's own in the cache, which is made if need be, and cleared of what dead builds left. */
async function makeFolder(cache: string): Promise<string> {
  try {
    await mkdir(cache, { recursive: true });
    await removeLeftOvers(cache);
    return await mkdtemp(join(cache, `.build-${process.pid}-`));
  } catch (error) {
    const message = `the cache ${cache} cannot be written (${(error as Error).message}): set VMEXIT_LAB_CACHE`;
    throw new LabError('ERR_LAB_BUILD', message, { cause: error });
  }
}

/** Without dpkg, the archive is known by its size and time; reading it to hash it would take longer. */
async function archiveVersion(): Promise<string> {
  const archive = await stat(SOURCE_ARCHIVE).catch(() => undefined);
  return archive ? `${archive.size}-${Math.trunc(archive.mtimeMs)}` : 'none';
}

/** Sees to a QEMU in which the lab has all its processors; what to say where there is none. */
async function prepareEmulator(work: Work, backports: boolean): Promise<string | undefined> {
  const there = findEmulator(emulatorFolder(work.cache));
  if (there && translatesSafely(there.version)) return undefined;
  if (!backports) {
    const remedy = `npx vmexit lab build --backports takes a newer one from Debian's backports into the cache`;
    return canFetchEmulator() ? emulatorNote(there, remedy) : undefined;
  }
  const fetched = await fetchEmulator(work);
  return 'missing' in fetched
    ? emulatorNote(there, `no newer one is to be had (${fetched.missing})`)
    : undefined;
}

async function installMissing(work: Work, needed: ReturnType<typeof neededPackages>): Promise<void> {
  const installed = installedPackages();
  const missing = missingPackages(needed, installed);
  if (missing.length === 0) return;
  const how = { dpkg: installed !== undefined, root: process.getuid?.() === 0 };
  for (const [command, ...args] of installCommands(missing, how)) {
    const stage = `${command} ${args[0]}`;
    await step(work, stage, command!, args, { env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' } });
  }
}

/** The sources and objects that the kernels of one build share. */
interface Tree {
  readonly path: string;
  /** The texts of the patches that are in it, in order; undefined before it is unpacked. */
  applied: string[] | undefined;
}

async function buildRecipe(work: Work, tree: Tree, recipe: Recipe, source: string): Promise<BuiltKernel> {
  const { bavail, bsize } = await statfs(work.cache);
  if (bavail * bsize < DISK_BYTES) {
    const free = ((bavail * bsize) / 2 ** 30).toFixed(1);
    throw new LabError(
      'ERR_LAB_BUILD',
      `the build needs 2.5 GiB of disk in ${work.cache}, and ${free} are free: make room, or set VMEXIT_LAB_CACHE`,
    );
  }
  const made = join(work.folder, `made-${recipe.kernel}`);
  await mkdir(made);
  await prepare(work, tree, recipe);
  const version = await compile(work, tree.path, recipe, made);
  await cp(work.log, join(made, 'build.log'));
  await writeFile(join(made, META_FILE), `${JSON.stringify({ kernel: recipe.kernel, version, source })}\n`);
  const place = kernelFolder(recipe.kernel, recipeKey(recipe, source), work.cache);
  await rename(made, place).catch((error) => {
    // Another build of the same kernel was first: the two are equal.
    if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error;
  });
  return readKernel(place)!;
}

/** Makes the tree the recipe's sources. Those of a kernel before it stay if the recipe only adds patches to them. */
async function prepare(work: Work, tree: Tree, recipe: Recipe): Promise<void> {
  if (!tree.applied?.every((text, index) => text === recipe.patches[index]?.text)) {
    await rm(tree.path, { recursive: true, force: true });
    const excludes = NOT_UNPACKED.map((pattern) => `--exclude=${SOURCE_PACKAGE}/${pattern}`);
    await step(work, 'unpacking the source', 'tar', [
      ...['--extract', '--xz', '--file', SOURCE_ARCHIVE, '--directory', work.folder],
      ...['--wildcards', '--wildcards-match-slash', '--no-same-owner', ...excludes],
    ]);
    tree.applied = [];
  }
  for (const { path, text } of recipe.patches.slice(tree.applied.length)) {
    const args = ['--strip=1', '--batch', '--forward', '--fuzz=0', '--input', path];
    await step(work, `applying ${basename(path)}`, 'patch', args, { cwd: tree.path });
    tree.applied.push(text);
  }
}

/** Configures and compiles; leaves the results in `made`; returns the kernel's version. */
async function compile(work: Work, tree: string, recipe: Recipe, made: string): Promise<string> {
  const make = (stage: string, ...args: string[]) => step(work, stage, 'make', args, { cwd: tree });
  const config = join(tree, '.config');
  await make('configuring', 'tinyconfig');
  // As scripts/kconfig/merge_config.sh does: the last assignment counts.
  await writeFile(config, recipe.fragment, { flag: 'a' });
  await make('configuring', 'olddefconfig');
  const lost = lostOptions(recipe.fragment, await readFile(config, 'utf8'));
  if (lost.length > 0) {
    throw new LabError('ERR_LAB_BUILD', `these lines of kernel.fragment did not survive: ${lost.join('; ')}`);
  }
  await make(`compiling ${recipe.kernel}`, `-j${work.jobs}`, 'LOCALVERSION=-vmexit', 'bzImage');
  await make('exporting the headers', 'headers');

  await cp(join(tree, 'arch', 'x86', 'boot', 'bzImage'), join(made, 'bzImage'));
  await cp(config, join(made, '.config'));
  // What `make headers_install` copies, without its need for rsync.
  await cp(join(tree, 'usr', 'include'), join(made, 'include'), {
    recursive: true,
    filter: async (path) => path.endsWith('.h') || (await stat(path)).isDirectory(),
  });
  const release = await readFile(join(tree, 'include', 'config', 'kernel.release'), 'utf8');
  return release.trim().replace('-vmexit', '');
}

/** The lines of a fragment that a finished configuration does not honour. */
export function lostOptions(fragment: string, config: string): string[] {
  const lines = new Set(config.split('\n'));
  return fragment.split('\n').filter((line) => {
    const unset = /^# (CONFIG_\w+) is not set$/.exec(line);
    if (unset) return config.includes(`\n${unset[1]}=`);
    return line.startsWith('CONFIG_') && !lines.has(line);
  });
}

async function removeLeftOvers(cache: string): Promise<void> {
  for (const name of await readdir(cache)) {
    const pid = /^\.build-(\d+)-/.exec(name)?.[1];
    if (!pid || isAlive(Number(pid))) continue;
    const path = join(cache, name);
    const age = Date.now() - ((await stat(path).catch(() => undefined))?.mtimeMs ?? Date.now());
    if (age > LEFT_OVER_MS) await rm(path, { recursive: true, force: true });
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

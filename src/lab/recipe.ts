/**
 * What a lab kernel is made of, and where a built one lies.
 *
 * A kernel has a name. `vanilla` is Debian's source and the fragment; any other name is a folder of
 * `lab/kernel/patches/`, whose `*.patch` files are applied in order of their names and whose own
 * `kernel.fragment`, if there is one, comes after the common one.
 */
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { packageRoot } from '../package.ts';
import { LabError } from './errors.ts';

/** The folder that holds kernel.fragment, patches/ and init: `lab/` of the package. */
export const labFolder = join(packageRoot(), 'lab');

/** The Debian package whose source is built, and the archive that it installs. */
export const SOURCE_PACKAGE = 'linux-source-6.12';
export const SOURCE_ARCHIVE = `/usr/src/${SOURCE_PACKAGE}.tar.xz`;

export const DEFAULT_KERNEL = 'vanilla';

export interface Recipe {
  /** The kernel's name: `vanilla`, or a folder of lab/kernel/patches. */
  readonly kernel: string;
  /** Lines of Kconfig, put over tinyconfig. */
  readonly fragment: string;
  readonly patches: readonly { readonly path: string; readonly text: string }[];
}

/** A kernel that is complete in the cache; all paths are absolute. */
export interface BuiltKernel {
  readonly kernel: string;
  /** The kernel's version, such as `6.12.117`. */
  readonly version: string;
  /** The version of the source package it was built from, such as `6.12.117-1~deb12u1`. */
  readonly source: string;
  readonly directory: string;
  readonly bzImage: string;
  readonly config: string;
  /** The headers that the kernel exports to user space; <linux/kvm.h> is `linux/kvm.h` in here. */
  readonly headers: string;
}

/** The names that {@link readRecipe} takes. */
export function kernelNames(folder = labFolder): string[] {
  const patches = join(folder, 'kernel', 'patches');
  const variants = existsSync(patches) ? readdirSync(patches, { withFileTypes: true }) : [];
  return [DEFAULT_KERNEL, ...variants.filter((entry) => entry.isDirectory()).map((entry) => entry.name)];
}

/** Reads a kernel's recipe. Throws ERR_LAB_ARGUMENT for a name that has none. */
export function readRecipe(kernel = DEFAULT_KERNEL, folder = labFolder): Recipe {
  const names = kernelNames(folder);
  if (!names.includes(kernel)) {
    throw new LabError('ERR_LAB_ARGUMENT', `no kernel is named '${kernel}': there is ${names.join(', ')}`);
  }
  const variant = join(folder, 'kernel', 'patches', kernel);
  const files = existsSync(variant) ? readdirSync(variant).sort() : [];
  const read = (...parts: string[]) => readFileSync(join(...parts), 'utf8');
  return {
    kernel,
    fragment:
      read(folder, 'kernel', 'kernel.fragment') +
      (files.includes('kernel.fragment') ? read(variant, 'kernel.fragment') : ''),
    patches: files
      .filter((name) => name.endsWith('.patch'))
      .map((name) => ({ path: join(variant, name), text: read(variant, name) })),
  };
}

/** The hash of a recipe and the version of its source: kernels with equal keys are the same kernel. */
export function recipeKey(recipe: Recipe, sourceVersion: string): string {
  const hash = createHash('sha256');
  // Lengths go before the parts, so that no two recipes run together into the same bytes.
  for (const part of [sourceVersion, recipe.fragment, ...recipe.patches.map((patch) => patch.text)]) {
    hash.update(`${Buffer.byteLength(part)}\n`).update(part);
  }
  return hash.digest('hex').slice(0, 16);
}

/** Where built kernels are kept: VMEXIT_LAB_CACHE, else under XDG_CACHE_HOME, else under ~/.cache. */
export function cacheFolder(env: NodeJS.ProcessEnv = process.env): string {
  return resolve(
    env.VMEXIT_LAB_CACHE || join(env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'vmexit', 'lab'),
  );
}

/** The folder of one kernel in the cache; it exists only when it is complete. */
export function kernelFolder(kernel: string, key: string, cache = cacheFolder()): string {
  return join(cache, `${kernel}-${key}`);
}

/** The file in a built kernel's folder that says what it is. */
export const META_FILE = 'kernel.json';

/**
 * The built kernel of this name and today's recipe, if there is one: of `sourceVersion` first, else the newest
 * of another, so that a kernel stays usable after its source package is upgraded or removed.
 */
export function findKernel(
  kernel = DEFAULT_KERNEL,
  sourceVersion?: string,
  { cache = cacheFolder(), exact = false } = {},
): BuiltKernel | undefined {
  const recipe = readRecipe(kernel);
  const built = (existsSync(cache) ? readdirSync(cache) : [])
    .map((name) => readKernel(join(cache, name)))
    .filter((found) => found !== undefined)
    .filter((found) => found.directory === kernelFolder(kernel, recipeKey(recipe, found.source), cache));
  const match = built.find((found) => found.source === sourceVersion);
  if (match || exact) return match;
  return built.sort((a, b) => a.version.localeCompare(b.version, 'en', { numeric: true })).at(-1);
}

/** Reads one folder of the cache; undefined for what is not a built kernel. */
export function readKernel(directory: string): BuiltKernel | undefined {
  let meta: { kernel?: unknown; version?: unknown; source?: unknown };
  try {
    meta = JSON.parse(readFileSync(join(directory, META_FILE), 'utf8'));
  } catch {
    return undefined; // a log, a build under way, or something that is not ours
  }
  const { kernel, version, source } = meta;
  if (typeof kernel !== 'string' || typeof version !== 'string' || typeof source !== 'string')
    return undefined;
  return {
    kernel,
    version,
    source,
    directory,
    bzImage: join(directory, 'bzImage'),
    config: join(directory, '.config'),
    headers: join(directory, 'include'),
  };
}

/**
 * The lab: a real kernel with private guest memory on any x86-64 Linux machine. QEMU boots a small kernel built
 * from Debian's source, with the host's own root file system inside, and runs a command there.
 */
import { type Accel, chooseAccel, describeAccel, hostNesting, usualCpus } from './accel.ts';
import { describeEmulator, findEmulator } from './emulator.ts';
import { installedPackages, missingPackages, neededPackages, sourceVersion } from './packages.ts';
import {
  type BuiltKernel,
  cacheFolder,
  DEFAULT_KERNEL,
  findKernel,
  kernelNames,
  readRecipe,
} from './recipe.ts';

export { ACCEL_CHOICES, type Accel, type AccelChoice } from './accel.ts';
export { type BuildOptions, buildKernels } from './build.ts';
export { LabError, type LabErrorCode } from './errors.ts';
export { type Progress, type Report, showProgress } from './progress.ts';
export { type BuiltKernel, DEFAULT_KERNEL, kernelNames } from './recipe.ts';
export { DEFAULT_MEMORY_MIB, DEFAULT_TIMEOUT_MS, type LabResult, type LabRun, runInLab } from './run.ts';

export interface LabStatus {
  /** Every kernel that has a recipe, with what is built of it. */
  readonly kernels: readonly { readonly name: string; readonly built?: BuiltKernel }[];
  readonly cache: string;
  /** Debian packages that are missing to run, and to build the default kernel. */
  readonly missing: { readonly run: readonly string[]; readonly build: readonly string[] };
  /** The QEMU that runs it; undefined if there is none that starts. */
  readonly qemu?: {
    readonly program: string;
    readonly version: string;
    readonly description: string;
    /** Processors of a machine that is not told how many. */
    readonly cpus: number;
  };
  readonly acceleration: { readonly accel: Accel; readonly description: string; readonly whyNotKvm?: string };
}

/** What the lab has here and what it would use. Boots nothing. */
export function labStatus(): LabStatus {
  const installed = installedPackages();
  const source = sourceVersion(installed);
  const names = (packages: readonly { readonly name: string }[]) => packages.map((row) => row.name);
  const host = hostNesting();
  const accel = chooseAccel('auto', host);
  const emulator = findEmulator();
  return {
    kernels: kernelNames().map((name) => {
      const built = findKernel(name, source);
      return built ? { name, built } : { name };
    }),
    cache: cacheFolder(),
    missing: {
      run: names(missingPackages(neededPackages([], emulator?.own), installed)),
      build: names(missingPackages(neededPackages([readRecipe()], emulator?.own), installed)),
    },
    ...(emulator
      ? {
          qemu: {
            program: emulator.program,
            version: emulator.version,
            description: describeEmulator(emulator),
            cpus: usualCpus(accel, emulator),
          },
        }
      : {}),
    acceleration: {
      accel,
      description: describeAccel(accel, host),
      ...('missing' in host ? { whyNotKvm: host.missing } : {}),
    },
  };
}

/** The folder of the headers that a built kernel exports (`linux/kvm.h` is in it); undefined if it is not built. */
export function kernelHeaders(kernel = DEFAULT_KERNEL): string | undefined {
  return findKernel(kernel, sourceVersion())?.headers;
}

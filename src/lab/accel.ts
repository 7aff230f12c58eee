/** Which way the lab's machine runs here: on the host's own nested virtualization, or emulated by QEMU. */
import { accessSync, constants, readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { type Emulator, translatesSafely } from './emulator.ts';
import { LabError } from './errors.ts';

export type Accel = 'kvm' | 'tcg';

export const ACCEL_CHOICES = ['auto', 'kvm', 'tcg'] as const;
export type AccelChoice = (typeof ACCEL_CHOICES)[number];

/** What the host offers: the extension its guests may use themselves, or why there is none. */
export type HostNesting = { readonly extension: 'VMX' | 'SVM' } | { readonly missing: string };

const VENDORS = [
  { module: 'kvm_intel', flag: 'vmx', extension: 'VMX' },
  { module: 'kvm_amd', flag: 'svm', extension: 'SVM' },
] as const;

/**
 * Looks whether a guest of this host can run guests of its own: /dev/kvm opens, the processor has the extension,
 * and the module's `nested` parameter is on. The parameter counts, not the device: KVM runs on hosts without an
 * extension (PVM), where a guest sees none either.
 */
export function hostNesting(): HostNesting {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
  } catch (error) {
    const denied = (error as NodeJS.ErrnoException).code === 'EACCES';
    return { missing: denied ? 'no permission for /dev/kvm (vmexit probe says why)' : 'no /dev/kvm' };
  }
  const flags = new Set(/^flags\s*:(.*)$/m.exec(read('/proc/cpuinfo'))?.[1]?.trim().split(' '));
  const vendor = VENDORS.find((row) => flags.has(row.flag));
  if (!vendor) return { missing: 'the processor has neither VMX nor SVM' };
  const nested = read(`/sys/module/${vendor.module}/parameters/nested`).trim();
  if (nested === 'Y' || nested === '1') return { extension: vendor.extension };
  return {
    missing: nested
      ? `nested virtualization is off: reload ${vendor.module} with nested=1`
      : `the module ${vendor.module} is not loaded`,
  };
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

/** The acceleration to use. Throws ERR_LAB_PLATFORM if `kvm` is asked for and the host cannot. */
export function chooseAccel(choice: AccelChoice, host: HostNesting): Accel {
  if (choice === 'kvm' && 'missing' in host) {
    throw new LabError('ERR_LAB_PLATFORM', `--accel kvm: ${host.missing} (--accel tcg emulates, without it)`);
  }
  return choice === 'tcg' || 'missing' in host ? 'tcg' : 'kvm';
}

/** The most that a machine has unless it is told: what runs in the lab gains nothing from more. */
const USUAL_CPUS = 4;

/**
 * How many processors a machine has unless it is told. An emulated one has two, so that what races in the kernel can
 * race, where QEMU is new enough to have been tried with that (scripts/lab-soak.mjs); else one.
 */
export const usualCpus = (accel: Accel, { version }: Pick<Emulator, 'version'>): number => {
  if (accel === 'kvm') return Math.min(availableParallelism(), USUAL_CPUS);
  return translatesSafely(version) ? 2 : 1;
};

/** In words: `nested VMX (kvm)` or `emulated SVM (tcg)`. */
export function describeAccel(accel: Accel, host: HostNesting): string {
  return accel === 'kvm' && 'extension' in host ? `nested ${host.extension} (kvm)` : 'emulated SVM (tcg)';
}

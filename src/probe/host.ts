/** Why a host lacks what a KVM can have. */
import type { Host } from '../host.ts';

/** Whether a kernel is older than a version such as `6.8`. */
export function isOlder(kernel: string, version: string): boolean {
  const [major = 0, minor = 0] = kernel.split(/[.-]/).map(Number);
  const [wantedMajor = 0, wantedMinor = 0] = version.split('.').map(Number);
  return major < wantedMajor || (major === wantedMajor && minor < wantedMinor);
}

/** What a feature asks of a host, beyond what can be seen by trying it. */
export interface Needs {
  /** The first kernel that has it: `6.8`. */
  readonly since?: string;
  /** An option of the kernel's build. */
  readonly config?: string;
  /** Parameters of KVM's modules that must be on where they exist. */
  readonly parameters?: readonly string[];
}

/** What a VM of type SW_PROTECTED asks for: two-dimensional paging, by the newer of KVM's two MMUs (mmu.c). */
export const swProtected: Needs = {
  since: '6.8',
  config: 'CONFIG_KVM_SW_PROTECTED_VM',
  parameters: ['kvm.tdp_mmu', 'kvm_intel.ept', 'kvm_amd.npt'],
};

const off = new Set(['N', '0']);

/** Why a host cannot have it, as far as that can be told from outside. */
export function whyNot({ since, config, parameters = [] }: Needs, host: Host): string[] {
  if (since !== undefined && isOlder(host.kernel, since)) {
    return [`it came with Linux ${since} and this is ${host.kernel}`];
  }
  const reasons: string[] = [];
  if (config !== undefined && host.config !== undefined && host.config[config] === undefined) {
    reasons.push(`this kernel was built without ${config}`);
  }
  for (const name of parameters) {
    const value = host.parameters[name];
    if (value !== undefined && off.has(value)) reasons.push(`the module parameter ${name} is ${value}`);
  }
  return reasons;
}

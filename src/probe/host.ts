/** What can be known of a host without opening KVM: it explains why something is missing. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { arch, platform, release } from 'node:os';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';

export interface Host {
  readonly platform: string;
  readonly arch: string;
  /** uname -r. */
  readonly kernel: string;
  readonly processor: {
    /** `AuthenticAMD`; undefined where it is not told. */
    readonly vendor: string | undefined;
    /** The flag by which it shows that it can run guests. */
    readonly virtualization: 'vmx' | 'svm' | undefined;
  };
  /** KVM's modules that are loaded or built in: `kvm`, `kvm_amd`. */
  readonly modules: readonly string[];
  /** Their parameters that decide about memory: `kvm.tdp_mmu`: `Y`. */
  readonly parameters: Readonly<Record<string, string>>;
  /** The options of the kernel's build that concern KVM, `y` or `m`; undefined where they are not to be found. */
  readonly config: Readonly<Record<string, string>> | undefined;
  /** Whether /dev/kvm exists. */
  readonly device: boolean;
}

const VENDOR_MODULES = /^kvm(_\w+)?$/;
const PARAMETERS = [
  'kvm.tdp_mmu',
  'kvm_intel.ept',
  'kvm_intel.nested',
  'kvm_intel.tdx',
  'kvm_amd.npt',
  'kvm_amd.nested',
  'kvm_amd.sev',
  'kvm_amd.sev_es',
  'kvm_amd.sev_snp',
] as const;
const OPTION = /^(CONFIG_\w*(?:KVM|GUEST_MEMFD)\w*)=(\w)$/gm;

/**
 * @param root the root folder; tests give one of their own
 * @param kernel what uname tells
 */
export function readHost(root = '/', kernel = release()): Host {
  const text = (...path: string[]): string | undefined => {
    try {
      return readFileSync(join(root, ...path), 'utf8');
    } catch {
      return undefined;
    }
  };
  const cpuinfo = text('proc/cpuinfo') ?? '';
  const flags = new Set(/^flags\s*:(.*)$/m.exec(cpuinfo)?.[1]?.split(' '));
  return {
    platform: platform(),
    arch: arch(),
    kernel,
    processor: {
      vendor: /^vendor_id\s*:\s*(\S+)/m.exec(cpuinfo)?.[1],
      virtualization: (['vmx', 'svm'] as const).find((flag) => flags.has(flag)),
    },
    modules: namesIn(join(root, 'sys/module')).filter((name) => VENDOR_MODULES.test(name)),
    parameters: Object.fromEntries(
      PARAMETERS.flatMap((name) => {
        const value = text('sys/module', name.replace('.', '/parameters/'))?.trim();
        return value === undefined ? [] : [[name, value]];
      }),
    ),
    config: options(configText(root) ?? text('boot', `config-${kernel}`)),
    device: existsSync(join(root, 'dev/kvm')),
  };
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder).sort();
  } catch {
    return [];
  }
}

function configText(root: string): string | undefined {
  try {
    return gunzipSync(readFileSync(join(root, 'proc/config.gz'))).toString();
  } catch {
    return undefined;
  }
}

const options = (config: string | undefined): Record<string, string> | undefined =>
  config === undefined
    ? undefined
    : Object.fromEntries(Array.from(config.matchAll(OPTION), ([, k, v]) => [k, v]));

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

/** Why /dev/kvm is not there, as far as that can be told. */
export function whyNoDevice(host: Host): string | undefined {
  if (host.device) return undefined;
  if (host.config !== undefined && host.config.CONFIG_KVM === undefined) {
    return 'this kernel was built without CONFIG_KVM';
  }
  if (host.processor.virtualization === undefined) {
    return 'the processor shows neither vmx nor svm: virtualization is off in the firmware, or not nested into this VM';
  }
  const module = host.processor.virtualization === 'vmx' ? 'kvm_intel' : 'kvm_amd';
  if (!host.modules.includes(module)) return `the module ${module} is not loaded: modprobe ${module}`;
  return undefined;
}

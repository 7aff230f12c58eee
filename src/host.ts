/** What can be known of a host without opening KVM: it explains why something is missing. */
import { closeSync, constants, existsSync, openSync, readdirSync, readFileSync, readSync } from 'node:fs';
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
  /** Whether KVM has a device at all, though perhaps no node here: /proc/misc lists it. */
  readonly registered: boolean;
  /** What KVM's modules have last said in the kernel's log, where that may be read. */
  readonly log: readonly string[];
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
/** A module's message, as `kvm_amd: SVM not supported by CPU 0`; those about a VM name a process. */
const MESSAGE = /^\d+,\d+,\d+,[^;\n]*;((?:kvm|kvm[_-](?:intel|amd|pvm)): .*)$/gm;
const LAST_MESSAGES = 5;
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
    registered: /^\s*\d+ kvm$/m.test(text('proc/misc') ?? ''),
    log: kernelLog(join(root, 'dev/kmsg')),
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

/** One record a read, and each overwritten one is an error (Documentation/ABI/testing/dev-kmsg). */
function kernelLog(path: string): string[] {
  const found: string[] = [];
  let fd: number | undefined;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const record = Buffer.alloc(8192);
    for (;;) {
      const text = record.toString('utf8', 0, readSync(fd, record));
      if (text === '') break;
      found.push(...Array.from(text.matchAll(MESSAGE), ([, message = '']) => message));
    }
  } catch {
    // EAGAIN is its end; and where it may not be read it tells nothing.
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
  return found.slice(-LAST_MESSAGES);
}

/** Why KVM has no device, and what brings one, as far as that can be told: the cause first. */
export function whyNoDriver({ config, processor, modules, log }: Host): string | undefined {
  const module = processor.virtualization === 'vmx' ? 'kvm_intel' : 'kvm_amd';
  const [last] = log.slice(-1);
  const says = last === undefined ? '' : ` (the kernel's log: "${last}")`;
  if (config !== undefined && config.CONFIG_KVM === undefined)
    return 'this kernel was built without CONFIG_KVM';
  if (processor.virtualization === undefined && modules.includes('kvm_pvm'))
    return `the module kvm_pvm has not bound${says}: it cannot in a guest of PVM, whose own host would have to nest`;
  if (processor.virtualization === undefined) {
    return (
      `the processor shows neither vmx nor svm${says}: turn virtualization on in the firmware, or in a virtual machine ` +
      'have its host nest'
    );
  }
  if (!modules.includes(module)) return `the module ${module} is not loaded${says}: modprobe ${module}`;
  return last === undefined ? undefined : `the module ${module} has not bound${says}`;
}

/** Why /dev/kvm is not there, as far as that can be told. */
export function whyNoDevice(host: Host): string | undefined {
  if (host.device) return undefined;
  if (host.registered)
    return 'this kernel has KVM (/proc/misc lists it), and it is not passed on to where this runs: docker run --device /dev/kvm, or outside of a container: mknod /dev/kvm c 10 232';
  return whyNoDriver(host);
}

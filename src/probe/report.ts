/** Everything the probe knows, as data: what `vmexit probe --json` prints. */

import { type Host, readHost } from '../host.ts';
import { KvmError, UnavailableError, type UnavailableReason } from '../hypervisor/errors.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { Cap } from '../uapi/cap.ts';
import { VmType } from '../uapi/constants.ts';
import { type Feature, features, summaries } from './features.ts';
import { type Needs, swProtected, whyNot } from './host.ts';

export interface FeatureReport {
  readonly name: Feature;
  readonly summary: string;
  readonly available: boolean;
  /** Why not. */
  readonly reason?: string;
}

export interface VmTypeReport {
  readonly name: keyof typeof VmType;
  readonly type: number;
  readonly available: boolean;
  readonly reason?: string;
}

export interface CapabilityReport {
  readonly name: string;
  readonly number: number;
  /** What KVM_CHECK_EXTENSION gives on /dev/kvm. */
  readonly system: number;
  /** What it gives on a VM, by the VM's type: those that this host has. */
  readonly vms: Readonly<Record<string, number>>;
  /** Kernels that people run have given this number to something else: it proves nothing. */
  readonly contested: boolean;
}

export interface ProbeReport {
  readonly host: Host;
  readonly kvm:
    | {
        readonly available: true;
        readonly backend: string;
        readonly apiVersion: number;
        /** Why it is the simulator and not KVM, where either was asked for. */
        readonly fallback?: string;
      }
    | { readonly available: false; readonly reason: UnavailableReason; readonly message: string };
  readonly vmTypes: readonly VmTypeReport[];
  readonly features: readonly FeatureReport[];
  /** Those that are above 0 somewhere. */
  readonly capabilities: readonly CapabilityReport[];
}

/** What the types beyond the ordinary one ask of a host. */
const typeNeeds: { readonly [T in keyof typeof VmType]?: Needs } = {
  SW_PROTECTED: swProtected,
  SEV: { since: '6.10', config: 'CONFIG_KVM_AMD_SEV', parameters: ['kvm_amd.sev'] },
  SEV_ES: { since: '6.10', config: 'CONFIG_KVM_AMD_SEV', parameters: ['kvm_amd.sev_es'] },
  SNP: { since: '6.11', config: 'CONFIG_KVM_AMD_SEV', parameters: ['kvm_amd.sev_snp'] },
  TDX: { since: '6.16', config: 'CONFIG_KVM_INTEL_TDX', parameters: ['kvm_intel.tdx'] },
};

/** The numbers that KVM_CAP_USERFAULT had in one version or another of its series, and what vendors gave others. */
const CONTESTED: ReadonlySet<number> = new Set([236, 239, 240, 243, 245]);

/**
 * Tries everything. Takes some seconds where guests are emulated.
 * @param open opens KVM; what it throws as UnavailableError becomes the report
 */
export function probe(open: () => Hypervisor, host: Host = readHost()): ProbeReport {
  try {
    using hv = open();
    const vmTypes = Object.keys(VmType).map((name) => tryVmType(hv, name as keyof typeof VmType, host));
    return {
      host,
      kvm: {
        available: true,
        backend: hv.backend,
        apiVersion: hv.getApiVersion(),
        ...(hv.fallback === undefined ? {} : { fallback: hv.fallback }),
      },
      vmTypes,
      features: each((name) => features[name](hv)),
      capabilities: capabilities(hv, vmTypes),
    };
  } catch (error) {
    if (!(error instanceof UnavailableError)) throw error;
    const { reason, message } = error;
    return {
      host,
      kvm: { available: false, reason, message },
      vmTypes: [],
      features: each(() => 'KVM cannot be opened'),
      capabilities: [],
    };
  }
}

const each = (whyMissing: (name: Feature) => string | undefined): FeatureReport[] =>
  (Object.keys(features) as Feature[]).map((name) => {
    const reason = whyMissing(name);
    const summary = summaries[name];
    return { name, summary, available: reason === undefined, ...(reason === undefined ? {} : { reason }) };
  });

function tryVmType(hv: Hypervisor, name: keyof typeof VmType, host: Host): VmTypeReport {
  const type = VmType[name];
  try {
    hv.createVm({ type }).close();
    return { name, type, available: true };
  } catch (error) {
    if (!(error instanceof KvmError)) throw error;
    // Of the simulator the host tells nothing.
    const why =
      hv.backend === 'kvm'
        ? whyNot(typeNeeds[name] ?? {}, host).join('; ')
        : 'the simulator has no VMs of this type';
    const reason = `KVM_CREATE_VM failed with ${error.code}${why ? `: ${why}` : ''}`;
    return { name, type, available: false, reason };
  }
}

function capabilities(hv: Hypervisor, vmTypes: readonly VmTypeReport[]): CapabilityReport[] {
  const vms = vmTypes
    .filter(({ available }) => available)
    .map(({ name, type }) => ({ name, vm: hv.createVm({ type }) }));
  try {
    return Object.entries(Cap).flatMap(([name, number]) => {
      const system = hv.checkExtension(number);
      const byType = Object.fromEntries(vms.map(({ name, vm }) => [name, vm.checkExtension(number)]));
      if (system === 0 && Object.values(byType).every((value) => value === 0)) return [];
      return [{ name: `KVM_CAP_${name}`, number, system, vms: byType, contested: CONTESTED.has(number) }];
    });
  } finally {
    for (const { vm } of vms) vm.close();
  }
}

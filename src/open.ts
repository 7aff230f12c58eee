/** The one place that chooses a backend. */
import { object } from './hypervisor/args.ts';
import { outOfRange, UnavailableError, wrongType } from './hypervisor/errors.ts';
import { Hypervisor } from './hypervisor/hypervisor.ts';
import { kvmBackend } from './kvm/backend.ts';
import { type Feature, features, missing } from './probe/features.ts';

export interface OpenOptions {
  /** `kvm`: the kernel. `auto`: the backend that can do all that `needs` names; today that is the kernel or none. */
  readonly backend?: 'auto' | 'kvm';
  /** What the VMM will use. It is tried here, so that a host without it is refused with the reason. */
  readonly needs?: readonly Feature[];
  /** Where KVM is; /dev/kvm without it. */
  readonly device?: string;
}

/**
 * Opens KVM.
 * @throws UnavailableError whose `reason` and message say what is missing: the addon, the device, the permission, or
 *   a feature of `needs`; TypeError or RangeError ERR_KVM_INVALID_ARG
 */
export function openHypervisor(options: OpenOptions = {}): Hypervisor {
  const { backend = 'auto', needs = [], device } = object('options', options);
  if (backend !== 'auto' && backend !== 'kvm') throw outOfRange('backend', backend, "'auto' or 'kvm'");
  if (!Array.isArray(needs)) throw wrongType('needs', needs, 'an array of features');
  for (const need of needs) {
    if (!Object.hasOwn(features, need))
      throw outOfRange('needs', need, `among ${Object.keys(features).join(', ')}`);
  }
  if (device !== undefined && typeof device !== 'string') throw wrongType('device', device, 'a path');
  const hv = new Hypervisor(kvmBackend(device));
  const lacks = missing(hv, needs);
  if (lacks.length === 0) return hv;
  hv.close();
  throw new UnavailableError(
    'feature',
    `this host's KVM lacks ${lacks.map(({ feature, reason }) => `${feature} (${reason})`).join(', ')}`,
  );
}

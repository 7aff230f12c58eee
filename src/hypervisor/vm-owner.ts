/**
 * Who owns a VM: the thread that has made it. It keeps the record of what ioctls have made of the VM's memory and setup, for the
 * kernel cannot be asked. Other threads have the VM for what leaves no such record.
 */
import { VmexitError } from './errors.ts';

const forAll: ReadonlySet<string> = new Set([
  'KVM_CHECK_EXTENSION',
  'KVM_IRQ_LINE',
  'KVM_IRQ_LINE_STATUS',
  'KVM_SIGNAL_MSI',
  'KVM_GET_IRQCHIP',
  'KVM_GET_PIT2',
  'KVM_GET_CLOCK',
  'KVM_SET_CLOCK',
  'KVM_GET_TSC_KHZ',
  'KVM_GET_STATS_FD',
  'KVM_HAS_DEVICE_ATTR',
  'KVM_XEN_HVM_EVTCHN_SEND',
]);

/** The error for what another thread may not do. @param what an ioctl's name, or a method's */
export const refuseToOthers = (what: string): VmexitError | undefined =>
  forAll.has(what)
    ? undefined
    : new VmexitError(
        'ERR_KVM_NOT_OWNER',
        `${what}: a VM's memory and setup belong to the thread that has made it, and this one has opened it by a token: ask that thread`,
      );

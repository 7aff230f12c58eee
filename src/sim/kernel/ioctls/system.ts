/** /dev/kvm (virt/kvm/kvm_main.c, kvm_dev_ioctl). */
import { API_VERSION } from '../../../uapi/constants.ts';
import { msrIndexList } from '../../cpu/system/msrs.ts';
import { type Handlers, Table } from '../abi/dispatch.ts';
import { MMAP_SIZE } from '../abi/kvm-run.ts';
import { checkExtension } from '../host/capabilities.ts';
import { emulatedCpuid, supportedCpuid } from '../host/cpuid.ts';
import type { Host } from '../host/host.ts';
import { KvmVm } from '../vm/vm.ts';

const handlers: Handlers<Host> = {
  KVM_GET_API_VERSION: () => API_VERSION,
  KVM_CHECK_EXTENSION: (host, cap) => checkExtension(host, undefined, cap),
  KVM_GET_VCPU_MMAP_SIZE: () => MMAP_SIZE,
  KVM_GET_SUPPORTED_CPUID: (host, argument) => argument.answer(supportedCpuid(host)),
  KVM_GET_EMULATED_CPUID: (_, argument) => argument.answer(emulatedCpuid),
  KVM_GET_MSR_INDEX_LIST: ({ vendor }, argument) => argument.answer(msrIndexList(vendor)),
  // The host has no features that only an MSR tells.
  KVM_GET_MSR_FEATURE_INDEX_LIST: (_, argument) => argument.answer([]),
  KVM_GET_MSRS: () => 0,
};

export const systemIoctls = new Table(handlers);
export const systemCreates = new Table<Host, KvmVm | number>({
  KVM_CREATE_VM: (host, type) => KvmVm.create(host, type),
});

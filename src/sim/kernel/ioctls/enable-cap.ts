/** KVM_ENABLE_CAP of a VM (x86.c, kvm_vm_ioctl_enable_cap; kvm_main.c, kvm_vm_ioctl_enable_cap_generic). */
import { Cap } from '../../../uapi/cap.ts';
import { Errno } from '../../../uapi/errno.ts';
import { EXIT_HYPERCALLS, QUIRKS } from '../host/capabilities.ts';
import type { KvmVm } from '../vm/vm.ts';

/** What KVM_ENABLE_CAP does to a VM. Capabilities that are informational only are refused. */
const enablers: { readonly [cap: number]: (vm: KvmVm, argument: bigint) => number } = {
  [Cap.EXIT_HYPERCALL]: (vm, bits) => {
    if ((bits & ~BigInt(EXIT_HYPERCALLS)) !== 0n) return -Errno.EINVAL;
    vm.exitHypercalls = Number(bits);
    return 0;
  },
  [Cap.DISABLE_QUIRKS2]: (vm, bits) => {
    if ((bits & ~BigInt(QUIRKS)) !== 0n) return -Errno.EINVAL;
    if (bits !== 0n) vm.memory.zapsAll = false; // a quirk that is off stays so
    return 0;
  },
  [Cap.X86_USER_SPACE_MSR]: (vm, reasons) => vm.msrPolicy.enable(reasons),
  [Cap.MANUAL_DIRTY_LOG_PROTECT2]: (vm, options) => vm.memory.dirty.setManual(options),
  [Cap.EXCEPTION_PAYLOAD]: (vm, on) => {
    vm.exceptionPayload = on !== 0n;
    return 0;
  },
};

export function enableVmCap(vm: KvmVm, cap: number, flags: number, argument: bigint): number {
  // The generic part of KVM does not look at these two's flags.
  if (cap === Cap.DIRTY_LOG_RING || cap === Cap.DIRTY_LOG_RING_ACQ_REL)
    return vm.memory.dirty.enableRing(argument, vm.vcpuIds.size > 0);
  if (flags !== 0) return -Errno.EINVAL;
  return enablers[cap]?.(vm, argument) ?? -Errno.EINVAL;
}

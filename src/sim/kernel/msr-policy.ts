/** What a VM does with its guests' accesses to MSRs (arch/x86/kvm/x86.c, kvm_msr_user_space). */
import { MsrExitReason } from '../../uapi/constants.ts';
import { Errno } from '../../uapi/errno.ts';
import type { MsrPolicy } from '../cpu/processor.ts';

const { INVAL, UNKNOWN, FILTER } = MsrExitReason;
export const MSR_EXIT_REASONS = INVAL | UNKNOWN | FILTER;

export class VmMsrPolicy implements MsrPolicy {
  exits = 0;

  /** KVM_CAP_X86_USER_SPACE_MSR. */
  enable(reasons: bigint): number {
    if ((reasons & ~BigInt(MSR_EXIT_REASONS)) !== 0n) return -Errno.EINVAL;
    this.exits = Number(reasons);
    return 0;
  }

  allows(_index: number, _write: boolean): boolean {
    return true;
  }
}

/** What a return of KVM_RUN means. */
import { Errno } from './errno.ts';
import { Exit } from './exit.ts';

/** How an ABI tells of a memory fault: what KVM_RUN returns, and beside it which exit_reason. */
export interface FaultSignal {
  /** kvm_run.exit_reason. */
  readonly exitReason: number;
  /** The result of the ioctl, a negated errno if it failed. */
  readonly result: number;
  /** The result for a page with a hardware memory error; null where the ABI has none. */
  readonly poisonedResult: number | null;
}

/** api.rst, KVM_CAP_MEMORY_FAULT_INFO. */
export const mainlineFault: FaultSignal = {
  exitReason: Exit.MEMORY_FAULT,
  result: -Errno.EFAULT,
  poisonedResult: -Errno.EHWPOISON,
};

/**
 * The outcome of one KVM_RUN: an exit number, or one of the negative numbers of `Exit`; null when it is neither
 * and must be thrown as the error that `result` names. Allocates nothing.
 *
 * exit_reason is a fact only beside success and beside a memory fault. Whatever else ends KVM_RUN leaves there
 * what an earlier run, or a failed KVM_PRE_FAULT_MEMORY, wrote: EINTR can come with MEMORY_FAULT standing, and so
 * can ENOMEM from a guest_memfd. Nor does MEMORY_FAULT beside success tell of one.
 *
 * @param result what the ioctl returned: 0 or more, or a negated errno
 * @param exitReason kvm_run.exit_reason after it
 */
export function outcomeOf(
  result: number,
  exitReason: number,
  signal: FaultSignal = mainlineFault,
): number | null {
  if (exitReason === signal.exitReason) {
    if (result === signal.result) return Exit.MEMORY_FAULT;
    if (result === signal.poisonedResult) return Exit.MEMORY_POISONED;
  }
  if (result >= 0) {
    return exitReason === signal.exitReason || exitReason === Exit.MEMORY_FAULT ? null : exitReason;
  }
  if (result === Exit.INTERRUPTED || result === Exit.AGAIN || result === Exit.FAULT) return result;
  return null;
}

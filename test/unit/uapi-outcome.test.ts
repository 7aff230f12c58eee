import { describe, expect, it } from 'vitest';
import { Errno, Exit, outcomeOf } from '../../src/uapi/index.ts';

const { EFAULT, EHWPOISON, EINTR, EAGAIN, ENOMEM, EINVAL, EIO, EPERM, ENOSYS, ETIME } = Errno;

describe('what KVM_RUN returned means', () => {
  it.each([
    ['success is the exit reason', 0, Exit.IO, Exit.IO],
    ['success with a reason newer than the table is that number', 0, 77, 77],
    ['a positive result is success', 1, Exit.HLT, Exit.HLT],
    ['success beside exit reason 0 is KVM_EXIT_UNKNOWN', 0, Exit.UNKNOWN, Exit.UNKNOWN],
    ['EFAULT with MEMORY_FAULT is a memory fault', -EFAULT, Exit.MEMORY_FAULT, Exit.MEMORY_FAULT],
    ['EHWPOISON with MEMORY_FAULT is a poisoned page', -EHWPOISON, Exit.MEMORY_FAULT, Exit.MEMORY_POISONED],
    ['EFAULT with another reason is an EFAULT without information', -EFAULT, Exit.UNKNOWN, Exit.FAULT],
    ['EFAULT with a stale MMIO exit is an EFAULT without information', -EFAULT, Exit.MMIO, Exit.FAULT],
    ['EINTR is an interruption', -EINTR, Exit.INTR, Exit.INTERRUPTED],
    ['EINTR with a stale memory fault is an interruption', -EINTR, Exit.MEMORY_FAULT, Exit.INTERRUPTED],
    ['EINTR with a stale MMIO exit is an interruption', -EINTR, Exit.MMIO, Exit.INTERRUPTED],
    ['EAGAIN is a vCPU that cannot run', -EAGAIN, Exit.UNKNOWN, Exit.AGAIN],
    ['EAGAIN with a stale memory fault is a vCPU that cannot run', -EAGAIN, Exit.MEMORY_FAULT, Exit.AGAIN],
  ])('%s', (_, result, exitReason, outcome) => {
    expect(outcomeOf(result, exitReason)).toBe(outcome);
  });

  it.each([
    ['EHWPOISON without fault information', -EHWPOISON, Exit.MMIO],
    ['ENOMEM with a memory fault standing', -ENOMEM, Exit.MEMORY_FAULT],
    ['EINVAL with a memory fault standing', -EINVAL, Exit.MEMORY_FAULT],
    ['EIO', -EIO, Exit.UNKNOWN],
    ['EPERM', -EPERM, Exit.HLT],
    ['ENOSYS', -ENOSYS, Exit.HLT],
    ['ETIME, which the kernel does not return', -ETIME, Exit.HLT],
    ['success with a memory fault standing', 0, Exit.MEMORY_FAULT],
  ])('%s is an error to throw', (_, result, exitReason) => {
    expect(outcomeOf(result, exitReason)).toBeNull();
  });

  it('is a memory fault for no errno but EFAULT and EHWPOISON', () => {
    const faults = Object.values(Errno).filter((errno) => {
      const outcome = outcomeOf(-errno, Exit.MEMORY_FAULT);
      return outcome === Exit.MEMORY_FAULT || outcome === Exit.MEMORY_POISONED;
    });
    expect(faults).toEqual([EFAULT, EHWPOISON]);
  });

  it('is never a memory fault beside an exit reason that is not one', () => {
    for (const exitReason of Object.values(Exit).filter((reason) => reason >= 0)) {
      if (exitReason === Exit.MEMORY_FAULT) continue;
      for (const result of [0, ...Object.values(Errno).map((errno) => -errno)]) {
        expect([Exit.MEMORY_FAULT, Exit.MEMORY_POISONED]).not.toContain(outcomeOf(result, exitReason));
      }
    }
  });
});

/** Sessions that are recorded in memory, and fail where a test wants them to. */
import type { Backend } from '../../src/hypervisor/backend.ts';
import { Hypervisor, type ReplayError } from '../../src/index.ts';
import { simulator } from '../../src/open.ts';
import { recordingBackend } from '../../src/replay/record.ts';
import { Memo } from '../../src/replay/records.ts';

/** Runs a VMM on the simulator, or on what the test puts in its place, and keeps what went over the waist. */
export function recorded<T>(
  vmm: (hv: Hypervisor) => T,
  inner: Backend = simulator(),
): { readonly memo: Memo; readonly result: T } {
  const memo = new Memo();
  const hv = new Hypervisor(recordingBackend(inner, memo));
  const result = vmm(hv);
  if (!(result instanceof Promise)) hv.close();
  return { memo, result };
}

/** What a call throws. */
export function failureOf(call: () => unknown): ReplayError {
  try {
    call();
  } catch (error) {
    return error as ReplayError;
  }
  throw new Error('nothing was thrown');
}

/** What any thread may ask of a vCPU at any time, by its number. */
import { Errno } from '../uapi/errno.ts';
import { integer } from './args.ts';
import type { Backend } from './backend.ts';
import { KvmError, outOfRange } from './errors.ts';
import { EventFd } from './event-fd.ts';

/** A control's answer. @throws RangeError ERR_KVM_INVALID_ARG for a vCPU of the simulator that this thread cannot reach */
function reached<T>(kickId: number, answer: T | undefined): T {
  if (answer !== undefined) return answer;
  const remedy =
    'a vCPU that this thread can reach: import vmexit before the worker is started, where it is started';
  throw outOfRange('kickId', kickId, remedy);
}

export const kick = (backend: Backend, kickId: number): boolean =>
  reached(kickId, backend.kick(integer('kickId', kickId)));

export const stop = (backend: Backend, kickId: number): boolean =>
  reached(kickId, backend.stop(integer('kickId', kickId)));

export async function pause(backend: Backend, kickId: number): Promise<boolean> {
  const answer = reached(kickId, backend.pause(integer('kickId', kickId)));
  if (answer === -Errno.ESRCH) return false;
  if (answer < 0) throw new KvmError(answer, 'pause');
  if (answer > 0) await acknowledgement(backend, kickId);
  return true;
}

/** Of a pause that was not acknowledged at once. Where it cannot be waited for, the pause is undone. */
async function acknowledgement(backend: Backend, kickId: number): Promise<void> {
  let acknowledged: EventFd | undefined;
  try {
    // Another pause, by which the eventfd is told; one of the two is enough then.
    acknowledged = EventFd.create(backend, {});
    const answer = backend.pause(kickId, acknowledged.fd.handle)!;
    if (answer < 0 && answer !== -Errno.ESRCH) throw new KvmError(answer, 'pause');
    backend.resume(kickId);
    if (answer > 0) await acknowledged.wait();
  } catch (error) {
    backend.resume(kickId);
    throw error;
  } finally {
    acknowledged?.close();
  }
}

export function resume(backend: Backend, kickId: number): boolean {
  const answer = reached(kickId, backend.resume(integer('kickId', kickId)));
  if (answer === 0) return true;
  if (answer === -Errno.ESRCH) return false;
  throw new KvmError(answer, 'resume', undefined, 'the vCPU is not paused: resume() undoes one pause()');
}

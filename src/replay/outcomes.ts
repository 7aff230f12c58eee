/** What has come of a call, as a record has it and as a replay puts it back: an error, and what the kernel wrote. */
import type { Reference } from '../hypervisor/backend.ts';
import { KvmError, VmexitError } from '../hypervisor/errors.ts';
import type { Ioctl } from '../uapi/ioctls.ts';
import type { Value } from './codec.ts';

/** An error as a record has it. */
export function thrown(error: unknown): Value {
  const { name, message, code, errno, syscall, request } = error as KvmError;
  return { name, message, code, ...(error instanceof KvmError && { errno, syscall, request }) };
}

/** What the recorded call threw. */
export function rethrown({ name, message, code, errno, syscall, request }: { [name: string]: Value }): Error {
  const text = String(message);
  if (typeof errno === 'number') {
    const error = new KvmError(errno, String(syscall), request as string | undefined);
    error.message = text;
    return error;
  }
  if (name === 'TypeError' || name === 'RangeError') {
    const error = name === 'TypeError' ? new TypeError(text) : new RangeError(text);
    return code === undefined ? error : Object.assign(error, { code });
  }
  if (typeof code === 'string' && code.startsWith('ERR_KVM_')) return new VmexitError(code as never, text);
  return Object.assign(new Error(text), code === undefined ? {} : { code });
}

/** What the kernel wrote into the argument and into bytes that it refers to. */
export function answers(
  row: Ioctl | undefined,
  argument: number | bigint | Uint8Array | undefined,
  references: readonly Reference[],
): readonly Value[] {
  const reads = argument instanceof Uint8Array && row?.dir !== 'write';
  return [
    reads ? argument.slice() : undefined,
    references.map((reference) => (reference instanceof Uint8Array ? reference.slice() : undefined)),
  ];
}

/** Puts the kernel's answers where the VMM looks for them. */
export function fill(
  argument: number | bigint | Uint8Array | undefined,
  references: readonly Reference[],
  [answer, bytes]: readonly Value[],
): void {
  if (argument instanceof Uint8Array && answer instanceof Uint8Array) argument.set(answer);
  references.forEach((reference, i) => {
    const answered = (bytes as Value[] | undefined)?.[i];
    if (reference instanceof Uint8Array && answered instanceof Uint8Array) reference.set(answered);
  });
}

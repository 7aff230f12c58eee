/** An error as plain data, and the error again: for what another thread has thrown, or a recorded session. */
import { type ErrorCode, KvmError, VmexitError } from './errors.ts';

/** What is kept of an error. Of anything else that was thrown, its text. */
export interface ErrorData {
  readonly [name: string]: string | number | undefined;
  readonly name: string;
  readonly message: string;
  readonly code?: string | undefined;
  /** These three of a KvmError. */
  readonly errno?: number;
  readonly syscall?: string;
  readonly request?: string | undefined;
}

export function dataOf(thrown: unknown): ErrorData {
  if (!(thrown instanceof Error)) return { name: 'Error', message: String(thrown) };
  const { name, message } = thrown;
  const { code } = thrown as { code?: unknown };
  const data = { name, message, ...(typeof code === 'string' && { code }) };
  if (!(thrown instanceof KvmError)) return data;
  const { errno, syscall, request } = thrown;
  return { ...data, errno, syscall, ...(request !== undefined && { request }) };
}

export function errorOf({ name, message, code, errno, syscall, request }: ErrorData): Error {
  if (errno !== undefined) {
    const error = new KvmError(errno, syscall!, request);
    error.message = message;
    return error;
  }
  if (code?.startsWith('ERR_KVM_') && name !== 'TypeError' && name !== 'RangeError')
    return new VmexitError(code as ErrorCode, message);
  const types: { readonly [name: string]: ErrorConstructor } = { TypeError, RangeError };
  const error = new (types[name] ?? Error)(message);
  return code === undefined ? error : Object.assign(error, { code });
}

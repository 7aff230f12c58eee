/** The errors of this package. Each has a `code`; none is thrown after something was changed. */
import { errnoName } from '../uapi/errno.ts';

/** The `code` of errors that are not an errno's. A KvmError has the errno's name instead. */
export type ErrorCode =
  /** Where guest memory's pages come from is not there, too short, too slow, or has failed. */
  | 'ERR_KVM_SOURCE'
  /** A pager that was stopped with pages missing. */
  | 'ERR_KVM_PAGER'
  /** An argument of the wrong type or out of range. A TypeError or a RangeError carries it. */
  | 'ERR_KVM_INVALID_ARG'
  /** A handle that was closed. */
  | 'ERR_KVM_CLOSED'
  /** The backend cannot be had on this host, or not with what was asked of it. */
  | 'ERR_KVM_UNAVAILABLE'
  /** The addon cannot be built here: the message says what is missing. */
  | 'ERR_KVM_SETUP'
  /** A guest that cannot be loaded: missing, empty, truncated, too large, of an unknown format. */
  | 'ERR_KVM_BAD_GUEST'
  /** The same memory fault again and again, with no change in between. */
  | 'ERR_KVM_NO_PROGRESS'
  /** A memory fault or a conversion that policy, or the lack of backing, refuses. */
  | 'ERR_KVM_REFUSED'
  /** A machine whose state cannot be saved: the message says what of it. */
  | 'ERR_KVM_NOT_SAVABLE'
  /** A snapshot that cannot be read: no such file, truncated, altered, of another version, for another host. */
  | 'ERR_KVM_SNAPSHOT'
  /** A trace that cannot be written: a full disk, most often. */
  | 'ERR_KVM_TRACE'
  /** Another thread runs the vCPU, or start() does. */
  | 'ERR_KVM_VCPU_RUNNING'
  /** What only the thread may do that has made the VM. */
  | 'ERR_KVM_NOT_OWNER'
  /** A guest that could not be handed over: the peer is gone, silent, of another version, or sends what it must not. */
  | 'ERR_KVM_MIGRATION'
  /** What a recording cannot have faithfully: the message names it. */
  | 'ERR_KVM_UNRECORDABLE'
  /** A recording that cannot be written: a full disk, most often. */
  | 'ERR_KVM_RECORDING'
  /** A replay that cannot go on, or a recording that cannot be read: a ReplayError says where and how. */
  | 'ERR_KVM_REPLAY';

/** A system call that the kernel (or the simulator, with the same errno) refused. */
export class KvmError extends Error {
  /** `KvmError`. */
  override readonly name = 'KvmError';
  /** The errno's name, as Node's own errors have it: `EINVAL`. */
  readonly code: string;
  /** Negative, as Node's own errors have it: -22. */
  readonly errno: number;
  /** `ioctl`, `mmap`, `fallocate`, ... */
  readonly syscall: string;
  /** The ioctl's name: `KVM_SET_USER_MEMORY_REGION2`; undefined for other calls. */
  readonly request: string | undefined;

  /**
   * @param result what the call gave: a negated errno
   * @param remedy what the caller can do about it; names the value that is at fault where that is known
   */
  constructor(result: number, syscall: string, request?: string, remedy?: string) {
    const code = errnoName(-result);
    super(`${request ?? syscall} failed with ${code}${remedy ? `: ${remedy}` : ''}`);
    this.code = code;
    this.errno = result;
    this.syscall = syscall;
    this.request = request;
  }
}

/** A failure that is not an errno's. */
export class VmexitError extends Error {
  /** The class's name: `VmexitError`, or that of the subclass. */
  override readonly name: string = 'VmexitError';
  /** What kind of failure it is: for programs; the message is for people. */
  readonly code: ErrorCode;

  /**
   * @param code what kind of failure it is
   * @param message what failed, and what helps
   */
  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** Why a backend cannot be had. */
export type UnavailableReason =
  /** The addon is not built, or does not load here; the device is there. */
  | 'addon'
  /** /dev/kvm is not there, or is something else. */
  | 'device'
  /** /dev/kvm is there and may not be opened. */
  | 'permission'
  /** KVM is there and lacks something that `needs` names. */
  | 'feature'
  /** Another operating system or processor. */
  | 'platform';

/**
 * A backend or a feature that this host does not have: code ERR_KVM_UNAVAILABLE, and `reason` says what is
 * missing.
 */
export class UnavailableError extends VmexitError {
  /** `UnavailableError`. */
  override readonly name = 'UnavailableError';
  /** What is missing: the message says what to do about it. */
  readonly reason: UnavailableReason;

  /**
   * @param reason what is missing
   * @param message the same for people, with the remedy
   */
  constructor(reason: UnavailableReason, message: string, options?: ErrorOptions) {
    super('ERR_KVM_UNAVAILABLE', message, options);
    this.reason = reason;
  }
}

/** A migration that has failed. */
export class MigrationError extends VmexitError {
  /** `MigrationError`. */
  override readonly name = 'MigrationError';
  /**
   * At the source: whether the destination may have begun to run the guest, so that it must not run on here. All of its
   * memory is still here.
   */
  readonly handedOver: boolean;

  /**
   * @param message what failed
   * @param options `handedOver`: whether the destination may have begun to run the guest; false without it
   */
  constructor(message: string, options: ErrorOptions & { readonly handedOver?: boolean } = {}) {
    super('ERR_KVM_MIGRATION', message, options);
    this.handedOver = options.handedOver ?? false;
  }
}

/** The error for the use of something that was closed: VmexitError ERR_KVM_CLOSED. `what` names it. */
export const closed = (what: string): VmexitError =>
  new VmexitError('ERR_KVM_CLOSED', `this ${what} was closed and cannot be used any more`);

const shown = (value: unknown): string => {
  if (typeof value === 'number' && Number.isInteger(value) && Math.abs(value) > 4095) {
    return `${value < 0 ? '-' : ''}0x${Math.abs(value).toString(16)}`;
  }
  if (typeof value === 'bigint') return `0x${BigInt.asUintN(64, value).toString(16)}`;
  if (typeof value === 'string') return JSON.stringify(value);
  if (typeof value === 'function') return 'a function';
  if (value === null || typeof value !== 'object') return String(value);
  return `an object of class ${value.constructor?.name ?? 'Object'}`;
};

function invalid<E extends Error>(error: E): E {
  return Object.assign(error, { code: 'ERR_KVM_INVALID_ARG' as const });
}

/** For an argument of the wrong type. `expected` says what it must be. */
export const wrongType = (name: string, value: unknown, expected: string): TypeError =>
  invalid(new TypeError(`${name} is ${shown(value)}; it must be ${expected}`));

/** For an argument of the right type with a value that cannot be. `expected` says what it must be. */
export const outOfRange = (name: string, value: unknown, expected: string): RangeError =>
  invalid(new RangeError(`${name} is ${shown(value)}; it must be ${expected}`));

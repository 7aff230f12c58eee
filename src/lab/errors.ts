/**
 * Why the lab could not do what was asked:
 *
 * - `ERR_LAB_ARGUMENT`: an argument is wrong; nothing was started.
 * - `ERR_LAB_PLATFORM`: this machine is not x86-64 Linux, or lacks the acceleration asked for.
 * - `ERR_LAB_PACKAGES`: programs or packages are missing; the message names them and how to get them.
 * - `ERR_LAB_BUILD`: the kernel's build failed; the message names the log.
 * - `ERR_LAB_NOT_BUILT`: there is no kernel to boot yet.
 * - `ERR_LAB_BOOT`: QEMU or the kernel ended, or stood still, before the command started.
 * - `ERR_LAB_DIED`: the machine ended under the running command: a panic, a reboot, QEMU killed.
 * - `ERR_LAB_EMULATOR`: QEMU itself crashed, by SIGSEGV or the like. To start again may help.
 * - `ERR_LAB_TIMEOUT`: the time limit passed; the machine was ended.
 * - `ERR_LAB_ABORTED`: the caller's signal was raised; everything started was ended and removed.
 */
export type LabErrorCode =
  | 'ERR_LAB_ARGUMENT'
  | 'ERR_LAB_PLATFORM'
  | 'ERR_LAB_PACKAGES'
  | 'ERR_LAB_BUILD'
  | 'ERR_LAB_NOT_BUILT'
  | 'ERR_LAB_BOOT'
  | 'ERR_LAB_DIED'
  | 'ERR_LAB_EMULATOR'
  | 'ERR_LAB_TIMEOUT'
  | 'ERR_LAB_ABORTED';

/** Every failure of the lab itself. A command that fails inside the lab is not one: its status is a result. */
export class LabError extends Error {
  override readonly name = 'LabError';
  readonly code: LabErrorCode;

  constructor(code: LabErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** Why the KVM device cannot be had. */
import { accessSync, constants, statSync } from 'node:fs';
import { UnavailableError } from '../hypervisor/errors.ts';
import { Errno, errnoName } from '../uapi/errno.ts';

/** open(2)'s errnos for the device, each with what to do about it. */
const known: { readonly [errno: number]: (device: string) => UnavailableError } = {
  [Errno.ENOENT]: (device) =>
    new UnavailableError(
      'device',
      `${device} does not exist: load kvm_intel or kvm_amd, and let the firmware (or the host, for a nested VM) enable virtualization`,
    ),
  [Errno.EACCES]: (device) =>
    new UnavailableError(
      'permission',
      `${device} may not be opened by this user: join its group (usermod -aG kvm USER, then log in again)`,
    ),
};
const others = new Map<number, number>([
  [Errno.EPERM, Errno.EACCES],
  [Errno.ENXIO, Errno.ENOENT],
  [Errno.ENODEV, Errno.ENOENT],
]);

/** Why KVM cannot be opened there. @param errno what opening it gave */
export function refusal(device: string, errno: number): UnavailableError {
  const why = known[errno] ?? known[others.get(errno) ?? 0];
  if (why) return why(device);
  const other = isFile(device) ? 'it is a regular file, not a device' : errnoName(errno);
  return new UnavailableError('device', `${device} cannot be opened as KVM: ${other}`);
}

/** What the file system alone tells to be wrong with the device; undefined where it may well be KVM's. */
export function problemOf(device: string): UnavailableError | undefined {
  try {
    accessSync(device, constants.R_OK | constants.W_OK);
  } catch (error) {
    const { errno } = error as NodeJS.ErrnoException;
    return errno === undefined ? undefined : refusal(device, -errno);
  }
  return isFile(device) ? refusal(device, Errno.ENOTTY) : undefined;
}

function isFile(path: string): boolean {
  try {
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

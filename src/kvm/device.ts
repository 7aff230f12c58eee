/** Why the KVM device cannot be had: the cause first, then what helps. */
import { accessSync, constants, readFileSync, type Stats, statSync } from 'node:fs';
import { join } from 'node:path';
import { type Host, readHost, whyNoDevice, whyNoDriver } from '../host.ts';
import { UnavailableError, type UnavailableReason } from '../hypervisor/errors.ts';
import { Errno, errnoName } from '../uapi/errno.ts';

/** What is at a path. */
export interface Node {
  /** Undefined for a character device. */
  readonly other: string | undefined;
  /** `10:232`, for a device. */
  readonly number: string;
  readonly uid: number;
  readonly gid: number;
  /** The permission bits. */
  readonly mode: number;
}

/** KVM_MINOR of the misc devices (include/linux/miscdevice.h). */
const KVM_NUMBER = '10:232';

const kinds: readonly (readonly [is: (stats: Stats) => boolean, what: string])[] = [
  [(stats) => stats.isFile(), 'it is a regular file, not a device'],
  [(stats) => stats.isDirectory(), 'it is a folder, not a device'],
  [(stats) => !stats.isCharacterDevice(), 'it is no character device'],
];

/** Undefined where there is nothing, or nothing that may be looked at. */
export function nodeAt(path: string): Node | undefined {
  try {
    const stats = statSync(path);
    const { rdev, uid, gid, mode } = stats;
    // As in glibc's gnu_dev_major() and gnu_dev_minor(), as far as Linux uses them.
    const number = `${(rdev >>> 8) & 0xfff}:${(rdev & 0xff) | ((rdev >>> 12) & 0xfff00)}`;
    return { other: kinds.find(([is]) => is(stats))?.[1], number, uid, gid, mode: mode & 0o777 };
  } catch {
    return undefined;
  }
}

/** Where the reasons are read from; tests give their own. */
export interface Surroundings {
  readonly node?: Node | undefined;
  /** The folder that has etc/passwd and etc/group. */
  readonly root?: string;
  readonly host?: Host;
  /** Of the process: what CI services set. */
  readonly env?: Readonly<Record<string, string | undefined>>;
}

type Explain = (device: string, around: Required<Surroundings>) => readonly [UnavailableReason, string];

/** The name of a user or a group; undefined for one that has none here, as in containers. */
function nameOf(id: number, root: string, file: 'passwd' | 'group'): string | undefined {
  try {
    const line = new RegExp(`^([^:\n]+):[^:\n]*:${id}(?::|$)`, 'm');
    return line.exec(readFileSync(join(root, 'etc', file), 'utf8'))?.[1];
  } catch {
    return undefined;
  }
}

const GROUP_RW = 0o060;
/** Beside each reason, for those who cannot turn to the machine itself. */
const onCi = (env: Required<Surroundings>['env'], hint: string) =>
  env.CI || env.GITHUB_ACTIONS ? `; on a CI runner: ${hint}` : '';

const closed: Explain = (device, { node, root, env }) => {
  if (node === undefined)
    return ['permission', `${device} may not be opened by this user, nor looked at: its folder is closed`];
  const group = nameOf(node.gid, root, 'group');
  const owner = nameOf(node.uid, root, 'passwd') ?? `user ${node.uid}`;
  const is = `it is ${owner}'s, group ${group ?? node.gid}, mode ${node.mode.toString(8).padStart(4, '0')}`;
  const give = `chgrp kvm ${device}; chmod 0660 ${device} (a udev rule keeps it), or run as its owner`;
  const helps =
    (node.mode & GROUP_RW) !== GROUP_RW
      ? `its group may not either: ${give}`
      : node.gid === 0
        ? `nobody should join that group: ${give}`
        : group === undefined
          ? `its group has no name here, as in a container: docker run --group-add ${node.gid}`
          : `join its group (usermod -aG ${group} USER, then log in again)`;
  const hint = onCi(env, `sudo chmod 0666 ${device} as a step before`);
  return ['permission', `${device} may not be opened by this user: ${is}; ${helps}${hint}`];
};

const missing: Explain = (device, { host, env }) => {
  const elsewhere = host.device ? '/dev/kvm does' : undefined;
  const generally =
    'load kvm_intel or kvm_amd, and let the firmware (or the host, for a nested VM) enable virtualization';
  const hint = onCi(env, "one whose host nests, as GitHub's for Linux on x86-64 do");
  return ['device', `${device} does not exist: ${elsewhere ?? whyNoDevice(host) ?? generally}${hint}`];
};

const driverless: Explain = (device, { host }) => {
  const why =
    whyNoDriver(host) ?? "load kvm_intel or kvm_amd; the kernel's log says why that fails (dmesg | grep kvm)";
  return ['device', `${device} is there, and KVM is not behind it: ${why}`];
};

const forbidden: Explain = (device) => [
  'permission',
  `${device} may not be opened here: a container's rules for devices, or a security module, forbid it (docker run --device ${device})`,
];

/** open(2)'s errnos for the device. */
const known: { readonly [errno: number]: Explain } = {
  [Errno.ENOENT]: missing,
  [Errno.EACCES]: closed,
  [Errno.EPERM]: forbidden,
  [Errno.ENXIO]: driverless,
  [Errno.ENODEV]: driverless,
};

const noKvm =
  (errno: number): Explain =>
  (device, { node }) => {
    const other =
      node?.number === KVM_NUMBER
        ? undefined
        : `it is another device (${node?.number}, and KVM's is ${KVM_NUMBER})`;
    return ['device', `${device} cannot be opened as KVM: ${node?.other ?? other ?? errnoName(errno)}`];
  };

/** Why KVM cannot be opened there. @param errno what opening it gave */
export function refusal(device: string, errno: number, around: Surroundings = {}): UnavailableError {
  const { node = nodeAt(device), root = '/', env = process.env } = around;
  const explain = node?.other === undefined ? known[errno] : errno === Errno.EACCES ? closed : undefined;
  // The host is read by those who look at it: its log may be long.
  const all = {
    node,
    root,
    env,
    get host() {
      return around.host ?? readHost();
    },
  };
  return new UnavailableError(...(explain ?? noKvm(errno))(device, all as Required<Surroundings>));
}

/** What the file system alone tells to be wrong with the device; undefined where it may well be KVM's. */
export function problemOf(device: string): UnavailableError | undefined {
  try {
    accessSync(device, constants.R_OK | constants.W_OK);
  } catch (error) {
    const { errno } = error as NodeJS.ErrnoException;
    return errno === undefined ? undefined : refusal(device, -errno);
  }
  return nodeAt(device)?.other === undefined ? undefined : refusal(device, Errno.ENOTTY);
}

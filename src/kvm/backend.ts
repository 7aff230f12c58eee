/** The kernel as a backend: the addon's functions, and why /dev/kvm cannot be had. */
import type { Backend, Handle, MemoryToken } from '../hypervisor/backend.ts';
import { KvmError, UnavailableError } from '../hypervisor/errors.ts';
import { Errno, errnoName } from '../uapi/errno.ts';
import { loadNative } from './native.ts';

/** open(2)'s errnos for the device, each with what to do about it. */
const unavailable: { readonly [errno: number]: (device: string) => UnavailableError } = {
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
const others = new Map([
  [Errno.EPERM, Errno.EACCES],
  [Errno.ENXIO, Errno.ENOENT],
  [Errno.ENODEV, Errno.ENOENT],
]);

/** @throws UnavailableError when the addon cannot be loaded */
export function kvmBackend(device = '/dev/kvm'): Backend {
  const native = loadNative();
  return {
    name: 'kvm',
    open(): Handle {
      const handle = native.open(device);
      if (typeof handle !== 'number') return handle;
      const known = unavailable[-handle] ?? unavailable[others.get(-handle as never) ?? 0];
      throw known
        ? known(device)
        : new UnavailableError('device', `${device} cannot be opened as KVM: ${errnoName(-handle)}`);
    },
    ioctl: native.ioctl,
    create: native.create,
    setMemoryRegion: native.setMemoryRegion,
    allocate: native.allocate,
    reserve: native.reserve,
    mapGuestMemfd: native.mapGuestMemfd,
    share(memory): MemoryToken {
      const inode = native.inode(memory);
      if (inode < 0) throw new KvmError(inode, 'fstat');
      return { backend: 'kvm', fd: native.fd(memory), inode };
    },
    openMemory: (token) => native.openMemory(token.fd, token.inode),
    bytes: (handle) => new Uint8Array(native.buffer(handle)),
    write: native.write,
    read: native.read,
    fallocate: native.fallocate,
    seek: native.seek,
    madvise: native.madvise,
    userfaults: {
      create: native.userfaultfd,
      share(userfaultfd) {
        const token = native.shareUserfaultfd(userfaultfd);
        return typeof token === 'number' ? token : { backend: 'kvm', ...token };
      },
      open: ({ fd, inode, base, size }) => native.openUserfaultfd(fd, inode, base, size),
      fill: native.fillPages,
      zero: native.zeroPages,
      wake: native.wakePages,
      read: native.readFaults,
      watch: native.watchFaults,
    },
    runner: native.runner,
    kickId: native.kickId,
    kick: native.kick,
    close: native.close,
  };
}

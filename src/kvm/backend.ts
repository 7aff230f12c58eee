/** The kernel as a backend: the addon's functions. */
import type { Backend, Handle, MemoryToken } from '../hypervisor/backend.ts';
import { KvmError, UnavailableError } from '../hypervisor/errors.ts';
import { problemOf, refusal } from './device.ts';
import { loadNative, type Native } from './native.ts';

/** The addon. Where it cannot be had and the device neither, the device is what its user has to hear of. */
function addonFor(device: string): Native {
  try {
    return loadNative();
  } catch (error) {
    const isAddon = error instanceof UnavailableError && error.reason === 'addon';
    throw (isAddon && problemOf(device)) || error;
  }
}

/** @throws UnavailableError when the addon cannot be loaded */
export function kvmBackend(device = '/dev/kvm'): Backend {
  const native = addonFor(device);
  return {
    name: 'kvm',
    open(): Handle {
      const handle = native.open(device);
      if (typeof handle !== 'number') return handle;
      throw refusal(device, -handle);
    },
    ioctl: native.ioctl,
    create: native.create,
    prepare(handle, request) {
      const prepared = native.prepare(handle, request);
      if (typeof prepared === 'number') return prepared;
      return { bytes: new Uint8Array(prepared.buffer), issue: prepared.issue };
    },
    readStats: native.readStats,
    allocate: native.allocate,
    reserve: native.reserve,
    mapGuestMemfd: native.mapGuestMemfd,
    mapDirtyRing: native.mapDirtyRing,
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
      watch: native.watch,
    },
    eventFds: {
      create: native.eventfd,
      share: (eventFd) => ({ backend: 'kvm', number: native.shareEventfd(eventFd) }),
      open: ({ number }) => native.openEventfd(number),
      signal: native.signalEventfd,
      drain: native.drainEventfd,
      watch: native.watch,
    },
    shareVm: (vm) => ({ backend: 'kvm', number: native.shareVm(vm) }),
    openVm: ({ number }) => native.openVm(number),
    shareVcpu: (vcpu) => ({ backend: 'kvm', kickId: native.kickId(vcpu) }),
    openVcpu: ({ kickId }) => native.openVcpu(kickId),
    runner: native.runner,
    starter: native.starter,
    kickId: native.kickId,
    kick: native.kick,
    pause: native.pause,
    resume: native.resume,
    stop: native.stop,
    close: native.close,
  };
}

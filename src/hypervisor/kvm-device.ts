/** A device in the kernel (api.rst, KVM_CREATE_DEVICE). */
import type { Integer } from './args.ts';
import { type DeviceAttr, getAttr, hasAttr, setAttr } from './device-attributes.ts';
import type { Fd } from './fd.ts';

/**
 * A device that the kernel has for a VM, with attributes by which it is set up. x86 has DeviceType.VFIO alone. Made by
 * Vm.createDevice(). The kernel keeps the device as long as the VM is there, closed or not.
 */
export class KvmDevice implements Disposable {
  /** DeviceType. */
  readonly type: number;
  readonly #fd: Fd;

  /** Made by Vm.createDevice(). */
  constructor(fd: Fd, type: number) {
    this.#fd = fd;
    this.type = type;
  }

  /** Whether close() was called. */
  get closed(): boolean {
    return this.#fd.closed;
  }

  /**
   * KVM_SET_DEVICE_ATTR.
   * @param attr which one, as in VfioAttr
   * @param value its bytes, at most 65,536; a number stands for 64 bits. VfioAttr.FILE_ADD takes the 32 bits of a file
   *   descriptor of this process
   * @throws KvmError ENXIO for an attribute that the device has not, and what the device gives: EBADF for a descriptor
   *   that is not open, EINVAL for one that is no VFIO file, ENOENT for one that was not added
   */
  setAttr(attr: DeviceAttr, value: Integer | Uint8Array): void {
    setAttr(this.#fd, attr, value);
  }

  /**
   * KVM_GET_DEVICE_ATTR.
   * @param size bytes that the attribute has, at most 65,536
   * @throws KvmError ENXIO for an attribute that the device has not, EPERM where it has none that can be read: VFIO
   */
  getAttr(attr: DeviceAttr, size: number): Uint8Array<ArrayBuffer> {
    return getAttr(this.#fd, attr, size);
  }

  /** KVM_HAS_DEVICE_ATTR: whether the device has the attribute. */
  hasAttr(attr: DeviceAttr): boolean {
    return hasAttr(this.#fd, attr);
  }

  /** Idempotent. */
  close(): void {
    this.#fd.close();
  }

  /** As close(): for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}

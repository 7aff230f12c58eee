/** A VM's devices in the kernel, and its attributes. */
import { CreateDeviceFlag, DeviceType } from '../uapi/constants.ts';
import { Errno } from '../uapi/errno.ts';
import { ioctls } from '../uapi/ioctls.ts';
import { kvm_create_device } from '../uapi/structs.ts';
import { nameOf } from '../uapi/text.ts';
import { type Integer, u32 } from './args.ts';

import { type DeviceAttr, getAttr64, hasAttr, setAttr } from './device-attributes.ts';
import { Fd, failed } from './fd.ts';
import { KvmDevice } from './kvm-device.ts';
import { VmInterrupts } from './vm-interrupts.ts';

/** The part of a Vm that is about devices. */
export abstract class VmDevices extends VmInterrupts {
  /**
   * KVM_CREATE_DEVICE: a device in the kernel.
   * @param type DeviceType: x86 has VFIO
   * @throws KvmError ENODEV for a type that this KVM has not, EBUSY for a second VFIO device, ENOTTY in the simulator
   */
  createDevice(type: number): KvmDevice {
    const argument = kvm_create_device.encode({ type: u32('type', type) });
    const handle = this.fd.create(ioctls.KVM_CREATE_DEVICE, argument);
    this.unsaved.add(`a device in the kernel (${nameOf(DeviceType, type)})`);
    return new KvmDevice(new Fd(this.fd.backend, handle, 'device'), type);
  }
  /**
   * KVM_CREATE_DEVICE with KVM_CREATE_DEVICE_TEST: whether KVM knows the type. Makes none.
   * @param type DeviceType
   * @throws KvmError ENOTTY in the simulator
   */
  hasDevice(type: number): boolean {
    const row = ioctls.KVM_CREATE_DEVICE;
    const argument = kvm_create_device.encode({ type: u32('type', type), flags: CreateDeviceFlag.TEST });
    const result = this.fd.backend.create(this.fd.handle, row.request, argument);
    if (result === -Errno.ENODEV) return false;
    if (result !== 0) throw failed(Number(result), row, argument, this.fd.backend.name);
    return true;
  }

  /**
   * KVM_SET_DEVICE_ATTR on the VM (KVM_CAP_VM_ATTRIBUTES). No released x86 kernel has one.
   * @param value bytes, at most 65,536; a number stands for 64 bits
   * @throws KvmError ENOTTY where VMs have none, ENXIO for an attribute that is none
   */
  setDeviceAttr(attr: DeviceAttr, value: Integer | Uint8Array): void {
    setAttr(this.fd, attr, value);
  }
  /** KVM_GET_DEVICE_ATTR on the VM, of 64 bits. @throws KvmError as setDeviceAttr() */
  getDeviceAttr(attr: DeviceAttr): bigint {
    return getAttr64(this.fd, attr);
  }
  /** KVM_HAS_DEVICE_ATTR on the VM. @throws KvmError ENOTTY where VMs have none */
  hasDeviceAttr(attr: DeviceAttr): boolean {
    return hasAttr(this.fd, attr);
  }
}

/** Attributes of /dev/kvm, VMs, vCPUs and in-kernel devices: one set of ioctls, on whichever file descriptor. */
import { Errno } from '../uapi/errno.ts';
import { ioctls } from '../uapi/ioctls.ts';
import { u64, viewOf } from '../uapi/layout.ts';
import { type Integer, integer, object, u32 } from './args.ts';
import { KvmError, outOfRange } from './errors.ts';
import type { Fd } from './fd.ts';

/** Names an attribute (struct kvm_device_attr). */
export interface DeviceAttr {
  /** The group that it is in; 0 without it. */
  readonly group?: number;
  /** Its number in the group, 64 bits. */
  readonly attr: Integer;
  /** None are defined: 0 without it. */
  readonly flags?: number;
}

/** The room that the addon has for an attribute, whose size only the kernel knows. */
const MOST = 65_536;

const fieldsOf = ({ group = 0, attr, flags = 0 }: DeviceAttr) => ({
  group: u32('group', group),
  attr,
  flags: u32('flags', flags),
});

function bytesOf(value: Integer | Uint8Array): Uint8Array {
  if (value instanceof Uint8Array) {
    if (value.length <= MOST) return value;
    throw outOfRange("the value's length", value.length, `at most ${MOST}`);
  }
  const bytes = new Uint8Array(8);
  u64.set(viewOf(bytes), 0, value as bigint);
  return bytes;
}

export function setAttr(fd: Fd, attr: DeviceAttr, value: Integer | Uint8Array): void {
  fd.refer(ioctls.KVM_SET_DEVICE_ATTR, fieldsOf(object('attr', attr)), [bytesOf(value)]);
}

export function getAttr(fd: Fd, attr: DeviceAttr, size: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(integer('size', size, MOST));
  fd.refer(ioctls.KVM_GET_DEVICE_ATTR, fieldsOf(object('attr', attr)), [bytes]);
  return bytes;
}

/** As getAttr(), of one of 64 bits: all that x86 has outside of devices. */
export const getAttr64 = (fd: Fd, attr: DeviceAttr): bigint => u64.get(viewOf(getAttr(fd, attr, 8)), 0);

export function hasAttr(fd: Fd, attr: DeviceAttr): boolean {
  try {
    fd.write(ioctls.KVM_HAS_DEVICE_ATTR, fieldsOf(object('attr', attr)));
    return true;
  } catch (error) {
    if (error instanceof KvmError && error.errno === -Errno.ENXIO) return false;
    throw error;
  }
}

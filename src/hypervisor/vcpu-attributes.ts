/** What a vCPU has by name: attributes, registers by their ids, and what a guest of Xen or Hyper-V is told. */
import type { EncryptCommandName } from '../uapi/encrypt-commands.ts';
import { ioctls } from '../uapi/ioctls.ts';
import type { Input, Value } from '../uapi/layout.ts';
import type { kvm_xen_vcpu_attr } from '../uapi/xen.ts';
import { type Integer, integer, object } from './args.ts';
import { type DeviceAttr, getAttr64, hasAttr, setAttr } from './device-attributes.ts';
import { type EncryptAnswer, type EncryptOp, encryptOp } from './encrypt-op.ts';
import { wrongType } from './errors.ts';
import { type GuestPlace, placeOf } from './guest-place.ts';
import { VcpuState } from './vcpu-state.ts';

/** An attribute of a Xen guest's vCPU (struct kvm_xen_vcpu_attr): `type` says which arm of `u` holds. */
export type XenVcpuAttribute = Value<typeof kvm_xen_vcpu_attr>;

/** The part of a Vcpu that is about what it has by name. */
export abstract class VcpuAttributes extends VcpuState {
  /**
   * KVM_SET_DEVICE_ATTR on the vCPU (KVM_CAP_VCPU_ATTRIBUTES, since 5.16): VcpuTscAttr.OFFSET is what KVM adds to the
   * host's time-stamp counter.
   * @param value bytes, at most 65,536; a number stands for 64 bits
   * @throws KvmError ENXIO for an attribute that is none, ENOTTY in the simulator
   */
  setDeviceAttr(attr: DeviceAttr, value: Integer | Uint8Array): void {
    setAttr(this.fd, attr, value);
  }
  /** KVM_GET_DEVICE_ATTR on the vCPU, of 64 bits. @throws KvmError as setDeviceAttr() */
  getDeviceAttr(attr: DeviceAttr): bigint {
    return getAttr64(this.fd, attr);
  }
  /** KVM_HAS_DEVICE_ATTR on the vCPU. @throws KvmError ENOTTY in the simulator */
  hasDeviceAttr(attr: DeviceAttr): boolean {
    return hasAttr(this.fd, attr);
  }

  /**
   * KVM_GET_REG_LIST (since 6.18 on x86): the ids of the registers that getOneReg() knows.
   * @throws KvmError EINVAL on older kernels, ENOTTY in the simulator
   */
  getRegList(): bigint[] {
    return this.fd.readList(ioctls.KVM_GET_REG_LIST);
  }
  /**
   * KVM_GET_ONE_REG (since 6.18 on x86): a register by its id, which also says how many bytes it has.
   * @param id 64 bits, as regId() makes them
   * @returns the register's bytes: 1 to 32,768
   * @throws KvmError ENOENT or EINVAL for what is none, EINVAL on older kernels, ENOTTY in the simulator
   */
  getOneReg(id: Integer): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(regSize(id));
    this.fd.refer(ioctls.KVM_GET_ONE_REG, { id }, [bytes]);
    return bytes;
  }
  /**
   * KVM_SET_ONE_REG (since 6.18 on x86).
   * @param value as many bytes as the id says
   * @throws KvmError as getOneReg(); TypeError ERR_KVM_INVALID_ARG for another length
   */
  setOneReg(id: Integer, value: Uint8Array): void {
    if (!(value instanceof Uint8Array) || value.length !== regSize(id))
      throw wrongType('value', value, `a Uint8Array of the register's ${regSize(id)} bytes`);
    this.fd.refer(ioctls.KVM_SET_ONE_REG, { id }, [value]);
  }

  /**
   * KVM_MEMORY_ENCRYPT_OP of a TDX guest's vCPU (since 6.16). No host that this package is tested on has TDX: what reaches the
   * kernel is tested, and not what hardware makes of it.
   * @param command the kernel's name of one for a vCPU, such as KVM_TDX_INIT_VCPU
   * @throws as Vm.memoryEncryptOp(), ENOTTY where the VM is no TDX guest
   */
  memoryEncryptOp(command: EncryptCommandName, op: EncryptOp = {}): EncryptAnswer {
    const answer = encryptOp(this.fd, 'TdxVcpu', command, op);
    this.unsaved.add('what its firmware knows of it (memoryEncryptOp())');
    return answer;
  }

  /**
   * KVM_XEN_VCPU_GET_ATTR (KVM_CAP_XEN_HVM, since 5.12). Addresses in this process are not told: `hva` is 0.
   * @param type XenVcpuAttr, which says the arm of `u` that holds
   * @throws KvmError ENOENT for a type that cannot be read, EOPNOTSUPP for run states where the host's scheduler keeps no
   *   account of them, ENOTTY in the simulator
   */
  getXenVcpuAttr(type: number): XenVcpuAttribute {
    return this.fd.ask(ioctls.KVM_XEN_VCPU_GET_ATTR, { type });
  }
  /**
   * KVM_XEN_VCPU_SET_ATTR (KVM_CAP_XEN_HVM, since 5.12).
   * @param attr `type` is one of XenVcpuAttr; the arm of `u` that it names
   * @param place of VCPU_INFO_HVA (since 6.9): where the vCPU's info is, 64 bytes in one page, in place of `u.hva`. The memory
   *   stays mapped as long as KVM may use it. Without it there is no vCPU info any more
   * @throws KvmError ENXIO for an address that is no multiple of 4, EINVAL, and as getXenVcpuAttr()
   */
  setXenVcpuAttr(attr: Input<XenVcpuAttribute>, place?: GuestPlace): void {
    object('attr', attr);
    this.fd.refer(ioctls.KVM_XEN_VCPU_SET_ATTR, attr, [placeOf('place', place)]);
    this.unsaved.add('attributes of Xen');
  }
}

/** KVM_REG_SIZE_MASK: the id says the size, as a power of two. */
function regSize(id: Integer): number {
  const bits = BigInt.asUintN(64, BigInt(typeof id === 'bigint' ? id : integer('id', id)));
  return 1 << Number((bits >> 52n) & 0xfn);
}

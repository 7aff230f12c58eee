/** A VM of the simulator's at the waist: handles and ioctls, without the classes above. */
import { type Backend, type Handle, isHandle } from '../../src/hypervisor/backend.ts';
import {
  ioctls,
  kvm_regs,
  kvm_sregs,
  kvm_userspace_memory_region2,
  type Value,
} from '../../src/uapi/index.ts';

export { simulator } from '../../src/open.ts';
export { Errno, Exit } from '../../src/uapi/index.ts';

export const MEMORY = 1 << 20;

export function made(result: Handle | number): Handle {
  if (!isHandle(result)) throw new Error(`a handle was refused: ${result}`);
  return result;
}

const refuse = (result: number): void => {
  if (result < 0) throw new Error(`an ioctl gave ${result}`);
};

/** Of a vCPU. Throws what the backend gives instead. */
export function getRegs(backend: Backend, vcpu: Handle): Value<typeof kvm_regs> {
  const bytes = kvm_regs.encode({});
  refuse(backend.ioctl(vcpu, ioctls.KVM_GET_REGS.request, bytes));
  return kvm_regs.decode(bytes);
}
export function setRegs(backend: Backend, vcpu: Handle, regs: Partial<Value<typeof kvm_regs>>): void {
  const bytes = kvm_regs.encode({ ...getRegs(backend, vcpu), ...regs });
  refuse(backend.ioctl(vcpu, ioctls.KVM_SET_REGS.request, bytes));
}
export function getSregs(backend: Backend, vcpu: Handle): Value<typeof kvm_sregs> {
  const bytes = kvm_sregs.encode({});
  refuse(backend.ioctl(vcpu, ioctls.KVM_GET_SREGS.request, bytes));
  return kvm_sregs.decode(bytes);
}

/** A VM of the type, with a megabyte from address 0. */
export class WaistVm {
  readonly backend: Backend;
  readonly vm: Handle;
  readonly memory: Handle;
  readonly vcpus: Handle[] = [];

  constructor(backend: Backend, type = 0) {
    this.backend = backend;
    this.vm = made(backend.create(backend.open(), ioctls.KVM_CREATE_VM.request, type));
    this.memory = made(backend.allocate(MEMORY));
    this.place(0, 0, MEMORY);
  }

  place(slot: number, address: number, size: number, flags = 0): void {
    const region = kvm_userspace_memory_region2.encode({
      slot,
      flags,
      guestPhysAddr: address,
      memorySize: size,
    });
    const { request } = ioctls.KVM_SET_USER_MEMORY_REGION2;
    refuse(this.backend.ioctl(this.vm, request, region, [{ memory: this.memory, offset: 0 }]));
  }

  get bytes(): Uint8Array {
    return this.backend.bytes(this.memory);
  }
  u32(address: number): number {
    return new DataView(this.bytes.buffer, this.bytes.byteOffset).getUint32(address, true);
  }

  /** A vCPU in real mode that begins at the address with this code. */
  vcpu(code: Uint8Array, at: number, regs: Partial<Value<typeof kvm_regs>> = {}): Handle {
    const { backend, vm } = this;
    this.bytes.set(code, at);
    const vcpu = made(backend.create(vm, ioctls.KVM_CREATE_VCPU.request, this.vcpus.length));
    const sregs = getSregs(backend, vcpu);
    const flat = { ...sregs, cs: { ...sregs.cs, selector: 0, base: 0n } };
    refuse(backend.ioctl(vcpu, ioctls.KVM_SET_SREGS.request, kvm_sregs.encode(flat)));
    setRegs(backend, vcpu, { rip: BigInt(at), rflags: 2n, rsp: 0x7000n, ...regs });
    this.vcpus.push(vcpu);
    return vcpu;
  }

  close(): void {
    for (const handle of [...this.vcpus, this.vm, this.memory]) this.backend.close(handle);
  }
  [Symbol.dispose](): void {
    this.close();
  }
}

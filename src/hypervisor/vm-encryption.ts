/** A VM whose memory the processor encrypts: AMD's SEV and SNP, Intel's TDX. */

import { VmType } from '../uapi/constants.ts';
import type { EncryptCommandName } from '../uapi/encrypt-commands.ts';
import { ioctls } from '../uapi/ioctls.ts';
import { integer, object } from './args.ts';
import { type EncryptAnswer, type EncryptOp, encryptOp } from './encrypt-op.ts';
import { type GuestPlace, placeOf } from './guest-place.ts';
import { VmParavirt } from './vm-paravirt.ts';

/** Guest memory that may be encrypted. */
export interface EncryptedRegion extends GuestPlace {
  /** Bytes; without it what the memory has from its offset on. */
  readonly size?: number;
}

/** The part of a Vm that is about encrypted memory. */
export abstract class VmEncryption extends VmParavirt {
  /** VmType: what it was created as. */
  abstract readonly type: number;

  /**
   * KVM_MEMORY_ENCRYPT_OP (since 4.16; of TDX since 6.16): a command to AMD's firmware or Intel's TDX module. What it takes is
   * in the table of commands of `vmexit/uapi`, with the struct and its pointers. No host that this package is tested on has
   * SEV, SNP or TDX: what reaches the kernel is tested, and not what hardware makes of it.
   * @param command the kernel's name of one for a VM of this type, such as KVM_SEV_LAUNCH_START
   * @returns the struct as the kernel left it
   * @throws FirmwareError where the firmware refuses; KvmError ENOTTY where the VM or the host is of another kind and in the
   *   simulator, EINVAL, EPERM; TypeError, RangeError ERR_KVM_INVALID_ARG
   */
  memoryEncryptOp(command: EncryptCommandName, op: EncryptOp = {}): EncryptAnswer {
    const answer = encryptOp(this.fd, this.type === VmType.TDX ? 'TdxVm' : 'Sev', command, op);
    this.unsaved.add('what its firmware knows of it (memoryEncryptOp())');
    return answer;
  }

  /**
   * KVM_MEMORY_ENCRYPT_REG_REGION (since 4.16): memory of an SEV guest that may be encrypted; its pages are pinned. Nothing of
   * it is tested on hardware.
   * @throws KvmError ENOTTY where the VM is no SEV guest, ENOMEM beyond what the process may lock (ulimit -l)
   */
  memoryEncryptRegRegion(region: EncryptedRegion): void {
    this.#region(ioctls.KVM_MEMORY_ENCRYPT_REG_REGION, region);
  }
  /**
   * KVM_MEMORY_ENCRYPT_UNREG_REGION (since 4.16): takes a region back that memoryEncryptRegRegion() was given. Nothing of it is
   * tested on hardware.
   * @throws KvmError EINVAL for what is no such region, ENOTTY where the VM is no SEV guest
   */
  memoryEncryptUnregRegion(region: EncryptedRegion): void {
    this.#region(ioctls.KVM_MEMORY_ENCRYPT_UNREG_REGION, region);
  }

  #region(
    row: typeof ioctls.KVM_MEMORY_ENCRYPT_REG_REGION | typeof ioctls.KVM_MEMORY_ENCRYPT_UNREG_REGION,
    region: EncryptedRegion,
  ): void {
    const place = placeOf('region', object('region', region))!;
    const most = region.memory.size - place.offset;
    this.fd.refer(row, { size: integer('size', region.size ?? most, most) }, [place]);
    this.unsaved.add('encrypted memory');
  }
}

/** A vCPU's general registers in place: what one exit needs of them costs no object of all eighteen. */
import { ioctls } from '../uapi/ioctls.ts';
import { viewOf } from '../uapi/layout.ts';
import { kvm_regs } from '../uapi/x86.ts';
import type { Fd, Kept } from './fd.ts';
import type { Regs } from './regs.ts';

/** The general registers as load() has read them. Read and write those that matter, then store() all of them. */
export interface LiveRegs extends Regs {
  /** KVM_GET_REGS: reads all of them. @throws VmexitError ERR_KVM_CLOSED */
  load(): void;
  /**
   * KVM_SET_REGS: the guest has them from now on. As with Vcpu.setRegs(), complete() an exit first.
   * @throws VmexitError ERR_KVM_CLOSED
   */
  store(): void;
}

/** Made once, by Vcpu.regs. */
export const liveRegs = (fd: Fd): LiveRegs => new InPlace(fd) as InPlace & LiveRegs;

class InPlace {
  readonly #get: Kept;
  readonly #set: Kept;
  readonly #loaded: BigUint64Array;
  readonly #stored: BigUint64Array;
  readonly #view: DataView;
  /** Where the registers are: what load() has read, until one is written. */
  #words: BigUint64Array;

  constructor(fd: Fd) {
    this.#get = fd.keep(ioctls.KVM_GET_REGS);
    this.#set = fd.keep(ioctls.KVM_SET_REGS);
    this.#loaded = wordsOf(this.#get.bytes);
    this.#stored = wordsOf(this.#set.bytes);
    this.#view = viewOf(this.#set.bytes);
    this.#words = this.#loaded;
  }

  load(): void {
    this.#get.issue();
    this.#words = this.#loaded;
  }

  store(): void {
    this.#toStore();
    this.#set.issue();
  }

  #toStore(): void {
    if (this.#words === this.#stored) return;
    this.#stored.set(this.#loaded);
    this.#words = this.#stored;
  }

  static {
    for (const [i, name] of Object.keys(kvm_regs.fields).entries())
      Object.defineProperty(InPlace.prototype, name, {
        get(this: InPlace) {
          return this.#words[i];
        },
        // By the struct, whose error names the field.
        set(this: InPlace, value: number | bigint) {
          this.#toStore();
          kvm_regs.set(this.#view, 0, { [name]: value } as never);
        },
        enumerable: true,
      });
  }
}

const wordsOf = ({ buffer, byteOffset, length }: Uint8Array): BigUint64Array =>
  new BigUint64Array(buffer, byteOffset, length >>> 3);

/** The record of KVM_ENABLE_CAP: the kernel cannot be asked what was enabled, and how. */
import { ioctls } from '../uapi/ioctls.ts';
import type { Input, Value } from '../uapi/layout.ts';
import { kvm_enable_cap } from '../uapi/structs.ts';
import { object } from './args.ts';
import type { Fd } from './fd.ts';

/** A capability that was enabled. */
export interface EnabledCap {
  /** One of Cap. */
  readonly cap: number;
  /** What it was given: 0 for all of today. */
  readonly flags: number;
  /** Four numbers of 64 bits. */
  readonly args: readonly bigint[];
}

/**
 * What was enabled, in an order in which it can be enabled again. With other arguments it is another entry: some
 * capabilities add what they are given to what they have.
 */
export class EnabledCaps {
  readonly #entries = new Map<string, EnabledCap>();

  /** Enables one, and adds it. @throws KvmError; TypeError, RangeError ERR_KVM_INVALID_ARG */
  enable(fd: Fd, wanted: Input<Value<typeof kvm_enable_cap>>): EnabledCap {
    const argument = kvm_enable_cap.encode(object('cap', wanted));
    fd.call(ioctls.KVM_ENABLE_CAP, argument, []);
    const { cap, flags, args } = kvm_enable_cap.decode(argument);
    const key = `${cap} ${flags} ${args}`;
    this.#entries.delete(key);
    this.#entries.set(key, { cap, flags, args });
    return { cap, flags, args };
  }

  get list(): readonly EnabledCap[] {
    return [...this.#entries.values()];
  }
}

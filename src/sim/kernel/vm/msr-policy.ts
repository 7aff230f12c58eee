/** What a VM does with its guests' accesses to MSRs (arch/x86/kvm/x86.c, kvm_msr_user_space, kvm_msr_allowed). */
import { wrongType } from '../../../hypervisor/errors.ts';
import { MsrExitReason, MsrFilter } from '../../../uapi/constants.ts';
import { Errno } from '../../../uapi/errno.ts';
import type { kvm_msr_filter } from '../../../uapi/x86.ts';
import type { MsrPolicy } from '../../cpu/processor/stage.ts';
import type { Given, StructArgument } from '../abi/dispatch.ts';

const EXIT_REASONS = MsrExitReason.INVAL | MsrExitReason.UNKNOWN | MsrExitReason.FILTER;
const ACCESSES = MsrFilter.READ | MsrFilter.WRITE;
/** KVM_MSR_FILTER_MAX_BITMAP_SIZE, in bits. */
const MAX_MSRS = 0x600 * 8;
/** The registers of x2APIC are not filtered. */
const X2APIC = { first: 0x800, last: 0x8ff } as const;

interface Range {
  readonly flags: number;
  readonly base: number;
  readonly nmsrs: number;
  readonly bitmap: Uint8Array;
}

/** KVM reads bitmaps in whole words of 64. */
const bitmapBytes = (bits: number): number => Math.ceil(bits / 64) * 8;

export class VmMsrPolicy implements MsrPolicy {
  exits = 0;
  #allowed = true;
  #ranges: readonly Range[] = [];

  /** What another thread makes the same of. */
  get entry(): unknown {
    const ranges = this.#ranges.map((range) => ({ ...range, bitmap: [...range.bitmap] }));
    return { exits: this.exits, allowed: this.#allowed, ranges };
  }
  copy(entry: unknown): void {
    const { exits, allowed, ranges } = entry as { exits: number; allowed: boolean; ranges: Range[] };
    this.exits = exits;
    this.#allowed = allowed;
    this.#ranges = ranges.map((range) => ({ ...range, bitmap: Uint8Array.from(range.bitmap) }));
  }

  /** KVM_CAP_X86_USER_SPACE_MSR. */
  enable(reasons: bigint): number {
    if ((reasons & ~BigInt(EXIT_REASONS)) !== 0n) return -Errno.EINVAL;
    this.exits = Number(reasons);
    return 0;
  }

  /** KVM_X86_SET_MSR_FILTER. */
  setFilter({ value }: StructArgument<typeof kvm_msr_filter>, given: readonly Given[]): number {
    const ranges = value.ranges.map(({ flags, base, nmsrs }, i) => {
      const bitmap = given[i] ?? new Uint8Array(0);
      if (!(bitmap instanceof Uint8Array) || bitmap.length !== bitmapBytes(nmsrs))
        throw wrongType(`ranges[${i}].bitmap`, bitmap, `a Uint8Array of ${bitmapBytes(nmsrs)} bytes`);
      return { flags, base, nmsrs, bitmap: bitmap.slice() };
    });
    const used = ranges.filter(({ nmsrs }) => nmsrs > 0);
    if ((value.flags & ~MsrFilter.DEFAULT_DENY) !== 0) return -Errno.EINVAL;
    const allowed = (value.flags & MsrFilter.DEFAULT_DENY) === 0;
    if (used.length === 0 && !allowed) return -Errno.EINVAL;
    const wrong = ({ flags, nmsrs }: Range) => flags === 0 || (flags & ~ACCESSES) !== 0 || nmsrs > MAX_MSRS;
    if (used.some(wrong)) return -Errno.EINVAL;
    this.#allowed = allowed;
    this.#ranges = used;
    return 0;
  }

  /** The first range that has the register and filters the access decides. */
  allows(index: number, write: boolean): boolean {
    if (index >= X2APIC.first && index <= X2APIC.last) return true;
    const access = write ? MsrFilter.WRITE : MsrFilter.READ;
    const found = this.#ranges.find(
      ({ flags, base, nmsrs }) => (flags & access) !== 0 && index >= base && index < (base + nmsrs) >>> 0,
    );
    if (found === undefined) return this.#allowed;
    const bit = index - found.base;
    return (found.bitmap[bit >>> 3]! & (1 << (bit & 7))) !== 0;
  }
}

/**
 * The three ABIs by which KVM has told of a memory fault. They differ in five ways, the five parts of a `Dialect`.
 * 36 and 38 mean other exits in today's kernels, so a fault is given to callers as Exit.MEMORY_FAULT whatever the
 * dialect.
 */
import { MemoryFaultFlag } from './constants.ts';
import { Errno } from './errno.ts';
import { Exit } from './exit.ts';
import { EXIT_OFFSET, exitArms, kvm_run } from './kvm-run.ts';
import { type Struct, size64, struct, type Type, u32, u64, viewOf } from './layout.ts';
import { type FaultSignal, mainlineFault, outcomeOf } from './outcome.ts';

/** A memory fault, whichever dialect told of it: an access to the guest-physical bytes [gpa, gpa + size). */
export interface MemoryFault {
  /** Why KVM could not map it. */
  readonly flags: {
    /** The access was to private memory. */
    readonly private: boolean;
    /** The page's bit in the slot's userfault bitmap is set (a proposal, in no released kernel). */
    readonly userfault: boolean;
    /** The bits that have no meaning in this dialect, as they stand. */
    readonly unknown: bigint;
  };
  /** Guest-physical, in bytes. */
  readonly gpa: number;
  /** Bytes. */
  readonly size: number;
}

/**
 * `mainline` is Linux since 6.8. `rfc` and `v9` are earlier forms of the same patches, which only the
 * simulator speaks.
 */
export type DialectName = 'rfc' | 'v9' | 'mainline';

/** How one ABI tells of a memory fault, and how memory is converted in it. */
export interface Dialect {
  /** Its key in `dialects`. */
  readonly name: DialectName;
  /** 1, 3. What KVM_RUN returns, and the number in exit_reason. */
  readonly signal: FaultSignal;
  /** 2. Where the fault stands in kvm_run's exit union, and the meaning of its flag bits. */
  readonly arm: FaultArm;
  /** Masks in the flag word; 0 where the ABI has no such flag. */
  readonly bits: {
    /** The access was to private memory. */
    readonly private: number;
    /** The page's bit in the slot's userfault bitmap is set. */
    readonly userfault: number;
  };
  /** 4. What decides whether a page is private. */
  readonly truth: 'allocation' | 'regions' | 'attributes';
  /** 5. The call that converts. */
  readonly converts: {
    /** The call that makes a range private. */
    readonly toPrivate: string;
    /** The call that makes a range shared. */
    readonly toShared: string;
  };
  /** Writes exit_reason and the fault into a kvm_run page. A flag that the dialect cannot say is a RangeError. */
  encode(page: DataView, fault: MemoryFault): void;
  /** Reads the fault that stands in a kvm_run page. Only after an outcome that says there is one. */
  decode(page: DataView): MemoryFault;
  /** outcomeOf() by this dialect's rule. */
  outcome(result: number, exitReason: number): number | null;
}

type FaultArm = Struct<{ flags: Type<number>; gpa: Type<number>; size: Type<number> }>;

/** The arm of the rfc and of v9; mainline gave `flags` the room of the padding. */
export const kvm_run_memory = struct('kvm_run.memory', {
  flags: u32,
  padding: u32,
  gpa: size64,
  size: size64,
});

function dialect(columns: Pick<Dialect, 'name' | 'signal' | 'arm' | 'bits' | 'truth' | 'converts'>): Dialect {
  const { name, signal, arm, bits } = columns;
  const { flags, gpa, size } = arm.fields;
  const known = BigInt(bits.private | bits.userfault);
  // Exact for every bit: as a number, a flag word with bit 63 set would lose its low ones.
  const rawFlags = (flags.type.size === 8 ? u64 : u32) as Type<number | bigint>;
  // What cannot be written leaves the page alone: the arm is put together here.
  const data = new Uint8Array(arm.size);
  const view = viewOf(data);
  return {
    ...columns,
    encode(page, fault) {
      const unknown = fault.flags.unknown;
      if (unknown & known) throw new RangeError(`flags.unknown 0x${unknown.toString(16)} has known bits`);
      if (fault.flags.userfault && bits.userfault === 0)
        throw new RangeError(`${name} has no userfault flag`);
      const word =
        unknown |
        BigInt(fault.flags.private ? bits.private : 0) |
        BigInt(fault.flags.userfault ? bits.userfault : 0);
      rawFlags.set(view, flags.offset, word);
      gpa.type.set(view, gpa.offset, fault.gpa);
      size.type.set(view, size.offset, fault.size);
      for (let at = 0; at < arm.size; at += 8)
        page.setBigUint64(EXIT_OFFSET + at, view.getBigUint64(at, true), true);
      kvm_run.fields.exitReason.type.set(page, kvm_run.fields.exitReason.offset, signal.exitReason);
    },
    decode(page) {
      const word = BigInt(rawFlags.get(page, EXIT_OFFSET + flags.offset));
      return {
        flags: {
          private: (word & BigInt(bits.private)) !== 0n,
          userfault: (word & BigInt(bits.userfault)) !== 0n,
          unknown: word & ~known,
        },
        gpa: gpa.type.get(page, EXIT_OFFSET + gpa.offset),
        size: size.type.get(page, EXIT_OFFSET + size.offset),
      };
    },
    outcome: (result, exitReason) => outcomeOf(result, exitReason, signal),
  };
}

/** The three ABIs, by name. */
export const dialects: { readonly [K in DialectName]: Dialect } = {
  /** KVM_EXIT_MEMORY_ERROR, the first form (2022). */
  rfc: dialect({
    name: 'rfc',
    signal: { exitReason: 36, result: -Errno.EPERM, poisonedResult: null },
    arm: kvm_run_memory,
    bits: { private: 1 << 0, userfault: 0 },
    truth: 'allocation',
    converts: { toPrivate: 'fallocate', toShared: 'fallocate PUNCH_HOLE' },
  }),
  /** KVM_EXIT_MEMORY_FAULT as the ninth version of the series had it (2022). */
  v9: dialect({
    name: 'v9',
    signal: { exitReason: 38, result: 0, poisonedResult: null },
    arm: kvm_run_memory,
    bits: { private: 1 << 0, userfault: 0 },
    truth: 'regions',
    converts: { toPrivate: 'KVM_MEMORY_ENCRYPT_REG_REGION', toShared: 'KVM_MEMORY_ENCRYPT_UNREG_REGION' },
  }),
  /** What Linux has had since 6.8. */
  mainline: dialect({
    name: 'mainline',
    signal: mainlineFault,
    arm: exitArms.memoryFault,
    bits: { private: MemoryFaultFlag.PRIVATE, userfault: MemoryFaultFlag.USERFAULT },
    truth: 'attributes',
    converts: { toPrivate: 'KVM_SET_MEMORY_ATTRIBUTES', toShared: 'KVM_SET_MEMORY_ATTRIBUTES' },
  }),
};

/** Whether an outcome is a memory fault, so that a dialect's decode() may be called. */
export const isMemoryFault = (outcome: number): boolean =>
  outcome === Exit.MEMORY_FAULT || outcome === Exit.MEMORY_POISONED;

/** Registers by their ids (KVM_GET_ONE_REG, since 6.18 on x86), and how large KVM's own structures are. */

/** KVM_REG_*: the fields of a register's id, as bigints: x86's mark, and the mask of what the size is in. */
export const RegId = {
  /** KVM_REG_X86: what every id of x86 has. */
  X86: 0x2000_0000_0000_0000n,
  /** The bits that name the architecture. */
  ARCH_MASK: 0xff00_0000_0000_0000n,
  /** The bits that say the size: its logarithm to base 2, in bytes. */
  SIZE_MASK: 0x00f0_0000_0000_0000n,
  /** The lowest bit of the size. */
  SIZE_SHIFT: 52n,
  /** One byte. */
  SIZE_U8: 0n,
  /** Two bytes. */
  SIZE_U16: 0x0010_0000_0000_0000n,
  /** Four bytes. */
  SIZE_U32: 0x0020_0000_0000_0000n,
  /** Eight bytes: all of x86's registers today. */
  SIZE_U64: 0x0030_0000_0000_0000n,
  /** 16 bytes. */
  SIZE_U128: 0x0040_0000_0000_0000n,
  /** 32 bytes. */
  SIZE_U256: 0x0050_0000_0000_0000n,
  /** 64 bytes. */
  SIZE_U512: 0x0060_0000_0000_0000n,
  /** 128 bytes. */
  SIZE_U1024: 0x0070_0000_0000_0000n,
  /** 256 bytes. */
  SIZE_U2048: 0x0080_0000_0000_0000n,
} as const;

/** KVM_X86_REG_TYPE_*: what a register of x86 is. */
export const RegType = {
  /** A model-specific register, by its number. */
  MSR: 2,
  /** A register that has no number of the processor's: one of KvmReg. */
  KVM: 3,
} as const;
/** One of the numbers in the table {@link RegType}. */
export type RegType = (typeof RegType)[keyof typeof RegType];

/** KVM_REG_*: the registers of RegType.KVM. */
export const KvmReg = {
  /** KVM_REG_GUEST_SSP: the shadow-stack pointer. */
  GUEST_SSP: 0,
} as const;

/** KVM_X86_REG_ID: the id of a register of eight bytes, `index` being an MSR's number or one of KvmReg. */
export const regId = (type: RegType, index: number): bigint =>
  RegId.X86 | RegId.SIZE_U64 | (BigInt(type) << 32n) | BigInt(index >>> 0);

/** KVM_*: how many there are of something, or how many bytes it has. */
export const Limit = {
  /** Interrupt vectors. */
  NR_INTERRUPTS: 256,
  /** Interrupt controllers in the kernel, each with a number of Irqchip. */
  NR_IRQCHIPS: 3,
  /** Pins of the I/O APIC. */
  IOAPIC_NUM_PINS: 24,
  /** Bytes of kvm_lapic_state. */
  APIC_REG_SIZE: 0x400,
  /** Elements of kvm_xcrs. */
  MAX_XCRS: 16,
  /** Ranges of kvm_msr_filter. */
  MSR_FILTER_MAX_RANGES: 16,
  /** Bytes of a range's bitmap. */
  MSR_FILTER_MAX_BITMAP_SIZE: 0x600,
} as const;

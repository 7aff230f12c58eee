/**
 * Registers that KVM answers for without having them, whatever the vendor: guests ask for them by the processor's model
 * alone, and some kernels do without a handler for #GP (arch/x86/kvm/x86.c, kvm_set_msr_common and kvm_get_msr_common,
 * Linux 6.12, without a PMU and without an interrupt controller in the kernel).
 */

/** `any` value is dropped, only `zero` is accepted, or `none`. */
type Writes = 'any' | 'zero' | 'none';
type Stub = readonly [first: number, last: number, reads: bigint | undefined, writes: Writes];

const one = (index: number, reads: bigint | undefined, writes: Writes): Stub => [index, index, reads, writes];

export const stubs: readonly Stub[] = [
  [0x0, 0x1, 0n, 'none'], // P5_MC_ADDR, P5_MC_TYPE
  one(0x17, 0n, 'none'), // PLATFORM_ID
  one(0x2a, 0n, 'none'), // EBL_CR_POWERON
  one(0x2c, 1n << 24n, 'none'), // EBC_FREQUENCY_ID: core and bus at 1:1
  one(0x79, undefined, 'any'), // UCODE_WRITE
  [0xc1, 0xc2, 0n, 'any'], // P6_PERFCTR
  one(0xcd, 3n, 'none'), // FSB_FREQ
  one(0x11e, 0xbe70_2111n, 'any'), // BBL_CR_CTL3
  [0x186, 0x187, 0n, 'any'], // P6_EVNTSEL
  // 1000, with a multiplier of 4.
  one(0x198, 1000n | (4n << 40n), 'none'), // PERF_STATUS
  one(0x199, 0n, 'none'), // PERF_CTL
  one(0x606, 0n, 'none'), // RAPL_POWER_UNIT
  one(0x611, 0n, 'none'), // PKG_ENERGY_STATUS
  one(0x619, 0n, 'none'), // DRAM_ENERGY_STATUS
  one(0x639, 0n, 'none'), // PP0_ENERGY_STATUS
  one(0x641, 0n, 'none'), // PP1_ENERGY_STATUS
  [0xc001_0000, 0xc001_0007, 0n, 'any'], // K7_EVNTSEL, K7_PERFCTR
  one(0xc001_0010, 0n, 'none'), // SYSCFG
  one(0xc001_001b, 0x2000_0000n, 'any'), // K7_CLK_CTL
  one(0xc001_001f, 0n, 'any'), // NB_CFG
  one(0xc001_0020, undefined, 'any'), // PATCH_LOADER
  one(0xc001_0055, 0n, 'none'), // INT_PENDING_MSG
  one(0xc001_0058, 0n, 'zero'), // MMIO_CONF_BASE
  [0xc001_0112, 0xc001_0113, 0n, 'none'], // TSEG_ADDR, TSEG_MASK
  [0xc001_1022, 0xc001_1023, 0n, 'any'], // DC_CFG, TW_CFG
  one(0xc001_102a, 0n, 'any'), // BU_CFG2
  one(0xc001_102c, 0n, 'any'), // EX_CFG
];

import { describe, expect, it } from 'vitest';
import { Vector } from '../../src/sim/cpu/processor/fault.ts';
import { Msr, readMsr, writeMsr } from '../../src/sim/cpu/system/msrs.ts';
import { code, Machine } from './sim-cpu-system.ts';

const vendors = ['intel', 'amd'] as const;
const long = (vendor: 'intel' | 'amd', level: 0 | 3 = 0) => new Machine({ vendor }).long(level);

const P6_EVENT = 0x186;
const K7_COUNTER = 0xc001_0004;
const INT_PENDING = 0xc001_0055;
const MMIO_CONF_BASE = 0xc001_0058;
const MC5_STATUS = 0x415;
const MC_STATUS_WRITE = 1n << 18n;

/** What a guest on AMD's model finds is test/conformance/msrs.test.ts's, which has it from KVM. */
describe.each(vendors)('model-specific registers (%s)', (vendor) => {
  it('that KVM stands in for are there whatever the vendor', () => {
    const { cpu } = long(vendor);
    for (const index of [P6_EVENT, K7_COUNTER])
      expect([writeMsr(cpu, index, 0x1234n), readMsr(cpu, index)]).toEqual([true, 0n]);
    expect([readMsr(cpu, INT_PENDING), writeMsr(cpu, INT_PENDING, 0n)]).toEqual([0n, false]);
    expect([0n, 1n].map((value) => writeMsr(cpu, MMIO_CONF_BASE, value))).toEqual([true, false]);
    expect(readMsr(cpu, Msr.MCG_CAP)).toBe(32n);
  });

  it("of userspace alone are not the guest's", () => {
    const { cpu } = long(vendor);
    for (const index of [Msr.SMBASE, Msr.MCG_CTL, Msr.MC0_CTL2]) {
      expect([readMsr(cpu, index), writeMsr(cpu, index, 0n)]).toEqual([undefined, false]);
      expect([typeof readMsr(cpu, index, true), writeMsr(cpu, index, 0n, true)]).toEqual(['bigint', true]);
    }
    expect([writeMsr(cpu, Msr.UCODE_REV, 7n), readMsr(cpu, Msr.UCODE_REV) === 7n]).toEqual([true, false]);
    expect([writeMsr(cpu, Msr.UCODE_REV, 7n, true), readMsr(cpu, Msr.UCODE_REV)]).toEqual([true, 7n]);
    expect([false, true].map((host) => writeMsr(cpu, Msr.LAST_BRANCH_FROM, 0n, host))).toEqual([false, true]);
  });

  it("a bank's status is the guest's to clear, and to set on AMD where HWCR lets it", () => {
    const { cpu } = long(vendor);
    const set = () => writeMsr(cpu, MC5_STATUS, 5n);
    expect([set(), writeMsr(cpu, MC5_STATUS, 5n, true), readMsr(cpu, MC5_STATUS)]).toEqual([false, true, 5n]);
    expect(writeMsr(cpu, MC5_STATUS, 0n)).toBe(true);
    expect(writeMsr(cpu, Msr.AMD_HWCR, MC_STATUS_WRITE)).toBe(true);
    expect(set()).toBe(vendor === 'amd');
  });

  it('CPUID raises #GP outside privilege level 0 where the guest has asked for it', () => {
    const user = long(vendor, 3);
    expect(user.execute('0f a2')).toBeUndefined();
    expect(writeMsr(user.cpu, Msr.MISC_FEATURES_ENABLES, 1n)).toBe(true);
    expect(code(user.execute('0f a2'))).toEqual([Vector.GP, 0]);
    const kernel = long(vendor);
    writeMsr(kernel.cpu, Msr.MISC_FEATURES_ENABLES, 1n);
    expect(kernel.execute('0f a2')).toBeUndefined();
    const without = long(vendor);
    writeMsr(without.cpu, Msr.PLATFORM_INFO, 0n, true);
    expect(writeMsr(without.cpu, Msr.MISC_FEATURES_ENABLES, 1n)).toBe(false);
  });
});

describe("on Intel's model", () => {
  it('the feature control can be locked once', () => {
    const { cpu } = long('intel');
    expect([1n, 0n].map((value) => writeMsr(cpu, Msr.FEAT_CTL, value))).toEqual([true, false]);
    expect([readMsr(cpu, Msr.FEAT_CTL), readMsr(long('amd').cpu, Msr.FEAT_CTL)]).toEqual([1n, undefined]);
  });

  it('reserved halves are refused that AMD ignores', () => {
    for (const vendor of vendors) {
      const { cpu } = long(vendor);
      const taken = [Msr.TSC_AUX, Msr.FMASK, Msr.DEBUG_CTL].map((index) => writeMsr(cpu, index, 1n << 32n));
      expect(taken).toEqual(Array(3).fill(vendor === 'amd'));
    }
  });
});

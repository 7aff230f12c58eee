/** kvmclock as a guest reads it (asm/pvclock-abi.h; msr.rst, MSR_KVM_SYSTEM_TIME_NEW). */
import type { GuestMemory } from '../../src/index.ts';
import { struct, u8, u32, u64 } from '../../src/uapi/index.ts';

/** What KVM writes for a vCPU. */
export const timeInfo = struct('pvclock_vcpu_time_info', {
  version: u32,
  pad0: u32,
  tscTimestamp: u64,
  systemTime: u64,
  tscToSystemMul: u32,
  tscShift: u8,
  flags: u8,
});

/** What the guest makes of it at this count of its time-stamp counter: nanoseconds. */
export function clockOf(ram: GuestMemory, address: number, tsc: bigint): bigint {
  const info = timeInfo.decode(ram.read(address, timeInfo.size));
  const shift = BigInt(BigInt.asIntN(8, BigInt(info.tscShift)));
  const since = tsc - info.tscTimestamp;
  const shifted = shift < 0n ? since >> -shift : since << shift;
  return info.systemTime + ((shifted * BigInt(info.tscToSystemMul)) >> 32n);
}

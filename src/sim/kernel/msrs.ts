/** KVM_GET_MSRS and KVM_SET_MSRS: a list ends at the first that is not known. */
import type { Value } from '../../uapi/layout.ts';
import type { kvm_msr_entry } from '../../uapi/x86.ts';
import type { Cpu } from '../cpu/cpu.ts';
import type { ListArgument } from './dispatch.ts';

/** MSR numbers (SDM volume 4, and AMD's volume 2, appendix A). */
const EFER = 0xc000_0080;
const FS_BASE = 0xc000_0100;
const GS_BASE = 0xc000_0101;
const TSC = 0x10;
const SEGMENT = { [FS_BASE]: 4, [GS_BASE]: 5 } as const;

/** Those with nothing behind them but their value: SYSENTER, PAT, the APIC's base, SYSCALL's, GS's other base, TSC_AUX. */
const plain = [
  0x1b, 0x174, 0x175, 0x176, 0x277, 0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084, 0xc000_0102,
  0xc000_0103,
];
const known = new Set<number>(plain);

/** KVM_GET_MSR_INDEX_LIST. */
export const msrIndices: readonly number[] = [TSC, ...plain, EFER, FS_BASE, GS_BASE];

export function readMsr(cpu: Cpu, index: number): bigint | undefined {
  if (index === EFER) return BigInt(cpu.efer >>> 0);
  if (index === TSC) return cpu.state.count + (cpu.msrs.get(TSC) ?? 0n);
  if (index === FS_BASE || index === GS_BASE) return cpu.segments[SEGMENT[index]]!.base;
  return known.has(index) ? (cpu.msrs.get(index) ?? 0n) : undefined;
}

/** Whether there is such a register, and it can have that value. */
export function writeMsr(cpu: Cpu, index: number, value: bigint): boolean {
  if (index === EFER) {
    cpu.efer = Number(BigInt.asUintN(32, value));
    cpu.flushTlb();
  } else if (index === TSC) {
    cpu.msrs.set(TSC, BigInt.asUintN(64, value - cpu.state.count));
  } else if (index === FS_BASE || index === GS_BASE) {
    cpu.segments[SEGMENT[index]]!.base = value;
  } else if (known.has(index)) {
    cpu.msrs.set(index, value);
  } else {
    return false;
  }
  cpu.changed();
  return true;
}

type Entry = Value<typeof kvm_msr_entry>;

/** Gives how many were read, or written. */
export function eachMsr(
  list: ListArgument<typeof kvm_msr_entry>,
  done: (entry: Entry, i: number) => boolean,
): number {
  let i = 0;
  while (i < list.count && done(list.at(i), i)) i++;
  return i;
}

/** Which processor features a guest was told of and a host lacks. */
import type { CpuidEntry } from '../../hypervisor/vcpu-state.ts';
import { KvmCpuid } from '../../uapi/constants.ts';

type Register = 'eax' | 'ebx' | 'ecx' | 'edx';

/**
 * The words of CPUID whose bits are features (SDM volume 2, CPUID; APM volume 3, appendix E; cpuid.rst), and bits that
 * are none: CR4.OSXSAVE and CR4.PKE as the guest has set them, the local APIC's state, how many processors there are (HTT), and
 * what the VMM serves.
 */
const words: readonly (readonly [leaf: number, subleaf: number, register: Register, none?: number])[] = [
  [1, 0, 'ecx', 1 << 27],
  [1, 0, 'edx', (1 << 9) | (1 << 28)],
  [7, 0, 'ebx'],
  [7, 0, 'ecx', 1 << 4],
  [7, 0, 'edx'],
  [7, 1, 'eax'],
  [0xd, 0, 'eax'],
  [0xd, 1, 'eax'],
  [0x8000_0001, 0, 'ecx'],
  [0x8000_0001, 0, 'edx', 1 << 9],
  [0x8000_0008, 0, 'ebx'],
  [KvmCpuid.FEATURES, 0, 'eax', 1 << 16],
];

/** Each word with its missing bits, in the words of CPUID: `CPUID.7.0:EBX bits 5, 16`. */
export function lackingFeatures(told: readonly CpuidEntry[], has: readonly CpuidEntry[]): string[] {
  return words.flatMap(([leaf, subleaf, register, none = 0]) => {
    const bits = (entries: readonly CpuidEntry[]) =>
      entries
        .filter((entry) => entry.function === leaf && entry.index === subleaf)
        .reduce((all, entry) => all | entry[register], 0);
    const missing = bits(told) & ~bits(has) & ~none;
    if (missing === 0) return [];
    const list = Array.from({ length: 32 }, (_, i) => i).filter((i) => (missing >>> i) & 1);
    return [`CPUID.${leaf.toString(16)}.${subleaf}:${register.toUpperCase()} bits ${list.join(' ')}`];
  });
}

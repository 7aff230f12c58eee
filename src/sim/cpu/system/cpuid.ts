/** CPUID: what the instruction gives. */
import { areaSize, compactedSize } from '../avx/xsave.ts';
import { raise, Vector } from '../processor/fault.ts';
import {
  BASIC,
  type CpuidEntry,
  type CpuidRegister,
  EXTENDED,
  features,
  find,
  HYPERVISOR,
  has,
} from '../processor/features.ts';
import type { Helpers } from '../processor/helper.ts';
import { CR4, cpl } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import { cpuidFaults, Msr, msrValue } from './msrs.ts';

const RAX = 0;
const RCX = 1;
const RDX = 2;
const RBX = 3;

/** Whose EBX is the size of what XCR0 enables. */
const XSAVE_LEAF = 0xd;

/** Of IA32_APIC_BASE. */
const APIC_ENABLED = 0x800n;

/**
 * The entry for a leaf that has none: on processors that are not AMD's, leaves above a class's highest one give the
 * highest basic leaf (arch/x86/kvm/cpuid.c, get_out_of_range_cpuid_entry).
 */
function outOfRange(entries: readonly CpuidEntry[], leaf: number, index: number): CpuidEntry | undefined {
  const basic = find(entries, BASIC, 0);
  if (basic === undefined || features(entries).vendor === 'amd') return undefined;
  let base = leaf >= 0xc000_0000 ? 0xc000_0000 : (leaf & EXTENDED) >>> 0;
  if (leaf >= HYPERVISOR && leaf <= 0x4fff_ffff) base = (leaf & 0xffff_ff00) >>> 0;
  const top = find(entries, base, 0);
  if (top !== undefined && leaf <= top.eax >>> 0) return undefined;
  return find(entries, basic.eax >>> 0, index);
}

/** The bits that follow the processor's state (arch/x86/kvm/cpuid.c, __kvm_update_cpuid_runtime). */
function dynamic(
  cpu: Processor,
  leaf: number,
  index: number,
  register: CpuidRegister,
  value: number,
): number {
  const change = (bit: number, on: boolean) => (on ? value | (1 << bit) : value & ~(1 << bit));
  if (leaf === XSAVE_LEAF && register === 'ebx' && index < 2)
    return index === 0 ? areaSize(cpu.xcr0) : compactedSize(cpu.xcr0);
  if (leaf === 7 && index === 0 && register === 'ecx' && has(cpu, 'PKU'))
    return change(4, (cpu.cr4 & CR4.PKE) !== 0);
  if (leaf !== 1) return value;
  if (register === 'ecx' && has(cpu, 'XSAVE')) return change(27, (cpu.cr4 & CR4.OSXSAVE) !== 0);
  if (register === 'edx') return change(9, (msrValue(cpu, Msr.APIC_BASE) & APIC_ENABLED) !== 0n);
  return value;
}

/** What CPUID gives for a leaf and a subleaf: EAX, EBX, ECX, EDX, unsigned. */
export function cpuid(cpu: Processor, leaf: number, index: number): [number, number, number, number] {
  const exact = find(cpu.cpuid, leaf, index);
  const entry = exact ?? outOfRange(cpu.cpuid, leaf, index);
  if (entry === undefined) return [0, 0, 0, 0];
  const at = (register: CpuidRegister) =>
    dynamic(cpu, entry.function >>> 0, entry.index, register, entry[register]) >>> 0;
  return [at('eax'), at('ebx'), at('ecx'), at('edx')];
}

export const cpuidInstruction: Helpers = {
  cpuid(cpu) {
    if (cpuidFaults(cpu) && cpl(cpu) !== 0) raise(Vector.GP, 0);
    const { state } = cpu;
    const [eax, ebx, ecx, edx] = cpuid(
      cpu,
      Number(state.gpr(RAX) & 0xffff_ffffn),
      Number(state.gpr(RCX) & 0xffff_ffffn),
    );
    state.setGpr(RAX, BigInt(eax));
    state.setGpr(RBX, BigInt(ebx));
    state.setGpr(RCX, BigInt(ecx));
    state.setGpr(RDX, BigInt(edx));
  },
};

/** CPUID: what a guest's entries say, what the instruction gives, and what this processor can be said to have. */

import type { Cpu, CpuidEntry, GuestChoice } from '../cpu.ts';
import { raise, Vector } from '../processor/fault.ts';
import type { Helpers } from '../processor/helper.ts';
import { CR4, cpl } from '../processor/mode.ts';
import { cpuidFaults, Msr, msrValue } from './msrs.ts';

type Register = 'eax' | 'ebx' | 'ecx' | 'edx';
const RAX = 0;
const RCX = 1;
const RDX = 2;
const RBX = 3;

/** KVM_CPUID_FLAG_SIGNIFCANT_INDEX: the subleaf matters. */
const SIGNIFICANT = 1;
/** Of IA32_APIC_BASE. */
const APIC_ENABLED = 0x800n;
const BASIC = 0;
const HYPERVISOR = 0x4000_0000;
const EXTENDED = 0x8000_0000;

/** Features that instructions and registers depend on: leaf, register, bit. */
const FEATURES = {
  PSE36: [1, 'edx', 17],
  PCID: [1, 'ecx', 17],
  XSAVE: [1, 'ecx', 26],
  FSGSBASE: [7, 'ebx', 0],
  TSC_ADJUST: [7, 'ebx', 1],
  SMEP: [7, 'ebx', 7],
  INVPCID: [7, 'ebx', 10],
  SMAP: [7, 'ebx', 20],
  UMIP: [7, 'ecx', 2],
  RDPID: [7, 'ecx', 22],
  SYSCALL: [EXTENDED + 1, 'edx', 11],
  NX: [EXTENDED + 1, 'edx', 20],
  RDTSCP: [EXTENDED + 1, 'edx', 27],
  LM: [EXTENDED + 1, 'edx', 29],
} as const satisfies { readonly [name: string]: readonly [number, Register, number] };
export type Feature = keyof typeof FEATURES;

export interface Features {
  has(feature: Feature): boolean;
  /** MAXPHYADDR. */
  readonly physicalBits: number;
  readonly vendor: 'intel' | 'amd' | undefined;
}

const VENDORS = { intel: 'GenuineIntel', amd: 'AuthenticAMD' } as const;
/** The order of a vendor's or brand's letters in leaf 0. */
const LETTERS: readonly Register[] = ['ebx', 'edx', 'ecx'];

const cache = new WeakMap<readonly CpuidEntry[], Features>();

/** What a guest's entries say. It is worked out once for each list. */
export function features(entries: readonly CpuidEntry[]): Features {
  const known = cache.get(entries);
  if (known !== undefined) return known;
  const present = new Set<Feature>();
  for (const [name, [leaf, register, bit]] of Object.entries(FEATURES)) {
    if ((((find(entries, leaf, 0)?.[register] ?? 0) >>> bit) & 1) === 1) present.add(name as Feature);
  }
  const basic = find(entries, BASIC, 0);
  const letters = basic && LETTERS.map((register) => text(basic[register])).join('');
  // Without the leaf KVM assumes 36 bits (arch/x86/kvm/cpuid.c, cpuid_query_maxphyaddr).
  const width =
    (find(entries, EXTENDED, 0)?.eax ?? 0) >>> 0 >= EXTENDED + 8 ? find(entries, EXTENDED + 8, 0) : undefined;
  const physicalBits = Math.min(width === undefined ? 36 : width.eax & 0xff, 52);
  const vendor = letters === VENDORS.intel ? 'intel' : letters === VENDORS.amd ? 'amd' : undefined;
  const made: Features = { has: (feature) => present.has(feature), physicalBits, vendor };
  cache.set(entries, made);
  return made;
}

export const has = (cpu: Cpu, feature: Feature): boolean => features(cpu.cpuid).has(feature);

function find(entries: readonly CpuidEntry[], leaf: number, index: number): CpuidEntry | undefined {
  return entries.find(
    (entry) =>
      entry.function >>> 0 === leaf && ((entry.flags & SIGNIFICANT) === 0 || entry.index >>> 0 === index),
  );
}

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
function dynamic(cpu: Cpu, leaf: number, register: Register, value: number): number {
  const change = (bit: number, on: boolean) => (on ? value | (1 << bit) : value & ~(1 << bit));
  if (leaf !== 1) return value;
  if (register === 'ecx' && has(cpu, 'XSAVE')) return change(27, (cpu.cr4 & CR4.OSXSAVE) !== 0);
  if (register === 'edx') return change(9, (msrValue(cpu, Msr.APIC_BASE) & APIC_ENABLED) !== 0n);
  return value;
}

/** What CPUID gives for a leaf and a subleaf: EAX, EBX, ECX, EDX, unsigned. */
export function cpuid(cpu: Cpu, leaf: number, index: number): [number, number, number, number] {
  const exact = find(cpu.cpuid, leaf, index);
  const entry = exact ?? outOfRange(cpu.cpuid, leaf, index);
  if (entry === undefined) return [0, 0, 0, 0];
  const at = (register: Register) => dynamic(cpu, entry.function >>> 0, register, entry[register]) >>> 0;
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

// --- what this processor has -----------------------------------------------------------------------------------------

const text = (word: number) => String.fromCharCode(...[0, 8, 16, 24].map((shift) => (word >>> shift) & 0xff));
const word = (letters: string) =>
  [...letters].reduce((sum, letter, i) => sum | (letter.charCodeAt(0) << (8 * i)), 0) >>> 0;
const bits = (...set: number[]) => set.reduce((sum, bit) => sum | (1 << bit), 0) >>> 0;

/** What a leaf's register claims, by the names of the SDM and the APM: a test holds instructions to it. */
export const CLAIMS = {
  '1.edx': {
    fpu: 0,
    de: 2,
    pse: 3,
    tsc: 4,
    msr: 5,
    pae: 6,
    cx8: 8,
    apic: 9,
    sep: 11,
    mtrr: 12,
    pge: 13,
    cmov: 15,
    pat: 16,
    pse36: 17,
    clfsh: 19,
    mmx: 23,
    fxsr: 24,
    sse: 25,
    sse2: 26,
  },
  '1.ecx': {
    sse3: 0,
    ssse3: 9,
    cx16: 13,
    pcid: 17,
    sse4_1: 19,
    sse4_2: 20,
    movbe: 22,
    popcnt: 23,
    hypervisor: 31,
  },
  '7.ebx': {
    fsgsbase: 0,
    tsc_adjust: 1,
    bmi1: 3,
    smep: 7,
    bmi2: 8,
    erms: 9,
    invpcid: 10,
    adx: 19,
    smap: 20,
    clflushopt: 23,
    clwb: 24,
  },
  '7.ecx': { umip: 2, rdpid: 22 },
  '80000001.ecx': { lahf: 0, abm: 5, prefetchw: 8 },
  '80000001.edx': { syscall: 11, nx: 20, pdpe1gb: 26, rdtscp: 27, lm: 29 },
  /** AMD's only. Of Intel's leaf 7, bits 6 and 13 of EBX are clear: FDP, FCS and FDS are kept always. */
  '80000008.ebx': { xsaveerptr: 2 },
} as const satisfies { readonly [where: string]: { readonly [feature: string]: number } };

const claim = (where: keyof typeof CLAIMS) => bits(...Object.values(CLAIMS[where]));

/** AMD repeats leaf 1's EDX in leaf 8000_0001h, and calls SSE's integer instructions its own extension of MMX. */
const AMD_REPEATED = bits(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 23, 24);
const AMD_MMXEXT = bits(22);

/** Family, model and stepping: a Haswell and a Zen, whose quirks this processor has. */
const SIGNATURE = { intel: 0x0003_06c3, amd: 0x0080_0f12 } as const;
const PHYSICAL_BITS = { intel: 46, amd: 48 } as const;
const LINEAR_BITS = 48;
/** CLFLUSH's line in units of 8 bytes, and one logical processor. */
const LINE_AND_COUNT = (8 << 8) | (1 << 16);
const BRAND = 'vmexit simulated x86-64 processor';

/**
 * The entries of KVM_GET_SUPPORTED_CPUID: exactly what is implemented.
 * @param choice of VMs whose guests choose by the C-bit: leaf 8000_001Fh tells them its position
 */
export function supportedCpuid(vendor: 'intel' | 'amd', choice?: GuestChoice): CpuidEntry[] {
  const row = (leaf: number, values: Partial<Record<Register, number>>, flags = 0): CpuidEntry => ({
    function: leaf,
    index: 0,
    flags,
    eax: 0,
    ebx: 0,
    ecx: 0,
    edx: 0,
    ...values,
  });
  const name = VENDORS[vendor];
  const letters = { ebx: word(name.slice(0, 4)), edx: word(name.slice(4, 8)), ecx: word(name.slice(8)) };
  const amd = vendor === 'amd';
  const leaf1 = claim('1.edx');
  const sev = choice?.set === 'private';
  const brand = BRAND.padEnd(48, '\0');
  const brandWord = (at: number) => word(brand.slice(at, at + 4));
  return [
    row(0, { eax: 7, ...letters }),
    row(1, { eax: SIGNATURE[vendor], ebx: LINE_AND_COUNT, ecx: claim('1.ecx'), edx: leaf1 }),
    row(7, { ebx: claim('7.ebx'), ecx: claim('7.ecx') }, SIGNIFICANT),
    // "KVMKVMKVM" and no paravirtual features: hypercalls are there, nothing else.
    row(HYPERVISOR, { eax: HYPERVISOR + 1, ebx: word('KVMK'), ecx: word('VMKV'), edx: word('M\0\0\0') }),
    row(HYPERVISOR + 1, {}),
    row(EXTENDED, { eax: EXTENDED + (sev ? 0x1f : 8), ...(amd ? letters : {}) }),
    row(EXTENDED + 1, {
      eax: amd ? SIGNATURE.amd : 0,
      ecx: claim('80000001.ecx'),
      edx: (claim('80000001.edx') | (amd ? (leaf1 & AMD_REPEATED) | AMD_MMXEXT : 0)) >>> 0,
    }),
    ...[0, 1, 2].map((part) =>
      row(EXTENDED + 2 + part, {
        eax: brandWord(part * 16),
        ebx: brandWord(part * 16 + 4),
        ecx: brandWord(part * 16 + 8),
        edx: brandWord(part * 16 + 12),
      }),
    ),
    row(EXTENDED + 8, {
      eax: PHYSICAL_BITS[vendor] | (LINEAR_BITS << 8),
      ebx: amd ? claim('80000008.ebx') : 0,
    }),
    // SEV, SEV-ES and SEV-SNP, and the position of the C-bit (APM volume 3, E.4.17).
    ...(sev ? [row(EXTENDED + 0x1f, { eax: bits(1, 3, 4), ebx: choice.bit })] : []),
  ];
}

/** What this processor can be said to have: the entries of KVM_GET_SUPPORTED_CPUID. */
import { Area, areaSize, compactedSize, componentsOf } from '../avx/xsave.ts';
import {
  type CpuidEntry,
  type CpuidRegister,
  EXTENDED,
  HYPERVISOR,
  SIGNIFICANT,
  VENDORS,
} from '../processor/features.ts';
import type { GuestChoice } from '../processor/stage.ts';

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
    pclmulqdq: 1,
    ssse3: 9,
    fma: 12,
    cx16: 13,
    pcid: 17,
    sse4_1: 19,
    sse4_2: 20,
    movbe: 22,
    popcnt: 23,
    aes: 25,
    xsave: 26,
    avx: 28,
    f16c: 29,
    rdrand: 30,
    hypervisor: 31,
  },
  '7.ebx': {
    fsgsbase: 0,
    tsc_adjust: 1,
    bmi1: 3,
    avx2: 5,
    smep: 7,
    bmi2: 8,
    erms: 9,
    invpcid: 10,
    rdseed: 18,
    adx: 19,
    smap: 20,
    clflushopt: 23,
    clwb: 24,
    sha: 29,
  },
  '7.ecx': { umip: 2, pku: 3, rdpid: 22 },
  'd.1.eax': { xsaveopt: 0, xsavec: 1, xgetbv1: 2 },
  '80000001.ecx': { lahf: 0, abm: 5, sse4a: 6, prefetchw: 8 },
  '80000001.edx': { syscall: 11, nx: 20, pdpe1gb: 26, rdtscp: 27, lm: 29 },
  /** Of Intel's leaf 7, bits 6 and 13 of EBX are clear: FDP, FCS and FDS are kept always. */
  '80000008.ebx': { xsaveerptr: 2, rdpru: 4 },
} as const satisfies { readonly [where: string]: { readonly [feature: string]: number } };

type Where = keyof typeof CLAIMS;
export type ClaimedFeature = { [where in Where]: keyof (typeof CLAIMS)[where] }[Where];
const CLAIMED = Object.values(CLAIMS).flatMap((features) => Object.keys(features) as ClaimedFeature[]);
/** What Intel's processors do not have. */
const AMD_ONLY: readonly ClaimedFeature[] = ['sse4a', 'xsaveerptr', 'rdpru'];
/** What a vendor's processor is without, whatever is taken away. */
export const foreignFeatures = (vendor: 'intel' | 'amd') => (vendor === 'intel' ? AMD_ONLY : []);
/** All that a vendor's processor has here. */
export const claimedFeatures = (vendor: 'intel' | 'amd'): ClaimedFeature[] =>
  CLAIMED.filter((feature) => !foreignFeatures(vendor).includes(feature));

/** AMD repeats leaf 1's EDX in leaf 8000_0001h, and calls SSE's integer instructions its own extension of MMX. */
const AMD_REPEATED = bits(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 23, 24);
const AMD_MMXEXT = bits(22);

/** Family, model and stepping: a Haswell and a Zen, whose quirks this processor has. */
const SIGNATURE = { intel: 0x0003_06c3, amd: 0x0080_0f12 } as const;
const PHYSICAL_BITS = { intel: 46, amd: 48 } as const;
const LINEAR_BITS = 48;
type Values = Partial<Record<CpuidRegister, number>>;
/** The components of XCR0 and the sizes of areas with all of them; what there is of XSAVE; each component's size and place. */
function xsaveLeaves(absent: ReadonlySet<string>, xsave: number): (readonly [index: number, Values])[] {
  if (absent.has('xsave')) return [];
  const components = componentsOf(absent);
  const size = areaSize(components);
  const leaves: [number, Values][] = [
    [0, { eax: Number(components), ebx: size, ecx: size }],
    [1, { eax: xsave, ebx: compactedSize(components) }],
  ];
  if (!absent.has('avx')) leaves.push([2, { eax: Area.ymmSize, ebx: Area.ymm }]);
  if (!absent.has('pku')) leaves.push([9, { eax: Area.pkruSize, ebx: Area.pkru }]);
  return leaves;
}
/** RDPRU's registers are MPERF and APERF. */
const LAST_PROCESSOR_REGISTER = 1;
/** CLFLUSH's line in units of 8 bytes, and one logical processor. */
const LINE_AND_COUNT = (8 << 8) | (1 << 16);
const BRAND = 'vmexit simulated x86-64 processor';

/**
 * The entries of KVM_GET_SUPPORTED_CPUID: exactly what is implemented.
 * @param choice of VMs whose guests choose by the C-bit: leaf 8000_001Fh tells them its position
 * @param absent what was taken away
 */
export function supportedCpuid(
  vendor: 'intel' | 'amd',
  choice?: GuestChoice,
  absent: ReadonlySet<string> = new Set(foreignFeatures(vendor)),
): CpuidEntry[] {
  const claim = (where: Where) =>
    bits(...Object.entries(CLAIMS[where]).flatMap(([feature, bit]) => (absent.has(feature) ? [] : [bit])));
  const row = (leaf: number, values: Values, flags = 0): CpuidEntry => ({
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
    row(0, { eax: 0xd, ...letters }),
    row(1, { eax: SIGNATURE[vendor], ebx: LINE_AND_COUNT, ecx: claim('1.ecx'), edx: leaf1 }),
    row(7, { ebx: claim('7.ebx'), ecx: claim('7.ecx') }, SIGNIFICANT),
    ...xsaveLeaves(absent, claim('d.1.eax')).map(([index, values]) => ({
      ...row(0xd, values, SIGNIFICANT),
      index,
    })),
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
      ebx: claim('80000008.ebx'),
      edx: absent.has('rdpru') ? 0 : LAST_PROCESSOR_REGISTER << 16,
    }),
    // SEV, SEV-ES and SEV-SNP, and the position of the C-bit (APM volume 3, E.4.17).
    ...(sev ? [row(EXTENDED + 0x1f, { eax: bits(1, 3, 4), ebx: choice.bit })] : []),
  ];
}

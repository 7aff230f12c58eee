/** What a guest's CPUID entries say of its processor. */

export type CpuidRegister = 'eax' | 'ebx' | 'ecx' | 'edx';

/** The entries of KVM_SET_CPUID2. */
export interface CpuidEntry {
  readonly function: number;
  readonly index: number;
  readonly flags: number;
  readonly eax: number;
  readonly ebx: number;
  readonly ecx: number;
  readonly edx: number;
}

/** KVM_CPUID_FLAG_SIGNIFCANT_INDEX: the subleaf matters. */
export const SIGNIFICANT = 1;
/** Where the classes of leaves begin. */
export const BASIC = 0;
export const HYPERVISOR = 0x4000_0000;
export const EXTENDED = 0x8000_0000;

/** Features that instructions and registers depend on: leaf, register, bit. */
const FEATURES = {
  PSE36: [1, 'edx', 17],
  PCID: [1, 'ecx', 17],
  XSAVE: [1, 'ecx', 26],
  AVX: [1, 'ecx', 28],
  FSGSBASE: [7, 'ebx', 0],
  TSC_ADJUST: [7, 'ebx', 1],
  SMEP: [7, 'ebx', 7],
  INVPCID: [7, 'ebx', 10],
  SMAP: [7, 'ebx', 20],
  UMIP: [7, 'ecx', 2],
  PKU: [7, 'ecx', 3],
  RDPID: [7, 'ecx', 22],
  SYSCALL: [EXTENDED + 1, 'edx', 11],
  NX: [EXTENDED + 1, 'edx', 20],
  RDTSCP: [EXTENDED + 1, 'edx', 27],
  LM: [EXTENDED + 1, 'edx', 29],
} as const satisfies { readonly [name: string]: readonly [number, CpuidRegister, number] };
export type Feature = keyof typeof FEATURES;

export interface Features {
  has(feature: Feature): boolean;
  /** MAXPHYADDR. */
  readonly physicalBits: number;
  readonly vendor: 'intel' | 'amd' | undefined;
}

export const VENDORS = { intel: 'GenuineIntel', amd: 'AuthenticAMD' } as const;
/** The order of a vendor's or brand's letters in leaf 0. */
const LETTERS: readonly CpuidRegister[] = ['ebx', 'edx', 'ecx'];

const cache = new WeakMap<readonly CpuidEntry[], Features>();
/** Who asked last, asks again. */
let last: { readonly entries: readonly CpuidEntry[]; readonly features: Features } | undefined;

/** What a guest's entries say. It is worked out once for each list. */
export function features(entries: readonly CpuidEntry[]): Features {
  if (last?.entries === entries) return last.features;
  const made = cache.get(entries) ?? featuresOf(entries);
  last = { entries, features: made };
  return made;
}
function featuresOf(entries: readonly CpuidEntry[]): Features {
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

/** Whether the guest was given it, and the processor has it. */
export const has = (
  { cpuid, absent }: { readonly cpuid: readonly CpuidEntry[]; readonly absent: ReadonlySet<string> },
  feature: Feature,
): boolean => features(cpuid).has(feature) && !(absent.size !== 0 && absent.has(feature.toLowerCase()));

/** The letters in a register. */
const text = (word: number) => String.fromCharCode(...[0, 8, 16, 24].map((shift) => (word >>> shift) & 0xff));

export function find(entries: readonly CpuidEntry[], leaf: number, index: number): CpuidEntry | undefined {
  return entries.find(
    (entry) =>
      entry.function >>> 0 === leaf && ((entry.flags & SIGNIFICANT) === 0 || entry.index >>> 0 === index),
  );
}

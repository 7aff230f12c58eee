/** Which of what the simulated processor has its host is without: `simulated: { cpu }`. */
import { outOfRange } from '../../../hypervisor/errors.ts';
import { type ClaimedFeature, claimedFeatures, foreignFeatures } from '../../cpu/system/claims.ts';

/** The levels of the psABI for x86-64 (its table 3.1), by what each adds to the one before it; and all that there is. */
const LEVELS = {
  'x86-64-v1': [],
  'x86-64-v2': ['sse3', 'ssse3', 'cx16', 'sse4_1', 'sse4_2', 'popcnt', 'lahf'],
  'x86-64-v3': ['fma', 'movbe', 'xsave', 'avx', 'f16c', 'bmi1', 'avx2', 'bmi2', 'abm'],
} as const satisfies { readonly [level: string]: readonly ClaimedFeature[] };
const ALL = 'max';

/** The first level's, and what only an operating system sees: a level has them, and the first cannot be taken away. */
const ALWAYS: ReadonlySet<ClaimedFeature> = new Set([
  'fpu',
  'de',
  'pse',
  'tsc',
  'msr',
  'pae',
  'cx8',
  'apic',
  'sep',
  'mtrr',
  'pge',
  'cmov',
  'pat',
  'pse36',
  'clfsh',
  'mmx',
  'fxsr',
  'sse',
  'sse2',
  'hypervisor',
  'syscall',
  'nx',
  'pdpe1gb',
  'lm',
  'xsaveerptr',
]);
const SYSTEM: readonly ClaimedFeature[] = ['pcid', 'tsc_adjust', 'smep', 'erms', 'invpcid', 'smap', 'umip'];

/** What a feature is nothing without. */
const NEEDS: { readonly [feature in ClaimedFeature]?: ClaimedFeature } = {
  ssse3: 'sse3',
  sse4_1: 'ssse3',
  sse4_2: 'sse4_1',
  xsaveopt: 'xsave',
  xsavec: 'xsave',
  xgetbv1: 'xsave',
  pku: 'xsave',
  avx: 'xsave',
  avx2: 'avx',
  fma: 'avx',
  f16c: 'avx',
};

const isFeature = (features: ReadonlySet<ClaimedFeature>, name: string): name is ClaimedFeature =>
  features.has(name as ClaimedFeature);

function levelOf(level: string, features: ReadonlySet<ClaimedFeature>): Set<ClaimedFeature> | undefined {
  if (level === ALL) return new Set(features);
  if (!Object.hasOwn(LEVELS, level)) return undefined;
  const present = new Set<ClaimedFeature>([...ALWAYS, ...SYSTEM]);
  for (const [name, added] of Object.entries(LEVELS)) {
    for (const feature of added) present.add(feature);
    if (name === level) break;
  }
  return present;
}

/**
 * What a vendor's processor is without: `cpu` takes it away, or it is another vendor's.
 * @throws RangeError ERR_KVM_INVALID_ARG
 */
export function absentFeatures(cpu: string, vendor: 'intel' | 'amd'): ReadonlySet<ClaimedFeature> {
  const features: ReadonlySet<ClaimedFeature> = new Set(claimedFeatures(vendor));
  const levels = [...Object.keys(LEVELS), ALL];
  const wrong = (why: string) => outOfRange('cpu', cpu, why);
  if (typeof cpu !== 'string') throw wrong(`a string: one of ${levels.join(', ')}, and features behind it`);
  const [first = '', ...rest] = cpu.split(',');
  const changes = /^[+-]/.test(first) ? [first, ...rest] : rest;
  const level = changes.length > rest.length ? ALL : first;
  const present = levelOf(level, features);
  if (present === undefined)
    throw wrong(`one of ${levels.join(', ')}, or features alone, as '-rdrand': there is no level '${level}'`);

  for (const change of changes) {
    const name = change.slice(1);
    if (!/^[+-]/.test(change)) throw wrong(`features with + or - before each: '${change}' has neither`);
    if (!isFeature(features, name)) {
      const changeable = [...features].filter((feature) => !ALWAYS.has(feature)).sort();
      throw wrong(`features that this ${vendor} processor has: ${changeable.join(', ')}; '${name}' is none`);
    }
    if (ALWAYS.has(name)) {
      if (change[0] === '-') throw wrong(`features above x86-64-v1, which '${name}' is a part of: leave it`);
      continue;
    }
    if (change[0] === '+') {
      for (let at: ClaimedFeature | undefined = name; at !== undefined; at = NEEDS[at]) present.add(at);
    } else present.delete(name);
  }
  for (const feature of present) {
    for (let at = NEEDS[feature]; at !== undefined; at = NEEDS[at])
      if (!present.has(at)) present.delete(feature);
  }
  const lost = changes.find((change) => change[0] === '+' && !present.has(change.slice(1) as ClaimedFeature));
  if (lost !== undefined)
    throw wrong(`features that do not exclude each other: '${lost}' needs what is taken away`);
  const back = changes.find((change) => change[0] === '-' && present.has(change.slice(1) as ClaimedFeature));
  if (back !== undefined)
    throw wrong(`features that do not exclude each other: '${back}' is needed by what is added`);
  return new Set([...[...features].filter((feature) => !present.has(feature)), ...foreignFeatures(vendor)]);
}

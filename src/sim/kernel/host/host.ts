/** The simulated host: what its processor and its kernel are, the memory they have, and who kicks whom. */

import { outOfRange } from '../../../hypervisor/errors.ts';
import { VmType } from '../../../uapi/constants.ts';
import { type Dialect, type DialectName, dialects } from '../../../uapi/dialects.ts';
import { type Arena, PAGE } from '../../arena.ts';
import type { GuestChoice } from '../../cpu/processor/stage.ts';
import type { Tier } from '../../cpu/translate/code.ts';
import { Decoder, type Iced } from '../../cpu/translate/decode.ts';
import type { Prepared } from '../../cpu/translate/prepared.ts';
import { Sharing } from '../../memory/sharing.ts';
import { Kicks, type KickTable } from '../threads/kicks.ts';
import { absentFeatures } from './cpu-model.ts';

/** What a simulated host is told to be; all of it may be left out. */
export interface SimulatedHost {
  /** Whose processor it is: `amd` without it. It decides between VMMCALL and VMCALL, and what CPUID says. */
  readonly vendor?: 'amd' | 'intel';
  /**
   * What the processor has: a level of the x86-64 psABI (`x86-64-v1`, `x86-64-v2`, `x86-64-v3`), or all that there is (`max`,
   * which is the default); behind it single features, each with `+` or `-` before it: `'x86-64-v2,+aes,-popcnt'`, or
   * `'-rdrand'`. They have the names of docs/simulator.md. What is not there is not in KVM_GET_SUPPORTED_CPUID either, and its
   * instructions raise #UD, whatever CPUID the guest is given.
   */
  readonly cpu?: string;
  /** The ABI by which KVM_RUN tells of memory faults; `mainline` without it. */
  readonly dialect?: DialectName;
  /** SNP's C-bit: which bit of a page-table entry makes memory private, 32 to 51; 51 without it. */
  readonly cBit?: number;
  /** TDX's shared bit: which bit of a page-table entry makes memory shared, 32 to 51; 47 without it. */
  readonly sharedBit?: number;
  /**
   * Bytes that one memory fault tells of in VMs whose guests choose: 4096 without it, or a larger power of two up to
   * 1 GiB, of which a fault has what lies in its slot.
   */
  readonly faultSize?: number;
  /** How code is executed; `both` without it. Only the speed differs: a way to compare. */
  readonly tier?: Tier;
  /**
   * What decides which of a VM's started vCPUs is next, and for how many instructions: a whole number, 1 without it. The
   * same seed gives the same run. Where it is given, RDRAND's and RDSEED's numbers follow from it too, and are no secret; they
   * begin anew with each vCPU, a restored one too.
   */
  readonly seed?: number;
}

/** The same, with what the simulator is given by whoever opens it. */
export interface SimOptions extends SimulatedHost {
  /** Gives the module `iced-x86` when it is needed first: its npm build needs Node to load. */
  readonly iced: () => Iced;
  /** What the build has prepared (prepare.ts), which makes a start faster: one for all of a thread. */
  readonly prepared?: Prepared | undefined;
  /** Where kicks from other threads arrive; only this thread's without it. */
  readonly kicks?: KickTable;
}

/** A thousandth of the frequency of the time-stamp counter, which counts instructions: they take a nanosecond each. */
export const TSC_KHZ = 1_000_000;

const CHOICE_BITS = { lowest: 32, highest: 51 } as const;
const TIERS: readonly Tier[] = ['closures', 'templates', 'wasm', 'both'];
const LARGEST_FAULT = 2 ** 30;

function choiceBit(name: string, bit: number): number {
  const { lowest, highest } = CHOICE_BITS;
  if (Number.isInteger(bit) && bit >= lowest && bit <= highest) return bit;
  throw outOfRange(name, bit, `a bit of a page-table entry's address, from ${lowest} to ${highest}`);
}

/** As a token carries it. */
export function hostOf({ iced: _, kicks: __, prepared: ___, ...host }: SimOptions): SimulatedHost {
  return host;
}

export class Host {
  readonly arena: Arena;
  readonly decoder: Decoder;
  readonly vendor: 'amd' | 'intel';
  /** What its processor is without, of all that there is. */
  readonly absent: ReadonlySet<string>;
  readonly dialect: Dialect;
  readonly faultSize: number;
  readonly tier: Tier;
  readonly seed: number;
  readonly kicks: Kicks;
  readonly sharing: Sharing;
  /** This thread's, as far as others must know it. */
  readonly thread: number;
  /** What it was told to be. */
  readonly options: SimOptions;
  /**
   * The VM types whose guests choose between private and shared memory. No machine has both; here a VMM can be tried
   * with either.
   */
  readonly choices: ReadonlyMap<number, GuestChoice>;

  /**
   * @param like another host of this thread, which is the same thread to others
   * @throws RangeError ERR_KVM_INVALID_ARG
   */
  constructor(options: SimOptions, arena: Arena, like?: Host) {
    const { vendor = 'amd', dialect = 'mainline', cBit = 51, sharedBit = 47, faultSize = PAGE } = options;
    const { tier = 'both', seed = 1, cpu = 'max' } = options;
    if (!Number.isSafeInteger(seed) || seed < 0) throw outOfRange('seed', seed, 'a whole number from 0');
    if (!TIERS.includes(tier)) throw outOfRange('tier', tier, "'closures', 'templates', 'wasm' or 'both'");
    if (vendor !== 'amd' && vendor !== 'intel') throw outOfRange('vendor', vendor, "'amd' or 'intel'");
    if (!Object.hasOwn(dialects, dialect)) throw outOfRange('dialect', dialect, "'mainline', 'v9' or 'rfc'");
    if (!(faultSize >= PAGE && faultSize <= LARGEST_FAULT && Number.isInteger(Math.log2(faultSize))))
      throw outOfRange('faultSize', faultSize, 'a power of two from 4096 to 1 GiB');
    this.arena = arena;
    const isLike = like !== undefined && like.vendor === vendor && (like.options.cpu ?? 'max') === cpu;
    this.absent = isLike ? like.absent : absentFeatures(cpu, vendor);
    this.decoder = isLike ? like.decoder : new Decoder(options.iced, vendor, this.absent, options.prepared);
    this.vendor = vendor;
    this.dialect = dialects[dialect];
    this.faultSize = faultSize;
    this.tier = tier;
    this.seed = seed;
    this.kicks = like?.kicks ?? new Kicks(options.kicks);
    this.sharing = new Sharing(this.arena, () => this.kicks.number());
    this.thread = like?.thread ?? this.kicks.number();
    this.options = options;
    this.choices = new Map([
      [VmType.SNP, { bit: choiceBit('cBit', cBit), set: 'private' as const }],
      [VmType.TDX, { bit: choiceBit('sharedBit', sharedBit), set: 'shared' as const }],
    ]);
  }
}

import { Seg, type Segment } from './descriptors.ts';
import { AVX_STATE, CR0, CR4, codeSize, cpl, protectedMode, stackSize } from './mode.ts';
import type { Registers } from './registers.ts';
import { Flag } from './state.ts';

/** What translated code depends on beside its bytes: a translation holds for one of these. */
export interface Mode {
  readonly bits: 16 | 32 | 64;
  readonly stackBits: 16 | 32 | 64;
  /** CPL is 3: the user's rights. */
  readonly user: boolean;
  /** CPL is 0: nothing is refused. */
  readonly privileged: boolean;
  /** A bit for each segment with base 0 and no limit that can be read and written: nothing to check. */
  readonly flat: number;
  /** The x87 may be used: neither CR0.EM nor CR0.TS. */
  readonly x87: boolean;
  /** SSE's registers may be used: the same, and CR4.OSFXSR. */
  readonly sse: boolean;
  /** Those of AVX: CR4.OSXSAVE, XCR0's components, not CR0.TS, and protected mode but not virtual-8086 mode. */
  readonly avx: boolean;
  /** The base of CS, by which linear addresses differ from RIP; 0 in 64-bit mode. */
  readonly codeBase: number;
  /** The last offset that CS has; infinite in 64-bit mode. */
  readonly codeLimit: number;
  /** One instruction at a time. */
  readonly single: boolean;
  /** One number for all of it. */
  readonly key: number;
}

/** How many modes are known at once, and limits of CS: a guest can make them without end. */
export const MODES = 4096;
const LIMITS = 64;
/** What of a mode's key says that it is single. */
const SINGLE = 36;
const sizeKey = { 16: 0, 32: 1, 64: 2 } as const;

/** The modes that a processor has been in, so that they have small numbers. */
export class Modes {
  readonly #known = new Map<number, Mode>();
  /** Limits of CS, which have small numbers too: there is no room for 32 bits more in a key. */
  readonly #limits = new Map<number, number>();
  #last = -1;

  /** The number of the mode that was found last, and what makes it be found anew where it is another. */
  get last(): number {
    return this.#last;
  }
  resume(what: number): void {
    this.#last = what;
  }

  /**
   * The processor's mode now, and the same with one instruction at a time; undefined when it is what it was.
   * @param forget called where modes get their numbers anew: what was translated for one means another now
   */
  find(cpu: Registers, single: boolean, forget: () => void): [mode: Mode, alone: Mode] | undefined {
    const { segments, cr0, cr4 } = cpu;
    const bits = codeSize(cpu);
    const stackBits = stackSize(cpu);
    const long = bits === 64;
    const level = cpl(cpu);
    const [user, privileged] = [level === 3, level === 0];
    let flat = 0;
    if (!long) for (const [i, segment] of segments.entries()) flat |= isFlat(segment, i) ? 1 << i : 0;
    const codeBase = long ? 0 : Number(segments[Seg.CS]!.base & 0xffff_ffffn);
    const codeLimit = long ? Number.POSITIVE_INFINITY : segments[Seg.CS]!.limit;
    const x87 = (cr0 & (CR0.EM | CR0.TS)) === 0;
    const sse = (cr4 & CR4.OSFXSR) !== 0 && x87;
    const avx =
      (cr4 & CR4.OSXSAVE) !== 0 &&
      (cpu.xcr0 & AVX_STATE) === AVX_STATE &&
      (cr0 & CR0.TS) === 0 &&
      protectedMode(cpu) &&
      (cpu.state.eflags & Flag.VM) === 0;
    const key =
      sizeKey[bits] +
      sizeKey[stackBits] * 3 +
      (user ? (cpu.alignment ? 27 : 18) : privileged ? 9 : 0) + // alignment is the user's alone
      (single ? SINGLE : 0) +
      (sse ? 144 : x87 ? 72 : 0) +
      (avx ? 216 : 0) +
      flat * 432 +
      (long ? 0 : this.#numberOf(codeLimit) * 27_648) +
      codeBase * 27_648 * LIMITS; // below 2 ** 53
    if (key === this.#last) return undefined;
    this.#last = key;
    if (this.#known.size >= MODES || this.#limits.size >= LIMITS) {
      this.#known.clear();
      this.#limits.clear();
      this.#last = -1;
      forget();
      return this.find(cpu, single, forget);
    }
    const modeOf = (alone: boolean) =>
      ({
        bits,
        stackBits,
        user,
        privileged,
        flat,
        x87,
        sse,
        avx,
        codeBase,
        codeLimit,
        single: alone,
      }) as const;
    const alone = this.#numbered(single ? key : key + SINGLE, modeOf(true));
    return [single ? alone : this.#numbered(key, modeOf(false)), alone];
  }

  #numberOf(limit: number): number {
    let known = this.#limits.get(limit);
    if (known === undefined) {
      known = this.#limits.size;
      this.#limits.set(limit, known);
    }
    return known;
  }
  #numbered(what: number, mode: Omit<Mode, 'key'>): Mode {
    const known = this.#known.get(what) ?? { ...mode, key: this.#known.size };
    this.#known.set(what, known);
    return known;
  }
}

/** Nothing to check: base 0, no limit, and all rights that translated code asks of it. */
function isFlat({ base, limit, type, unusable, s }: Segment, index: number): boolean {
  if (base !== 0n || limit !== 0xffff_ffff || unusable || !s) return false;
  return index === Seg.CS ? (type & 8) !== 0 : (type & 0xe) === 2;
}

/**
 * The guest's page tables (SDM volume 3, chapter 4): from linear to guest-physical addresses. There is no
 * translation buffer here, and no canonical check: callers have both.
 */

import { guestFault, note, secondStageFault, Vector } from '../processor/fault.ts';
import { features } from '../processor/features.ts';
import { highHalf, joined, lowHalf } from '../processor/halves.ts';
import { CR0, CR4, EFER, ia32e, paging } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import { Access, FAULT, MMIO } from '../processor/stage.ts';
import { Flag } from '../processor/state.ts';

export interface Translation {
  /** The guest-physical address of the 4 KiB page, without the bit by which guests choose. */
  readonly physical: number;
  /** A write with the same rights needs no walk: it is allowed, and the dirty flag is set. */
  readonly writable: boolean;
  /** The page belongs to the user (U/S is 1 in all entries). */
  readonly user: boolean;
  readonly global: boolean;
  /** Private or shared, where guests choose; undefined elsewhere. */
  readonly wants: boolean | undefined;
}

const Entry = { P: 0x1, W: 0x2, U: 0x4, A: 0x20, D: 0x40, PS: 0x80, G: 0x100 } as const;
/** NX, in the upper half. */
const NX = 0x8000_0000;
/** The error code of #PF (SDM volume 3, 4.7). */
const PageFault = { P: 1, W: 2, U: 4, RSVD: 8, I: 16, PK: 32 } as const;
/** A key's two bits in PKRU: no access, no write. */
const Key = { AD: 1, WD: 2 } as const;

const GIB4 = 0x1_0000_0000;

/** The entries of a walk as they were read, from the first level on: two halves, and where they lie. */
class Entries {
  readonly lo = new Int32Array(4);
  readonly hi = new Int32Array(4);
  readonly gpa = new Float64Array(4);
}
/** For the next walk. One that begins in the middle of another, by whom the second stage tells, has its own. */
let spare: Entries | undefined;

/** Of the first levels of walks in IA-32e mode, 2 MiB each. */
const KEPT = 256;
const Right = { W: 1, U: 2, X: 4 } as const;
const rightsOf = (writeable: boolean, owned: boolean, executable: boolean): number =>
  (writeable ? Right.W : 0) | (owned ? Right.U : 0) | (executable ? Right.X : 0);

/**
 * What walks in IA-32e mode have found at their first three levels: a table of pages, or a page of 2 MiB (SDM volume 3, 4.10.3).
 * It holds as long as translations do. What is kept was present, and its accessed flags are set.
 */
export class PagingStructures {
  /** Bits 47:21 of the linear address; -1: there is none. */
  readonly keys = new Int32Array(KEPT).fill(-1);
  /** The third level's entry and where it lies, and the rights down to it. */
  readonly lo = new Int32Array(KEPT);
  readonly hi = new Int32Array(KEPT);
  readonly gpa = new Float64Array(KEPT);
  readonly rights = new Uint8Array(KEPT);
  #used = false;

  static keyOf = (low: number, high: number): number => ((high & 0xffff) << 11) | (low >>> 21);
  static placeOf = (key: number): number => (key ^ (key >>> 9)) & (KEPT - 1);

  keep(low: number, high: number, lo: number, hi: number, gpa: number, rights: number): void {
    const key = PagingStructures.keyOf(low, high);
    const place = PagingStructures.placeOf(key);
    this.keys[place] = key;
    this.lo[place] = lo;
    this.hi[place] = hi;
    this.gpa[place] = gpa;
    this.rights[place] = rights;
    this.#used = true;
  }
  flush(): void {
    if (this.#used) this.keys.fill(-1);
    this.#used = false;
  }
}

interface Level {
  /** The lowest bit of the linear address that this level's index has. */
  readonly shift: number;
  /** PS maps a page here; without it PS is reserved, or (`ignored`) nothing. */
  readonly large: boolean;
  readonly ignored?: boolean;
  /** Has no W, U, A (PAE's PDPTEs). */
  readonly bare?: boolean;
}

const LONG: readonly Level[] = [
  { shift: 39, large: false },
  { shift: 30, large: true },
  { shift: 21, large: true },
  { shift: 12, large: false, ignored: true },
];
const PAE: readonly Level[] = [{ shift: 30, large: false, bare: true }, LONG[2]!, LONG[3]!];
const LEGACY: readonly Level[] = [
  { shift: 22, large: true },
  { shift: 12, large: false, ignored: true },
];
/** Without CR4.PSE a directory entry's PS is ignored. */
const LEGACY_4K: readonly Level[] = [{ shift: 22, large: false, ignored: true }, LEGACY[1]!];

/** Page tables are private where the guest chooses: SNP encrypts walks whatever the entries say (APM volume 2, 15.36). */
const wantsOfTables = (cpu: Processor): boolean | undefined => (cpu.choice === undefined ? undefined : true);

/** Whether there is an entry: it is among those that were read then. */
function readEntry(cpu: Processor, gpa: number, wide: boolean, read: Entries, place: number): boolean {
  const page = cpu.stage.page(gpa - (gpa % 4096), Access.READ, wantsOfTables(cpu));
  if (page === FAULT) throw secondStageFault;
  // Tables where no memory is are not present for KVM (arch/x86/kvm/mmu/paging_tmpl.h, walk_addr_generic).
  if (page === MMIO) return false;
  const at = (page + (gpa % 4096)) / 4;
  const { i32 } = cpu.arena.views;
  read.lo[place] = i32[at]!;
  read.hi[place] = wide ? i32[at + 1]! : 0;
  read.gpa[place] = gpa;
  return true;
}

/** Sets the accessed flag, or accessed and dirty. KVM leaves tables in read-only slots as they are. */
function mark(cpu: Processor, read: Entries, place: number, flags: number): void {
  if ((read.lo[place]! & flags) === flags) return;
  const gpa = read.gpa[place]!;
  const page = cpu.stage.page(gpa - (gpa % 4096), Access.WRITE, wantsOfTables(cpu));
  if (page === FAULT) throw secondStageFault;
  if (page !== MMIO) cpu.arena.views.u32[(page + (gpa % 4096)) / 4]! |= flags;
}

/** The mask of the last walk, and what it was worked out for. */
let reservedLast = {
  cpuid: undefined as unknown,
  nxe: 0,
  levels: undefined as unknown,
  choice: undefined as unknown,
  mask: 0,
};
function reservedHigh(cpu: Processor, levels: readonly Level[]): number {
  const { cpuid, choice } = cpu;
  const nxe = cpu.efer & EFER.NXE;
  const last = reservedLast;
  if (last.cpuid === cpuid && last.nxe === nxe && last.levels === levels && last.choice === choice)
    return last.mask;
  const mask = reservedMask(cpu, levels);
  reservedLast = { cpuid, nxe, levels, choice, mask };
  return mask;
}
/** Bits of an entry's upper half that must be 0, by address width and mode. The bit of choice is not one of them. */
function reservedMask(cpu: Processor, levels: readonly Level[]): number {
  const width = features(cpu.cpuid).physicalBits;
  // Bits 51:M are reserved everywhere, 62:52 only in PAE paging (SDM volume 3, tables 4-8 to 4-11 and 4-14 to 4-20).
  const top = levels.length === 3 ? 63 : 52;
  let mask = (2 ** (top - 32) - 2 ** (Math.max(width, 32) - 32)) | 0;
  if ((cpu.efer & EFER.NXE) === 0) mask |= NX;
  if (cpu.choice !== undefined && cpu.choice.bit >= 32) mask &= ~(1 << (cpu.choice.bit - 32));
  return mask;
}

/** The bit of choice, as one of an entry's upper half; 0 where there is none. */
function choiceOf({ choice }: Processor): number {
  return choice !== undefined && choice.bit >= 32 ? 1 << (choice.bit - 32) : 0;
}
/** The address in an entry, from `shift` bits up. */
function addressOf(cpu: Processor, lo: number, hi: number, shift: number): number {
  const low = (lo & (-1 << shift)) >>> 0;
  return (hi & 0xf_ffff & ~choiceOf(cpu)) * GIB4 + low;
}

/** What the choice means for data. */
function wanted(cpu: Processor, chosen: boolean): boolean | undefined {
  if (cpu.choice === undefined) return undefined;
  return cpu.choice.set === 'private' ? chosen : !chosen;
}

/**
 * Translates a linear address, and sets accessed and dirty flags. Undefined for #PF, which is in guestFault then: a throw would
 * be dear where translated code is executing.
 * @param low, high the linear address in halves: canonical, below 2^32 outside 64-bit mode
 * @param user the access has the user's rights: CPL is 3 and the access is explicit
 * @param implicit of the processor itself (descriptor tables, TSS): SMAP holds whatever RFLAGS.AC says
 * @param kept what may be known of the first levels, and is kept of them
 * @throws SecondStageFault
 */
export function walk(
  cpu: Processor,
  low: number,
  high: number,
  access: Access,
  user: boolean,
  implicit: boolean,
  kept?: PagingStructures,
): Translation | undefined {
  const fetch = access === Access.FETCH;
  if (!paging(cpu)) {
    // Without page tables there is no choice: everything is private (APM volume 2, 15.34.5).
    const physical = (low & -4096) >>> 0;
    return { physical, writable: true, user: true, global: false, wants: wantsOfTables(cpu) };
  }
  const long = ia32e(cpu);
  const pae = (cpu.cr4 & CR4.PAE) !== 0;
  const levels = long ? LONG : pae ? PAE : (cpu.cr4 & CR4.PSE) !== 0 ? LEGACY : LEGACY_4K;
  const wide = pae;
  const write = access === Access.WRITE;
  const nxe = wide && (cpu.efer & EFER.NXE) !== 0;
  const code =
    (write ? PageFault.W : 0) |
    (user ? PageFault.U : 0) |
    (fetch && (nxe || (cpu.cr4 & CR4.SMEP) !== 0) ? PageFault.I : 0);
  const read = spare ?? new Entries();
  spare = undefined;
  const key = kept !== undefined && long && cpu.choice === undefined ? PagingStructures.keyOf(low, high) : -1;
  const at = PagingStructures.placeOf(key);
  const known =
    key !== -1 && kept!.keys[at] === key && !(write && (kept!.lo[at]! & (Entry.PS | Entry.D)) === Entry.PS);
  const refuse = (why: number): Translation | undefined => {
    spare = read;
    if (known) {
      // Before anything is told of an entry, it is looked at.
      kept!.keys[at] = -1;
      return walk(cpu, low, high, access, user, implicit);
    }
    note(Vector.PF, code | why, joined(low, high));
    return undefined;
  };

  const reserved = wide ? reservedHigh(cpu, levels) : 0;
  let table = tableOf(cpu, long, pae);
  let writeable = true;
  let owned = true;
  let executable = true;
  let upper = 0;
  if (known) {
    const rights = kept!.rights[at]!;
    writeable = (rights & Right.W) !== 0;
    owned = (rights & Right.U) !== 0;
    executable = (rights & Right.X) !== 0;
  }
  const first = known ? 2 : 0;
  for (let place = first; place < levels.length; place++) {
    const level = levels[place]!;
    const { shift, large, bare } = level;
    const index =
      shift >= 32
        ? (high & 0xffff) >>> (shift - 32)
        : (low >>> shift) | (shift > 23 ? high << (32 - shift) : 0);
    const gpa = table + (wide ? (index & (bare ? 3 : 0x1ff)) * 8 : (index & 0x3ff) * 4);
    if (known && place === first) {
      read.lo[place] = kept!.lo[at]!;
      read.hi[place] = kept!.hi[at]!;
      read.gpa[place] = kept!.gpa[at]!;
    } else if (!readEntry(cpu, gpa, wide, read, place) || (read.lo[place]! & Entry.P) === 0) return refuse(0);
    const lo = read.lo[place]!;
    const hi = read.hi[place]!;
    const page = shift === 12 || (large && (lo & Entry.PS) !== 0);
    if (isReserved(lo, hi, level, reserved, wide, cpu)) return refuse(PageFault.P | PageFault.RSVD);
    if (!bare) {
      writeable &&= (lo & Entry.W) !== 0;
      owned &&= (lo & Entry.U) !== 0;
      executable &&= !(nxe && (hi & NX) !== 0);
    }
    const psePage = page && !wide && shift === 22;
    const physical = addressOf(cpu, lo, hi, page ? shift : 12);
    const chosen = (hi & choiceOf(cpu)) !== 0;
    if (!page) {
      // A table has the address of a private page: TDX refuses one with the shared bit.
      if (chosen && cpu.choice!.set === 'shared') return refuse(PageFault.P | PageFault.RSVD);
      table = physical;
      upper = rightsOf(writeable, owned, executable);
      continue;
    }

    let denied = 0;
    if (fetch) {
      if (!executable || (user ? !owned : owned && (cpu.cr4 & CR4.SMEP) !== 0)) return refuse(PageFault.P);
      if (chosen && cpu.choice!.set === 'shared') return refuse(PageFault.P | PageFault.RSVD);
    } else {
      if (owned && (cpu.cr4 & CR4.PKE) !== 0 && long) {
        // Of the user's pages alone, whoever accesses them; where there are other reasons beside it, the code still tells of it.
        denied = rightsOfKey(cpu, hi);
        const guarded = user || (cpu.cr0 & CR0.WP) !== 0;
        if ((denied & Key.AD) !== 0 || (write && guarded && (denied & Key.WD) !== 0))
          return refuse(PageFault.P | PageFault.PK);
      }
      if (user) {
        if (!owned || (write && !writeable)) return refuse(PageFault.P);
      } else {
        const smap = (cpu.cr4 & CR4.SMAP) !== 0 && (implicit || (cpu.state.eflags & Flag.AC) === 0);
        if ((owned && smap) || (write && !writeable && (cpu.cr0 & CR0.WP) !== 0)) return refuse(PageFault.P);
      }
    }
    for (let used = levels[0]!.bare ? 1 : first; used < place; used++) mark(cpu, read, used, Entry.A);
    mark(cpu, read, place, write ? Entry.A | Entry.D : Entry.A);

    spare = read;
    if (key !== -1 && !known && place >= 2) {
      if (shift === 21) upper = rightsOf(writeable, owned, executable);
      const dirty = shift === 21 && write ? Entry.D : 0;
      kept!.keep(low, high, read.lo[2]! | Entry.A | dirty, read.hi[2]!, read.gpa[2]!, upper);
    }
    // PSE-36: bits 20:13 of a 4 MiB page's entry are its address's bits 39:32 (SDM volume 3, 4.3).
    const above = psePage ? ((lo >>> 13) & 0xff) * GIB4 : 0;
    const inside = low & ~(-1 << shift) & -4096;
    return {
      physical: physical + above + inside,
      writable:
        denied === 0 && (write || (lo & Entry.D) !== 0) && (writeable || (!user && (cpu.cr0 & CR0.WP) === 0)),
      user: owned,
      global: (lo & Entry.G) !== 0 && (cpu.cr4 & CR4.PGE) !== 0,
      // Fetches are private whatever the entry says; so is all memory where entries have no room for the bit.
      wants: fetch || !wide ? wantsOfTables(cpu) : wanted(cpu, chosen),
    };
  }
  return refuse(0);
}

/** walk() where nothing is executing that a throw would be dear for. @throws GuestFault, SecondStageFault */
export function walked(...of: Parameters<typeof walk>): Translation {
  const found = walk(...of);
  if (found === undefined) throw guestFault;
  return found;
}

/** What PKRU says of a page's key, which bits 62:59 of its entry are (SDM volume 3, 4.6.2). */
const rightsOfKey = ({ pkru }: Processor, hi: number): number => (pkru >>> (((hi >>> 27) & 15) * 2)) & 3;

/** Where the first table begins. CR3 carries the bit of choice as entries do. */
function tableOf(cpu: Processor, long: boolean, pae: boolean): number {
  const hi = long ? highHalf(cpu.cr3) : 0;
  const lo = lowHalf(cpu.cr3);
  return addressOf(cpu, lo, hi, pae && !long ? 5 : 12);
}

function isReserved(
  lo: number,
  hi: number,
  { shift, large, ignored, bare }: Level,
  reserved: number,
  wide: boolean,
  cpu: Processor,
): boolean {
  if ((hi & reserved) !== 0) return true;
  if (bare) return (lo & PDPTE_RESERVED) !== 0 || (hi & NX) !== 0;
  if (ignored || (lo & Entry.PS) === 0) return false;
  if (!large) return true;
  if (wide) return (lo & (2 ** shift - 1) & ~0x1fff) !== 0;
  // 4 MiB pages: bits 21 down to M - 19 are reserved, M being at most 40.
  const width = Math.min(40, features(cpu.cpuid).physicalBits);
  return (lo & 0x3f_e000 & -(2 ** (width - 19))) !== 0;
}

/** Bits 2:1 and 8:5 of a PDPTE of PAE paging (SDM volume 3, table 4-8). */
const PDPTE_RESERVED = 0x1e6;

/**
 * Whether the four PDPTEs that CR3 points to may be loaded (SDM volume 3, 4.4.1). They are not kept: walks read
 * them from memory, as AMD's processors do.
 */
export function pdptesAreValid(cpu: Processor, cr3: bigint): boolean {
  const reserved = reservedHigh(cpu, PAE) | NX;
  const read = new Entries();
  for (let index = 0; index < 4; index++) {
    if (!readEntry(cpu, Number(cr3 & 0xffff_ffe0n) + index * 8, true, read, index)) return false;
    const lo = read.lo[index]!;
    if ((lo & Entry.P) !== 0 && ((lo & PDPTE_RESERVED) !== 0 || (read.hi[index]! & reserved) !== 0))
      return false;
  }
  return true;
}

/** Control and debug registers (SDM volume 3, 2.5 and 18.2; volume 2, MOV, LMSW, CLTS; arch/x86/kvm/x86.c for what KVM allows). */

import { gprAt, read16, readGpr, writeGpr, writeWideOr16 } from '../address/operands.ts';
import { pdptesAreValid } from '../address/paging.ts';
import { DR6, DR7_GD } from '../processor/debug.ts';
import { Seg } from '../processor/descriptors.ts';
import { raise, Vector } from '../processor/fault.ts';
import { type Feature, features, has } from '../processor/features.ts';
import type { Helper, Helpers } from '../processor/helper.ts';
import type { Insn } from '../processor/insn.ts';
import { CR0, CR4, EFER, ia32e, longMode, paging, privileged, refuseUserMode } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';

const CR0_WRITABLE =
  CR0.PE | CR0.MP | CR0.EM | CR0.TS | CR0.ET | CR0.NE | CR0.WP | CR0.AM | CR0.NW | CR0.CD | CR0.PG;
/** What PAE's PDPTEs are loaded again for (SDM volume 3, 4.4.1). */
const CR0_PDPTES = CR0.CD | CR0.NW | CR0.PG;
/** What translations follow from, and the rights that are kept with them. */
const CR0_TRANSLATES = CR0.PE | CR0.PG | CR0.WP;
const CR4_PDPTES = CR4.PAE | CR4.PGE | CR4.PSE | CR4.SMEP;

const CR4_ALWAYS =
  CR4.VME |
  CR4.PVI |
  CR4.TSD |
  CR4.DE |
  CR4.PSE |
  CR4.PAE |
  CR4.MCE |
  CR4.PGE |
  CR4.PCE |
  CR4.OSFXSR |
  CR4.OSXMMEXCPT;
/** Those that a guest has only with a feature in its CPUID. */
const CR4_BY_FEATURE: readonly (readonly [number, Feature])[] = [
  [CR4.UMIP, 'UMIP'],
  [CR4.FSGSBASE, 'FSGSBASE'],
  [CR4.PCIDE, 'PCID'],
  [CR4.OSXSAVE, 'XSAVE'],
  [CR4.SMEP, 'SMEP'],
  [CR4.SMAP, 'SMAP'],
  [CR4.PKE, 'PKU'],
];

/** Those that a processor does not have. */
export const absentCr4 = (absent: ReadonlySet<string>): bigint =>
  CR4_BY_FEATURE.reduce(
    (bits, [bit, feature]) => (absent.has(feature.toLowerCase()) ? bits | BigInt(bit) : bits),
    0n,
  );

const unsigned = (value: number) => value >>> 0;

/** PAE paging without IA-32e mode, which loads the PDPTEs. */
const loadsPdptes = (cr0: number, cr4: number, efer: number) =>
  (cr0 & CR0.PG) !== 0 && (cr4 & CR4.PAE) !== 0 && (efer & EFER.LME) === 0;

/** CR0, with all that follows from it: raises #GP(0) before anything is changed. */
function setCr0(cpu: Processor, value: bigint): void {
  if (value >> 32n !== 0n) raise(Vector.GP, 0);
  const next = unsigned((Number(value) & CR0_WRITABLE) | CR0.ET);
  const on = (bit: number) => (next & bit) !== 0;
  if ((on(CR0.PG) && !on(CR0.PE)) || (on(CR0.NW) && !on(CR0.CD))) raise(Vector.GP, 0);
  const started = on(CR0.PG) && !paging(cpu);
  const stopped = !on(CR0.PG) && paging(cpu);
  if (started && (cpu.efer & EFER.LME) !== 0) {
    if ((cpu.cr4 & CR4.PAE) === 0 || cpu.segments[Seg.CS]!.l === 1) raise(Vector.GP, 0);
  }
  if (stopped && (longMode(cpu) || (cpu.cr4 & CR4.PCIDE) !== 0)) raise(Vector.GP, 0);
  const reload = ((next ^ cpu.cr0) & CR0_PDPTES) !== 0 && loadsPdptes(next, cpu.cr4, cpu.efer);
  if (reload && !pdptesAreValid(cpu, cpu.cr3)) raise(Vector.GP, 0);

  if (started && (cpu.efer & EFER.LME) !== 0) cpu.efer |= EFER.LMA;
  if (stopped) cpu.efer &= ~EFER.LMA;
  const changes = next ^ cpu.cr0;
  cpu.cr0 = next;
  if ((changes & CR0_TRANSLATES) !== 0) cpu.flushTlb();
}

/** MOV to CR3 with this bit keeps the translations, when PCIDs are on (SDM volume 3, 4.10.4.1). */
const KEEP = 1n << 63n;

function setCr3(cpu: Processor, value: bigint): void {
  const tagged = (cpu.cr4 & CR4.PCIDE) !== 0;
  const next = tagged ? value & ~KEEP : value;
  if (ia32e(cpu)) {
    const chosen = cpu.choice === undefined ? 0n : 1n << BigInt(cpu.choice.bit);
    if ((next & ~chosen) >> BigInt(features(cpu.cpuid).physicalBits) !== 0n) raise(Vector.GP, 0);
  } else if (loadsPdptes(cpu.cr0, cpu.cr4, cpu.efer) && !pdptesAreValid(cpu, next)) raise(Vector.GP, 0);
  cpu.cr3 = next;
  // Translations are not tagged: what the guest asks to keep is forgotten too, which it cannot tell.
  cpu.flushTlbLocal();
}

function setCr4(cpu: Processor, value: bigint): void {
  let writable: number = CR4_ALWAYS;
  for (const [bit, feature] of CR4_BY_FEATURE) if (has(cpu, feature)) writable |= bit;
  if ((value & ~BigInt(unsigned(writable))) !== 0n) raise(Vector.GP, 0);
  const next = Number(value);
  const changes = next ^ cpu.cr4;
  if (ia32e(cpu) && (next & CR4.PAE) === 0) raise(Vector.GP, 0);
  if ((changes & next & CR4.PCIDE) !== 0 && (!ia32e(cpu) || (cpu.cr3 & 0xfffn) !== 0n)) raise(Vector.GP, 0);
  const reload = (changes & CR4_PDPTES) !== 0 && loadsPdptes(cpu.cr0, next, cpu.efer);
  if (reload && !pdptesAreValid(cpu, cpu.cr3)) raise(Vector.GP, 0);
  cpu.cr4 = next;
  if (changes !== 0) cpu.flushTlb();
}

function setCr8(cpu: Processor, value: bigint): void {
  if (value > 15n) raise(Vector.GP, 0);
  if (Number(value) < cpu.cr8) cpu.stop = { kind: 'lower-priority' };
  cpu.cr8 = Number(value);
}

const controls: {
  readonly [index: number]: { read(cpu: Processor): bigint; write(cpu: Processor, value: bigint): void };
} = {
  0: { read: (cpu) => BigInt(unsigned(cpu.cr0)), write: setCr0 },
  2: {
    read: (cpu) => cpu.cr2,
    write(cpu, value) {
      cpu.cr2 = value;
    },
  },
  3: { read: (cpu) => cpu.cr3, write: setCr3 },
  4: { read: (cpu) => BigInt(unsigned(cpu.cr4)), write: setCr4 },
  8: { read: (cpu) => BigInt(cpu.cr8), write: setCr8 },
};

const indexOf = (insn: Insn, position: number): number => {
  const operand = insn.operands[position];
  return operand !== undefined && 'index' in operand ? (operand.index ?? 0) : 0;
};
/** Whether the special register is where the instruction writes to. */
const writes = (insn: Insn) => insn.operands[1]?.kind === 'gpr';

const movCr: Helper = (cpu, insn) => {
  const write = writes(insn);
  const control = controls[indexOf(insn, write ? 0 : 1)];
  if (control === undefined) raise(Vector.UD);
  privileged(cpu);
  const { index, size } = gprAt(insn, write ? 1 : 0);
  if (write) control.write(cpu, readGpr(cpu, index, size));
  else writeGpr(cpu, index, size, control.read(cpu));
};

/** Bits of DR6 and DR7 that can be written; the others are fixed (SDM volume 3, 18.2). */
const DR6_WRITABLE = 0xe00fn;
const DR7_WRITABLE = 0xffff_2bffn;
const DR7_FIXED = 0x400n;

const movDr: Helper = (cpu, insn) => {
  const write = writes(insn);
  let which = indexOf(insn, write ? 0 : 1);
  if (which > 7) raise(Vector.UD);
  if (which === 4 || which === 5) {
    if ((cpu.cr4 & CR4.DE) !== 0) raise(Vector.UD);
    which += 2;
  }
  privileged(cpu);
  if ((cpu.dr[7]! & DR7_GD) !== 0n) raise(Vector.DB, undefined, DR6.BD);
  const { index, size } = gprAt(insn, write ? 1 : 0);
  if (!write) return writeGpr(cpu, index, size, cpu.dr[which]!);
  const value = readGpr(cpu, index, size);
  if (which >= 6 && value >> 32n !== 0n) raise(Vector.GP, 0);
  if (which === 6) cpu.dr[6] = (value & DR6_WRITABLE) | DR6.FIXED;
  else if (which === 7) cpu.dr[7] = (value & DR7_WRITABLE) | DR7_FIXED;
  else cpu.dr[which] = value;
};

export const controlRegistersEnding: Helpers = {
  'mov cr': movCr,
  'mov dr': movDr,
  lmsw(cpu, insn) {
    privileged(cpu);
    // PE can be set and not be cleared.
    const low = (read16(cpu, insn, 0) & 15) | (cpu.cr0 & CR0.PE);
    setCr0(cpu, BigInt(unsigned((cpu.cr0 & ~15) | low)));
  },
  clts(cpu) {
    privileged(cpu);
    cpu.cr0 = unsigned(cpu.cr0 & ~CR0.TS);
  },
};

export const controlRegisters: Helpers = {
  smsw(cpu, insn) {
    refuseUserMode(cpu);
    writeWideOr16(cpu, insn, 0, BigInt(unsigned(cpu.cr0)));
  },
};

/** Model-specific registers: RDMSR and WRMSR, and what KVM_GET_MSRS and KVM_SET_MSRS see. */

import { MsrExitReason } from '../../../uapi/constants.ts';
import { raise, Vector } from '../processor/fault.ts';
import { type Feature, features, has } from '../processor/features.ts';
import type { Helpers } from '../processor/helper.ts';
import { canonical, EFER, low32, paging, privileged } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import { setSegment } from '../segments/loads.ts';
import { stubs } from './msr-stubs.ts';

const RAX = 0;
const RCX = 1;
const RDX = 2;

/** IA32_* and MSR_* without their prefixes (SDM volume 4; APM volume 2, appendix A). */
export const Msr = {
  TSC: 0x10,
  APIC_BASE: 0x1b,
  SMI_COUNT: 0x34,
  FEAT_CTL: 0x3a,
  TSC_ADJUST: 0x3b,
  UCODE_REV: 0x8b,
  SMBASE: 0x9e,
  PLATFORM_INFO: 0xce,
  MTRR_CAP: 0xfe,
  MISC_FEATURES_ENABLES: 0x140,
  SYSENTER_CS: 0x174,
  SYSENTER_ESP: 0x175,
  SYSENTER_EIP: 0x176,
  MCG_CAP: 0x179,
  MCG_STATUS: 0x17a,
  MCG_CTL: 0x17b,
  MISC_ENABLE: 0x1a0,
  DEBUG_CTL: 0x1d9,
  LAST_BRANCH_FROM: 0x1db,
  POWER_CTL: 0x1fc,
  MTRR_PHYS_BASE0: 0x200,
  PAT: 0x277,
  MC0_CTL2: 0x280,
  MTRR_DEF_TYPE: 0x2ff,
  MC0_CTL: 0x400,
  TSC_DEADLINE: 0x6e0,
  EFER: 0xc000_0080,
  STAR: 0xc000_0081,
  LSTAR: 0xc000_0082,
  CSTAR: 0xc000_0083,
  FMASK: 0xc000_0084,
  FS_BASE: 0xc000_0100,
  GS_BASE: 0xc000_0101,
  KERNEL_GS_BASE: 0xc000_0102,
  TSC_AUX: 0xc000_0103,
  AMD_HWCR: 0xc001_0015,
  AMD_VM_CR: 0xc001_0114,
  AMD_VM_IGNNE: 0xc001_0115,
  AMD_VM_HSAVE_PA: 0xc001_0117,
  AMD_SEV_STATUS: 0xc001_0131,
  AMD_IC_CFG: 0xc001_1021,
  AMD_DE_CFG: 0xc001_1029,
} as const;

/** `host` is KVM_SET_MSRS, which may do what the guest may not. */
interface Row {
  /** Undefined where it cannot be read. */
  readonly read: (cpu: Processor) => bigint | undefined;
  /** False refuses the value: #GP(0), or the end of KVM_SET_MSRS. Undefined where it cannot be written. */
  readonly write: ((cpu: Processor, value: bigint, host: boolean) => boolean) | undefined;
  readonly vendor?: 'intel' | 'amd';
  /** Without one of them in CPUID the guest has no such register. */
  readonly needs?: readonly Feature[];
  /** Told by KVM_GET_MSR_INDEX_LIST: a state that migration has to carry. */
  readonly listed?: boolean;
  readonly initial?: bigint;
  /** KVM_GET_MSRS and KVM_SET_MSRS alone know it. */
  readonly hostOnly?: boolean;
}

type Check = (value: bigint, cpu: Processor, host: boolean) => boolean;
const any: Check = () => true;
const zero: Check = (value) => value === 0n;
const hosts: Check = (_value, _cpu, host) => host;
const isCanonical: Check = (value) => canonical(value);

/** A register with nothing behind it but its value. */
const plain = (index: number, check: Check, rest: Omit<Row, 'read' | 'write'> = {}): [number, Row] => [
  index,
  {
    read: (cpu) => cpu.msrs.get(index) ?? rest.initial ?? 0n,
    write(cpu, value, host) {
      if (!check(value, cpu, host)) return false;
      cpu.msrs.set(index, value);
      return true;
    },
    ...rest,
  },
];
const listed = { listed: true } as const;
/** One that always reads the same. */
const constant = (
  index: number,
  value: bigint | undefined,
  accepts?: Check,
  rest: Partial<Row> = {},
): [number, Row] => [
  index,
  { read: () => value, write: accepts && ((cpu, data, host) => accepts(data, cpu, host)), ...rest },
];
const range = (first: number, count: number, row: (index: number) => [number, Row]): [number, Row][] =>
  Array.from({ length: count }, (_, i) => row(first + i));

/** KVM_GET_SREGS has these: they are not listed. */
const base = (index: number, segment: number): [number, Row] => [
  index,
  {
    read: (cpu) => cpu.segments[segment]!.base,
    write(cpu, value) {
      if (!canonical(value)) return false;
      setSegment(cpu, segment, { ...cpu.segments[segment]!, base: value });
      return true;
    },
  },
];

/**
 * Intel's refuse what is not canonical; what is KVM's own to set is made so (arch/x86/kvm/x86.c, __kvm_set_msr), and for a
 * guest that knows itself on AMD's, where only legacy mode has SYSENTER, cut to 32 bits (svm/svm.c, svm_set_msr).
 */
const entry = (index: number): [number, Row] => [
  index,
  {
    ...listed,
    read: (cpu) => cpu.msrs.get(index) ?? 0n,
    write(cpu, value, host) {
      if (!host && cpu.vendor === 'intel' && !canonical(value)) return false;
      const kept = BigInt.asUintN(64, BigInt.asIntN(48, value));
      cpu.msrs.set(
        index,
        host && features(cpu.cpuid).vendor === 'amd' && cpu.vendor === 'amd' ? low32(kept) : kept,
      );
      return true;
    },
  },
];

/** Memory types: UC WC WT WP WB, and UC- in the PAT (SDM volume 3, tables 12-8 and 12-10). */
const MTRR_TYPES = [0, 1, 4, 5, 6];
const PAT_TYPES = [...MTRR_TYPES, 7];
const eachByte =
  (types: readonly number[]): Check =>
  (value) => {
    for (let shift = 0n; shift < 64n; shift += 8n) {
      if (!types.includes(Number((value >> shift) & 0xffn))) return false;
    }
    return true;
  };
const physicalMask = (cpu: Processor) => (1n << BigInt(features(cpu.cpuid).physicalBits)) - 1n;
const mtrrBase: Check = (value, cpu) =>
  (value & ~(physicalMask(cpu) & ~0xf00n)) === 0n && MTRR_TYPES.includes(Number(value & 0xffn));
const mtrrMask: Check = (value, cpu) => (value & ~(physicalMask(cpu) & ~0x7ffn)) === 0n;
const mtrrDefault: Check = (value) => (value & ~0xcffn) === 0n && MTRR_TYPES.includes(Number(value & 0xffn));
const VARIABLE_MTRRS = 8;
const FIXED_MTRRS = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
/** Eight variable ones, fixed ones, and write-combining. */
const MTRR_CAP = 0x508n;

const EFER_WRITABLE = BigInt(EFER.SCE | EFER.LME | EFER.LMA | EFER.NXE);

/** arch/x86/kvm/x86.c, set_efer. LMA follows CR0.PG and LME; what is written to it is ignored. */
function writeEfer(cpu: Processor, value: bigint, host: boolean): boolean {
  if ((value & ~EFER_WRITABLE) !== 0n) return false;
  const next = Number(value);
  const lacks = (bit: number, feature: Feature) => (next & bit) !== 0 && !has(cpu, feature);
  if (!host) {
    if (lacks(EFER.LME | EFER.LMA, 'LM') || lacks(EFER.NXE, 'NX') || lacks(EFER.SCE, 'SYSCALL')) return false;
    if (paging(cpu) && ((cpu.efer ^ next) & EFER.LME) !== 0) return false;
  }
  cpu.efer = (next & ~EFER.LMA) | (cpu.efer & EFER.LMA);
  cpu.flushTlb();
  return true;
}

/** The time-stamp counter counts instructions; the map has what it is ahead of them. */
const AHEAD = Msr.TSC;
const mask64 = (value: bigint) => BigInt.asUintN(64, value);
export const readTsc = (cpu: Processor): bigint => mask64(cpu.completed + (cpu.msrs.get(AHEAD) ?? 0n));
function writeTsc(cpu: Processor, value: bigint, host: boolean): boolean {
  const by = value - readTsc(cpu);
  cpu.msrs.set(AHEAD, mask64(value - cpu.state.count));
  // A guest's own write shows in IA32_TSC_ADJUST (SDM volume 3, 18.17.3).
  if (!host) cpu.msrs.set(Msr.TSC_ADJUST, mask64((cpu.msrs.get(Msr.TSC_ADJUST) ?? 0n) + by));
  return true;
}
function writeTscAdjust(cpu: Processor, value: bigint, host: boolean): boolean {
  if (!has(cpu, 'TSC_ADJUST')) return true;
  const by = value - (cpu.msrs.get(Msr.TSC_ADJUST) ?? 0n);
  cpu.msrs.set(Msr.TSC_ADJUST, value);
  if (!host) cpu.msrs.set(AHEAD, mask64((cpu.msrs.get(AHEAD) ?? 0n) + by));
  return true;
}

/** Enable, BSP, and the default page (SDM volume 3, 11.4.4). There is no x2APIC. */
const APIC_BASE = 0xfee0_0900n;
const apicBase: Check = (value, cpu) => (value & (~physicalMask(cpu) | 0x6ffn)) === 0n;

const BTF_LBR = 3n;
/** KVM drops BTF and LBR silently where it does not virtualize them, and on AMD's processors all bits. */
const debugControl: Check = (value, { vendor }) => vendor === 'amd' || (value & ~BTF_LBR) === 0n;

/** Neither BTS nor PEBS, and the guest cannot change that; nor EMON, but it may try. */
const MISC_ENABLE = { initial: 0x1800n, READ_ONLY: 0x1800n, EMON: 0x80n };
function writeMiscEnable(cpu: Processor, value: bigint, host: boolean): boolean {
  const old = cpu.msrs.get(Msr.MISC_ENABLE) ?? MISC_ENABLE.initial;
  if (!host && ((old ^ value) & MISC_ENABLE.READ_ONLY) !== 0n) return false;
  const kept = host ? 0n : MISC_ENABLE.EMON;
  cpu.msrs.set(Msr.MISC_ENABLE, (value & ~kept) | (old & kept));
  return true;
}

/** McStatusWrEn and TscFreqSel; three more are ignored. */
const HWCR = { MC_STATUS_WRITE: 1n << 18n, TSC_FREQUENCY: 1n << 24n, IGNORED: 0x148n };
function writeHwcr(cpu: Processor, value: bigint): boolean {
  const kept = value & ~HWCR.IGNORED;
  if ((kept & ~(HWCR.MC_STATUS_WRITE | HWCR.TSC_FREQUENCY)) !== 0n) return false;
  cpu.msrs.set(Msr.AMD_HWCR, kept);
  return true;
}

/** Banks of machine checks, as many as KVM's vCPUs begin with; each has a control, a status, an address and one more. */
const MC_BANKS = 32;
const MC_REGISTERS = 4;
/** Linux and UnixWare clear these bits of a control of all ones, and KVM lets them. */
const MC_CONTROL_MAY_CLEAR = (1n << 10n) | 1n;
const MASK64 = 0xffff_ffff_ffff_ffffn;
const bankControl: Check = (value) => value === 0n || (value | MC_CONTROL_MAY_CLEAR) === MASK64;
const bankStatus: Check = (value, cpu, host) =>
  host ||
  value === 0n ||
  (features(cpu.cpuid).vendor === 'amd' && (msrValue(cpu, Msr.AMD_HWCR) & HWCR.MC_STATUS_WRITE) !== 0n);
const bankRegister = (index: number) =>
  plain(index, [bankControl, bankStatus][(index - Msr.MC0_CTL) % MC_REGISTERS] ?? any);

const CPUID_FAULT = 1n << 31n;
/** Bit 0: CPUID raises #GP outside privilege level 0. */
const featuresEnables: Check = (value, cpu) =>
  value === 0n || (value === 1n && (msrValue(cpu, Msr.PLATFORM_INFO) & CPUID_FAULT) !== 0n);
export const cpuidFaults = (cpu: Processor): boolean => msrValue(cpu, Msr.MISC_FEATURES_ENABLES) === 1n;

const FEAT_CTL_LOCKED = 1n;
const featureControl: Check = (value, cpu, host) =>
  (value & ~FEAT_CTL_LOCKED) === 0n && (host || (cpu.msrs.get(Msr.FEAT_CTL) ?? 0n) === 0n);

/** Intel's refuse the upper half, AMD's have none. */
function writeTscAux(cpu: Processor, value: bigint): boolean {
  if (features(cpu.cpuid).vendor !== 'amd' && value >> 32n !== 0n) return false;
  cpu.msrs.set(Msr.TSC_AUX, low32(value));
  return true;
}

const INITIAL_MICROCODE = { amd: 0x0100_0065n, intel: 0x1_0000_0000n } as const;
/** Only userspace changes it. */
function writeMicrocode(cpu: Processor, value: bigint, host: boolean): boolean {
  if (host) cpu.msrs.set(Msr.UCODE_REV, value);
  return true;
}

const VM_CR_BITS = 0x1fn;
function writeHsavePa(cpu: Processor, value: bigint, host: boolean): boolean {
  if (cpu.vendor === 'intel') return true;
  if (!host && (value & 0xfffn) !== 0n) return false;
  cpu.msrs.set(Msr.AMD_VM_HSAVE_PA, value & ~0xfffn);
  return true;
}
const stored = (
  index: number,
  write: Row['write'],
  initial: (cpu: Processor) => bigint = () => 0n,
): [number, Row] => [index, { ...listed, read: (cpu) => cpu.msrs.get(index) ?? initial(cpu), write }];

const rows = new Map<number, Row>([
  [Msr.TSC, { ...listed, read: readTsc, write: writeTsc }],
  plain(Msr.APIC_BASE, apicBase, { initial: APIC_BASE }),
  stored(Msr.TSC_ADJUST, writeTscAdjust),
  stored(Msr.UCODE_REV, writeMicrocode, ({ vendor }) => INITIAL_MICROCODE[vendor]),
  plain(Msr.SMI_COUNT, hosts, listed),
  plain(Msr.SMBASE, any, { ...listed, hostOnly: true, initial: 0x3_0000n }),
  plain(Msr.FEAT_CTL, featureControl, { ...listed, vendor: 'intel' }),
  plain(Msr.PLATFORM_INFO, hosts, { ...listed, initial: CPUID_FAULT }),
  constant(Msr.MTRR_CAP, MTRR_CAP),
  plain(Msr.MISC_FEATURES_ENABLES, featuresEnables, listed),
  plain(Msr.SYSENTER_CS, any, listed),
  entry(Msr.SYSENTER_ESP),
  entry(Msr.SYSENTER_EIP),
  constant(Msr.MCG_CAP, BigInt(MC_BANKS)),
  plain(Msr.MCG_STATUS, any, listed),
  // Neither MCG_CTL_P nor MCG_CMCI_P.
  constant(Msr.MCG_CTL, 0n, zero, { ...listed, hostOnly: true }),
  ...range(Msr.MC0_CTL2, MC_BANKS, (index) => constant(index, 0n, zero, { hostOnly: true })),
  ...range(Msr.MC0_CTL, MC_BANKS * MC_REGISTERS, bankRegister),
  stored(Msr.MISC_ENABLE, writeMiscEnable, () => MISC_ENABLE.initial),
  constant(Msr.DEBUG_CTL, 0n, debugControl, listed),
  // From and to of the last branch and the last interrupt: userspace may write back the zeroes that it has read.
  ...range(Msr.LAST_BRANCH_FROM, 4, (index) =>
    constant(index, 0n, (value, _cpu, host) => host && value === 0n, listed),
  ),
  plain(Msr.POWER_CTL, any, listed),
  // Of an interrupt controller in the kernel.
  constant(Msr.TSC_DEADLINE, 0n, any, listed),
  ...Array.from({ length: VARIABLE_MTRRS }, (_, i) => [
    plain(Msr.MTRR_PHYS_BASE0 + 2 * i, mtrrBase, listed),
    plain(Msr.MTRR_PHYS_BASE0 + 2 * i + 1, mtrrMask, listed),
  ]).flat(),
  ...FIXED_MTRRS.map((index) => plain(index, eachByte(MTRR_TYPES), listed)),
  plain(Msr.PAT, eachByte(PAT_TYPES), { ...listed, initial: 0x0007_0406_0007_0406n }),
  plain(Msr.MTRR_DEF_TYPE, mtrrDefault, listed),
  [Msr.EFER, { read: (cpu) => BigInt(cpu.efer >>> 0), write: writeEfer }],
  plain(Msr.STAR, any, listed),
  plain(Msr.LSTAR, isCanonical, listed),
  plain(Msr.CSTAR, isCanonical, listed),
  plain(Msr.FMASK, (value, { vendor }) => vendor === 'amd' || value >> 32n === 0n, listed),
  base(Msr.FS_BASE, 4),
  base(Msr.GS_BASE, 5),
  plain(Msr.KERNEL_GS_BASE, isCanonical, listed),
  [Msr.TSC_AUX, { ...stored(Msr.TSC_AUX, writeTscAux)[1], needs: ['RDTSCP', 'RDPID'] }],
  stored(Msr.AMD_HWCR, writeHwcr),
  stored(Msr.AMD_VM_HSAVE_PA, writeHsavePa),
  plain(Msr.AMD_VM_CR, (value) => (value & ~VM_CR_BITS) === 0n, { vendor: 'amd' }),
  constant(Msr.AMD_VM_IGNNE, undefined, any, { vendor: 'amd' }),
  constant(Msr.AMD_IC_CFG, 0n, undefined, { vendor: 'amd' }),
  // A guest may make LFENCE serializing, which it is.
  plain(Msr.AMD_DE_CFG, (value) => (value & ~2n) === 0n, { vendor: 'amd', listed: true }),
  ...stubs.flatMap(([first, last, reads, writes]) =>
    range(first, last - first + 1, (index) => constant(index, reads, { any, zero, none: undefined }[writes])),
  ),
]);

/** SEV, SEV-ES and SEV-SNP are on (APM volume 2, 15.34.10): in VMs whose guests have a C-bit, and not writable. */
const sevStatus: Row = { read: () => 7n, write: undefined };

function rowOf(cpu: Processor, index: number, host: boolean): Row | undefined {
  if (index === Msr.AMD_SEV_STATUS && cpu.choice?.set === 'private') return sevStatus;
  const row = rows.get(index);
  if (row === undefined || (row.vendor !== undefined && row.vendor !== cpu.vendor)) return undefined;
  if (host) return row;
  return row.hostOnly || (row.needs !== undefined && !row.needs.some((feature) => has(cpu, feature)))
    ? undefined
    : row;
}

/** The value of a register that is there whatever CPUID says. */
export const msrValue = (cpu: Processor, index: number): bigint => rows.get(index)!.read(cpu)!;

/** RDMSR and KVM_GET_MSRS: undefined where there is no such register. */
export function readMsr(cpu: Processor, index: number, host = false): bigint | undefined {
  return rowOf(cpu, index, host)?.read(cpu);
}

/** WRMSR and KVM_SET_MSRS: false where there is no such register or it refuses the value. Call cpu.changed() after. */
export function writeMsr(cpu: Processor, index: number, value: bigint, host = false): boolean {
  return rowOf(cpu, index, host)?.write?.(cpu, value, host) ?? false;
}

/** The registers of KVM_GET_MSR_INDEX_LIST. */
export const msrIndexList = (vendor: 'intel' | 'amd'): number[] =>
  [...rows].filter(([, row]) => row.listed && (row.vendor ?? vendor) === vendor).map(([index]) => index);

/** What the processor does without KVM, as long as the guest may (svm.c, direct_access_msrs; vmx.c, vmx_possible_passthrough_msrs). */
const unseen: Readonly<Record<'intel' | 'amd', readonly number[]>> = {
  amd: [
    Msr.STAR,
    Msr.LSTAR,
    Msr.CSTAR,
    Msr.FMASK,
    Msr.FS_BASE,
    Msr.GS_BASE,
    Msr.KERNEL_GS_BASE,
    Msr.SYSENTER_CS,
  ],
  intel: [Msr.FS_BASE, Msr.GS_BASE, Msr.KERNEL_GS_BASE, Msr.SYSENTER_CS, Msr.SYSENTER_ESP, Msr.SYSENTER_EIP],
};

/** MSRs that KVM knows and the guest's CPUID has no feature for; from and to of the last branch, which nobody writes. */
const { INVAL, UNKNOWN } = MsrExitReason;
const exceptions: readonly (readonly [first: number, last: number, accesses: 'rw' | 'w', reason: number])[] =
  [
    [0x48, 0x48, 'rw', INVAL], // SPEC_CTRL
    [0x49, 0x49, 'w', INVAL], // PRED_CMD
    [0x10a, 0x10b, 'w', INVAL], // ARCH_CAPABILITIES, FLUSH_CMD
    [0x1c4, 0x1c5, 'rw', INVAL], // XFD, XFD_ERR
    [Msr.LAST_BRANCH_FROM, Msr.LAST_BRANCH_FROM + 3, 'w', UNKNOWN],
    [0x210, 0x26f, 'rw', INVAL], // what MTRRs there could be
    [0x345, 0x345, 'rw', INVAL], // PERF_CAPABILITIES
    [0xc000_0104, 0xc000_0104, 'rw', INVAL], // AMD64_TSC_RATIO
    [0xc001_0140, 0xc001_0141, 'rw', INVAL], // AMD64_OSVW
  ];

/** Why KVM tells of a failed access (x86.c, kvm_msr_reason): it knows no such register, or refuses what is asked of it. */
function reasonOf(cpu: Processor, index: number, write: boolean): number {
  const found = exceptions.find(
    ([first, last, accesses]) => index >= first && index <= last && (write || accesses === 'rw'),
  );
  if (found !== undefined) return found[3];
  const row = rowOf(cpu, index, true);
  const known = write ? row?.write !== undefined : row?.read(cpu) !== undefined;
  return known ? INVAL : UNKNOWN;
}

/** RDMSR, which has no `value`, and WRMSR: gives what is read. Userspace's answer stands, whatever has changed since. */
function access(cpu: Processor, value?: bigint): bigint {
  privileged(cpu);
  const index = Number(low32(cpu.state.gpr(RCX)));
  const { io, msrPolicy } = cpu;
  const write = value !== undefined;
  let reason = 0;
  if (io.empty) {
    const allowed = msrPolicy.allows(index, write);
    if (allowed) {
      const read = write ? (writeMsr(cpu, index, value) ? value : undefined) : readMsr(cpu, index);
      if (read !== undefined) return read;
    }
    reason = allowed ? reasonOf(cpu, index, write) : MsrExitReason.FILTER;
    const seen = !allowed || !unseen[cpu.vendor].includes(index);
    if (!seen || (msrPolicy.exits & reason) === 0) raise(Vector.GP, 0);
  }
  return io.msr(write, index, value ?? 0n, reason);
}

export const modelSpecificRegistersEnding: Helpers = {
  rdmsr(cpu) {
    const value = access(cpu);
    cpu.state.setGpr(RAX, low32(value));
    cpu.state.setGpr(RDX, value >> 32n);
  },
  wrmsr(cpu) {
    const { state } = cpu;
    access(cpu, low32(state.gpr(RAX)) | (low32(state.gpr(RDX)) << 32n));
  },
};

/** KVM_GET_REGS and KVM_GET_SREGS, and what sets them (arch/x86/kvm/x86.c, __set_regs, __set_sregs). */
import { Errno } from '../../uapi/errno.ts';
import type { Input, Value } from '../../uapi/layout.ts';
import type { kvm_dtable, kvm_regs, kvm_segment, kvm_sregs, kvm_sregs2 } from '../../uapi/x86.ts';
import { type Cpu, Seg, type Segment, type Table } from '../cpu/cpu.ts';

type Regs = Value<typeof kvm_regs>;
type Sregs = Value<typeof kvm_sregs>;
type Sregs2 = Value<typeof kvm_sregs2>;
/** What both versions have. */
type Special = Omit<Sregs, 'interruptBitmap'>;

/** In the order of the encodings. */
const GPRS = [
  'rax',
  'rcx',
  'rdx',
  'rbx',
  'rsp',
  'rbp',
  'rsi',
  'rdi',
  'r8',
  'r9',
  'r10',
  'r11',
  'r12',
  'r13',
  'r14',
  'r15',
] as const satisfies (keyof Regs)[];

/** X86_EFLAGS_FIXED. */
const FIXED_FLAG = 0x2;

export function getRegs({ state }: Cpu): Regs {
  const regs = { rip: state.rip, rflags: BigInt(state.flags >>> 0) } as { [name in keyof Regs]: bigint };
  for (const [i, name] of GPRS.entries()) regs[name] = state.gpr(i);
  return regs;
}

export function setRegs(cpu: Cpu, regs: Regs): void {
  const { state } = cpu;
  for (const [i, name] of GPRS.entries()) state.setGpr(i, regs[name]);
  state.rip = regs.rip;
  state.flags = Number(BigInt.asUintN(32, regs.rflags)) | FIXED_FLAG;
  cpu.changed();
}

const SEGMENTS = ['es', 'cs', 'ss', 'ds', 'fs', 'gs'] as const satisfies (keyof Special)[];

type KvmSegment = Value<typeof kvm_segment>;

const toKvm = (segment: Segment): KvmSegment => ({ ...segment, padding: 0 });
const fromKvm = ({ padding: _, ...segment }: KvmSegment): Segment => ({
  ...segment,
  unusable: segment.unusable || !segment.present ? 1 : 0,
});
const tableToKvm = ({ base, limit }: Table): Input<Value<typeof kvm_dtable>> => ({ base, limit });

/** IA32_APIC_BASE (SDM volume 3, 11.4.4): kept for userspace, as there is no APIC here. */
export const APIC_BASE = 0x1b;

function getSpecial(cpu: Cpu): Input<Special> {
  const segments = Object.fromEntries(SEGMENTS.map((name, i) => [name, toKvm(cpu.segments[i]!)]));
  return {
    ...(segments as { [name in (typeof SEGMENTS)[number]]: KvmSegment }),
    tr: toKvm(cpu.tr),
    ldt: toKvm(cpu.ldtr),
    gdt: tableToKvm(cpu.gdtr),
    idt: tableToKvm(cpu.idtr),
    cr0: cpu.cr0 >>> 0,
    cr2: cpu.cr2,
    cr3: cpu.cr3,
    cr4: cpu.cr4 >>> 0,
    cr8: cpu.cr8,
    efer: cpu.efer >>> 0,
    apicBase: cpu.msrs.get(APIC_BASE) ?? 0n,
  };
}

/** The interrupt that waits for injection is one of 256 bits. */
export function getSregs(cpu: Cpu): Input<Sregs> {
  const bitmap = [0n, 0n, 0n, 0n];
  const { interrupt } = cpu;
  if (interrupt !== undefined && !interrupt.soft)
    bitmap[interrupt.vector >> 6] = 1n << BigInt(interrupt.vector & 63);
  return { ...getSpecial(cpu), interruptBitmap: bitmap };
}

/** PDPTEs are read from memory at each walk, so there are none to give. */
export const getSregs2 = (cpu: Cpu): Input<Sregs2> => ({
  ...getSpecial(cpu),
  flags: 0,
  pdptrs: [0n, 0n, 0n, 0n],
});

const CR0 = { PE: 1n << 0n, NW: 1n << 29n, CD: 1n << 30n, PG: 1n << 31n };
const CR4 = { PAE: 1n << 5n };
const EFER = { LME: 1n << 8n, LMA: 1n << 10n };
/** VME to PCE, OSFXSR, OSXMMEXCPT, UMIP, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP (SDM volume 3, 2.5). */
const CR4_KNOWN = 0x37_0fffn;
const MAX_PHYSICAL = 1n << 52n;
/** What IA32_APIC_BASE has besides an address: BSP and the enable bit. */
const APIC_BASE_RESERVED = 0x2ffn | (1n << 10n) | ~(MAX_PHYSICAL - 1n);
const CR8_RESERVED = ~0xfn;

/** kvm_is_valid_sregs(): what no processor can be in. */
function isValid(sregs: Special): boolean {
  const { cr0, cr3, cr4, efer } = sregs;
  const paging = (cr0 & CR0.PG) !== 0n;
  if ((efer & EFER.LME) !== 0n && paging) {
    if ((cr4 & CR4.PAE) === 0n || (efer & EFER.LMA) === 0n || cr3 >= MAX_PHYSICAL) return false;
  } else if ((efer & EFER.LMA) !== 0n || sregs.cs.l !== 0) {
    return false;
  }
  if (cr0 >= 1n << 32n || ((cr0 & CR0.NW) !== 0n && (cr0 & CR0.CD) === 0n)) return false;
  if (paging && (cr0 & CR0.PE) === 0n) return false;
  return (cr4 & ~CR4_KNOWN) === 0n;
}

/** 0, or -EINVAL with nothing changed. */
export function setSpecial(cpu: Cpu, sregs: Special): number {
  if (!isValid(sregs) || (sregs.apicBase & APIC_BASE_RESERVED) !== 0n || (sregs.cr8 & CR8_RESERVED) !== 0n)
    return -Errno.EINVAL;
  for (const [i, name] of SEGMENTS.entries()) cpu.segments[i] = fromKvm(sregs[name]);
  cpu.tr = fromKvm(sregs.tr);
  cpu.ldtr = fromKvm(sregs.ldt);
  cpu.gdtr = { base: sregs.gdt.base, limit: sregs.gdt.limit };
  cpu.idtr = { base: sregs.idt.base, limit: sregs.idt.limit };
  cpu.cr0 = Number(sregs.cr0);
  cpu.cr2 = sregs.cr2;
  cpu.cr3 = sregs.cr3;
  cpu.cr4 = Number(sregs.cr4);
  cpu.cr8 = Number(sregs.cr8);
  cpu.efer = Number(BigInt.asUintN(32, sregs.efer));
  cpu.msrs.set(APIC_BASE, sregs.apicBase);
  cpu.changed();
  cpu.flushTlb();
  return 0;
}

export function setSregs(cpu: Cpu, sregs: Sregs): number {
  const refused = setSpecial(cpu, sregs);
  if (refused !== 0) return refused;
  const word = sregs.interruptBitmap.findIndex((bits) => bits !== 0n);
  if (word >= 0) {
    let bit = 0;
    while (((sregs.interruptBitmap[word]! >> BigInt(bit)) & 1n) === 0n) bit++;
    cpu.interrupt = { vector: word * 64 + bit, soft: false };
  }
  return 0;
}

/** The privilege level, which is the stack segment's. */
export const cplOf = (cpu: Cpu): number => ((cpu.cr0 & 1) === 0 ? 0 : cpu.segments[Seg.SS]!.dpl);

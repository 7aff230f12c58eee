/** KVM_GET_REGS and KVM_GET_SREGS, and what sets them (arch/x86/kvm/x86.c, __set_regs, __set_sregs). */

import { Errno } from '../../../uapi/errno.ts';
import type { Input, Value } from '../../../uapi/layout.ts';
import type { kvm_dtable, kvm_regs, kvm_segment, kvm_sregs, kvm_sregs2 } from '../../../uapi/x86.ts';
import type { Cpu } from '../../cpu/cpu.ts';
import type { Segment, Table } from '../../cpu/processor/descriptors.ts';
import { CR0, CR4, EFER } from '../../cpu/processor/mode.ts';
import { absentCr4 } from '../../cpu/system/control.ts';
import { Msr, msrValue, writeMsr } from '../../cpu/system/msrs.ts';

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
    apicBase: msrValue(cpu, Msr.APIC_BASE),
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

const LONG_MODE = BigInt(EFER.LMA);
const CR4_KNOWN = Object.values(CR4).reduce((all, bit) => all | BigInt(bit), 0n);
const MAX_PHYSICAL = 1n << 52n;
const CR8_RESERVED = ~0xfn;

const has = (value: bigint, bit: number): boolean => (value & BigInt(bit)) !== 0n;

/** kvm_is_valid_sregs(): what no processor can be in. */
function isValid(cpu: Cpu, sregs: Special): boolean {
  const { cr0, cr3, cr4, efer } = sregs;
  const paging = has(cr0, CR0.PG);
  if (has(efer, EFER.LME) && paging) {
    if (!has(cr4, CR4.PAE) || !has(efer, EFER.LMA) || cr3 >= MAX_PHYSICAL) return false;
  } else if ((efer & LONG_MODE) !== 0n || sregs.cs.l !== 0) {
    return false;
  }
  if (cr0 >= 1n << 32n || (has(cr0, CR0.NW) && !has(cr0, CR0.CD))) return false;
  if (paging && !has(cr0, CR0.PE)) return false;
  return (cr4 & (~CR4_KNOWN | absentCr4(cpu.absent))) === 0n;
}

/** 0, or -EINVAL with nothing changed. */
export function setSpecial(cpu: Cpu, sregs: Special): number {
  if (!isValid(cpu, sregs) || (sregs.cr8 & CR8_RESERVED) !== 0n) return -Errno.EINVAL;
  if (!writeMsr(cpu, Msr.APIC_BASE, sregs.apicBase, true)) return -Errno.EINVAL;
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

/** A vCPU's registers as people read them. */

import type { Regs } from '../hypervisor/regs.ts';
import type { Vcpu } from '../hypervisor/vcpu.ts';
import type { Sregs } from '../hypervisor/vcpu-state.ts';

const GENERAL = [
  ['rax', 'rbx', 'rcx', 'rdx'],
  ['rsi', 'rdi', 'rbp', 'rsp'],
  ['r8', 'r9', 'r10', 'r11'],
  ['r12', 'r13', 'r14', 'r15'],
] as const satisfies readonly (readonly (keyof Regs)[])[];
const CONTROL = ['cr0', 'cr2', 'cr3', 'cr4', 'efer'] as const satisfies readonly (keyof Sregs)[];

const wide = (value: bigint) => value.toString(16).padStart(16, '0');
const hex = (value: number | bigint) => `0x${value.toString(16)}`;

/** Where a processor begins after a reset (SDM volume 3, 10.1.4 "First Instruction Executed"): code segment and rip. */
const RESET = { base: 0xffff_0000n, rip: 0xfff0n } as const;

/**
 * Whether the vCPU is as after a reset. KVM on AMD resets it at a triple fault (svm.c, shutdown_interception), so
 * that after Exit.SHUTDOWN its registers may tell nothing about the guest.
 */
export const isReset = (vcpu: Vcpu): boolean =>
  vcpu.getRegs().rip === RESET.rip && vcpu.getSregs().cs.base === RESET.base;

/**
 * Six lines: where it is, what is in the general registers, which mode it is in. Of a vCPU that is not in run().
 * @param indent goes before each line
 */
export function describeRegisters(vcpu: Vcpu, indent = ''): string {
  const regs = vcpu.getRegs();
  const sregs = vcpu.getSregs();
  const { cs } = sregs;
  const mode = cs.l ? '64-bit' : cs.db ? '32-bit' : '16-bit';
  const lines = [
    `rip ${hex(regs.rip)} in ${hex(cs.selector)} (base ${hex(cs.base)}, ${mode})  rflags ${hex(regs.rflags)}`,
    ...GENERAL.map((row) => row.map((name) => `${name.padStart(3)} ${wide(regs[name])}`).join('  ')),
    CONTROL.map((name) => `${name} ${hex(sregs[name])}`).join('  '),
  ];
  return lines.map((line) => indent + line).join('\n');
}

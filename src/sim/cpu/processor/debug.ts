/** The debug registers (SDM volume 3, chapter 18): what touches a breakpoint, and what is kept of it until it is delivered. */
import { CR4 } from './mode.ts';
import type { Registers } from './registers.ts';
import { Flag } from './state.ts';

/** DR6's bits. */
export const DR6 = { B: 0xfn, BD: 1n << 13n, BS: 1n << 14n, BT: 1n << 15n, FIXED: 0xffff_0ff0n } as const;
export const DR7_GD = 1n << 13n;

/** What a breakpoint waits for: DR7's R/W field. */
export const Kind = { EXECUTE: 0, WRITE: 1, IO: 2, ACCESS: 3 } as const;
/** Bytes by DR7's LEN field. */
const LENGTH = [1, 2, 8, 4] as const;

/** The debug registers that count: userspace's hide the guest's. */
export function debugRegisters(cpu: Registers): { addresses: readonly bigint[]; dr7: bigint } {
  return cpu.debugging.hardware ?? { addresses: cpu.dr, dr7: cpu.dr[7]! };
}

/** DR6's B bits of the enabled breakpoints of these kinds that an access touches. */
export function matching(cpu: Registers, kinds: readonly number[], first: bigint, size: number): bigint {
  const { addresses, dr7 } = debugRegisters(cpu);
  if ((dr7 & 0xffn) === 0n) return 0n;
  let found = 0n;
  for (let i = 0; i < 4; i++) {
    const enabled = ((dr7 >> BigInt(i * 2)) & 3n) !== 0n;
    const field = Number((dr7 >> BigInt(16 + i * 4)) & 15n);
    if (!enabled || !kinds.includes(field & 3)) continue;
    const length = LENGTH[field >> 2]!;
    const start = addresses[i]! & -BigInt(length);
    if (first < start + BigInt(length) && start < first + BigInt(size)) found |= 1n << BigInt(i);
  }
  return found;
}

/** What #DB does to the debug registers before its handler runs (arch/x86/kvm/x86.c, kvm_deliver_exception_payload). */
export function recordDebug(cpu: Registers, dr6: bigint): void {
  if (dr6 !== 0n) cpu.dr[6] = (cpu.dr[6]! & ~DR6.B) | DR6.FIXED | dr6;
  cpu.dr[7] = cpu.dr[7]! & ~DR7_GD;
}

/** To be called for each data access of an instruction that is executed by itself: trapsAfter() looks at it. */
export function noteDataAccess(cpu: Registers, linear: bigint, size: number, write: boolean): void {
  cpu.debug.hits |= matching(cpu, write ? [Kind.WRITE, Kind.ACCESS] : [Kind.ACCESS], linear, size);
}
/** As noteDataAccess(), for ports: only with CR4.DE. */
export function notePortAccess(cpu: Registers, port: number, size: number): void {
  if ((cpu.cr4 & CR4.DE) !== 0) cpu.debug.hits |= matching(cpu, [Kind.IO], BigInt(port), size);
}

/** The instruction takes its own single step away: INT n, whose delivery clears TF. */
export function loseStep({ debug }: Registers): void {
  debug.stepLost = true;
}
/** TF as SYSCALL and SYSRET leave it decides about their own single step; for all others it is TF as they find it. */
export function stepAsLeft(cpu: Registers): void {
  loseStep(cpu);
  if ((cpu.state.eflags & Flag.TF) !== 0) cpu.debug.held |= DR6.BS;
}

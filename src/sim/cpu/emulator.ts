/**
 * What KVM's own emulator can do (arch/x86/kvm/emulate.c, the opcode tables): with memory-mapped I/O an instruction
 * needs it, and one that it lacks ends KVM_RUN with an internal error.
 */

import { Vector } from './processor/fault.ts';
import type { Insn } from './processor/insn.ts';
import { LONGEST } from './processor/insn.ts';
import { cpl } from './processor/mode.ts';
import type { Processor } from './processor/processor.ts';
import type { Access, Stop } from './processor/stage.ts';
import type { Block } from './translate/ir.ts';

/** Of the vector and floating-point instructions it has moves, and a little of the x87's state. */
const VECTOR: ReadonlySet<string> = new Set([
  'movaps',
  'movapd',
  'movups',
  'movupd',
  'movdqa',
  'movdqu',
  'movntps',
  'movntpd',
  'movntdq',
  'movnti',
  'fninit',
  'fnstcw',
  'fnstsw',
  'fxsave',
  'fxsave64',
  'fxrstor',
  'fxrstor64',
  'wait',
]);
/** Of the others it lacks these. */
const MISSING: ReadonlySet<string> = new Set([
  'adcx',
  'adox',
  'andn',
  'arpl',
  'bextr',
  'blsi',
  'blsmsk',
  'blsr',
  'bound',
  'bzhi',
  'crc32',
  'lar',
  'lsl',
  'mulx',
  'pdep',
  'pext',
  'popcnt',
  'rorx',
  'sarx',
  'shlx',
  'shrx',
  'verr',
  'verw',
]);

/** It reads the operand, and gives up then (em_cmpxchg8b()). */
export const givesUpBeforeWriting = ({ mnemonic }: Insn): boolean => mnemonic === 'cmpxchg16b';
/** It has these in real mode only. */
const REAL_MODE: ReadonlySet<string> = new Set(['int', 'int3', 'into', 'iret', 'iretd', 'iretq']);

/** Iterations after which a repeated string instruction goes back to the guest (x86_emulate_insn()). */
const RESTART = 0x3ffn;
const RCX = 1;

/**
 * Whether KVM's emulator executes the rest of a repeated string instruction too, which has done a part and asked for
 * nothing to be written: it does not let the guest touch that memory itself.
 */
export const emulatorGoesOn = ({ state }: Processor, { insns }: Block): boolean =>
  insns[0]!.rep !== undefined &&
  /^(movs|cmps|scas|lods|stos)[bwdq]$/.test(insns[0]!.mnemonic) &&
  state.rip === insns[0]!.rip &&
  (state.gpr(RCX) & RESTART) !== 0n;

/** @param isVector whether it is in the tables of SSE, MMX and x87 */
export function emulated({ mnemonic, operands }: Insn, isVector: boolean, isProtected: boolean): boolean {
  if (isVector)
    return VECTOR.has(mnemonic) || (mnemonic === 'movq' && operands.some(({ kind }) => kind === 'mm'));
  return !MISSING.has(mnemonic) && !(isProtected && REAL_MODE.has(mnemonic));
}

/** KVM_INTERNAL_ERROR_EMULATION, and KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES. */
const EMULATION = 1;
const INSTRUCTION_BYTES = 1n;
const NOP = 0x90;

/** What the processors tell of an exit: a nested page fault (APM volume 2, 15.25.6), an EPT violation (SDM volume 3, table 28-7). */
const exitOf = {
  amd: (access: Access, gpa: number) => [
    0x400n,
    0x1_0000_0004n | [0n, 2n, 0x10n][access]!,
    BigInt(gpa),
    0n,
    0n,
  ],
  intel: (access: Access) => [48n, 0x180n | [1n, 2n, 4n][access]!, 0n, 0n, 0n],
} as const;

/** The flags, the instruction's length and bytes where they are known, and the exit (prepare_emulation_failure_exit()). */
function failureData({ io, vendor }: Processor, fetched: Uint8Array): bigint[] {
  const exit = exitOf[vendor](io.access, io.gpa);
  if (fetched.length === 0) return [0n, ...exit];
  const bytes = new Uint8Array(1 + LONGEST).fill(NOP);
  bytes[0] = fetched.length;
  bytes.set(fetched, 1);
  const view = new DataView(bytes.buffer);
  return [INSTRUCTION_BYTES, view.getBigUint64(0, true), view.getBigUint64(8, true), ...exit];
}

/**
 * Where KVM's emulator gives up the guest gets #UD; at privilege 0 KVM_RUN ends before that
 * (arch/x86/kvm/x86.c, handle_emulation_failure()).
 * @param fetched the instruction as far as it could be read, and what follows it
 */
export function emulationFailure(cpu: Processor, fetched: Uint8Array): Stop | undefined {
  cpu.exception = { vector: Vector.UD, errorCode: undefined, payload: undefined };
  if (cpl(cpu) !== 0) return undefined;
  return { kind: 'internal-error', suberror: EMULATION, data: failureData(cpu, fetched) };
}

/**
 * What KVM's own emulator can do (arch/x86/kvm/emulate.c, the opcode tables): with memory-mapped I/O an instruction
 * needs it, and one that it lacks ends KVM_RUN with an internal error.
 */
import type { Cpu } from './cpu.ts';
import type { Insn } from './insn.ts';
import type { Block } from './ir.ts';

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
  'bextr',
  'blsi',
  'blsmsk',
  'blsr',
  'bound',
  'bzhi',
  'cmpxchg16b',
  'crc32',
  'lzcnt',
  'mulx',
  'pdep',
  'pext',
  'popcnt',
  'rorx',
  'sarx',
  'shlx',
  'shrx',
  'tzcnt',
]);

/** Iterations after which a repeated string instruction goes back to the guest (x86_emulate_insn()). */
const RESTART = 0x3ffn;
const RCX = 1;

/**
 * Whether KVM's emulator executes the rest of a repeated string instruction too, which has done a part and asked for
 * nothing to be written: it does not let the guest touch that memory itself.
 */
export const emulatorGoesOn = ({ state }: Cpu, { insns }: Block): boolean =>
  insns[0]!.rep !== undefined &&
  /^(movs|cmps|scas|lods|stos)[bwdq]$/.test(insns[0]!.mnemonic) &&
  state.rip === insns[0]!.rip &&
  (state.gpr(RCX) & RESTART) !== 0n;

/** @param isVector whether it is in the tables of SSE, MMX and x87 */
export const emulated = ({ mnemonic, operands }: Insn, isVector: boolean): boolean =>
  isVector
    ? VECTOR.has(mnemonic) || (mnemonic === 'movq' && operands.some(({ kind }) => kind === 'mm'))
    : !MISSING.has(mnemonic);

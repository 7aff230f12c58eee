/**
 * What KVM's own emulator can do (arch/x86/kvm/emulate.c, the opcode tables): with memory-mapped I/O an instruction
 * needs it, and one that it lacks ends KVM_RUN with an internal error.
 */
import type { Insn } from './insn.ts';

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

/** @param isVector whether it is in the tables of SSE, MMX and x87 */
export const emulated = ({ mnemonic, operands }: Insn, isVector: boolean): boolean =>
  isVector
    ? VECTOR.has(mnemonic) || (mnemonic === 'movq' && operands.some(({ kind }) => kind === 'mm'))
    : !MISSING.has(mnemonic);

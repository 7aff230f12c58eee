/** Which instructions LOCK may precede (SDM volume 2, LOCK); before any other it raises #UD. */
import type { Insn } from './insn.ts';

const lockable = new Set([
  'adc',
  'add',
  'and',
  'btc',
  'btr',
  'bts',
  'cmpxchg',
  'cmpxchg16b',
  'cmpxchg8b',
  'dec',
  'inc',
  'neg',
  'not',
  'or',
  'sbb',
  'sub',
  'xadd',
  'xchg',
  'xor',
]);

/** Only what writes to memory can be locked. */
export function mayLock({ mnemonic, operands }: Insn): boolean {
  return lockable.has(mnemonic) && operands[0]?.kind === 'mem';
}

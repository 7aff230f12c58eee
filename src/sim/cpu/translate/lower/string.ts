/** STOS and MOVS as attempts, and helpers where these give up. */
import { tableFor } from '../../address/tlb.ts';
import { Seg } from '../../processor/descriptors.ts';
import type { Insn } from '../../processor/insn.ts';
import type { Attempt } from '../attempt.ts';
import type { Builder } from '../builder.ts';
import { stringFunctions } from '../functions/strings.ts';
import type { CallTarget } from '../ops.ts';

/** Whether it is one of those that there are attempts at, in this mode. */
export const isAttempted = (b: Builder, insn: Insn): boolean =>
  b.mode.bits === 64 &&
  !b.mode.single &&
  insn.addressSize === 8 &&
  /^(stos|movs)[bwdq]$/.test(insn.mnemonic) &&
  insn.operands.every((operand) => operand.kind !== 'mem' || operand.segment < Seg.FS);

/** @param helper gives whether the instruction is to be executed once more */
export function string(b: Builder, insn: Insn, helper: CallTarget): void {
  const stores = insn.mnemonic.startsWith('stos');
  const { user } = b.mode;
  const attempt: Attempt = (code) => {
    const { size } = insn.operands.find(({ kind }) => kind === 'mem') as { size: number };
    code.const32(size);
    code.const32(insn.rep === undefined ? 0 : 1);
    code.const32(tableFor(user, true));
    if (!stores) code.const32(tableFor(user, false));
    code.call(stores ? stringFunctions.stos : stringFunctions.movs);
    code.op(0x45).slowIf(); // i32.eqz
    code.const32(0);
  };
  const again = b.tryAnswer(attempt, helper);
  if (insn.rep !== undefined) b.repeat(again);
}

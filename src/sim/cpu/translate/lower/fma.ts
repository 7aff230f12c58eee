/** FMA as attempts, by halves as the rest of AVX. */
import { eachFma } from '../../avx/fma.ts';
import type { Operand } from '../../processor/insn.ts';
import type { Attempt } from '../attempt.ts';
import type { Source } from '../floats.ts';
import { fused } from '../fused.ts';
import type { LowerWith } from './float.ts';
import {
  finish,
  type Half,
  halvesOf,
  LOAD,
  placeOf,
  type Register,
  SCRATCH,
  STORE,
  source,
} from './halves.ts';

export const fmaLowerings: { readonly [mnemonic: string]: LowerWith } = eachFma(
  (signs, order, width, scalar): LowerWith =>
    (b, insn, helper) => {
      const [to, second] = insn.operands as readonly Operand[] as readonly [Register, Register];
      const halves = halvesOf(insn);
      const third = source(b, 2, scalar ? width / 8 : 16, halves);
      const operand = (index: number, half: Half): Source =>
        index === 2 ? third.of(half) : { offset: placeOf(index === 0 ? to : second, half) };
      const attempt: Attempt = (code) => {
        for (const half of halves) {
          const [x, y, z] = order.map((index) => operand(index, half)) as [Source, Source, Source];
          if (scalar) code.store(STORE, SCRATCH[half], () => code.load(LOAD, placeOf(to, half)));
          fused(width, scalar, signs, SCRATCH[half], [x, y, z])(code);
        }
        for (const half of halves) code.store(STORE, placeOf(to, half), () => code.load(LOAD, SCRATCH[half]));
        finish(code, to);
      };
      b.op('attempt', third.args, { attempt, helper, insn });
    },
);

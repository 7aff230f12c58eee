/** F16C: conversions from and to numbers of 16 bits, which have their denormals whatever MXCSR says of those (SDM volume 1, 14.4). */
import { convert } from '../fp/arithmetic.ts';
import { Exception, F16, F32, read, unpack } from '../fp/float.ts';
import type { Helper, Helpers } from '../processor/helper.ts';
import { begin, end, env, setBits } from '../sse/env.ts';
import { imm } from './move.ts';
import { checkAvx, clear, halvesOf, loadWide, storeWide, W, X } from './operands.ts';

const widen: Helper = (cpu, insn) => {
  checkAvx(cpu);
  loadWide(cpu, insn, 1, X);
  begin(cpu);
  const halves = halvesOf(insn);
  for (let i = 0; i < 4 * halves; i++) {
    const value = unpack(F16, BigInt(X[0].u16[i]!));
    setBits(32, W[i >> 2]!, i & 3, convert(env, F32, value, false));
  }
  end(cpu);
  storeWide(cpu, insn, W);
};

/** Bit 2 of the immediate: rounded as MXCSR says; else as bits 1:0 do. */
const narrow: Helper = (cpu, insn) => {
  checkAvx(cpu);
  loadWide(cpu, insn, 1, X);
  begin(cpu);
  const immediate = imm(insn);
  const { rounding, flushToZero } = env;
  if ((immediate & 4) === 0) env.rounding = immediate & 3;
  env.flushToZero = false;
  const halves = halvesOf(insn);
  clear(W);
  const { masks } = env;
  for (let i = 0; i < 4 * halves; i++) {
    const value = read(env, F32, BigInt(X[i >> 2]!.u32[i & 3]!));
    W[0].u16[i] = Number(convert(env, F16, value));
    // Where underflow is not masked silicon has PE nevertheless as if it were.
    if ((masks & Exception.UE) !== 0) continue;
    env.masks |= Exception.UE;
    convert(env, F16, value);
    env.masks = masks;
  }
  Object.assign(env, { rounding, flushToZero });
  end(cpu);
  storeWide(cpu, insn, W, 8 * halves);
};

export const avxHalfFloats: Helpers = { vcvtph2ps: widen, vcvtps2ph: narrow };

/** Flags by themselves (SDM volume 1, 5.1.11). */

import { Flag, State } from '../../processor/state.ts';
import type { Node } from '../ir.ts';
import type { Lower, Lowerings } from '../lowering.ts';

const RAX = 0;
/** SF ZF AF PF CF, and the bit that is always 1. */
const LOW = 0xd5;
const FIXED = 2;

const carry =
  (value: 0 | 1): Lower =>
  (b) =>
    b.setCarries({ CF: b.const32(value) });
const cmc: Lower = (b) => b.setCarries({ CF: b.op('eqz32', [b.flag('CF')]) });

const direction =
  (down: boolean): Lower =>
  (b) => {
    const others = b.op('and32', [b.get(State.eflags, 4), b.const32(~Flag.DF)]);
    b.set(State.eflags, 4, b.op('or32', [others, b.const32(down ? Flag.DF : 0)]));
  };

const lahf: Lower = (b) => {
  const low = b.op('and32', [b.arithmeticFlags(), b.const32(LOW)]);
  b.setGpr(RAX, 1, b.op('or32', [low, b.const32(FIXED)]), true);
};
const sahf: Lower = (b) => {
  const low = b.op('and32', [b.gpr(RAX, 1, true), b.const32(LOW)]);
  const overflow: Node = b.op('shl32', [b.flag('OF'), b.const32(11)]);
  b.setArithmeticFlags(b.op('or32', [low, overflow]));
};
/** AL becomes 0, or all ones where there is a carry. */
const salc: Lower = (b) => b.setGpr(RAX, 1, b.sub(1, b.const32(0), b.flag('CF')));

export const flags: Lowerings = {
  clc: carry(0),
  stc: carry(1),
  cmc,
  cld: direction(false),
  std: direction(true),
  lahf,
  sahf,
  salc,
};

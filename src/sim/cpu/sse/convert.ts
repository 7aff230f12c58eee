/**
 * SSE's conversions between numbers and integers, MMX registers included. What does not fit becomes the integer
 * indefinite, with IE. Only conversions from number to number heed denormal operands with DE.
 */
import { convert, fromInteger, toInteger } from '../fp/arithmetic.ts';
import { Exception, Rounding, read } from '../fp/float.ts';
import { safeOperand, type Width } from '../fp/native.ts';
import type { Answers, Helper, Helpers } from '../processor/helper.ts';
import type { Insn } from '../processor/insn.ts';
import type { Processor } from '../processor/processor.ts';
import { begin, bitsOf, end, env, formatOf, numberOf, setBits } from './env.ts';
import { B, checkPending, checkSse, enterMmx, load, R, store, storeGpr, usesMmx } from './operands.ts';

/** Lanes of B to lanes of R; what R holds beside them is zero (or stays, when `size` is less than the register). */
const lanes =
  (count: number, size: 4 | 8 | 16, lane: (i: number) => void): Helper =>
  (cpu, insn) => {
    checkSse(cpu);
    if (usesMmx(insn)) checkPending(cpu);
    load(cpu, insn, 1, B);
    begin(cpu);
    R.u8.fill(0);
    for (let i = 0; i < count; i++) lane(i);
    // The registers are MMX's even when #XM follows: silicon does so.
    if (usesMmx(insn)) enterMmx(cpu);
    end(cpu);
    store(cpu, insn, R, size);
  };

const resize = (from: Width, to: Width) => (i: number) => {
  const value = read(env, formatOf(from), bitsOf(from, B, i));
  setBits(to, R, i, convert(env, formatOf(to), value));
};
const fromInt32 = (to: Width) => (i: number) => {
  if (to === 64) R.f64[i] = B.i32[i]!;
  else setBits(to, R, i, fromInteger(env, formatOf(to), BigInt(B.i32[i]!)));
};

/** Rounded to a signed integer of so many bits, or truncated. */
function integer(from: Width, i: number, bits: number, truncate: boolean): bigint {
  const value = numberOf(from, B, i);
  const whole = truncate ? Math.trunc(value) : value;
  // Small ordinary numbers that need no rounding, or none but cutting off.
  if (Number.isInteger(whole) && Math.abs(whole) < 2 ** 31 && safeOperand(from, value)) {
    if (whole !== value) env.flags |= Exception.PE;
    return BigInt.asUintN(bits, BigInt(whole));
  }
  const float = read(env, formatOf(from), bitsOf(from, B, i));
  return toInteger(env, bits, float, truncate ? Rounding.ZERO : env.rounding);
}
const toInt32 = (from: Width, truncate: boolean) => (i: number) => {
  R.u32[i] = Number(integer(from, i, 32, truncate));
};

const isWide = (insn: Insn) => (insn.operands[0] as { size?: number }).size === 8;
const ofGpr =
  (from: Width, truncate: boolean) =>
  (cpu: Processor, insn: Insn): bigint => {
    checkSse(cpu);
    load(cpu, insn, 1, B);
    begin(cpu);
    const value = integer(from, 0, isWide(insn) ? 64 : 32, truncate);
    end(cpu);
    return value;
  };
const toIntegers = {
  cvtss2si: ofGpr(32, false),
  cvttss2si: ofGpr(32, true),
  cvtsd2si: ofGpr(64, false),
  cvttsd2si: ofGpr(64, true),
} as const;
const toGpr =
  (name: keyof typeof toIntegers): Helper =>
  (cpu, insn) =>
    storeGpr(cpu, insn.operands[0]!, toIntegers[name](cpu, insn));
/** Conversions that answer with an integer: signed, of 64 bits or of 32. */
export const sseIntegers: Answers = Object.fromEntries(
  Object.entries(toIntegers).map(([name, of]) => [
    name,
    (cpu: Processor, insn: Insn) => {
      const value = of(cpu, insn);
      return isWide(insn) ? BigInt.asIntN(64, value) : Number(BigInt.asIntN(32, value));
    },
  ]),
);

const fromGpr =
  (to: Width): Helper =>
  (cpu, insn) => {
    const from = insn.operands[1]!;
    checkSse(cpu);
    load(cpu, insn, 1, B);
    begin(cpu);
    const wide = (from.kind === 'gpr' || from.kind === 'mem') && from.size === 8;
    setBits(to, R, 0, fromInteger(env, formatOf(to), wide ? B.i64[0]! : BigInt(B.i32[0]!)));
    end(cpu);
    store(cpu, insn, R, to === 32 ? 4 : 8);
  };

export const sseConvert: Helpers = {
  cvtss2sd: lanes(1, 8, resize(32, 64)),
  cvtsd2ss: lanes(1, 4, resize(64, 32)),
  cvtps2pd: lanes(2, 16, resize(32, 64)),
  cvtpd2ps: lanes(2, 16, resize(64, 32)),
  cvtdq2ps: lanes(4, 16, fromInt32(32)),
  cvtdq2pd: lanes(2, 16, fromInt32(64)),
  cvtps2dq: lanes(4, 16, toInt32(32, false)),
  cvttps2dq: lanes(4, 16, toInt32(32, true)),
  cvtpd2dq: lanes(2, 16, toInt32(64, false)),
  cvttpd2dq: lanes(2, 16, toInt32(64, true)),
  cvtpi2ps: lanes(2, 8, fromInt32(32)),
  cvtpi2pd: lanes(2, 16, fromInt32(64)),
  cvtps2pi: lanes(2, 8, toInt32(32, false)),
  cvttps2pi: lanes(2, 8, toInt32(32, true)),
  cvtpd2pi: lanes(2, 8, toInt32(64, false)),
  cvttpd2pi: lanes(2, 8, toInt32(64, true)),
  cvtss2si: toGpr('cvtss2si'),
  cvttss2si: toGpr('cvttss2si'),
  cvtsd2si: toGpr('cvtsd2si'),
  cvttsd2si: toGpr('cvttsd2si'),
  cvtsi2ss: fromGpr(32),
  cvtsi2sd: fromGpr(64),
};

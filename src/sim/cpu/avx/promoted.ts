/**
 * The VEX forms of SSE's instructions: a half at a time by SSE's helper, which finds its destination and its source in what is
 * held for it. Tables say of each where its sources are; most have a third operand in the place of SSE's destination.
 */
import { raise, Vector } from '../processor/fault.ts';
import type { Answer, Answers, Helper, Helpers } from '../processor/helper.ts';
import type { Insn, Operand } from '../processor/insn.ts';
import { sseFloat } from '../sse/float.ts';
import { sse, sseAnswers } from '../sse/index.ts';
import { setArithmeticFlags, sseInteger } from '../sse/integer.ts';
import { copyOut, HELD, type Lanes, storeGpr } from '../sse/operands.ts';
import {
  checkAvx,
  clear,
  halvesOf,
  inParts,
  loadWide,
  storeWide,
  W,
  type Wide,
  X,
  Y,
  ymmOffset,
  ZEROES,
} from './operands.ts';

const [INTO, FROM] = HELD;
const held = (index: 0 | 1): Operand => ({ kind: 'held', index });

const parts = new WeakMap<Insn, Insn>();
/** The instruction as SSE's helper gets it: with these operands. */
function partOf(insn: Insn, operands: () => readonly Operand[]): Insn {
  let part = parts.get(insn);
  if (part === undefined) {
    part = Object.create(insn, { operands: { value: operands() } }) as Insn;
    parts.set(insn, part);
  }
  return part;
}

const set = (to: Lanes, from: Lanes) => to.i32.set(from.i32);
const isImmediate = (operand: Operand | undefined) => operand?.kind === 'imm';
const immediates = (insn: Insn) => insn.operands.filter(isImmediate);

/** W[i] = helper of into[i] and from(i), for each half of the destination. */
function eachHalf(insn: Insn, into: Wide, from: (half: 0 | 1) => Lanes, run: () => void): void {
  const halves = halvesOf(insn);
  for (let half = 0 as 0 | 1; half < halves; half++) {
    set(INTO, into[half]);
    set(FROM, from(half));
    run();
    set(W[half], INTO);
  }
}

const named = (name: string): Helper => sse[name]!;

/** Three operands, of which the last is a vector or a general register; or two, where SSE's destination is no source. */
const promoted =
  (helper: Helper): Helper =>
  (cpu, insn) => {
    checkAvx(cpu);
    const { operands } = insn;
    const three = operands.length > 2 && !isImmediate(operands[2]);
    const last = three ? 2 : 1;
    const { kind } = operands[last]!;
    if (three) loadWide(cpu, insn, 1, X);
    else clear(X);
    const isGeneral = kind === 'gpr';
    if (!isGeneral) loadWide(cpu, insn, last, Y);
    const part = partOf(insn, () => [held(0), isGeneral ? operands[last]! : held(1), ...immediates(insn)]);
    inParts(cpu, () =>
      eachHalf(
        insn,
        X,
        (half) => Y[half],
        () => helper(cpu, part),
      ),
    );
    storeWide(cpu, insn, W);
  };

/** A general register or as much of memory as the instruction says, as SSE's helper reads it. */
const fromGeneral =
  (helper: Helper): Helper =>
  (cpu, insn) => {
    checkAvx(cpu);
    loadWide(cpu, insn, 1, X);
    const part = partOf(insn, () => [held(0), insn.operands[2]!, ...immediates(insn)]);
    inParts(cpu, () =>
      eachHalf(
        insn,
        X,
        () => FROM,
        () => helper(cpu, part),
      ),
    );
    storeWide(cpu, insn, W);
  };

/** A shift: the count is an immediate, or the low half of the last operand for both halves. */
const shifted =
  (helper: Helper): Helper =>
  (cpu, insn) => {
    checkAvx(cpu);
    const { operands } = insn;
    const byImmediate = isImmediate(operands[2]);
    loadWide(cpu, insn, 1, X);
    if (!byImmediate) loadWide(cpu, insn, 2, Y);
    const part = partOf(insn, () => [held(0), byImmediate ? operands[2]! : held(1)]);
    inParts(cpu, () =>
      eachHalf(
        insn,
        X,
        () => Y[0],
        () => helper(cpu, part),
      ),
    );
    storeWide(cpu, insn, W);
  };

/** VAES and VPCLMULQDQ would have them of 32 bytes. */
const narrow =
  (helper: Helper): Helper =>
  (cpu, insn) => {
    if (halvesOf(insn) === 2) raise(Vector.UD);
    helper(cpu, insn);
  };

/** From lanes that are narrower: the second half's are `bytes` further. */
const widening =
  (helper: Helper, bytes: 2 | 4 | 8): Helper =>
  (cpu, insn) => {
    checkAvx(cpu);
    loadWide(cpu, insn, 1, X);
    clear(Y);
    for (let i = 0; i < 8; i++) {
      Y[0].u8[i] = X[0].u8[i]!;
      Y[1].u8[i] = X[0].u8[bytes + i]!;
    }
    const part = partOf(insn, () => [held(0), held(1)]);
    inParts(cpu, () =>
      eachHalf(
        insn,
        X,
        (half) => Y[half],
        () => helper(cpu, part),
      ),
    );
    storeWide(cpu, insn, W);
  };

/** To lanes that are narrower: what becomes of both halves lies in the low one. */
const narrowing =
  (helper: Helper): Helper =>
  (cpu, insn) => {
    checkAvx(cpu);
    loadWide(cpu, insn, 1, X);
    const part = partOf(insn, () => [held(0), held(1)]);
    clear(Y);
    inParts(cpu, () =>
      eachHalf(
        insn,
        Y,
        (half) => X[half],
        () => helper(cpu, part),
      ),
    );
    if (halvesOf(insn) === 2) W[0].u64[1] = W[1].u64[0]!;
    storeWide(cpu, insn, W);
  };

/** To a general register or memory of a lane of the second operand, which SSE's helper writes itself. */
const extracting =
  (helper: Helper): Helper =>
  (cpu, insn) => {
    checkAvx(cpu);
    loadWide(cpu, insn, 1, X);
    set(FROM, X[0]);
    const part = partOf(insn, () => [insn.operands[0]!, held(1), ...immediates(insn)]);
    inParts(cpu, () => helper(cpu, part));
  };

/** Two vectors to flags or to RCX or XMM0, by SSE's helper. */
const comparing =
  (helper: Helper, toXmm0 = false): Helper =>
  (cpu, insn) => {
    checkAvx(cpu);
    loadWide(cpu, insn, 0, X);
    loadWide(cpu, insn, 1, Y);
    set(INTO, X[0]);
    set(FROM, Y[0]);
    const part = partOf(insn, () => [held(0), held(1), ...immediates(insn)]);
    inParts(cpu, () => helper(cpu, part));
    if (toXmm0) copyOut(cpu, ymmOffset(0), 4, ZEROES);
  };

/** COMISx: the answer is the flags. */
const flagsOf =
  (name: string): Answer =>
  (cpu, insn) => {
    checkAvx(cpu);
    loadWide(cpu, insn, 0, X);
    loadWide(cpu, insn, 1, Y);
    set(INTO, X[0]);
    set(FROM, Y[0]);
    const part = partOf(insn, () => [held(0), held(1)]);
    return inParts(cpu, () => sseAnswers[name]!(cpu, part));
  };

/** CVTSS2SI and its kin: the answer is an integer, signed. */
const integerOf =
  (name: string): Answer =>
  (cpu, insn) => {
    checkAvx(cpu);
    loadWide(cpu, insn, 1, X);
    set(FROM, X[0]);
    const part = partOf(insn, () => [insn.operands[0]!, held(1)]);
    return inParts(cpu, () => sseAnswers[name]!(cpu, part));
  };

/** MXCSR, and what has no vector register as its destination: SSE's helper does all of it. */
const passed =
  (helper: Helper): Helper =>
  (cpu, insn) => {
    checkAvx(cpu);
    // A mask's source and memory are as SSE has them.
    inParts(cpu, () => helper(cpu, insn));
  };

const prefixed = <T>(names: Iterable<string>, of: (name: string) => T): { readonly [mnemonic: string]: T } =>
  Object.fromEntries([...names].map((name) => [`v${name}`, of(name)]));
const words = (text: string) => text.trim().split(/\s+/);

const SHIFTS = words('psllw pslld psllq psrlw psrld psrlq psraw psrad pslldq psrldq');
const WIDENING = {
  2: 'pmovsxbq pmovzxbq',
  4: 'pmovsxbd pmovsxwq pmovzxbd pmovzxwq',
  8: 'pmovsxbw pmovsxwd pmovsxdq pmovzxbw pmovzxwd pmovzxdq cvtps2pd cvtdq2pd',
};
const NARROWING = words('cvtpd2ps cvtpd2dq cvttpd2dq');
const COMPARISONS = words('comiss comisd ucomiss ucomisd');
const INTEGERS = words('cvtss2si cvttss2si cvtsd2si cvttsd2si');
const CONVERTING = words('cvtss2sd cvtsd2ss cvtdq2ps cvtps2dq cvttps2dq');
/** Of the tables of integers and of floating point: MMX's own, and what VEX has otherwise (move.ts, permute.ts). */
const OTHERWISE = words('pshufw ptest pblendvb blendvps blendvpd');
/** AES's and PCLMULQDQ's, where the processor has them. */
const CRYPTOGRAPHY = words('aesenc aesenclast aesdec aesdeclast aesimc aeskeygenassist pclmulqdq');

const special = new Set([
  ...[...SHIFTS, ...NARROWING, ...COMPARISONS, ...OTHERWISE],
  ...Object.values(WIDENING).flatMap(words),
]);
const alike = [...Object.keys({ ...sseInteger, ...sseFloat }), ...CONVERTING].filter(
  (name) => !special.has(name) && name in sse,
);

/** Those of the instructions below whose result is no vector, for callers that put it in its place. */
export const avxPromotedAnswers: Answers = {
  ...prefixed(COMPARISONS, flagsOf),
  ...prefixed(INTEGERS, integerOf),
};

export const avxPromoted: Helpers = {
  ...prefixed(alike, (name) => promoted(named(name))),
  ...prefixed(words('movsldup movshdup'), (name) => promoted(named(name))),
  ...prefixed(
    CRYPTOGRAPHY.filter((name) => name in sse),
    (name) => narrow(promoted(named(name))),
  ),
  ...prefixed(SHIFTS, (name) => shifted(named(name))),
  ...prefixed(words(WIDENING[2]), (name) => widening(named(name), 2)),
  ...prefixed(words(WIDENING[4]), (name) => widening(named(name), 4)),
  ...prefixed(words(WIDENING[8]), (name) => widening(named(name), 8)),
  ...prefixed(NARROWING, (name) => narrowing(named(name))),
  ...prefixed(COMPARISONS, (name) => (cpu, insn) => {
    setArithmeticFlags(cpu, avxPromotedAnswers[`v${name}`]!(cpu, insn) as number);
  }),
  ...prefixed(INTEGERS, (name) => (cpu, insn) => {
    const value = avxPromotedAnswers[`v${name}`]!(cpu, insn);
    storeGpr(cpu, insn.operands[0]!, BigInt.asUintN(64, BigInt(value)));
  }),
  ...prefixed(words('cvtsi2ss cvtsi2sd pinsrb pinsrw pinsrd pinsrq'), (name) => fromGeneral(named(name))),
  ...prefixed(words('pextrb pextrw pextrd pextrq extractps'), (name) => extracting(named(name))),
  ...prefixed(words('pcmpestri pcmpestri64 pcmpistri'), (name) => comparing(named(name))),
  ...prefixed(words('pcmpestrm pcmpestrm64 pcmpistrm'), (name) => comparing(named(name), true)),
  ...prefixed(words('ldmxcsr stmxcsr maskmovdqu'), (name) => passed(named(name))),
};

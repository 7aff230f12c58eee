/**
 * AVX as attempts: SSE's instructions of WebAssembly on each half of the registers, with another place for the result. What can
 * give up computes in places of its own, and the destination is written when no half can give up any more. Closures have the
 * helpers, and so has what is in neither table.
 */
import type { Insn, Operand } from '../../processor/insn.ts';
import { State } from '../../processor/state.ts';
import type { Attempt } from '../attempt.ts';
import type { Builder } from '../builder.ts';
import { fromInteger, shapes } from '../floats.ts';
import type { Node } from '../ir.ts';
import type { CallTarget } from '../ops.ts';
import { simd } from '../vectors.ts';
import { compared, type LowerWith, toGpr, vectorRows } from './float.ts';
import { fmaLowerings } from './fma.ts';
import {
  direct,
  finish,
  further,
  type Half,
  halvesOf,
  immediateOf,
  isImmediate,
  isMemory,
  isRegister,
  LOAD,
  loadAt,
  placeOf,
  push,
  type Register,
  SCRATCH,
  STORE,
  source,
  ZERO,
} from './halves.ts';
import { packed, shifts, shuffles } from './vector.ts';

type Table = { readonly [mnemonic: string]: LowerWith };

/** to = op(second, third). */
const binary =
  (number: number, swapped = false): LowerWith =>
  (b, insn, helper) => {
    const a = insn.operands[1] as Register;
    const from = source(b, 2, 16, halvesOf(insn));
    direct(b, insn, helper, from.args, (code, half) => {
      const first = { offset: placeOf(a, half) };
      for (const one of swapped ? [from.of(half), first] : [first, from.of(half)]) push(code, one);
      code.op(...simd(number));
    });
  };
/** @param bitsOfHalf by how many bits of the immediate the second half's are further */
const shuffled =
  (pick: (immediate: number) => number[], fromSource = false, bitsOfHalf = 0): LowerWith =>
  (b, insn, helper) => {
    const last = fromSource ? 1 : 2;
    const from = source(b, last, 16, halvesOf(insn));
    const a = insn.operands[1] as Register;
    direct(b, insn, helper, from.args, (code, half) => {
      push(code, fromSource ? from.of(half) : { offset: placeOf(a, half) });
      push(code, from.of(half));
      code.op(...simd(13, pick(immediateOf(insn) >> (bitsOfHalf * half))));
    });
  };
const shifted =
  (number: number, bits: number, arithmetic = false): LowerWith =>
  (b, insn, helper) => {
    if (!isImmediate(insn.operands[2])) return b.call(helper);
    const count = immediateOf(insn);
    const a = insn.operands[1] as Register;
    direct(b, insn, helper, [], (code, half) => {
      if (count >= bits && !arithmetic) code.op(...ZERO);
      else
        code
          .load(LOAD, placeOf(a, half))
          .const32(Math.min(count, bits - 1))
          .op(...simd(number));
    });
  };
/** One instruction of WebAssembly on the source. */
const unary =
  (...numbers: readonly number[]): LowerWith =>
  (b, insn, helper) => {
    const from = source(b, 1, 16, halvesOf(insn));
    direct(b, insn, helper, from.args, (code, half) => {
      push(code, from.of(half));
      for (const number of numbers) code.op(...simd(number));
    });
  };
/** The lanes of the source's low half, or of its upper one for the second half. */
const widened =
  (low: number, high: number): LowerWith =>
  (b, insn, helper) => {
    const wide = insn.operands[0]!.kind === 'ymm';
    if (!isRegister(insn.operands[1]) && !wide) return b.call(helper);
    const from = source(b, 1, 16);
    direct(b, insn, helper, from.args, (code, half) => {
      push(code, from.of(0));
      code.op(...simd(half === 0 ? low : high));
    });
  };

/** A lane to all lanes, of memory or of a register. */
const broadcast =
  (bytes: 1 | 2 | 4 | 8, number: number): LowerWith =>
  (b, insn, helper) => {
    const from = insn.operands[1]!;
    const args = isMemory(from) ? [b.read(1, bytes)] : [];
    direct(b, insn, helper, args, (code) => {
      if (isRegister(from)) code.load([bytes === 8 ? 0x29 : 0x28], placeOf(from, 0));
      else code.argument(0);
      code.op(...simd(number));
    });
  };

/** The halves of floating point: the first operand is copied to the place where the result comes to be. */
const floating =
  (name: string): LowerWith =>
  (b, insn, helper) => {
    const { bytes, of } = vectorRows[name]!;
    const three = insn.operands.length > 2 && !isImmediate(insn.operands[2]);
    // VEX has more predicates than SSE.
    if (/^cmp/.test(name) && immediateOf(insn) > 7) return b.call(helper);
    const to = insn.operands[0] as Register;
    const halves = halvesOf(insn);
    const from = source(b, three ? 2 : 1, bytes, halves);
    const attempt: Attempt = (code) => {
      for (const half of halves) {
        const scratch = SCRATCH[half];
        if (three) {
          const a = placeOf(insn.operands[1] as Register, half);
          code.store(STORE, scratch, () => code.load(LOAD, a));
        }
        of(scratch, from.of(half), insn)(code);
      }
      for (const half of halves) code.store(STORE, placeOf(to, half), () => code.load(LOAD, SCRATCH[half]));
      finish(code, to);
    };
    b.op('attempt', from.args, { attempt, helper, insn });
  };
const fromGeneral =
  (name: 'ss' | 'sd'): LowerWith =>
  (b, insn, helper) => {
    const [to, a] = insn.operands as readonly Operand[] as readonly [Register, Register];
    const bits = b.sizeOf(2) === 8 ? 64 : 32;
    const attempt: Attempt = (code) => {
      code.store(STORE, SCRATCH[0], () => code.load(LOAD, placeOf(a, 0)));
      fromInteger(bits, shapes[name], SCRATCH[0])(code);
      code.store(STORE, placeOf(to, 0), () => code.load(LOAD, SCRATCH[0]));
      finish(code, to);
    };
    b.op('attempt', [b.read(2)], { attempt, helper, insn });
  };

/** Raises #GP where an address is no multiple of 32: the helper of an `i`. */
const aligned = (b: Builder, insn: Insn, linear: Node, size: number, misaligned: CallTarget) => {
  const low = b.op('and32', [b.op('wrap', [linear]), b.const32(size - 1)]);
  b.op('callIf', [low], { helper: misaligned, insn });
};

/** Whole registers from or to registers and memory, 8 bytes at a time. */
const move =
  (mustAlign: boolean, misaligned: CallTarget): LowerWith =>
  (b, insn) => {
    const [to, from] = insn.operands as readonly [Operand, Operand];
    const halves = halvesOf(insn);
    const size = 16 * halves.length;
    const words = halves.flatMap((half) => [[half, 0] as const, [half, 8] as const]);
    if (isMemory(to)) {
      const { linear, stack } = b.place(to, size, true);
      if (mustAlign) aligned(b, insn, linear, size, misaligned);
      // A store into two pages is checked before it begins: where it begins, and where its last page does.
      const lastPage = b.op('and64', [further(b, linear, size - 1), b.const64(-4096n)]);
      const last = b.select(8, b.ltu(8, lastPage, linear), linear, lastPage);
      for (const at of [linear, last]) b.op('load32', [at], { bits: 8, stack, write: true });
      for (const [half, at] of words)
        b.op(
          'store64',
          [further(b, linear, 16 * half + at), b.get(placeOf(from as Register, half) + at, 8)],
          {
            bits: 64,
            stack,
          },
        );
      return;
    }
    let values: readonly Node[];
    if (isMemory(from)) {
      const { linear, stack } = b.place(from, size, false);
      if (mustAlign) aligned(b, insn, linear, size, misaligned);
      values = words.map(([half, at]) => loadAt(b, linear, 16 * half + at, stack));
    } else values = words.map(([half, at]) => b.get(placeOf(from as Register, half) + at, 8));
    const register = to as Register;
    words.forEach(([half, at], i) => {
      b.set(placeOf(register, half) + at, 8, values[i]!);
    });
    if (register.kind === 'xmm') zeroUpper(b, register);
  };
function zeroUpper(b: Builder, register: Register): void {
  for (const at of [0, 8]) b.set(placeOf(register, 1) + at, 8, b.const64(0n));
}

/** The low 4 or 8 bytes from or to a general register or memory; the rest becomes 0. */
const low =
  (size: 4 | 8): LowerWith =>
  (b, insn, helper) => {
    const { operands } = insn;
    const [to, from] = operands as readonly [Operand, Operand];
    if (operands.length > 2) {
      // MOVSS and MOVSD between registers.
      const [second, third] = operands.slice(1) as readonly Operand[] as readonly [Register, Register];
      direct(b, insn, helper, [], (code) => {
        code.load(LOAD, placeOf(second, 0)).load(LOAD, placeOf(third, 0));
        const bytes = Array.from({ length: 16 }, (_, i) => (i < size ? 16 + i : i));
        code.op(...simd(13, bytes));
      });
      return;
    }
    if (!isRegister(to)) return b.write(0, b.get(placeOf(from as Register, 0), size), size);
    const value = isRegister(from) ? b.get(placeOf(from, 0), size) : b.read(1, size);
    b.set(placeOf(to, 0), 8, b.zeroExtend(size, 8, value));
    b.set(placeOf(to, 0) + 8, 8, b.const64(0n));
    zeroUpper(b, to);
  };

/** The result's quarters of 8 bytes, each one of the second operand's (0 to 3) or the third's (4 to 7), or zero. */
const quarters =
  (of: (insn: Insn) => readonly (number | undefined)[]): LowerWith =>
  (b, insn) => {
    const [to, second, third] = insn.operands as readonly [Register, Operand, Operand | undefined];
    const chosen = of(insn);
    const values = new Map<number, Node>();
    const read = (operand: Operand, base: number) => {
      const wanted = [0, 1, 2, 3].filter((i) => chosen.includes(base + i));
      if (isRegister(operand))
        for (const i of wanted)
          values.set(base + i, b.get(placeOf(operand, (i >> 1) as Half) + 8 * (i & 1), 8));
      else if (isMemory(operand)) {
        const { linear, stack } = b.place(operand, operand.size, false);
        // Memory is read whole, for its faults.
        for (let i = 0; i < operand.size / 8; i++) values.set(base + i, loadAt(b, linear, 8 * i, stack));
      }
    };
    read(second, 0);
    if (third !== undefined) read(third, 4);
    const zero = chosen.includes(undefined) ? b.const64(0n) : undefined;
    chosen.forEach((from, i) => {
      const value = from === undefined ? zero! : values.get(from)!;
      b.set(placeOf(to, (i >> 1) as Half) + 8 * (i & 1), 8, value);
    });
    if (to.kind === 'xmm') zeroUpper(b, to);
  };
const permuted = (insn: Insn) => [0, 1, 2, 3].map((i) => (immediateOf(insn) >> (2 * i)) & 3);
const halvesChosen = (insn: Insn) =>
  [0, 1].flatMap((half) => {
    const choice = (immediateOf(insn) >> (4 * half)) & 15;
    if (choice & 8) return [undefined, undefined];
    const first = (choice & 2 ? 4 : 0) + (choice & 1 ? 2 : 0);
    return [first, first + 1];
  });
const inserted = (insn: Insn) => (immediateOf(insn) & 1 ? [0, 1, 4, 5] : [4, 5, 2, 3]);
const extracted: LowerWith = (b, insn, helper) => {
  const [to, from] = insn.operands as readonly [Operand, Register];
  const half = (immediateOf(insn) & 1) as Half;
  if (!isRegister(to)) return b.call(helper);
  direct(b, insn, helper, [], (code) => code.load(LOAD, placeOf(from, half)));
};

/** Blends by an immediate, of lanes of so many bytes; of words both halves have the same bits. */
const blended =
  (bytes: 2 | 4 | 8): LowerWith =>
  (b, insn, helper) => {
    const a = insn.operands[1] as Register;
    const from = source(b, 2, 16, halvesOf(insn));
    const immediate = immediateOf(insn);
    direct(b, insn, helper, from.args, (code, half) => {
      push(code, { offset: placeOf(a, half) });
      push(code, from.of(half));
      const first = bytes === 2 ? 0 : (half * 16) / bytes;
      const picked = Array.from({ length: 16 }, (_, i) =>
        (immediate >> (first + Math.floor(i / bytes))) & 1 ? 16 + i : i,
      );
      code.op(...simd(13, picked));
    });
  };

/** Of general registers, the signs of bytes: PMOVMSKB, MOVMSKPS and MOVMSKPD. */
const signs =
  (number: number, count: number): LowerWith =>
  (b, insn, helper) => {
    const [, from] = insn.operands as readonly [Operand, Register];
    const attempt: Attempt = (code) => {
      code.load(LOAD, placeOf(from, 0)).op(...simd(number));
      if (from.kind === 'xmm') return;
      code
        .load(LOAD, placeOf(from, 1))
        .op(...simd(number))
        .const32(count)
        .op(0x74, 0x72); // shl, or
    };
    const value = b.op('attempt32', [], { attempt, helper, insn });
    // As SSE's: the whole register is written.
    const to = insn.operands[0] as Operand & { readonly kind: 'gpr' };
    b.setGpr(to.index, 4, value);
  };

const zeroUppers: LowerWith = (b, insn, helper) => {
  if (b.mode.bits !== 64) return b.call(helper);
  const attempt: Attempt = (code) => {
    for (let i = 0; i < 16; i++) code.store(STORE, State.ymm + 16 * i, () => code.op(...ZERO));
  };
  b.op('attempt', [], { attempt, helper, insn });
};

const prefixed = <T>(from: { readonly [name: string]: T }, of: (row: T, name: string) => LowerWith): Table =>
  Object.fromEntries(Object.entries(from).map(([name, row]) => [`v${name}`, of(row, name)]));

/** What moves must tell. */
export interface Answers {
  readonly misaligned: CallTarget;
}

/** By mnemonic; each with the helper that does the same, or gives the same answer. */
export function avxLowerings({ misaligned }: Answers): Table {
  const aligning = move(true, misaligned);
  const plain = move(false, misaligned);
  return {
    ...prefixed(packed, ([number, swapped]) => binary(number, swapped)),
    ...prefixed(shuffles, ([pick, fromSource]) => shuffled(pick, fromSource)),
    // The second half has bits of its own.
    vshufpd: shuffled(shuffles.shufpd![0], false, 2),
    ...prefixed(shifts, ([number, bits, arithmetic]) => shifted(number, bits, arithmetic)),
    ...prefixed(vectorRows, (_, name) => floating(name)),
    ...fmaLowerings,
    // Numbers of other widths: their halves lie elsewhere.
    vcvtps2pd: (b, _insn, helper) => b.call(helper),
    vcvtdq2pd: (b, _insn, helper) => b.call(helper),
    vcvtpd2ps: (b, _insn, helper) => b.call(helper),
    vcvtpd2dq: (b, _insn, helper) => b.call(helper),
    vcvttpd2dq: (b, _insn, helper) => b.call(helper),
    vcvtsi2ss: fromGeneral('ss'),
    vcvtsi2sd: fromGeneral('sd'),
    vcomiss: compared(shapes.ss),
    vcomisd: compared(shapes.sd),
    vucomiss: compared(shapes.ss),
    vucomisd: compared(shapes.sd),
    vcvtss2si: toGpr(shapes.ss, false),
    vcvttss2si: toGpr(shapes.ss, true),
    vcvtsd2si: toGpr(shapes.sd, false),
    vcvttsd2si: toGpr(shapes.sd, true),

    vmovaps: aligning,
    vmovapd: aligning,
    vmovdqa: aligning,
    vmovntps: aligning,
    vmovntpd: aligning,
    vmovntdq: aligning,
    vmovups: plain,
    vmovupd: plain,
    vmovdqu: plain,
    vlddqu: plain,
    vmovd: low(4),
    vmovq: low(8),
    vmovss: low(4),
    vmovsd: low(8),
    vpabsb: unary(96),
    vpabsw: unary(128),
    vpabsd: unary(160),
    vpmovsxbw: widened(135, 136),
    vpmovzxbw: widened(137, 138),
    vpmovsxwd: widened(167, 168),
    vpmovzxwd: widened(169, 170),
    vpmovsxdq: widened(199, 200),
    vpmovzxdq: widened(201, 202),
    vbroadcastss: broadcast(4, 17),
    vbroadcastsd: broadcast(8, 18),
    vpbroadcastb: broadcast(1, 15),
    vpbroadcastw: broadcast(2, 16),
    vpbroadcastd: broadcast(4, 17),
    vpbroadcastq: broadcast(8, 18),
    vbroadcastf128: quarters(() => [0, 1, 0, 1]),
    vbroadcasti128: quarters(() => [0, 1, 0, 1]),
    vpermq: quarters(permuted),
    vpermpd: quarters(permuted),
    vperm2f128: quarters(halvesChosen),
    vperm2i128: quarters(halvesChosen),
    vinsertf128: quarters(inserted),
    vinserti128: quarters(inserted),
    vextractf128: extracted,
    vextracti128: extracted,
    vblendps: blended(4),
    vpblendd: blended(4),
    vblendpd: blended(8),
    vpblendw: blended(2),
    vpmovmskb: signs(100, 16),
    vmovmskps: signs(164, 4),
    vmovmskpd: signs(196, 2),
    vzeroupper: zeroUppers,
  };
}

/** Whether instructions on AVX's registers may be micro-ops in this mode. */
export const usesYmm = (b: Builder, insn: Insn): boolean =>
  b.mode.avx && (!b.mode.single || !insn.operands.some(isMemory));

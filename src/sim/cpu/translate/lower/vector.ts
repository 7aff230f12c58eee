/**
 * The moves and the integer arithmetic of SSE2 that compilers emit everywhere, as micro-ops. Everything else of SSE is
 * helpers, and so are these where SSE's registers may not be used: then those say which exception it is.
 */

import type { Insn, Memory, Operand } from '../../processor/insn.ts';
import { State } from '../../processor/state.ts';
import type { Builder } from '../builder.ts';
import type { Lower, Lowerings } from '../lowering.ts';
import { simd } from '../vectors.ts';

const xmm = (index: number) => State.xmm + index * 16;
const isXmm = (operand: Operand | undefined): operand is Operand & { index: number } =>
  operand?.kind === 'xmm';

/** The 16 bytes of an operand in the state page: a register, or memory that was loaded. */
function source(b: Builder, operand: Operand, aligned = true): number {
  if (isXmm(operand)) return xmm(operand.index);
  const place = b.place(operand as Memory, 16, false);
  const { stack, linear } = place;
  const low = b.op('load64', [linear], { bits: 64, stack, aligned });
  const above = b.op('add64', [linear, b.const64(8n)]);
  const high = b.op('load64', [above], { bits: 64, stack });
  b.set(State.vector, 8, low);
  b.set(State.vector + 8, 8, high);
  return State.vector;
}

/** 16 bytes to an operand. A store into two pages is checked before it begins. */
function move(aligned: boolean): Lower {
  return (b, insn) => {
    const [to, from] = insn.operands as [Operand, Operand];
    if (isXmm(to) && isXmm(from)) {
      const [low, high] = [b.get(xmm(from.index), 8), b.get(xmm(from.index) + 8, 8)];
      b.set(xmm(to.index), 8, low);
      b.set(xmm(to.index) + 8, 8, high);
    } else if (isXmm(to)) {
      const { linear, stack } = b.place(from as Memory, 16, false);
      const low = b.op('load64', [linear], { bits: 64, stack, aligned });
      const high = b.op('load64', [b.op('add64', [linear, b.const64(8n)])], { bits: 64, stack });
      b.set(xmm(to.index), 8, low);
      b.set(xmm(to.index) + 8, 8, high);
    } else {
      const { linear, stack } = b.place(to as Memory, 16, true);
      const { index } = from as Operand & { index: number };
      const above = b.op('add64', [linear, b.const64(8n)]);
      if (!aligned) {
        b.op('load64', [linear], { bits: 64, stack, write: true });
        b.op('load64', [above], { bits: 64, stack, write: true });
      }
      b.op('store64', [linear, b.get(xmm(index), 8)], { bits: 64, stack, aligned });
      b.op('store64', [above, b.get(xmm(index) + 8, 8)], { bits: 64, stack });
    }
  };
}

/** The low 4 or 8 bytes of a register from or to a general register or memory; the rest becomes 0. */
function low(size: 4 | 8): Lower {
  return (b, insn) => {
    const [to, from] = insn.operands as [Operand, Operand];
    if (!isXmm(to)) return b.write(0, b.get(xmm((from as { index: number }).index), size), size);
    const value = isXmm(from) ? b.get(xmm(from.index), size) : b.read(1, size);
    b.set(xmm(to.index), 8, b.zeroExtend(size, 8, value));
    b.set(xmm(to.index) + 8, 8, b.const64(0n));
  };
}
/** MOVSS and MOVSD: between registers the rest of the destination stays. */
function scalar(size: 4 | 8): Lower {
  return (b, insn) => {
    const [to, from] = insn.operands as [Operand, Operand];
    if (isXmm(to) && isXmm(from)) b.set(xmm(to.index), size, b.get(xmm(from.index), size));
    else low(size)(b, insn);
  };
}
/** One half of a register from or to memory. */
function half(offset: 0 | 8): Lower {
  return (b, insn) => {
    const [to, from] = insn.operands as [Operand, Operand];
    if (isXmm(to)) b.set(xmm(to.index) + offset, 8, b.read(1, 8));
    else b.write(0, b.get(xmm((from as { index: number }).index) + offset, 8), 8);
  };
}

/** to = op(to, from); `swapped` where WebAssembly has the operands the other way round. */
function binary(number: number, swapped = false): Lower {
  return operation(simd(number), swapped);
}
function operation(bytes: readonly number[], swapped = false): Lower {
  return (b, insn) => {
    const from = source(b, insn.operands[1]!);
    const to = xmm((insn.operands[0] as { index: number }).index);
    b.op('vector', [], { vector: { bytes, to, a: swapped ? from : to, b: swapped ? to : from } });
  };
}

/** Lanes of 4 or 8 bytes by number, from the first operand (0 and on) or the second (16 bytes further). */
const lanes = (size: number, ...numbers: number[]) =>
  numbers.flatMap((number) => Array.from({ length: size }, (_, i) => number * size + i));
function shuffle(pick: (immediate: number) => number[], fromSource = false): Lower {
  return (b, insn) => {
    const from = source(b, insn.operands[1]!);
    const to = xmm((insn.operands[0] as { index: number }).index);
    const last = insn.operands[2];
    const immediate = last?.kind === 'imm' ? Number(last.value & 0xffn) : 0;
    b.op('vector', [], {
      vector: { bytes: simd(13, pick(immediate)), to, a: fromSource ? from : to, b: from },
    });
  };
}
const two = (immediate: number, at: number) => (immediate >> (at * 2)) & 3;

/** A shift of each lane by an immediate: beyond the lane's bits, 0 or (arithmetic) the sign. */
function shift(number: number, bits: number, arithmetic = false): Lower {
  return (b, insn) => {
    const to = xmm((insn.operands[0] as { index: number }).index);
    const count = Number((insn.operands[1] as { value: bigint }).value & 0xffn);
    if (count >= bits && !arithmetic) {
      b.set(to, 8, b.const64(0n));
      b.set(to + 8, 8, b.const64(0n));
    } else {
      b.op('vector', [], { vector: { bytes: simd(number), to, a: to, shift: Math.min(count, bits - 1) } });
    }
  };
}
/** What the forms with an immediate count are; those with a register are helpers. */
const byImmediate = (insn: Insn) => insn.operands[1]?.kind === 'imm';

/** An index with its highest bit set gives 0, and of others 4 bits count; WebAssembly's gives 0 for all beyond 15. */
const shuffleBytes = [...simd(12, new Array(16).fill(0x8f)), ...simd(78), ...simd(14)];
/** Bytes of the second operand, and of the first above it: more than 16 bytes further there are zeroes. */
const align = shuffle((immediate) => Array.from({ length: 16 }, (_, i) => (i + immediate + 16) % 32));
const isWithin = (insn: Insn) => ((insn.operands[2] as { value: bigint }).value & 0xffn) <= 16n;

const always = () => true;
/** What WebAssembly has as one instruction: its number, and whether it has the operands the other way round. */
export const packed: { readonly [mnemonic: string]: readonly [number: number, swapped?: boolean] } = {
  pand: [78],
  andps: [78],
  andpd: [78],
  pandn: [79, true],
  andnps: [79, true],
  andnpd: [79, true],
  por: [80],
  orps: [80],
  orpd: [80],
  pxor: [81],
  xorps: [81],
  xorpd: [81],
  pcmpeqb: [35],
  pcmpgtb: [39],
  pcmpeqw: [45],
  pcmpgtw: [49],
  pcmpeqd: [55],
  pcmpgtd: [59],
  pcmpeqq: [214],
  packsswb: [101],
  packuswb: [102],
  packssdw: [133],
  packusdw: [134],
  paddb: [110],
  paddsb: [111],
  paddusb: [112],
  psubb: [113],
  psubsb: [114],
  psubusb: [115],
  pminsb: [118],
  pminub: [119],
  pmaxsb: [120],
  pmaxub: [121],
  pavgb: [123],
  paddw: [142],
  paddsw: [143],
  paddusw: [144],
  psubw: [145],
  psubsw: [146],
  psubusw: [147],
  pmullw: [149],
  pminsw: [150],
  pminuw: [151],
  pmaxsw: [152],
  pmaxuw: [153],
  pavgw: [155],
  paddd: [174],
  psubd: [177],
  pmulld: [181],
  pminsd: [182],
  pminud: [183],
  pmaxsd: [184],
  pmaxud: [185],
  pmaddwd: [186],
  paddq: [206],
  psubq: [209],
};

/** Shifts by an immediate: the instruction's number, and the lane's bits. */
export const shifts: {
  readonly [mnemonic: string]: readonly [number: number, bits: number, arithmetic?: boolean];
} = {
  psllw: [139, 16],
  psraw: [140, 16, true],
  psrlw: [141, 16],
  pslld: [171, 32],
  psrad: [172, 32, true],
  psrld: [173, 32],
  psllq: [203, 64],
  psrlq: [205, 64],
};

/** The bytes of the result by an immediate: of the first operand from 0 on, of the second from 16 on; or of the source alone. */
type Shuffle = readonly [pick: (immediate: number) => number[], fromSource?: boolean];
export const shuffles: { readonly [mnemonic: string]: Shuffle } = {
  movlhps: [() => lanes(8, 0, 2)],
  movhlps: [() => lanes(8, 3, 1)],
  pshufd: [(i) => lanes(4, two(i, 0), two(i, 1), two(i, 2), two(i, 3)), true],
  shufps: [(i) => lanes(4, two(i, 0), two(i, 1), 4 + two(i, 2), 4 + two(i, 3))],
  shufpd: [(i) => lanes(8, i & 1, 2 + ((i >> 1) & 1))],
  pshuflw: [(i) => [...lanes(2, two(i, 0), two(i, 1), two(i, 2), two(i, 3)), ...lanes(8, 1)], true],
  pshufhw: [
    (i) => [...lanes(8, 0), ...lanes(2, 4 + two(i, 0), 4 + two(i, 1), 4 + two(i, 2), 4 + two(i, 3))],
    true,
  ],
  punpcklbw: [() => lanes(1, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)],
  punpckhbw: [() => lanes(1, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)],
  punpcklwd: [() => lanes(2, 0, 8, 1, 9, 2, 10, 3, 11)],
  punpckhwd: [() => lanes(2, 4, 12, 5, 13, 6, 14, 7, 15)],
  punpckldq: [() => lanes(4, 0, 4, 1, 5)],
  unpcklps: [() => lanes(4, 0, 4, 1, 5)],
  punpckhdq: [() => lanes(4, 2, 6, 3, 7)],
  unpckhps: [() => lanes(4, 2, 6, 3, 7)],
  punpcklqdq: [() => lanes(8, 0, 2)],
  unpcklpd: [() => lanes(8, 0, 2)],
  punpckhqdq: [() => lanes(8, 1, 3)],
  unpckhpd: [() => lanes(8, 1, 3)],
};

const rows = <T>(
  from: { readonly [mnemonic: string]: T },
  of: (row: T) => Lower,
  when: (insn: Insn) => boolean = always,
) => Object.fromEntries(Object.entries(from).map(([name, row]) => [name, [of(row), when] as const]));

const table: { readonly [mnemonic: string]: readonly [Lower, ((insn: Insn) => boolean)?] } = {
  movaps: [move(true)],
  movapd: [move(true)],
  movdqa: [move(true)],
  movups: [move(false)],
  movupd: [move(false)],
  movdqu: [move(false)],
  lddqu: [move(false)],
  movntps: [move(true)],
  movntpd: [move(true)],
  movntdq: [move(true)],
  movd: [low(4)],
  movq: [low(8)],
  movss: [scalar(4)],
  'movsd.xmm': [scalar(8)],
  movlps: [half(0)],
  movlpd: [half(0)],
  movhps: [half(8)],
  movhpd: [half(8)],

  ...rows(packed, (row) => binary(...row)),
  ...rows(shifts, (row) => shift(...row), byImmediate),
  ...rows(shuffles, (row) => shuffle(...row)),
  pshufb: [operation(shuffleBytes)],
  palignr: [align, isWithin],
};

/** Whether instructions on SSE's registers may be micro-ops in this mode: no MMX registers, and SSE's may be used. */
export function usesXmm(b: Builder, insn: Insn): boolean {
  if (!b.mode.sse || insn.operands.some(({ kind }) => kind === 'mm')) return false;
  return isWhole(b, insn);
}
export const usesX87 = (b: Builder, insn: Insn): boolean => b.mode.x87 && isWhole(b, insn);
/** An instruction by itself may be one with memory-mapped I/O, whose bytes are one access. */
const isWhole = (b: Builder, insn: Insn): boolean =>
  !b.mode.single || insn.operands.every(({ kind }) => kind !== 'mem');
/** Whether the instruction is one of these, in this mode. */
export function isVector(b: Builder, insn: Insn, name: string): boolean {
  const row = Object.hasOwn(table, name) ? table[name] : undefined;
  return row !== undefined && usesXmm(b, insn) && (row[1] ?? always)(insn);
}

export const vectors: Lowerings = Object.fromEntries(
  Object.entries(table).map(([mnemonic, [lower]]) => [mnemonic, lower]),
);

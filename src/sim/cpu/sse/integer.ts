/** Packed integers of MMX and SSE to SSE4.2: arithmetic, comparison, shifts, packing and shuffling. */

import type { Helper, Helpers } from '../processor/helper.ts';
import type { Insn } from '../processor/insn.ts';
import type { Processor } from '../processor/processor.ts';
import {
  A,
  B,
  binary,
  check,
  checkSse,
  enterMmx,
  immediate,
  type Lanes,
  load,
  R,
  store,
  usesMmx,
  vectorSize,
} from './operands.ts';

type View = 'u8' | 'i8' | 'u16' | 'i16' | 'u32' | 'i32';

/** The same for each lane. What does not fit a lane is cut off. */
const lanes = (view: View, lane: (a: number, b: number) => number): Helper =>
  binary((size) => {
    const [a, b, r] = [A[view], B[view], R[view]];
    for (let i = 0; i < size / r.BYTES_PER_ELEMENT; i++) r[i] = lane(a[i]!, b[i]!);
  });
const lanes64 = (lane: (a: bigint, b: bigint) => bigint): Helper =>
  binary((size) => {
    for (let i = 0; i < size / 8; i++) R.i64[i] = lane(A.i64[i]!, B.i64[i]!);
  });

const clamp = (low: number, high: number) => (value: number) => Math.max(low, Math.min(high, value));
const saturate = {
  i8: clamp(-0x80, 0x7f),
  u8: clamp(0, 0xff),
  i16: clamp(-0x8000, 0x7fff),
  u16: clamp(0, 0xffff),
};
const saturated = (view: 'i8' | 'u8' | 'i16' | 'u16', lane: (a: number, b: number) => number): Helper =>
  lanes(view, (a, b) => saturate[view](lane(a, b)));

const plus = (a: number, b: number) => a + b;
const minus = (a: number, b: number) => a - b;
const equal = (a: number, b: number) => (a === b ? -1 : 0);
const greater = (a: number, b: number) => (a > b ? -1 : 0);
const average = (a: number, b: number) => (a + b + 1) >> 1;
const withSign = (a: number, b: number) => (b < 0 ? -a : b === 0 ? 0 : a);

/** Neighbours of the destination, then neighbours of the source. */
const horizontal = (view: 'i16' | 'i32', pair: (a: number, b: number) => number): Helper =>
  binary((size) => {
    const count = size / R[view].BYTES_PER_ELEMENT / 2;
    for (let i = 0; i < count; i++) {
      R[view][i] = pair(A[view][2 * i]!, A[view][2 * i + 1]!);
      R[view][i + count] = pair(B[view][2 * i]!, B[view][2 * i + 1]!);
    }
  });

/** The low or high halves of both, interleaved. */
const unpack = (width: 1 | 2 | 4 | 8, high: boolean): Helper =>
  binary((size) => {
    const from = high ? size / 2 : 0;
    for (let i = 0; i < size / 2; i += width) {
      for (let byte = 0; byte < width; byte++) {
        R.u8[2 * i + byte] = A.u8[from + i + byte]!;
        R.u8[2 * i + width + byte] = B.u8[from + i + byte]!;
      }
    }
  });

const pack = (from: 'i16' | 'i32', to: 'i8' | 'u8' | 'i16' | 'u16'): Helper =>
  binary((size) => {
    const count = size / R[from].BYTES_PER_ELEMENT;
    for (let i = 0; i < count; i++) {
      R[to][i] = saturate[to](A[from][i]!);
      R[to][i + count] = saturate[to](B[from][i]!);
    }
  });

/** By a count that is an immediate or the source's low 64 bits; too large ones shift everything out. */
const shift = (
  width: 16 | 32 | 64,
  lane: (source: Lanes, i: number, count: number) => void,
  arithmetic = false,
): Helper => {
  return (cpu, insn) => {
    check(cpu, insn);
    load(cpu, insn, 0, A);
    let count = immediate(insn);
    if (insn.operands[1]!.kind !== 'imm') {
      load(cpu, insn, 1, B);
      count = B.u64[0]! > 64n ? 64 : Number(B.u64[0]!);
    }
    const size = vectorSize(insn);
    if (count < width || arithmetic) {
      for (let i = 0; i < (size * 8) / width; i++) lane(A, i, Math.min(count, width - 1));
    } else R.u8.fill(0);
    if (usesMmx(insn)) enterMmx(cpu);
    store(cpu, insn, R, size);
  };
};

/** PSLLDQ and PSRLDQ. */
const shiftBytes = (direction: 1 | -1): Helper =>
  withImmediate((count) => {
    for (let i = 0; i < 16; i++) R.u8[i] = count > 15 ? 0 : (A.u8[i - direction * count] ?? 0);
  });
/** dest = body(dest, imm8). */
function withImmediate(body: (imm: number) => void): Helper {
  return (cpu, insn) => {
    checkSse(cpu);
    load(cpu, insn, 0, A);
    body(immediate(insn));
    store(cpu, insn, R);
  };
}

/** Each pair of bits of the immediate selects one of four lanes, from `first` on; the others are copied. */
const shuffle = (view: 'i16' | 'i32', first: number): Helper =>
  binary((_, imm) => {
    R.i64.set(B.i64);
    for (let i = 0; i < 4; i++) R[view][first + i] = B[view][first + ((imm >> (2 * i)) & 3)]!;
  });

const blend = (view: 'i16' | 'i32' | 'f64'): Helper =>
  binary((_, imm) => {
    const width = R[view].BYTES_PER_ELEMENT;
    for (let i = 0; i < 16; i++) R.u8[i] = (imm >> Math.floor(i / width)) & 1 ? B.u8[i]! : A.u8[i]!;
  });
/** XMM0 is the implied third operand: the top bit of each of its lanes selects. */
const blendVariable =
  (width: 1 | 4 | 8): Helper =>
  (cpu, insn) => {
    checkSse(cpu);
    const mask = new Uint8Array(16);
    load(cpu, { ...insn, operands: [{ kind: 'xmm', index: 0 }] }, 0, R);
    mask.set(R.u8);
    load(cpu, insn, 0, A);
    load(cpu, insn, 1, B);
    for (let i = 0; i < 16; i++) R.u8[i] = mask[i - (i % width) + width - 1]! & 0x80 ? B.u8[i]! : A.u8[i]!;
    store(cpu, insn, R);
  };

/** PMOVSXxx and PMOVZXxx. */
const extend = (from: View, to: 'i16' | 'i32' | 'i64'): Helper =>
  binary(() => {
    const count = 16 / R[to].BYTES_PER_ELEMENT;
    for (let i = 0; i < count; i++) {
      if (to === 'i64') R.i64[i] = BigInt(B[from][i]!);
      else R[to][i] = B[from][i]!;
    }
  });

const difference = (a: number, b: number) => Math.abs(a - b);

export function setArithmeticFlags(cpu: Processor, flags: number): void {
  cpu.state.flags = (cpu.state.flags & ~0x8d5) | flags;
}

/** One load for both sources, no result: PTEST. */
const test: Helper = (cpu: Processor, insn: Insn) => {
  checkSse(cpu);
  load(cpu, insn, 0, A);
  load(cpu, insn, 1, B);
  const none = (B.i64[0]! & A.i64[0]!) === 0n && (B.i64[1]! & A.i64[1]!) === 0n;
  const all = (B.i64[0]! & ~A.i64[0]!) === 0n && (B.i64[1]! & ~A.i64[1]!) === 0n;
  setArithmeticFlags(cpu, (none ? 0x40 : 0) | (all ? 1 : 0));
};

const and = lanes('i32', (a, b) => a & b);
const andNot = lanes('i32', (a, b) => ~a & b);
const or = lanes('i32', (a, b) => a | b);
const xor = lanes('i32', (a, b) => a ^ b);

export const sseInteger: Helpers = {
  paddb: lanes('u8', plus),
  paddw: lanes('u16', plus),
  paddd: lanes('u32', plus),
  paddq: lanes64((a, b) => a + b),
  psubb: lanes('u8', minus),
  psubw: lanes('u16', minus),
  psubd: lanes('u32', minus),
  psubq: lanes64((a, b) => a - b),
  paddsb: saturated('i8', plus),
  paddsw: saturated('i16', plus),
  paddusb: saturated('u8', plus),
  paddusw: saturated('u16', plus),
  psubsb: saturated('i8', minus),
  psubsw: saturated('i16', minus),
  psubusb: saturated('u8', minus),
  psubusw: saturated('u16', minus),
  pmullw: lanes('i16', (a, b) => a * b),
  pmulhw: lanes('i16', (a, b) => (a * b) >> 16),
  pmulhuw: lanes('u16', (a, b) => (a * b) >>> 16),
  pmulld: lanes('i32', Math.imul),
  pmulhrsw: lanes('i16', (a, b) => (((a * b) >> 14) + 1) >> 1),
  pmuludq: lanes64((a, b) => BigInt.asUintN(32, a) * BigInt.asUintN(32, b)),
  pmuldq: lanes64((a, b) => BigInt.asIntN(32, a) * BigInt.asIntN(32, b)),
  pmaddwd: binary((size) => {
    for (let i = 0; i < size / 4; i++) {
      R.i32[i] = A.i16[2 * i]! * B.i16[2 * i]! + A.i16[2 * i + 1]! * B.i16[2 * i + 1]!;
    }
  }),
  pmaddubsw: binary((size) => {
    for (let i = 0; i < size / 2; i++) {
      R.i16[i] = saturate.i16(A.u8[2 * i]! * B.i8[2 * i]! + A.u8[2 * i + 1]! * B.i8[2 * i + 1]!);
    }
  }),
  pavgb: lanes('u8', average),
  pavgw: lanes('u16', average),
  pminub: lanes('u8', Math.min),
  pminsb: lanes('i8', Math.min),
  pminuw: lanes('u16', Math.min),
  pminsw: lanes('i16', Math.min),
  pminud: lanes('u32', Math.min),
  pminsd: lanes('i32', Math.min),
  pmaxub: lanes('u8', Math.max),
  pmaxsb: lanes('i8', Math.max),
  pmaxuw: lanes('u16', Math.max),
  pmaxsw: lanes('i16', Math.max),
  pmaxud: lanes('u32', Math.max),
  pmaxsd: lanes('i32', Math.max),
  pcmpeqb: lanes('i8', equal),
  pcmpeqw: lanes('i16', equal),
  pcmpeqd: lanes('i32', equal),
  pcmpeqq: lanes64((a, b) => (a === b ? -1n : 0n)),
  pcmpgtb: lanes('i8', greater),
  pcmpgtw: lanes('i16', greater),
  pcmpgtd: lanes('i32', greater),
  pcmpgtq: lanes64((a, b) => (a > b ? -1n : 0n)),
  pand: and,
  andps: and,
  andpd: and,
  pandn: andNot,
  andnps: andNot,
  andnpd: andNot,
  por: or,
  orps: or,
  orpd: or,
  pxor: xor,
  xorps: xor,
  xorpd: xor,
  pabsb: lanes('i8', (_, b) => Math.abs(b)),
  pabsw: lanes('i16', (_, b) => Math.abs(b)),
  pabsd: lanes('i32', (_, b) => Math.abs(b)),
  psignb: lanes('i8', withSign),
  psignw: lanes('i16', withSign),
  psignd: lanes('i32', withSign),
  phaddw: horizontal('i16', plus),
  phaddd: horizontal('i32', plus),
  phaddsw: horizontal('i16', (a, b) => saturate.i16(a + b)),
  phsubw: horizontal('i16', minus),
  phsubd: horizontal('i32', minus),
  phsubsw: horizontal('i16', (a, b) => saturate.i16(a - b)),
  psadbw: binary((size) => {
    for (let half = 0; half < size / 8; half++) {
      let total = 0;
      for (let i = 8 * half; i < 8 * half + 8; i++) total += difference(A.u8[i]!, B.u8[i]!);
      R.u64[half] = BigInt(total);
    }
  }),
  mpsadbw: binary((_, imm) => {
    const [a, b] = [imm & 4, (imm & 3) * 4];
    for (let i = 0; i < 8; i++) {
      let total = 0;
      for (let j = 0; j < 4; j++) total += difference(A.u8[a + i + j]!, B.u8[b + j]!);
      R.u16[i] = total;
    }
  }),
  phminposuw: binary(() => {
    const least = Math.min(...B.u16);
    const at = B.u16.indexOf(least);
    R.u16.fill(0);
    R.u16[0] = least;
    R.u16[1] = at;
  }),
  ptest: test,

  psllw: shift(16, (a, i, count) => (R.u16[i] = a.u16[i]! << count)),
  pslld: shift(32, (a, i, count) => (R.u32[i] = a.u32[i]! << count)),
  psllq: shift(64, (a, i, count) => (R.u64[i] = a.u64[i]! << BigInt(count))),
  psrlw: shift(16, (a, i, count) => (R.u16[i] = a.u16[i]! >>> count)),
  psrld: shift(32, (a, i, count) => (R.u32[i] = a.u32[i]! >>> count)),
  psrlq: shift(64, (a, i, count) => (R.u64[i] = a.u64[i]! >> BigInt(count))),
  psraw: shift(16, (a, i, count) => (R.i16[i] = a.i16[i]! >> count), true),
  psrad: shift(32, (a, i, count) => (R.i32[i] = a.i32[i]! >> count), true),
  pslldq: shiftBytes(1),
  psrldq: shiftBytes(-1),

  punpcklbw: unpack(1, false),
  punpcklwd: unpack(2, false),
  punpckldq: unpack(4, false),
  punpcklqdq: unpack(8, false),
  unpcklps: unpack(4, false),
  unpcklpd: unpack(8, false),
  punpckhbw: unpack(1, true),
  punpckhwd: unpack(2, true),
  punpckhdq: unpack(4, true),
  punpckhqdq: unpack(8, true),
  unpckhps: unpack(4, true),
  unpckhpd: unpack(8, true),
  packsswb: pack('i16', 'i8'),
  packuswb: pack('i16', 'u8'),
  packssdw: pack('i32', 'i16'),
  packusdw: pack('i32', 'u16'),

  pshufd: shuffle('i32', 0),
  pshuflw: shuffle('i16', 0),
  pshufhw: shuffle('i16', 4),
  pshufw: shuffle('i16', 0),
  pshufb: binary((size) => {
    for (let i = 0; i < size; i++) R.u8[i] = B.u8[i]! & 0x80 ? 0 : A.u8[B.u8[i]! & (size - 1)]!;
  }),
  shufps: binary((_, imm) => {
    for (let i = 0; i < 4; i++) R.i32[i] = (i < 2 ? A : B).i32[(imm >> (2 * i)) & 3]!;
  }),
  shufpd: binary((_, imm) => {
    R.i64[0] = A.i64[imm & 1]!;
    R.i64[1] = B.i64[(imm >> 1) & 1]!;
  }),
  palignr: binary((size, imm) => {
    for (let i = 0; i < size; i++) {
      const at = i + imm;
      R.u8[i] = at < size ? B.u8[at]! : at < 2 * size ? A.u8[at - size]! : 0;
    }
  }),
  pblendw: blend('i16'),
  blendps: blend('i32'),
  blendpd: blend('f64'),
  pblendvb: blendVariable(1),
  blendvps: blendVariable(4),
  blendvpd: blendVariable(8),

  pmovsxbw: extend('i8', 'i16'),
  pmovsxbd: extend('i8', 'i32'),
  pmovsxbq: extend('i8', 'i64'),
  pmovsxwd: extend('i16', 'i32'),
  pmovsxwq: extend('i16', 'i64'),
  pmovsxdq: extend('i32', 'i64'),
  pmovzxbw: extend('u8', 'i16'),
  pmovzxbd: extend('u8', 'i32'),
  pmovzxbq: extend('u8', 'i64'),
  pmovzxwd: extend('u16', 'i32'),
  pmovzxwq: extend('u16', 'i64'),
  pmovzxdq: extend('u32', 'i64'),
};

/** Permutations, blends and shifts of lanes by other lanes' values: what SSE does not have, or has with an implied operand. */
import type { Helper, Helpers } from '../processor/helper.ts';
import type { Insn } from '../processor/insn.ts';
import { imm } from './move.ts';
import { checkAvx, halvesOf, loadWide, storeWide, W, type Wide, X, Y, Z } from './operands.ts';

/** The three-operand form: X and Y are its sources. */
const binary =
  (body: (halves: number, immediate: number) => void): Helper =>
  (cpu, insn) => {
    checkAvx(cpu);
    loadWide(cpu, insn, 1, X);
    loadWide(cpu, insn, 2, Y);
    body(halvesOf(insn), imm(insn));
    storeWide(cpu, insn, W);
  };
/** One source and an immediate. */
const unary =
  (body: (immediate: number, halves: number) => void): Helper =>
  (cpu, insn) => {
    checkAvx(cpu);
    loadWide(cpu, insn, 1, X);
    body(imm(insn), halvesOf(insn));
    storeWide(cpu, insn, W);
  };

/** Of 32 bytes, lane i: of 4 or of 8 bytes. */
const lane32 = (wide: Wide, i: number) => wide[(i >> 2) & 1]!.i32[i & 3]!;
const lane64 = (wide: Wide, i: number) => wide[(i >> 1) & 1]!.i64[i & 1]!;

const isImmediate = (insn: Insn) => insn.operands[2]!.kind === 'imm';

/** Within each half, by an immediate or by the lanes of another register. */
const byImmediate = {
  ps: unary((immediate, halves) => {
    for (let half = 0; half < halves; half++)
      for (let i = 0; i < 4; i++) W[half]!.i32[i] = X[half]!.i32[(immediate >> (2 * i)) & 3]!;
  }),
  pd: unary((immediate, halves) => {
    for (let half = 0; half < halves; half++)
      for (let i = 0; i < 2; i++) W[half]!.i64[i] = X[half]!.i64[(immediate >> (2 * half + i)) & 1]!;
  }),
};
const byLanes = {
  ps: binary((halves) => {
    for (let half = 0; half < halves; half++)
      for (let i = 0; i < 4; i++) W[half]!.i32[i] = X[half]!.i32[Y[half]!.i32[i]! & 3]!;
  }),
  pd: binary((halves) => {
    for (let half = 0; half < halves; half++)
      for (let i = 0; i < 2; i++) W[half]!.i64[i] = X[half]!.i64[(Y[half]!.u32[2 * i]! >> 1) & 1]!;
  }),
};
const within =
  (width: 'ps' | 'pd'): Helper =>
  (cpu, insn) =>
    (isImmediate(insn) ? byImmediate : byLanes)[width](cpu, insn);

/** Across the halves: PERMD and PERMPS have the indices in the second operand. */
const across32 = binary(() => {
  for (let i = 0; i < 8; i++) W[i >> 2]!.i32[i & 3] = lane32(Y, lane32(X, i) & 7);
});
const across64 = unary((immediate) => {
  for (let i = 0; i < 4; i++) W[i >> 1]!.i64[i & 1] = lane64(X, (immediate >> (2 * i)) & 3);
});
/** A half of either source for each of the result's, or zeroes. */
const halves128 = binary((_, immediate) => {
  for (let half = 0; half < 2; half++) {
    const choice = (immediate >> (4 * half)) & 15;
    if (choice & 8) W[half]!.i32.fill(0);
    else W[half]!.i32.set((choice & 2 ? Y : X)[choice & 1]!.i32);
  }
});

/** The bits of an immediate choose; VEX's blends of 32 bytes have bits for the second half, but for words. */
const blend = (view: 'i32' | 'i64', lanes: number) =>
  binary((halves, immediate) => {
    for (let half = 0; half < halves; half++) {
      for (let i = 0; i < lanes; i++) {
        const from = (immediate >> (half * lanes + i)) & 1 ? Y : X;
        if (view === 'i32') W[half]!.i32[i] = from[half]!.i32[i]!;
        else W[half]!.i64[i] = from[half]!.i64[i]!;
      }
    }
  });
/** The signs of the fourth operand's lanes choose. */
const blendVariable =
  (width: 1 | 4 | 8): Helper =>
  (cpu, insn) => {
    checkAvx(cpu);
    loadWide(cpu, insn, 1, X);
    loadWide(cpu, insn, 2, Y);
    loadWide(cpu, insn, 3, Z);
    for (let half = 0; half < halvesOf(insn); half++) {
      for (let i = 0; i < 16; i++) {
        const chosen = Z[half]!.u8[i - (i % width) + width - 1]! & 0x80;
        W[half]!.u8[i] = (chosen ? Y : X)[half]!.u8[i]!;
      }
    }
    storeWide(cpu, insn, W);
  };

/** SHUFPD and shifts by lanes. */
const shuffle64 = binary((halves, immediate) => {
  for (let half = 0; half < halves; half++) {
    const bits = immediate >> (2 * half);
    W[half]!.i64[0] = X[half]!.i64[bits & 1]!;
    W[half]!.i64[1] = Y[half]!.i64[(bits >> 1) & 1]!;
  }
});
const shift32 = (of: (value: number, count: number) => number, beyond: (value: number) => number) =>
  binary((halves) => {
    for (let half = 0; half < halves; half++) {
      for (let i = 0; i < 4; i++) {
        const [value, count] = [X[half]!.i32[i]!, Y[half]!.u32[i]!];
        W[half]!.i32[i] = count > 31 ? beyond(value) : of(value, count);
      }
    }
  });
const shift64 = (of: (value: bigint, count: bigint) => bigint) =>
  binary((halves) => {
    for (let half = 0; half < halves; half++) {
      for (let i = 0; i < 2; i++) {
        const [value, count] = [X[half]!.u64[i]!, Y[half]!.u64[i]!];
        W[half]!.u64[i] = count > 63n ? 0n : of(value, count);
      }
    }
  });
const none = () => 0;

/** MPSADBW: the second half has its own three bits of the immediate. */
const sums = binary((halves, immediate) => {
  for (let half = 0; half < halves; half++) {
    const bits = immediate >> (3 * half);
    const [a, b] = [bits & 4, (bits & 3) * 4];
    for (let i = 0; i < 8; i++) {
      let total = 0;
      for (let j = 0; j < 4; j++) total += Math.abs(X[half]!.u8[a + i + j]! - Y[half]!.u8[b + j]!);
      W[half]!.u16[i] = total;
    }
  }
});

/** INSERTPS: of memory there is one lane. */
const insertLane: Helper = (cpu, insn) => {
  checkAvx(cpu);
  loadWide(cpu, insn, 1, W);
  loadWide(cpu, insn, 2, Y);
  const immediate = imm(insn);
  W[0].u32[(immediate >> 4) & 3] = Y[0].u32[insn.operands[2]!.kind === 'mem' ? 0 : immediate >> 6]!;
  for (let i = 0; i < 4; i++) if ((immediate >> i) & 1) W[0].u32[i] = 0;
  storeWide(cpu, insn, W);
};

export const avxPermute: Helpers = {
  vpermilps: within('ps'),
  vpermilpd: within('pd'),
  vpermps: across32,
  vpermd: across32,
  vpermq: across64,
  vpermpd: across64,
  vperm2f128: halves128,
  vperm2i128: halves128,
  vblendps: blend('i32', 4),
  vblendpd: blend('i64', 2),
  vpblendd: blend('i32', 4),
  vblendvps: blendVariable(4),
  vblendvpd: blendVariable(8),
  vpblendvb: blendVariable(1),
  vshufpd: shuffle64,
  vmpsadbw: sums,
  vinsertps: insertLane,
  vpsllvd: shift32((value, count) => value << count, none),
  vpsrlvd: shift32((value, count) => value >>> count, none),
  vpsravd: shift32(
    (value, count) => value >> count,
    (value) => value >> 31,
  ),
  vpsllvq: shift64((value, count) => value << count),
  vpsrlvq: shift64((value, count) => value >> count),
};

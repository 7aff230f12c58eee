/** The moves with a VEX prefix: whole registers, lanes, halves, masks; and what clears upper halves. */
import { raise, Vector } from '../processor/fault.ts';
import type { Answer, Answers, Helper, Helpers } from '../processor/helper.ts';
import type { Insn, Memory, Operand } from '../processor/insn.ts';
import type { Processor } from '../processor/processor.ts';
import { State } from '../processor/state.ts';
import { setArithmeticFlags } from '../sse/integer.ts';
import { storeGpr } from '../sse/operands.ts';
import { in64BitMode } from '../x87/stack.ts';
import {
  addressOfSize,
  checkAvx,
  clear,
  halvesOf,
  loadWide,
  storeWide,
  W,
  type Wide,
  X,
  Y,
} from './operands.ts';

const isMemory = (operand: Operand | undefined): operand is Memory => operand?.kind === 'mem';
const sizeOf = (insn: Insn) => 16 * halvesOf(insn);

/** Whole registers, which memory need not be aligned for unless the instruction says so. */
const move =
  (aligned: boolean): Helper =>
  (cpu, insn) => {
    checkAvx(cpu);
    loadWide(cpu, insn, 1, W, aligned);
    storeWide(cpu, insn, W, sizeOf(insn), aligned);
  };

/** MOVSS and MOVSD: a lane to or from memory, or a lane in the place of another register's. */
const moveScalar =
  (size: 4 | 8): Helper =>
  (cpu, insn) => {
    checkAvx(cpu);
    const { operands } = insn;
    if (operands.length === 2) {
      loadWide(cpu, insn, 1, W);
      storeWide(cpu, insn, W, size);
      return;
    }
    loadWide(cpu, insn, 1, W);
    loadWide(cpu, insn, 2, Y);
    if (size === 4) W[0].u32[0] = Y[0].u32[0]!;
    else W[0].u64[0] = Y[0].u64[0]!;
    storeWide(cpu, insn, W);
  };

/** MOVD and MOVQ. */
const moveZeroing =
  (size: 4 | 8): Helper =>
  (cpu, insn) => {
    checkAvx(cpu);
    const [to, from] = insn.operands;
    if (to!.kind === 'gpr') {
      loadWide(cpu, insn, 1, X);
      storeGpr(cpu, to!, size === 8 ? X[0].u64[0]! : BigInt(X[0].u32[0]!));
      return;
    }
    if (from!.kind === 'gpr') {
      clear(W);
      W[0].u64[0] = cpu.state.gpr(from!.index);
    } else loadWide(cpu, insn, 1, W);
    if (size === 4) W[0].u32[1] = 0;
    W[0].u64[1] = 0n;
    storeWide(cpu, insn, W, size);
  };

/** A half of the low 16 bytes to memory, or a half of the last operand in the place of the second's. */
const moveHalf =
  (half: 0 | 1, fromHalf: 0 | 1): Helper =>
  (cpu, insn) => {
    checkAvx(cpu);
    const { operands } = insn;
    if (isMemory(operands[0])) {
      loadWide(cpu, insn, 1, X);
      W[0].u64[0] = X[0].u64[half]!;
      storeWide(cpu, insn, W, 8);
      return;
    }
    loadWide(cpu, insn, 1, W);
    loadWide(cpu, insn, 2, Y);
    W[0].u64[half] = Y[0].u64[isMemory(operands[2]) ? 0 : fromHalf]!;
    storeWide(cpu, insn, W);
  };

/** MOVDDUP: of 16 bytes 8 are read. */
function duplicate(cpu: Processor, insn: Insn): void {
  checkAvx(cpu);
  loadWide(cpu, insn, 1, X);
  for (let half = 0; half < halvesOf(insn); half++) W[half]!.u64.fill(X[half]!.u64[0]!);
  storeWide(cpu, insn, W);
}

/** The sign bits of the lanes. */
const signs =
  (view: 'i8' | 'i32' | 'i64'): Answer =>
  (cpu, insn) => {
    checkAvx(cpu);
    loadWide(cpu, insn, 1, X);
    const count = 16 / X[0][view].BYTES_PER_ELEMENT;
    let bits = 0;
    for (let i = 0; i < count * halvesOf(insn); i++)
      if (X[Math.floor(i / count)]![view][i % count]! < 0) bits |= 1 << i;
    return bits;
  };

/** Those whose result is no vector, for callers that put it in its place. */
export const avxMoveAnswers: Answers = {
  vmovmskps: signs('i32'),
  vmovmskpd: signs('i64'),
  vpmovmskb: signs('i8'),
};
const toGpr =
  (of: Answer): Helper =>
  (cpu, insn) =>
    storeGpr(cpu, insn.operands[0]!, BigInt((of(cpu, insn) as number) >>> 0));

/** Raises #GP where an address that must be aligned is not: what a micro-op calls with the address's low bits. */
export function misaligned(_cpu: Processor, _insn: Insn, low: number): void {
  if (low !== 0) raise(Vector.GP, 0);
}

const CF = 1;
const ZF = 0x40;
/** PTEST, and TESTPS and TESTPD, which look at the lanes' signs alone. */
const test =
  (mask: bigint): Helper =>
  (cpu, insn) => {
    checkAvx(cpu);
    loadWide(cpu, insn, 0, X);
    loadWide(cpu, insn, 1, Y);
    let both = 0n;
    let only = 0n;
    for (let half = 0; half < halvesOf(insn); half++) {
      for (let i = 0; i < 2; i++) {
        const [a, b] = [X[half]!.u64[i]!, Y[half]!.u64[i]!];
        both |= a & b & mask;
        only |= ~a & b & mask;
      }
    }
    setArithmeticFlags(cpu, (both === 0n ? ZF : 0) | (only === 0n ? CF : 0));
  };

type LaneView = 'u32' | 'u64';
const laneOf = (wide: Wide, view: LaneView, i: number): number | bigint => {
  const count = view === 'u32' ? 4 : 2;
  return wide[i < count ? 0 : 1][view][i % count]!;
};
const isSelected = (wide: Wide, view: LaneView, i: number): boolean =>
  view === 'u32'
    ? (laneOf(wide, view, i) as number) >>> 31 === 1
    : (laneOf(wide, view, i) as bigint) >> 63n === 1n;

/**
 * MASKMOVPS, PMASKMOVD and their kin: lanes whose mask has its sign set. Others are neither read nor written, and do not fault
 * (SDM volume 2, VMASKMOV); all that are selected are checked before the first is written.
 */
const masked =
  (view: LaneView): Helper =>
  (cpu, insn) => {
    checkAvx(cpu);
    const [to, , from] = insn.operands;
    const size = view === 'u32' ? 4 : 8;
    const store = isMemory(to);
    const memory = (store ? to : from) as Memory;
    loadWide(cpu, insn, 1, X);
    const selected = Array.from({ length: sizeOf(insn) / size }, (_, i) => i).filter((i) =>
      isSelected(X, view, i),
    );
    const at = (i: number) =>
      addressOfSize(
        cpu,
        insn,
        { ...memory, displacement: memory.displacement + BigInt(size * i) },
        size,
        store,
      );
    if (store) {
      loadWide(cpu, insn, 2, Y);
      for (const i of selected) cpu.memory.checkWrite(at(i), size);
      for (const i of selected) {
        if (view === 'u32') cpu.memory.write32(at(i), laneOf(Y, view, i) as number);
        else cpu.memory.write64(at(i), laneOf(Y, view, i) as bigint);
      }
      return;
    }
    clear(W);
    for (const i of selected) {
      const half = W[i * size < 16 ? 0 : 1];
      if (view === 'u32') half.u32[i & 3] = cpu.memory.read32(at(i));
      else half.u64[i & 1] = cpu.memory.read64(at(i));
    }
    storeWide(cpu, insn, W);
  };

/** VZEROUPPER and VZEROALL; out of 64-bit mode of eight registers. */
const zero =
  (all: boolean): Helper =>
  (cpu) => {
    checkAvx(cpu);
    const { u8 } = cpu.arena.views;
    const size = 16 * (in64BitMode(cpu) ? 16 : 8);
    for (const offset of all ? [State.xmm, State.ymm] : [State.ymm]) {
      const at = cpu.state.base + offset;
      u8.fill(0, at, at + size);
    }
  };

/** A register or memory to each lane. */
const broadcast =
  (size: 1 | 2 | 4 | 8 | 16): Helper =>
  (cpu, insn) => {
    checkAvx(cpu);
    loadWide(cpu, insn, 1, X);
    for (let i = 0; i < 16; i++) W[0].u8[i] = X[0].u8[i % size]!;
    W[1].i32.set(W[0].i32);
    storeWide(cpu, insn, W);
  };

/** A half to another register or to memory, or into another's place. */
const extractHalf: Helper = (cpu, insn) => {
  checkAvx(cpu);
  loadWide(cpu, insn, 1, X);
  W[0].i32.set(X[imm(insn) & 1]!.i32);
  storeWide(cpu, insn, W, 16);
};
const insertHalf: Helper = (cpu, insn) => {
  checkAvx(cpu);
  loadWide(cpu, insn, 1, W);
  loadWide(cpu, insn, 2, Y);
  W[imm(insn) & 1]!.i32.set(Y[0].i32);
  storeWide(cpu, insn, W);
};
export function imm(insn: Insn): number {
  const last = insn.operands.at(-1)!;
  return last.kind === 'imm' ? Number(last.value & 0xffn) : 0;
}

export const avxMove: Helpers = {
  vmovaps: move(true),
  vmovapd: move(true),
  vmovdqa: move(true),
  vmovntps: move(true),
  vmovntpd: move(true),
  vmovntdq: move(true),
  vmovntdqa: move(true),
  vmovups: move(false),
  vmovupd: move(false),
  vmovdqu: move(false),
  vlddqu: move(false),
  vmovss: moveScalar(4),
  vmovsd: moveScalar(8),
  vmovd: moveZeroing(4),
  vmovq: moveZeroing(8),
  vmovlps: moveHalf(0, 0),
  vmovlpd: moveHalf(0, 0),
  vmovhlps: moveHalf(0, 1),
  vmovhps: moveHalf(1, 0),
  vmovhpd: moveHalf(1, 0),
  vmovlhps: moveHalf(1, 0),
  vmovddup: duplicate,
  ...Object.fromEntries(Object.entries(avxMoveAnswers).map(([name, of]) => [name, toGpr(of)])),
  vptest: test(0xffff_ffff_ffff_ffffn),
  vtestps: test(0x8000_0000_8000_0000n),
  vtestpd: test(0x8000_0000_0000_0000n),
  vmaskmovps: masked('u32'),
  vmaskmovpd: masked('u64'),
  vpmaskmovd: masked('u32'),
  vpmaskmovq: masked('u64'),
  vzeroupper: zero(false),
  vzeroall: zero(true),
  vbroadcastss: broadcast(4),
  vbroadcastsd: broadcast(8),
  vbroadcastf128: broadcast(16),
  vbroadcasti128: broadcast(16),
  vpbroadcastb: broadcast(1),
  vpbroadcastw: broadcast(2),
  vpbroadcastd: broadcast(4),
  vpbroadcastq: broadcast(8),
  vextractf128: extractHalf,
  vextracti128: extractHalf,
  vinsertf128: insertHalf,
  vinserti128: insertHalf,
};

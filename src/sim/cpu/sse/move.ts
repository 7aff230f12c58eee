/** SSE's moves: between registers and memory, single lanes, masks, and MXCSR. MMX's few are among them. */
import { addressOf } from '../address/addressing.ts';
import { raise, Vector } from '../processor/fault.ts';
import type { Helper, Helpers } from '../processor/helper.ts';
import type { Insn } from '../processor/insn.ts';
import type { Processor } from '../processor/processor.ts';
import { State } from '../processor/state.ts';
import {
  A,
  B,
  beginMmxStore,
  binary,
  check,
  checkMmx,
  checkPending,
  checkSse,
  enterMmx,
  immediate,
  load,
  R,
  store,
  storeGpr,
  usesMmx,
} from './operands.ts';

/** Whole registers, aligned in memory or not. */
const move =
  (aligned: boolean): Helper =>
  (cpu, insn) => {
    checkSse(cpu);
    load(cpu, insn, 1, R, aligned);
    store(cpu, insn, R, 16, aligned);
  };

/** The low lane: from memory the rest becomes zero, between registers it stays. */
const moveScalar =
  (size: 4 | 8): Helper =>
  (cpu, insn) => {
    checkSse(cpu);
    const [to, from] = insn.operands;
    R.u8.fill(0);
    load(cpu, insn, 1, R);
    store(cpu, insn, R, to!.kind === 'xmm' && from!.kind === 'mem' ? 16 : size);
  };

/** MOVD and MOVQ: the rest of a vector register becomes zero. */
const moveZeroing =
  (size: 4 | 8): Helper =>
  (cpu, insn) => {
    check(cpu, insn);
    const to = insn.operands[0]!;
    load(cpu, insn, 1, R);
    if (size === 4) R.u32[1] = 0;
    R.u64[1] = 0n;
    if (usesMmx(insn) && to.kind === 'mem') beginMmxStore(cpu);
    if (to.kind === 'gpr') storeGpr(cpu, to, R.u64[0]!);
    else store(cpu, insn, R, to.kind === 'mem' ? size : 16);
    if (usesMmx(insn)) enterMmx(cpu);
  };

/** MOVLPS, MOVHPS and their kin: a half of a register from or to memory, or a half of another register. */
const moveHalf =
  (half: 0 | 1, fromHalf: 0 | 1): Helper =>
  (cpu, insn) => {
    checkSse(cpu);
    load(cpu, insn, 1, B);
    if (insn.operands[0]!.kind === 'mem') {
      R.u64[0] = B.u64[half]!;
      return store(cpu, insn, R, 8);
    }
    load(cpu, insn, 0, R);
    R.u64[half] = B.u64[insn.operands[1]!.kind === 'mem' ? 0 : fromHalf]!;
    store(cpu, insn, R);
  };

const duplicate = (lanes: readonly number[]): Helper =>
  binary(() => {
    for (const [i, lane] of lanes.entries()) R.u32[i] = B.u32[lane]!;
  });

type Unsigned = 'u8' | 'u16' | 'u32';

const extract =
  (view: Unsigned | 'u64'): Helper =>
  (cpu, insn) => {
    check(cpu, insn);
    const to = insn.operands[0]!;
    load(cpu, insn, 1, A);
    const count = (insn.operands[1]!.kind === 'mm' ? 8 : 16) / A[view].BYTES_PER_ELEMENT;
    const lane = A[view][immediate(insn) & (count - 1)]!;
    if (to.kind === 'gpr') storeGpr(cpu, to, BigInt(lane));
    else {
      R.u64[0] = BigInt(lane);
      store(cpu, insn, R, A[view].BYTES_PER_ELEMENT);
    }
    if (usesMmx(insn)) enterMmx(cpu);
  };

const insert =
  (view: Unsigned | 'u64'): Helper =>
  (cpu, insn) => {
    check(cpu, insn);
    const size = insn.operands[0]!.kind === 'mm' ? 8 : 16;
    load(cpu, insn, 0, R);
    load(cpu, insn, 1, B);
    const at = immediate(insn) & (size / R[view].BYTES_PER_ELEMENT - 1);
    if (view === 'u64') R.u64[at] = B.u64[0]!;
    else R[view][at] = B[view][0]!;
    if (usesMmx(insn)) enterMmx(cpu);
    store(cpu, insn, R, size);
  };

/** The sign bits of the lanes. */
const mask =
  (view: 'i8' | 'i32' | 'i64'): Helper =>
  (cpu, insn) => {
    check(cpu, insn);
    load(cpu, insn, 1, A);
    const count = (insn.operands[1]!.kind === 'mm' ? 8 : 16) / A[view].BYTES_PER_ELEMENT;
    let bits = 0;
    for (let i = 0; i < count; i++) if (A[view][i]! < 0) bits |= 1 << i;
    if (usesMmx(insn)) enterMmx(cpu);
    storeGpr(cpu, insn.operands[0]!, BigInt(bits));
  };

/** MASKMOVQ and MASKMOVDQU: the bytes whose mask has its top bit set, to DS:rDI. Nothing selected accesses nothing. */
const maskedMove =
  (size: 8 | 16): Helper =>
  (cpu, insn) => {
    check(cpu, insn);
    load(cpu, insn, 1, A);
    load(cpu, insn, 2, B);
    const to = insn.operands[0]!;
    if (to.kind !== 'mem') throw new TypeError(`${insn.code} without its memory operand`);
    const linear = addressOf(cpu, to, insn, size, true);
    const selected = [...B.u8.subarray(0, size).keys()].filter((i) => B.u8[i]! & 0x80);
    for (const i of selected) cpu.memory.checkWrite(linear + BigInt(i), 1);
    for (const i of selected) cpu.memory.write8(linear + BigInt(i), A.u8[i]!);
    if (usesMmx(insn)) enterMmx(cpu);
  };

/** Between the two register files: an MMX instruction, but one that SSE2 brought. */
const crossing =
  (size: 8 | 16): Helper =>
  (cpu, insn) => {
    checkSse(cpu);
    checkPending(cpu);
    load(cpu, insn, 1, R);
    R.u64[1] = 0n;
    enterMmx(cpu);
    store(cpu, insn, R, size);
  };

/** MXCSR's bits that exist; AMD's misaligned mode is not among them. */
export const MXCSR_MASK = 0xffff;

function loadMxcsr(cpu: Processor, insn: Insn): void {
  checkSse(cpu);
  load(cpu, insn, 0, R);
  if ((R.u32[0]! & ~MXCSR_MASK) !== 0) raise(Vector.GP, 0);
  cpu.state.setU32(State.mxcsr, R.u32[0]!);
}
function storeMxcsr(cpu: Processor, insn: Insn): void {
  checkSse(cpu);
  R.u32[0] = cpu.state.u32(State.mxcsr);
  store(cpu, insn, R, 4);
}

export const sseMove: Helpers = {
  movaps: move(true),
  movapd: move(true),
  movdqa: move(true),
  movntps: move(true),
  movntpd: move(true),
  movntdq: move(true),
  movntdqa: move(true),
  movups: move(false),
  movupd: move(false),
  movdqu: move(false),
  lddqu: move(false),
  movss: moveScalar(4),
  movsd: moveScalar(8),
  movd: moveZeroing(4),
  movq: moveZeroing(8),
  movlps: moveHalf(0, 0),
  movlpd: moveHalf(0, 0),
  movhlps: moveHalf(0, 1),
  movhps: moveHalf(1, 0),
  movhpd: moveHalf(1, 0),
  movlhps: moveHalf(1, 0),
  movddup: duplicate([0, 1, 0, 1]),
  movsldup: duplicate([0, 0, 2, 2]),
  movshdup: duplicate([1, 1, 3, 3]),
  movq2dq: crossing(16),
  movdq2q: crossing(8),
  movntq(cpu, insn) {
    checkMmx(cpu);
    load(cpu, insn, 1, R);
    beginMmxStore(cpu);
    store(cpu, insn, R, 8);
    enterMmx(cpu);
  },
  /** A general register's move, which neither CR0.TS nor CR4.OSFXSR concerns. */
  movnti(cpu, insn) {
    const to = insn.operands[0]!;
    load(cpu, insn, 1, R);
    store(cpu, insn, R, to.kind === 'mem' ? to.size : 0);
  },
  maskmovq: maskedMove(8),
  maskmovdqu: maskedMove(16),
  movmskps: mask('i32'),
  movmskpd: mask('i64'),
  pmovmskb: mask('i8'),
  pextrb: extract('u8'),
  pextrw: extract('u16'),
  pextrd: extract('u32'),
  pextrq: extract('u64'),
  extractps: extract('u32'),
  pinsrb: insert('u8'),
  pinsrw: insert('u16'),
  pinsrd: insert('u32'),
  pinsrq: insert('u64'),
  /** Bits 7:6 of the immediate: the source's lane (a register's); 5:4: where to; 3:0: which lanes become zero. */
  insertps(cpu, insn) {
    checkSse(cpu);
    const imm = immediate(insn);
    load(cpu, insn, 0, R);
    load(cpu, insn, 1, B);
    R.u32[(imm >> 4) & 3] = B.u32[insn.operands[1]!.kind === 'mem' ? 0 : imm >> 6]!;
    for (let i = 0; i < 4; i++) if ((imm >> i) & 1) R.u32[i] = 0;
    store(cpu, insn, R);
  },
  ldmxcsr: loadMxcsr,
  stmxcsr: storeMxcsr,
};

/** SSE4.2's string comparisons: PCMPESTRI, PCMPESTRM, PCMPISTRI and PCMPISTRM (SDM volume 1, 12.4). */

import type { Helper, Helpers } from '../processor/helper.ts';
import type { Insn } from '../processor/insn.ts';
import type { Processor } from '../processor/processor.ts';
import { State } from '../processor/state.ts';
import { setArithmeticFlags } from './integer.ts';
import { A, B, checkSse, immediate, load, R } from './operands.ts';

const RAX = 0;
const RCX = 1;
const RDX = 2;
const views = ['u8', 'u16', 'i8', 'i16'] as const;

interface Text {
  readonly at: Uint8Array | Uint16Array | Int8Array | Int16Array;
  readonly length: number;
}

/** Aggregation: whether bit j of the result is set, for j below `count`. By bits 3:2 of the immediate. */
const aggregations: readonly ((a: Text, b: Text, j: number, count: number) => boolean)[] = [
  // equal any: b[j] is one of a
  (a, b, j) => j < b.length && a.at.subarray(0, a.length).includes(b.at[j]! as never),
  // ranges: b[j] lies between a pair of a
  (a, b, j) => {
    if (j >= b.length) return false;
    for (let i = 0; i + 1 < a.length; i += 2) {
      if (a.at[i]! <= b.at[j]! && b.at[j]! <= a.at[i + 1]!) return true;
    }
    return false;
  },
  // equal each: a[j] is b[j], or both have ended
  (a, b, j) => (j < a.length && j < b.length ? a.at[j] === b.at[j] : j >= a.length && j >= b.length),
  // equal ordered: a, or as much of it as there is room for, begins at b[j]
  (a, b, j, count) => {
    for (let i = 0; i < a.length && i + j < count; i++) {
      if (i + j >= b.length || a.at[i] !== b.at[i + j]) return false;
    }
    return true;
  },
];

/** The length that RAX or RDX gives: the magnitude of a signed number, at most the register's lanes. */
function explicitLength(cpu: Processor, register: number, wide: boolean, count: number): number {
  const value = BigInt.asIntN(wide ? 64 : 32, cpu.state.gpr(register));
  const magnitude = value < 0n ? -value : value;
  return magnitude > BigInt(count) ? count : Number(magnitude);
}
/** Up to the first zero. */
function implicitLength(at: Text['at']): number {
  const end = at.indexOf(0);
  return end < 0 ? at.length : end;
}

/** The bits of the comparison; sets the flags. */
function compareStrings(
  cpu: Processor,
  insn: Insn,
  explicit: boolean,
  wide: boolean,
): { bits: number; count: number } {
  checkSse(cpu);
  load(cpu, insn, 0, A);
  load(cpu, insn, 1, B, false);
  const imm = immediate(insn);
  const view = views[imm & 3]!;
  const count = A[view].length;
  const text = (at: Text['at'], register: number): Text => ({
    at,
    length: explicit ? explicitLength(cpu, register, wide, count) : implicitLength(at),
  });
  const a = text(A[view], RAX);
  const b = text(B[view], RDX);
  const aggregate = aggregations[(imm >> 2) & 3]!;
  let bits = 0;
  for (let j = 0; j < count; j++) if (aggregate(a, b, j, count)) bits |= 1 << j;
  // Negative polarity: of all bits, or of those where b has not ended.
  if (imm & 0x10) bits ^= (1 << (imm & 0x20 ? b.length : count)) - 1;
  setArithmeticFlags(
    cpu,
    (bits !== 0 ? 0x1 : 0) |
      (b.length < count ? 0x40 : 0) |
      (a.length < count ? 0x80 : 0) |
      (bits & 1 ? 0x800 : 0),
  );
  return { bits, count };
}

const index =
  (explicit: boolean, wide = false): Helper =>
  (cpu, insn) => {
    const { bits, count } = compareStrings(cpu, insn, explicit, wide);
    const highest = (immediate(insn) & 0x40) !== 0;
    const at = bits === 0 ? count : 31 - Math.clz32(highest ? bits : bits & -bits);
    cpu.state.setGpr(RCX, BigInt(at));
  };

/** To XMM0: a bit each, or a lane each. */
const mask =
  (explicit: boolean, wide = false): Helper =>
  (cpu, insn) => {
    const { bits, count } = compareStrings(cpu, insn, explicit, wide);
    R.u8.fill(0);
    if (immediate(insn) & 0x40) {
      const width = 16 / count;
      for (let i = 0; i < 16; i++) R.u8[i] = (bits >> Math.floor(i / width)) & 1 ? 0xff : 0;
    } else R.u32[0] = bits;
    cpu.state.setU64(State.xmm, R.u64[0]!);
    cpu.state.setU64(State.xmm + 8, R.u64[1]!);
  };

export const sseString: Helpers = {
  pcmpestri: index(true),
  pcmpestri64: index(true, true),
  pcmpistri: index(false),
  pcmpestrm: mask(true),
  pcmpestrm64: mask(true, true),
  pcmpistrm: mask(false),
};

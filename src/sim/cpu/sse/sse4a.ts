/** SSE4a, which AMD's processors have (APM volume 4): fields of bits, and stores of one number past the caches. */
import type { Helper, Helpers } from '../processor/helper.ts';
import type { Insn } from '../processor/insn.ts';
import { A, B, checkSse, load, R, store } from './operands.ts';

/** A field's length, where 0 is 64, and its lowest bit; six bits each. */
type Field = readonly [length: number, index: number];

/** In two immediates, the last ones; or in two bytes of a register. */
function fieldOf({ operands }: Insn, bytes: Uint8Array, at: number): Field {
  const [length, index] = operands.slice(-2);
  if (length?.kind === 'imm' && index?.kind === 'imm')
    return [Number(length.value & 63n), Number(index.value & 63n)];
  return [bytes[at]! & 63, bytes[at + 1]! & 63];
}
const maskOf = (length: number) => (length === 0 ? 0xffff_ffff_ffff_ffffn : (1n << BigInt(length)) - 1n);

/** A field that goes beyond bit 63 is cut there; that and the upper half of the result are undefined by the manual. */
const extract: Helper = (cpu, insn) => {
  checkSse(cpu);
  load(cpu, insn, 0, A);
  load(cpu, insn, insn.operands[1]!.kind === 'xmm' ? 1 : 0, B);
  const [length, index] = fieldOf(insn, B.u8, 0);
  R.u64[0] = (A.u64[0]! >> BigInt(index)) & maskOf(length);
  store(cpu, insn, R, 8);
};

const insert: Helper = (cpu, insn) => {
  checkSse(cpu);
  load(cpu, insn, 0, A);
  load(cpu, insn, 1, B);
  const [length, index] = fieldOf(insn, B.u8, 8);
  const mask = maskOf(length);
  const shift = BigInt(index);
  R.u64[0] = (A.u64[0]! & ~(mask << shift)) | ((B.u64[0]! & mask) << shift);
  store(cpu, insn, R, 8);
};

const storeLow =
  (size: 4 | 8): Helper =>
  (cpu, insn) => {
    checkSse(cpu);
    load(cpu, insn, 1, R);
    store(cpu, insn, R, size);
  };

export const sse4a: Helpers = {
  extrq: extract,
  insertq: insert,
  movntss: storeLow(4),
  movntsd: storeLow(8),
};

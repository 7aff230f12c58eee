/** Integer instructions, and parts of them, that are too rare or too long for micro-ops. */

import { raise, Vector } from '../processor/fault.ts';
import type { Insn } from '../processor/insn.ts';
import type { Processor } from '../processor/processor.ts';

const u64 = (value: bigint) => BigInt.asUintN(64, value);
const s64 = (value: bigint) => BigInt.asIntN(64, value);
const MIN64 = -(1n << 63n);

/** Raises an exception where a condition holds: what Builder.callIf() calls. */
const raiseIf =
  (vector: number, errorCode?: number) =>
  (_cpu: Processor, _insn: Insn, condition: number): void => {
    if (condition !== 0) raise(vector, errorCode);
  };

export const divideError = raiseIf(Vector.DE);
export const boundRangeExceeded = raiseIf(Vector.BR);
export const generalProtection = raiseIf(Vector.GP, 0);

export function undefinedOpcode(): never {
  raise(Vector.UD);
}

// --- division of 128 bits, where the high half says something ------------------------------------------------------

type Long = (
  cpu: Processor,
  insn: Insn,
  long: number,
  otherwise: bigint,
  high: bigint,
  low: bigint,
  divisor: bigint,
) => bigint;

const unsigned = (high: bigint, low: bigint) => (u64(high) << 64n) | u64(low);
const signed = (high: bigint, low: bigint) => (high << 64n) | u64(low);

/** The high half is below the divisor: the quotient fits. */
export const unsignedQuotient: Long = (_cpu, _insn, long, otherwise, high, low, divisor) =>
  long === 0 ? otherwise : s64(unsigned(high, low) / u64(divisor));
export const unsignedRemainder: Long = (_cpu, _insn, long, otherwise, high, low, divisor) =>
  long === 0 ? otherwise : s64(unsigned(high, low) % u64(divisor));

export const signedQuotient: Long = (_cpu, _insn, long, otherwise, high, low, divisor) => {
  if (long === 0) return otherwise;
  const quotient = signed(high, low) / divisor;
  if (quotient < MIN64 || quotient > -1n - MIN64) raise(Vector.DE);
  return quotient;
};
export const signedRemainder: Long = (_cpu, _insn, long, otherwise, high, low, divisor) =>
  long === 0 ? otherwise : signed(high, low) % divisor;

// --- bits ----------------------------------------------------------------------------------------------------------

type Scatter = (cpu: Processor, insn: Insn, source: bigint, mask: bigint) => bigint;

/** PDEP: the source's low bits, one after the other, to where the mask has bits. */
export const deposit: Scatter = (_cpu, _insn, source, mask) => {
  let result = 0n;
  let at = 0n;
  for (let rest = u64(mask); rest !== 0n; rest &= rest - 1n) {
    if ((source >> at++) & 1n) result |= rest & -rest;
  }
  return s64(result);
};
/** PEXT: the other way round. */
export const extract: Scatter = (_cpu, _insn, source, mask) => {
  let result = 0n;
  let at = 0n;
  for (let rest = u64(mask); rest !== 0n; rest &= rest - 1n) {
    if (source & rest & -rest) result |= 1n << at;
    at++;
  }
  return s64(result);
};

/** The Castagnoli polynomial without its highest term, reflected. */
const POLYNOMIAL = 0x82f6_3b78;

export function crc32(_cpu: Processor, _insn: Insn, before: number, source: bigint, size: number): number {
  let sum = before;
  for (let byte = 0; byte < size; byte++) {
    sum ^= Number((source >> BigInt(byte * 8)) & 0xffn);
    for (let bit = 0; bit < 8; bit++) sum = (sum >>> 1) ^ (sum & 1 ? POLYNOMIAL : 0);
  }
  return sum | 0;
}

/** What AVX's lowerings have in common: operands by halves of 16 bytes, and what cannot give up. */
import type { Insn, Memory, Operand, Size } from '../../processor/insn.ts';
import { State } from '../../processor/state.ts';
import type { Attempt, AttemptCode } from '../attempt.ts';
import type { Builder } from '../builder.ts';
import type { Source } from '../floats.ts';
import type { Node } from '../ir.ts';
import type { CallTarget } from '../ops.ts';
import { V128 } from '../shapes.ts';
import { simd } from '../vectors.ts';

export type Half = 0 | 1;
export type Register = Operand & { readonly kind: 'xmm' | 'ymm'; readonly index: number };

export const LOAD = [0xfd, 0];
export const STORE = [0xfd, 11];
export const ZERO = [0xfd, 12, ...new Array<number>(16).fill(0)];
export const isRegister = (operand: Operand | undefined): operand is Register =>
  operand?.kind === 'xmm' || operand?.kind === 'ymm';
export const isMemory = (operand: Operand | undefined): operand is Memory => operand?.kind === 'mem';
export const isImmediate = (operand: Operand | undefined) => operand?.kind === 'imm';
export const placeOf = ({ index }: Register, half: Half): number =>
  (half === 0 ? State.xmm : State.ymm) + 16 * index;
export const halvesOf = (insn: Insn): readonly Half[] =>
  insn.operands.some((operand) => operand.kind === 'ymm' || (isMemory(operand) && operand.size === 32))
    ? [0, 1]
    : [0];
export const immediateOf = (insn: Insn): number => {
  const last = insn.operands.at(-1)!;
  return last.kind === 'imm' ? Number(last.value & 0xffn) : 0;
};
/** Where halves are computed that may yet be given up. */
export const SCRATCH = [State.vector, State.vectorHigh] as const;

/** A source by halves, and the op's arguments that it is made of if it is in memory: of 16 bytes each, or fewer for one alone. */
export interface Sourced {
  readonly of: (half: Half) => Source;
  readonly args: readonly Node[];
}
/** @param bytes of each half, or of one number that is not packed */
export function source(b: Builder, index: number, bytes = 16, halves: readonly Half[] = [0]): Sourced {
  const operand = b.operand(index);
  if (isRegister(operand)) return { of: (half) => ({ offset: placeOf(operand, half) }), args: [] };
  if (bytes < 16) return { of: () => ({ argument: 0 }), args: [b.read(index, bytes as Size)] };
  const { linear, stack } = b.place(operand as Memory, 16 * halves.length, false);
  const args = halves.flatMap((half) => [0, 8].map((at) => loadAt(b, linear, 16 * half + at, stack)));
  return { of: (half) => ({ argument: 2 * half }), args };
}
export const further = (b: Builder, linear: Node, by: number) =>
  by === 0 ? linear : b.op('add64', [linear, b.const64(BigInt(by))]);
export const loadAt = (b: Builder, linear: Node, by: number, stack: boolean, write = false) =>
  b.op('load64', [further(b, linear, by)], { bits: 64, stack, write });

/** 16 bytes of a source on the stack. */
export function push(code: AttemptCode, from: Source): void {
  if ('offset' in from) code.load(LOAD, from.offset);
  else
    code
      .argument(from.argument)
      .op(...simd(18))
      .argument(from.argument + 1)
      .op(...simd(30, [1]));
}
/** Clears what is above 16 bytes. */
export function finish(code: AttemptCode, to: Register): void {
  if (to.kind === 'xmm') code.store(STORE, placeOf(to, 1), () => code.op(...ZERO));
}

/** Each half by a few instructions that cannot give up. `into` leaves 16 bytes on the stack, which the destination becomes. */
export function direct(
  b: Builder,
  insn: Insn,
  helper: CallTarget,
  args: readonly Node[],
  into: (code: AttemptCode, half: Half) => void,
): void {
  const to = insn.operands[0] as Register;
  const attempt: Attempt = (code) => {
    const halves: readonly Half[] = to.kind === 'ymm' ? [0, 1] : [0];
    // All is read before anything is written: the destination may be a source of both halves.
    const locals = halves.map((half) => {
      const local = code.local(V128);
      into(code, half);
      code.set(local);
      return local;
    });
    for (const half of halves) code.store(STORE, placeOf(to, half), () => code.get(locals[half]!));
    finish(code, to);
  };
  b.op('attempt', args, { attempt, helper, insn });
}

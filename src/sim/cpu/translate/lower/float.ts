/**
 * SSE's floating point: each instruction is an attempt by the machine's own arithmetic (floats.ts), and its helper where
 * that gives up. Those whose result is a general register's or flags have helpers that give it.
 */
import type { Insn, Memory, Operand, Size } from '../../processor/insn.ts';
import { State } from '../../processor/state.ts';
import type { Attempt } from '../attempt.ts';
import type { Builder } from '../builder.ts';
import {
  alternating,
  arithmetic,
  comparison,
  fromInteger,
  fromIntegers,
  integral,
  minimum,
  neighbours,
  operations,
  order,
  resize,
  type Source,
  shapes,
  toInteger,
  toIntegers,
} from '../floats.ts';
import type { Node } from '../ir.ts';
import type { CallTarget } from '../ops.ts';
import type { Shape } from '../shapes.ts';

/** With the helper that does the same exactly. */
export type LowerWith = (b: Builder, insn: Insn, exact: CallTarget) => void;
type Table = { readonly [mnemonic: string]: LowerWith };

const { ps, ss, pd, sd } = shapes;
const xmm = (operand: Operand | undefined) => State.xmm + (operand as { index: number }).index * 16;

/** The second operand, and the op's arguments that it is made of if it is in memory: 4, 8 or 16 bytes. */
function source(b: Builder, bytes: number): [Source, readonly Node[]] {
  const operand = b.operand(1);
  if (operand.kind === 'xmm') return [{ offset: xmm(operand) }, []];
  if (bytes < 16) return [{ argument: 0 }, [b.read(1, bytes as Size)]];
  const { linear, stack } = b.place(operand as Memory, 16, false);
  const low = b.op('load64', [linear], { bits: 64, stack, aligned: true });
  const above = b.op('add64', [linear, b.const64(8n)]);
  return [{ argument: 0 }, [low, b.op('load64', [above], { bits: 64, stack })]];
}
const bytesOf = ({ bits, lanes }: Shape) => (bits / 8) * lanes;

/** An attempt that leaves its result in a place of the state page, whose content is the first operand; of so many bytes of the second. */
export interface Row {
  readonly bytes: number;
  readonly of: (to: number, from: Source, insn: Insn) => Attempt;
}
type Rows = { readonly [mnemonic: string]: Row };

/** To an XMM register from the second operand. */
const toXmm =
  ({ bytes, of }: Row): LowerWith =>
  (b, insn, helper) => {
    const [from, args] = source(b, bytes);
    b.op('attempt', args, { attempt: of(xmm(insn.operands[0]), from, insn), helper, insn });
  };
const each = (name: string, of: (shape: Shape, to: number, from: Source, insn: Insn) => Attempt): Rows =>
  Object.fromEntries(
    Object.entries(shapes).map(([suffix, shape]) => [
      name + suffix,
      { bytes: bytesOf(shape), of: (to, from, insn) => of(shape, to, from, insn) },
    ]),
  );
const immediate = (insn: Insn) => Number((insn.operands.at(-1) as { value: bigint }).value & 0xffn);

const row = (bytes: number, of: Row['of']): Row => ({ bytes, of });
const inNeighbours = (shape: Shape, operation: 'add' | 'sub') =>
  row(16, (to, from) => arithmetic(operations[operation], shape, to, from, neighbours(shape)));
const inTurns = (shape: Shape) =>
  row(16, (to, from) => arithmetic(operations.add, shape, to, from, alternating(shape)));

export const compared =
  (shape: Shape): LowerWith =>
  (b, insn, helper) => {
    const [from, args] = source(b, bytesOf(shape));
    const attempt = order(shape, xmm(insn.operands[0]), from);
    b.setArithmeticFlags(b.op('attempt32', args, { attempt, helper, insn }));
  };
export const toGpr =
  (shape: Shape, truncate: boolean): LowerWith =>
  (b, insn, helper) => {
    const [from, args] = source(b, bytesOf(shape));
    const wide = b.sizeOf(0) === 8;
    const attempt = toInteger(wide ? 64 : 32, truncate, shape, from);
    b.write(0, b.op(wide ? 'attempt64' : 'attempt32', args, { attempt, helper, insn }));
  };
const fromGpr =
  (shape: Shape): LowerWith =>
  (b, insn, helper) => {
    const bits = b.sizeOf(1) === 8 ? 64 : 32;
    const attempt = fromInteger(bits, shape, xmm(insn.operands[0]));
    b.op('attempt', [b.read(1)], { attempt, helper, insn });
  };

/** Those that leave a vector. */
export const vectorRows: Rows = {
  ...each('add', (shape, to, from) => arithmetic(operations.add, shape, to, from)),
  ...each('sub', (shape, to, from) => arithmetic(operations.sub, shape, to, from)),
  ...each('mul', (shape, to, from) => arithmetic(operations.mul, shape, to, from)),
  ...each('div', (shape, to, from) => arithmetic(operations.div, shape, to, from)),
  ...each('sqrt', (shape, to, from) => arithmetic(operations.sqrt, shape, to, from)),
  ...each('min', (shape, to, from) => minimum('lt', shape, to, from)),
  ...each('max', (shape, to, from) => minimum('gt', shape, to, from)),
  ...each('cmp', (shape, to, from, insn) => comparison(immediate(insn), shape, to, from)),
  ...each('round', (shape, to, from, insn) => integral(immediate(insn), shape, to, from)),
  haddps: inNeighbours(ps, 'add'),
  haddpd: inNeighbours(pd, 'add'),
  hsubps: inNeighbours(ps, 'sub'),
  hsubpd: inNeighbours(pd, 'sub'),
  addsubps: inTurns(ps),
  addsubpd: inTurns(pd),

  cvtss2sd: row(4, (to, from) => resize(sd, to, from)),
  cvtsd2ss: row(8, (to, from) => resize(ss, to, from)),
  cvtps2pd: row(8, (to, from) => resize(pd, to, from)),
  cvtpd2ps: row(16, (to, from) => resize(ps, to, from)),
  cvtdq2ps: row(16, (to, from) => fromIntegers(ps, to, from)),
  cvtdq2pd: row(8, (to, from) => fromIntegers(pd, to, from)),
  cvtps2dq: row(16, (to, from) => toIntegers(false, ps, to, from)),
  cvttps2dq: row(16, (to, from) => toIntegers(true, ps, to, from)),
  cvtpd2dq: row(16, (to, from) => toIntegers(false, pd, to, from)),
  cvttpd2dq: row(16, (to, from) => toIntegers(true, pd, to, from)),
};

const table: Table = {
  ...Object.fromEntries(Object.entries(vectorRows).map(([name, of]) => [name, toXmm(of)])),
  comiss: compared(ss),
  comisd: compared(sd),
  ucomiss: compared(ss),
  ucomisd: compared(sd),
  cvtss2si: toGpr(ss, false),
  cvttss2si: toGpr(ss, true),
  cvtsd2si: toGpr(sd, false),
  cvttsd2si: toGpr(sd, true),
  cvtsi2ss: fromGpr(ss),
  cvtsi2sd: fromGpr(sd),
};

/** By `movsd.xmm` and the like, as the tables of helpers. */
export const floats: Table = Object.fromEntries(
  Object.entries(table).map(([name, lower]) => [name === 'cmpsd' ? 'cmpsd.xmm' : name, lower]),
);

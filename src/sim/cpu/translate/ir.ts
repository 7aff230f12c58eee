/** A block of code as micro-ops: what lowering writes, and the two executors read. */
import type { Insn } from '../processor/insn.ts';
import { State } from '../processor/state.ts';
import { type Detail, type OpName, ops, type Row, type Type } from './ops.ts';

/** One micro-op, and its result if it has one. Ops execute in the order of their block's list. */
export interface Node {
  readonly op: OpName;
  readonly row: Row;
  readonly args: readonly Node[];
  readonly detail: Detail;
  /** Which of the block's instructions it belongs to. */
  readonly at: number;
  /** Where an executor keeps the result. */
  slot: number;
}

/** Where execution goes when the block's ops are done. Addresses are RIP. */
export type End =
  | { readonly kind: 'goto'; readonly target: bigint }
  | { readonly kind: 'branch'; readonly condition: Node; readonly taken: bigint; readonly next: bigint }
  /** A RIP that was computed. */
  | { readonly kind: 'dynamic'; readonly target: Node }
  /** A helper has written RIP, or changed what translation depends on. */
  | { readonly kind: 'left' };

export interface Block {
  readonly rip: bigint;
  readonly insns: readonly Insn[];
  readonly nodes: readonly Node[];
  readonly end: End;
}

/** Types of an op's results; '' for none. */
export const typeOf = (node: Node): Type | '' => node.row.result;

export function node(op: OpName, args: readonly Node[], detail: Detail, at: number): Node {
  return { op, row: ops[op], args, detail, at, slot: -1 };
}

/**
 * Drops what nobody needs: descriptions of flags that the next ones replace before anybody looks, and then results
 * that are not used.
 */
export function prune(nodes: readonly Node[], end: End): Node[] {
  const used = new Set<Node>();
  if (end.kind === 'branch') used.add(end.condition);
  if (end.kind === 'dynamic') used.add(end.target);
  let flagsSeen = true; // by whatever comes after the block
  const kept: Node[] = [];
  for (let i = nodes.length - 1; i >= 0; i--) {
    const candidate = nodes[i]!;
    const { op, row } = candidate;
    const ofFlags = op === 'flags' || isFlagField(candidate);
    const needed = row.observes || used.has(candidate) || (row.result === '' && (flagsSeen || !ofFlags));
    if (!needed) continue;
    if (op === 'flags') flagsSeen = false;
    else if (row.observes || (ofFlags && row.result !== '')) flagsSeen = true;
    for (const arg of candidate.args) used.add(arg);
    kept.push(candidate);
  }
  return kept.reverse();
}

/** It reads or writes a part of the description of the flags. */
const isFlagField = ({ op, detail }: Node) =>
  (op === 'get32' || op === 'get64' || op === 'set32' || op === 'set64') &&
  detail.offset! >= State.flagKind &&
  detail.offset! <= State.flagResult;

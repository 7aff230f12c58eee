/** The stack (SDM volume 1, chapter 6). */

import type { Memory, Size } from '../../processor/insn.ts';
import type { Builder, Place } from '../builder.ts';
import type { Node } from '../ir.ts';
import type { Lower, Lowerings } from '../lowering.ts';

const SS = 2;
const RSP = 4;
const RBP = 5;

const push: Lower = (b, insn) => {
  const size = insn.operandSize;
  b.push(size, b.read(0, size));
};

/** The stack pointer has moved when a destination's address is computed from it. */
const pop: Lower = (b, insn) => {
  const size = insn.operandSize;
  const operand = b.operand(0);
  const { value, drop } = b.top(size);
  if (operand.kind === 'gpr') {
    drop();
    b.write(0, value, size);
  } else {
    const memory = operand as Memory;
    const moved = memory.base === RSP ? memory.displacement + BigInt(size) : memory.displacement;
    b.store(b.place({ ...memory, displacement: moved }, size, true), size, value);
    drop();
  }
};

/** EAX ECX EDX EBX ESP EBP ESI EDI, of which POPA drops ESP. */
const pushAll =
  (size: 2 | 4): Lower =>
  (b) => {
    const values = [0, 1, 2, 3, 4, 5, 6, 7].map((index) => b.gpr(index, size));
    // One after the other: what is written stays when a later one faults.
    const places = values.map((_, index) => b.stack(-size * (index + 1), size, true));
    for (const [index, value] of values.entries()) b.store(places[index]!, size, value);
    b.setStackPointer(places[7]!.pointer);
  };
const popAll =
  (size: 2 | 4): Lower =>
  (b) => {
    const values = [7, 6, 5, 4, 3, 2, 1, 0].map((_, at) => b.load(b.stack(size * at, size, false), size));
    const { pointer } = b.stack(size * 8, size, false);
    for (const [at, value] of values.entries()) if (at !== 7 - RSP) b.setGpr(7 - at, size, value);
    b.setStackPointer(pointer);
  };

/** The frame pointer as an offset in SS, moved by some bytes. */
function frame(b: Builder, delta: number, size: Size, write: boolean): Place & { readonly pointer: Node } {
  const { bits, stackBits } = b.mode;
  const rbp = b.gpr(RBP, 8);
  const moved = delta === 0 ? rbp : b.op('add64', [rbp, b.const64(BigInt(delta))]);
  const mask = b.const64(stackBits === 16 ? 0xffffn : 0xffff_ffffn);
  const pointer = bits === 64 ? moved : b.op('and64', [moved, mask]);
  return { linear: b.linear(SS, pointer, size, write), stack: true, pointer };
}

const leave: Lower = (b, { operandSize }) => {
  const value = b.load(frame(b, 0, operandSize, false), operandSize);
  b.setStackPointer(frame(b, operandSize, operandSize, false).pointer);
  b.setGpr(RBP, operandSize, value);
};

/** ESP with another SP, where the stack has 16 bits: a frame pointer of 32 gets all of it (APM volume 3, ENTER). */
function wholePointer(b: Builder, pointer: Node): Node {
  if (b.mode.stackBits !== 16) return pointer;
  const upper = b.op('and64', [b.gpr(RSP, 8), b.const64(0xffff_0000n)]);
  return b.op('or64', [upper, pointer]);
}

/** A frame with the frame pointers of those around it (SDM volume 2, ENTER). */
const enter: Lower = (b, { operandSize: size }) => {
  const [bytes, nesting] = [b.operand(0), b.operand(1)].map((operand) =>
    operand.kind === 'imm' ? Number(operand.value) : 0,
  ) as [number, number];
  const level = nesting % 32;
  const total = size * (level + 1);
  const first = b.stack(-size, size, true);
  b.store(first, size, b.gpr(RBP, size));
  for (let i = 1; i < level; i++) {
    const pointer = b.load(frame(b, -size * i, size, false), size);
    b.store(b.stack(-size * (i + 1), size, true), size, pointer);
  }
  const pointer = b.truncate(size, wholePointer(b, first.pointer));
  if (level > 0) b.store(b.stack(-total, size, true), size, pointer);
  // Where the stack pointer ends must be writable, though nothing is written there.
  const end = b.stack(-total - bytes, size, true);
  b.load(end, size, true);
  b.setGpr(RBP, size, pointer);
  b.setStackPointer(end.pointer);
};

export const stack: Lowerings = {
  push,
  pop,
  pusha: pushAll(2),
  pushad: pushAll(4),
  popa: popAll(2),
  popad: popAll(4),
  leave,
  enter,
};

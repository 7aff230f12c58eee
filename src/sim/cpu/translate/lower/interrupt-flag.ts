/**
 * CLI, STI, PUSHF and POPF where nothing is refused: at privilege level 0, where they are most of what a kernel does of its
 * own. What has more to it than flags is done by the helper, in an instruction by itself.
 */
import type { Insn } from '../../processor/insn.ts';
import type { Processor } from '../../processor/processor.ts';
import { ARITHMETIC, Flag, State } from '../../processor/state.ts';
import type { Builder } from '../builder.ts';
import type { Node } from '../ir.ts';
import type { Lower, Lowerings } from '../lowering.ts';

/** What POPF leaves as it is at privilege level 0, beside RF, which it clears (SDM volume 2, POPF). */
const KEPT = Flag.VM | Flag.VIF | Flag.VIP;

/** Where `condition` is not 0 the instruction is executed anew, by its helper. */
export function byItself(cpu: Processor, _insn: Insn, condition: number): void {
  if (condition !== 0) cpu.io.demand('alone');
}

const and = (b: Builder, ...all: readonly Node[]) => all.reduce((x, y) => b.op('and32', [x, y]));
const or = (b: Builder, ...all: readonly Node[]) => all.reduce((x, y) => b.op('or32', [x, y]));
const not = (b: Builder, value: Node) => b.op('xor32', [value, b.const32(-1)]);
const eflags = (b: Builder) => b.get(State.eflags, 4);

/** IF where these flags have it and it is off now, and somebody waits for that. */
const opensWindow = (b: Builder, image: Node) => and(b, image, not(b, eflags(b)), b.get(State.awaited, 4));

const cli: Lower = (b) => b.set(State.eflags, 4, and(b, eflags(b), b.const32(~Flag.IF)));

/** Its shadow is that of an STI which has turned interrupts on. It ends its block, so that the count tells where that is. */
const sti: Lower = (b) => {
  const on = b.const32(Flag.IF);
  b.callIf(opensWindow(b, on), byItself);
  const before = b.get(State.shadowed, 8);
  const was = and(b, eflags(b), on);
  b.set(State.shadowed, 8, b.select(8, was, before, b.get(State.count, 8)));
  b.set(State.eflags, 4, or(b, eflags(b), on));
  b.proceed();
};

const pushf: Lower = (b, { operandSize }) => {
  const image = or(b, and(b, eflags(b), b.const32(~(Flag.VM | Flag.RF))), b.arithmeticFlags());
  b.push(operandSize, operandSize === 8 ? b.op('zext', [image]) : b.truncate(operandSize, image));
};

const popf: Lower = (b, { operandSize }) => {
  const { value, drop } = b.top(operandSize);
  const popped = b.truncate(4, value);
  const upper = b.const32(~0xffff);
  // 16 bits leave the rest.
  const image = operandSize === 2 ? or(b, popped, and(b, eflags(b), upper)) : popped;
  const steps = and(b, image, b.const32(Flag.TF));
  b.callIf(or(b, steps, opensWindow(b, image)), byItself);
  drop();
  const kept = and(b, eflags(b), b.const32(KEPT));
  const taken = and(b, image, b.const32(POPPED & ~ARITHMETIC));
  b.set(State.eflags, 4, or(b, kept, taken, b.const32(FIXED)));
  b.setArithmeticFlags(and(b, image, b.const32(ARITHMETIC)));
};
const FIXED = 2;
const POPPED = ARITHMETIC | Flag.TF | Flag.IF | Flag.DF | Flag.IOPL | Flag.NT | Flag.AC | Flag.ID;

/** For code at privilege level 0 that is not executed one instruction at a time. */
export const interruptFlag: Lowerings = {
  cli,
  sti,
  ...{ pushf, pushfd: pushf, pushfq: pushf },
  ...{ popf, popfd: popf, popfq: popf },
};

/** Near transfers of control (SDM volume 1, 5.1.7): within the code segment, to a RIP of the operand's size. */

import { generalProtection, undefinedOpcode } from '../../integer/arithmetic.ts';
import type { Insn, Size } from '../../processor/insn.ts';
import type { Builder } from '../builder.ts';
import type { Condition } from '../flag-values.ts';
import type { Node } from '../ir.ts';
import type { Lower, Lowerings } from '../lowering.ts';
import { conditions } from './move.ts';

const RCX = 1;

const isCanonical = (address: bigint) => BigInt.asIntN(64, address) === BigInt.asIntN(48, address);

/** #GP(0) where `taken` is not 0, if the target cannot be gone to. */
function checkTarget(b: Builder, taken: Node, target: bigint | undefined): void {
  if (target === undefined) return;
  if (b.mode.bits === 64) {
    if (!isCanonical(target)) b.callIf(taken, generalProtection);
  } else if (Number(target) > b.mode.codeLimit) b.callIf(taken, generalProtection);
}
/** The same for a target that is computed. */
function checkComputed(b: Builder, target: Node): void {
  if (b.mode.bits === 64) {
    const sixteen = b.const64(16n);
    const canonical = b.op('sar64', [b.op('shl64', [target, sixteen]), sixteen]);
    b.callIf(b.op('ne64', [canonical, target]), generalProtection);
  } else b.callIf(b.op('ltu64', [b.const64(BigInt(b.mode.codeLimit)), target]), generalProtection);
}
const always = (b: Builder) => b.const32(1);

function branch(b: Builder, condition: Node, before = () => {}): void {
  const target = b.target();
  checkTarget(b, condition, target);
  before();
  b.branch(condition, target);
}
const jcc =
  (condition: Condition): Lower =>
  (b) =>
    branch(b, b.condition(condition));

const counter = (b: Builder, insn: Insn) => b.gpr(RCX, insn.addressSize);
const jcxz: Lower = (b, insn) => branch(b, b.isZero(insn.addressSize, counter(b, insn)));
const loop =
  (condition?: Condition): Lower =>
  (b, insn) => {
    const size = insn.addressSize;
    const count = b.sub(size, counter(b, insn), b.constant(size, 1));
    const left = b.op('eqz32', [b.isZero(size, count)]);
    const taken = condition === undefined ? left : b.op('and32', [left, b.condition(condition)]);
    branch(b, taken, () => b.setGpr(RCX, size, count));
  };

const jmp: Lower = (b, insn) => {
  if (b.operand(0).kind === 'near') {
    const target = b.target();
    checkTarget(b, always(b), target);
    return b.goto(target);
  }
  const size = insn.operandSize;
  const target = b.zeroExtend(size, 8, b.read(0, size));
  checkComputed(b, target);
  b.dynamic(target);
};
const call: Lower = (b, insn) => {
  const size = insn.operandSize as Size;
  const back = b.next(size);
  if (b.operand(0).kind === 'near') {
    const target = b.target();
    checkTarget(b, always(b), target);
    b.push(size, back);
    return b.goto(target);
  }
  const target = b.zeroExtend(size, 8, b.read(0, size));
  b.load(b.stack(-size, size, true), size, true); // what faults first is the stack
  checkComputed(b, target);
  b.push(size, back);
  b.dynamic(target);
};
const ret: Lower = (b, insn) => {
  const size = insn.operandSize;
  const extra = b.insn.operands[0];
  const { value, drop } = b.top(size);
  const target = b.zeroExtend(size, 8, value);
  checkComputed(b, target);
  drop(extra?.kind === 'imm' ? Number(extra.value) : 0);
  b.dynamic(target);
};

const undefinedInstruction: Lower = (b) => {
  b.call(undefinedOpcode);
  b.leave();
};

/** Hints, and orders that one processor at a time keeps anyway. */
const nothing: Lower = () => {};
const idle = [
  'nop',
  'reservednop',
  'pause',
  'endbr32',
  'endbr64',
  'lfence',
  'mfence',
  'sfence',
  'cldemote',
  'prefetch',
  'prefetchw',
  'prefetchwt1',
  'prefetchnta',
  'prefetcht0',
  'prefetcht1',
  'prefetcht2',
  'prefetchit0',
  'prefetchit1',
  'prefetchreserved3',
  'prefetchreserved4',
  'prefetchreserved5',
  'prefetchreserved6',
  'prefetchreserved7',
];

export const control: Lowerings = {
  ...Object.fromEntries(conditions.map((condition) => [`j${condition}`, jcc(condition)])),
  jcxz,
  jecxz: jcxz,
  jrcxz: jcxz,
  loop: loop(),
  loope: loop('e'),
  loopne: loop('ne'),
  jmp,
  call,
  ret,
  retn: ret,
  ud0: undefinedInstruction,
  ud1: undefinedInstruction,
  ud2: undefinedInstruction,
  ...Object.fromEntries(idle.map((name) => [name, nothing])),
};

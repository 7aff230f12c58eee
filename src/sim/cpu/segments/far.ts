/** Far JMP and CALL, directly and through call gates (SDM volume 2; volume 3, 5.8). */

import { addressOf } from '../address/addressing.ts';
import { readMemory } from '../address/operands.ts';
import {
  type Descriptor,
  isBig,
  isCode,
  isConforming,
  isLong,
  isNull,
  nullStack,
  rpl,
  Seg,
  System,
  segmentOf,
  selectorCode,
} from '../processor/descriptors.ts';
import { raise, Vector } from '../processor/fault.ts';
import type { Helpers } from '../processor/helper.ts';
import type { Insn } from '../processor/insn.ts';
import { canonical, cpl, ia32e, protectedMode, virtual8086, wrapLinear } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import { markAccessed, readDescriptor, realSegment, setSegment } from './loads.ts';
import { Stack } from './stack.ts';
import { enterTask, throughTaskGate } from './task-instructions.ts';
import { innerPointer, innerStack } from './tss.ts';

interface Target {
  readonly selector: number;
  readonly offset: bigint;
  /** Bytes of CS and of RIP as CALL pushes them. */
  readonly size: 2 | 4 | 8;
}

function targetOf(cpu: Processor, insn: Insn): Target {
  const operand = insn.operands[0]!;
  if (operand.kind === 'far') {
    const size = insn.code.endsWith('1616') ? 2 : 4;
    return { selector: operand.selector, offset: BigInt(operand.offset), size };
  }
  if (operand.kind !== 'mem') throw new TypeError(`${insn.code}: no far pointer`);
  const size = (operand.size - 2) as 2 | 4 | 8;
  const linear = addressOf(cpu, operand, insn, operand.size, false);
  const offset = readMemory(cpu, linear, size);
  const selector = cpu.memory.read16(wrapLinear(cpu, linear + BigInt(size)));
  // With REX.W the offset has 4 bytes on AMD's processors, and 8 are pushed all the same (APM volume 3, CALL (Far)).
  return { selector, offset, size: insn.wide ? 8 : size };
}

/** Where execution goes on must lie in the segment, or be canonical in 64-bit mode. */
export function checkRip(cpu: Processor, rip: bigint, code: Descriptor, selector: number): void {
  if (ia32e(cpu) && isLong(code) ? !canonical(rip) : rip > BigInt(segmentOf(selector, code).limit))
    raise(Vector.GP, 0);
}

/** CS for a privilege level, and RIP. */
export function enterCode(
  cpu: Processor,
  selector: number,
  code: Descriptor,
  level: number,
  rip: bigint,
): void {
  markAccessed(cpu, code);
  setSegment(cpu, Seg.CS, segmentOf((selector & ~3) | level, code));
  cpu.state.rip = rip;
}

/** A segment with L and D is none of IA-32e mode's. */
export const isNoCode = (cpu: Processor, code: Descriptor): boolean =>
  !isCode(code) || (ia32e(cpu) && isLong(code) && isBig(code));

function far(cpu: Processor, insn: Insn, call: boolean): void {
  const target = targetOf(cpu, insn);
  if (!protectedMode(cpu) || virtual8086(cpu)) {
    farReal(cpu, insn, target, call);
    return;
  }
  const { selector } = target;
  if (isNull(selector)) raise(Vector.GP, 0);
  const descriptor = readDescriptor(cpu, selector);
  if (descriptor === undefined) raise(Vector.GP, selectorCode(selector));
  if (descriptor.s) farDirect(cpu, insn, target, descriptor, call);
  else farSystem(cpu, insn, selector, descriptor, call);
}

function farReal(cpu: Processor, insn: Insn, { selector, offset, size }: Target, call: boolean): void {
  const stack = Stack.current(cpu);
  if (call) {
    stack.push(BigInt(cpu.segments[Seg.CS]!.selector), size);
    stack.push(insn.next, size);
  }
  if (offset > BigInt(cpu.segments[Seg.CS]!.limit)) raise(Vector.GP, 0);
  stack.write();
  stack.commit();
  setSegment(cpu, Seg.CS, realSegment(cpu, Seg.CS, selector));
  cpu.state.rip = offset;
}

function farDirect(cpu: Processor, insn: Insn, target: Target, code: Descriptor, call: boolean): void {
  const { selector, offset, size } = target;
  const level = cpl(cpu);
  const error = selectorCode(selector);
  if (isNoCode(cpu, code)) raise(Vector.GP, error);
  if (isConforming(code) ? code.dpl > level : rpl(selector) > level || code.dpl !== level)
    raise(Vector.GP, error);
  if (!code.present) raise(Vector.NP, error);
  sameLevel(cpu, insn, selector, code, offset, call ? size : undefined);
}

/** Within the privilege level. `size`: bytes of what CALL pushes. */
function sameLevel(
  cpu: Processor,
  insn: Insn,
  selector: number,
  code: Descriptor,
  rip: bigint,
  size: 2 | 4 | 8 | undefined,
): void {
  const stack = Stack.current(cpu);
  if (size !== undefined) {
    stack.push(BigInt(cpu.segments[Seg.CS]!.selector), size);
    stack.push(insn.next, size);
  }
  checkRip(cpu, rip, code, selector);
  stack.write();
  if (size !== undefined) stack.commit();
  enterCode(cpu, selector, code, cpl(cpu), rip);
}

const TASKS: readonly number[] = [System.TSS16, System.TSS, System.TASK_GATE];

/** Through a call gate, or to another task. */
function farSystem(cpu: Processor, insn: Insn, selector: number, gate: Descriptor, call: boolean): void {
  const error = selectorCode(selector);
  const long = ia32e(cpu);
  const level = cpl(cpu);
  const { type, lo, hi, dpl } = gate;
  const isGate = type === System.CALL || (!long && type === System.CALL16);
  if (!isGate && (long || !TASKS.includes(type))) raise(Vector.GP, error);
  if (dpl < level || dpl < rpl(selector)) raise(Vector.GP, error);
  let high = 0;
  if (long) {
    if (readDescriptor(cpu, selector, 16) === undefined) raise(Vector.GP, error);
    high = cpu.memory.readSystem32(wrapLinear(cpu, gate.linear + 8n));
    // The type of the second half must be 0 (SDM volume 3, 5.8.3.1).
    const second = cpu.memory.readSystem32(wrapLinear(cpu, gate.linear + 12n));
    if ((second & 0x1f00) !== 0) raise(Vector.GP, error);
  }
  if (!gate.present) raise(Vector.NP, error);
  if (!isGate) {
    const how = call ? 'call' : 'jump';
    if (type === System.TASK_GATE) throughTaskGate(cpu, gate, how, insn.next);
    else if ((selector & 4) !== 0) raise(Vector.GP, error);
    else enterTask(cpu, { selector, descriptor: gate }, how, insn.next);
    return;
  }

  const codeSelector = lo >>> 16;
  if (isNull(codeSelector)) raise(Vector.GP, 0);
  const codeError = selectorCode(codeSelector);
  const code = readDescriptor(cpu, codeSelector);
  if (code === undefined || !isCode(code) || code.dpl > level) raise(Vector.GP, codeError);
  if (long && (!isLong(code) || isBig(code))) raise(Vector.GP, codeError);
  if (!call && !isConforming(code) && code.dpl !== level) raise(Vector.GP, codeError);
  if (!code.present) raise(Vector.NP, codeError);

  const size = long ? 8 : type === System.CALL ? 4 : 2;
  const low = ((hi & 0xffff_0000) | (lo & 0xffff)) >>> 0;
  const rip = BigInt(size === 2 ? low & 0xffff : low) | (BigInt(high) << 32n);
  if (call && !isConforming(code) && code.dpl < level) {
    innerCall(cpu, insn, { codeSelector, code, rip, size, parameters: hi & 31 });
  } else sameLevel(cpu, insn, codeSelector, code, rip, call ? size : undefined);
}

interface InnerCall {
  readonly codeSelector: number;
  readonly code: Descriptor;
  readonly rip: bigint;
  readonly size: 2 | 4 | 8;
  readonly parameters: number;
}

/** To an inner privilege level, on its stack, with the gate's parameters (SDM volume 3, 5.8.5). */
function innerCall(
  cpu: Processor,
  insn: Insn,
  { codeSelector, code, rip, size, parameters }: InnerCall,
): void {
  const level = code.dpl;
  const oldSs = cpu.segments[Seg.SS]!.selector;
  const outer = Stack.current(cpu);
  const oldSp = outer.pointer;
  const inner =
    size === 8
      ? {
          segment: nullStack(level),
          pointer: innerPointer(cpu, level, 0, 0),
          selector: 0,
          descriptor: undefined,
        }
      : innerStack(cpu, level, 0);
  const { segment, pointer, selector, descriptor } = inner;
  const bits = size === 8 ? 64 : segment.db ? 32 : 16;
  const stack = new Stack(cpu, { segment, pointer, bits, rights: 'system', code: selectorCode(selector) });
  stack.push(BigInt(oldSs), size);
  stack.push(oldSp, size);
  if (size !== 8) {
    const values = Array.from({ length: parameters }, () => outer.pop(size));
    for (const value of values.reverse()) stack.push(value, size);
  }
  stack.push(BigInt(cpu.segments[Seg.CS]!.selector), size);
  stack.push(insn.next, size);
  checkRip(cpu, rip, code, codeSelector);
  stack.write();
  if (descriptor !== undefined) markAccessed(cpu, descriptor);
  enterCode(cpu, codeSelector, code, level, rip);
  setSegment(cpu, Seg.SS, segment);
  stack.commit();
}

/** `jmp far` and `call far` are the far forms of JMP and CALL: see formOf(). */
export const farTransfersEnding: Helpers = {
  'jmp far': (cpu, insn) => far(cpu, insn, false),
  'call far': (cpu, insn) => far(cpu, insn, true),
};

/** Far RET and IRET (SDM volume 2). */

import {
  type Descriptor,
  isConforming,
  isLong,
  isNull,
  nullStack,
  rpl,
  Seg,
  type Segment,
  selectorCode,
} from '../processor/descriptors.ts';
import { raise, Vector } from '../processor/fault.ts';
import type { Helper, Helpers } from '../processor/helper.ts';
import type { Insn } from '../processor/insn.ts';
import { codeSize, cpl, ia32e, protectedMode, virtual8086 } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import { Flag } from '../processor/state.ts';
import { checkRip, enterCode, isNoCode } from './far.ts';
import {
  dropInnerSegments,
  markAccessed,
  readDescriptor,
  realSegment,
  setSegment,
  stackSegment,
} from './loads.ts';
import { Stack, setStackPointer } from './stack.ts';
import { returnToTask } from './task-instructions.ts';
import { detachedFlags, enterVirtual, isDetached, needsExtensions } from './virtual-8086.ts';

type Width = 2 | 4 | 8;

/** The code segment that is returned to. */
function returnCode(cpu: Processor, selector: number): Descriptor {
  if (isNull(selector)) raise(Vector.GP, 0);
  const error = selectorCode(selector);
  const code = readDescriptor(cpu, selector);
  if (code === undefined || rpl(selector) < cpl(cpu) || isNoCode(cpu, code)) raise(Vector.GP, error);
  if (isConforming(code) ? code.dpl > rpl(selector) : code.dpl !== rpl(selector)) raise(Vector.GP, error);
  if (!code.present) raise(Vector.NP, error);
  return code;
}

interface ReturnStack {
  readonly segment: Segment;
  readonly descriptor: Descriptor | undefined;
  readonly bits: 16 | 32 | 64;
}

/** The stack segment that is returned to: null is for 64-bit code below privilege level 3. */
function returnStack(cpu: Processor, selector: number, code: Descriptor, level: number): ReturnStack {
  const long = ia32e(cpu) && isLong(code);
  if (isNull(selector)) {
    if (!long || level === 3 || rpl(selector) !== level) raise(Vector.GP, 0);
    return { segment: nullStack(level, selector), descriptor: undefined, bits: 64 };
  }
  const { segment, descriptor } = stackSegment(cpu, selector, level);
  return { segment, descriptor, bits: long ? 64 : segment.db ? 32 : 16 };
}

function enterStack(cpu: Processor, { segment, descriptor, bits }: ReturnStack, pointer: bigint): void {
  if (descriptor !== undefined) markAccessed(cpu, descriptor);
  setSegment(cpu, Seg.SS, segment);
  setStackPointer(cpu, pointer, bits);
}

function returnReal(cpu: Processor, rip: bigint, selector: number): void {
  if (rip > BigInt(cpu.segments[Seg.CS]!.limit)) raise(Vector.GP, 0);
  setSegment(cpu, Seg.CS, realSegment(cpu, Seg.CS, selector));
  cpu.state.rip = rip;
}

const RETF: { readonly [letter: string]: Width } = { w: 2, d: 4, q: 8 };

function retf(cpu: Processor, insn: Insn): void {
  const size = RETF[insn.code[4]!]!;
  const immediate = insn.operands[0];
  const released = immediate?.kind === 'imm' ? Number(immediate.value & 0xffffn) : 0;
  const stack = Stack.current(cpu);
  const rip = stack.pop(size);
  const selector = Number(stack.pop(size) & 0xffffn);
  stack.skip(released);
  if (!protectedMode(cpu) || virtual8086(cpu)) {
    returnReal(cpu, rip, selector);
    stack.commit();
    return;
  }
  const code = returnCode(cpu, selector);
  const level = rpl(selector);
  if (level === cpl(cpu)) {
    checkRip(cpu, rip, code, selector);
    stack.commit();
    enterCode(cpu, selector, code, level, rip);
    return;
  }
  const pointer = stack.pop(size);
  const outer = returnStack(cpu, Number(stack.pop(size) & 0xffffn), code, level);
  checkRip(cpu, rip, code, selector);
  enterCode(cpu, selector, code, level, rip);
  enterStack(cpu, outer, pointer + BigInt(released));
  dropInnerSegments(cpu, level);
}

const ALWAYS =
  Flag.CF |
  Flag.PF |
  Flag.AF |
  Flag.ZF |
  Flag.SF |
  Flag.TF |
  Flag.DF |
  Flag.OF |
  Flag.NT |
  Flag.RF |
  Flag.AC |
  Flag.ID;

/** RFLAGS after IRET: what of the popped image counts depends on CPL, IOPL and operand size. */
function returnFlags(cpu: Processor, image: number, size: Width): number {
  const old = cpu.state.flags;
  const level = cpl(cpu);
  let mask: number = ALWAYS;
  if (level <= (old & Flag.IOPL) >> 12) mask |= Flag.IF;
  if (level === 0) mask |= Flag.IOPL | Flag.VIF | Flag.VIP;
  // Outside protected mode VIF and VIP stay (SDM volume 2, IRET: the image's 257FD5H).
  if (!protectedMode(cpu)) mask &= ~(Flag.VIF | Flag.VIP);
  if (size === 2) mask &= 0xffff;
  return (old & ~mask) | (image & mask);
}

function iretProtected(cpu: Processor, size: Width, next: bigint): void {
  const { eflags } = cpu.state;
  const long = codeSize(cpu) === 64;
  if ((eflags & Flag.NT) !== 0) {
    if (ia32e(cpu)) raise(Vector.GP, 0);
    returnToTask(cpu, next);
    return;
  }
  const stack = Stack.current(cpu);
  const rip = stack.pop(size);
  const selector = Number(stack.pop(size) & 0xffffn);
  const image = Number(stack.pop(size) & 0xffff_ffffn);
  const level = rpl(selector);
  if ((image & Flag.VM) !== 0 && size === 4 && !ia32e(cpu) && cpl(cpu) === 0) {
    enterVirtual(cpu, stack, { rip, selector, image });
    return;
  }
  const code = returnCode(cpu, selector);
  const outward = level !== cpl(cpu);
  const returned = returnFlags(cpu, image, size);
  if (!outward && !long) {
    checkRip(cpu, rip, code, selector);
    stack.commit();
    enterCode(cpu, selector, code, level, rip);
  } else {
    const pointer = stack.pop(size);
    const to = returnStack(cpu, Number(stack.pop(size) & 0xffffn), code, level);
    checkRip(cpu, rip, code, selector);
    enterCode(cpu, selector, code, level, rip);
    enterStack(cpu, to, pointer);
    if (outward) dropInnerSegments(cpu, level);
  }
  cpu.state.flags = returned;
}

const iret =
  (size: Width): Helper =>
  (cpu, insn) => {
    if (protectedMode(cpu) && !virtual8086(cpu)) iretProtected(cpu, size, insn.next);
    else {
      const detached = isDetached(cpu);
      if (detached) needsExtensions(cpu, size);
      const stack = Stack.current(cpu);
      const rip = stack.pop(size);
      const selector = Number(stack.pop(size) & 0xffffn);
      const image = Number(stack.pop(size) & 0xffff_ffffn);
      const flags = detached ? detachedFlags(cpu.state.flags, image) : returnFlags(cpu, image, size);
      returnReal(cpu, rip, selector);
      stack.commit();
      cpu.state.flags = flags;
    }
    cpu.nmiMasked = false;
  };

export const farReturnsEnding: Helpers = { retf, iret: iret(2), iretd: iret(4), iretq: iret(8) };

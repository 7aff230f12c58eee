/** Virtual-8086 mode: into it, out of it, and what its programs may do with flags and interrupts (SDM volume 3, chapter 20). */

import { Seg } from '../processor/descriptors.ts';
import { raise, Vector } from '../processor/fault.ts';
import { CR4, iopl, virtual8086 } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import { Flag } from '../processor/state.ts';
import { nulled, setSegment, virtualSegment } from './loads.ts';
import { Stack, setStackPointer } from './stack.ts';
import { redirected } from './tss.ts';

/** Those that IRET from privilege level 0 takes of its image, VM among them. */
const ENTERING =
  Flag.CF |
  Flag.PF |
  Flag.AF |
  Flag.ZF |
  Flag.SF |
  Flag.TF |
  Flag.IF |
  Flag.DF |
  Flag.OF |
  Flag.IOPL |
  Flag.NT |
  Flag.RF |
  Flag.VM |
  Flag.AC |
  Flag.VIF |
  Flag.VIP |
  Flag.ID;
/** The order in which an event's stack has them from ESP on (SDM volume 3, figure 20-4). */
const DATA = [Seg.ES, Seg.DS, Seg.FS, Seg.GS] as const;
const TOP = 0xffffn;

/** The rest of an IRETD whose image has VM; EIP, CS and EFLAGS were popped (SDM volume 2, RETURN-TO-VIRTUAL-8086-MODE). */
export function enterVirtual(
  cpu: Processor,
  stack: Stack,
  { rip, selector, image }: { readonly rip: bigint; readonly selector: number; readonly image: number },
): void {
  const pointer = stack.pop(4);
  const popped = [Seg.SS, ...DATA].map((index) => [index, Number(stack.pop(4) & TOP)] as const);
  if (rip > TOP) raise(Vector.GP, 0);
  cpu.state.flags = (cpu.state.flags & ~ENTERING) | (image & ENTERING);
  for (const [index, value] of [[Seg.CS, selector] as const, ...popped])
    setSegment(cpu, index, virtualSegment(value));
  setStackPointer(cpu, pointer, 32);
  cpu.state.rip = rip;
}

/** The first that an event pushes, which its handler has as null selectors. */
export function pushVirtual(cpu: Processor, stack: Stack, size: number): void {
  for (const index of [...DATA].reverse()) stack.push(BigInt(cpu.segments[index]!.selector), size);
}
export function dropVirtual(cpu: Processor): void {
  for (const index of DATA) setSegment(cpu, index, nulled(cpu, index, 0));
}

/** A program whose interrupt flag is not the processor's: in virtual-8086 mode below IOPL 3. */
export const isDetached = (cpu: Processor): boolean => virtual8086(cpu) && iopl(cpu) < 3;

/** Only with CR4.VME, and with 16 bits, has it PUSHF, POPF and IRET (SDM volume 3, table 20-2). */
export function needsExtensions(cpu: Processor, size: number): void {
  if (size !== 2 || (cpu.cr4 & CR4.VME) === 0) raise(Vector.GP, 0);
}

/** FLAGS as it reads them: VIF in the place of IF, and the IOPL that it would need. */
export function detachedImage(flags: number): number {
  const enabled = (flags & Flag.VIF) !== 0 ? Flag.IF : 0;
  return (flags & ~Flag.IF) | Flag.IOPL | enabled;
}

const POPPED = Flag.CF | Flag.PF | Flag.AF | Flag.ZF | Flag.SF | Flag.DF | Flag.OF | Flag.NT | Flag.TF;

/** RFLAGS after it has popped FLAGS. An interrupt that waits for it, and TF, are its monitor's affair. */
export function detachedFlags(flags: number, image: number): number {
  const enables = (image & Flag.IF) !== 0;
  if ((image & Flag.TF) !== 0 || (enables && (flags & Flag.VIP) !== 0)) raise(Vector.GP, 0);
  return (flags & ~(POPPED | Flag.VIF | Flag.RF)) | (image & POPPED) | (enables ? Flag.VIF : 0);
}

/**
 * INT n of a virtual-8086 program, as far as it does not go through the IDT (SDM volume 3, table 20-2). Gives whether it
 * is done.
 */
export function interruptVirtual(cpu: Processor, vector: number, next: bigint): boolean {
  if (!virtual8086(cpu)) return false;
  if ((cpu.cr4 & CR4.VME) === 0 || !redirected(cpu, vector)) {
    if (isDetached(cpu)) raise(Vector.GP, 0);
    return false;
  }
  const { state, memory } = cpu;
  const detached = isDetached(cpu);
  // The program's own table, as a processor without protection has it.
  const at = BigInt(vector * 4);
  const offset = memory.readSystem16(at);
  const selector = memory.readSystem16(at + 2n);
  const { flags } = state;
  const stack = Stack.current(cpu);
  stack.push(BigInt((detached ? detachedImage(flags) : flags) & 0xffff), 2);
  stack.push(BigInt(cpu.segments[Seg.CS]!.selector), 2);
  stack.push(next, 2);
  stack.write();
  stack.commit();
  state.flags = flags & ~(Flag.TF | Flag.AC | Flag.RF | (detached ? Flag.VIF : Flag.IF));
  setSegment(cpu, Seg.CS, virtualSegment(selector));
  state.rip = BigInt(offset);
  return true;
}

/** PUSHF, POPF, CLI, STI, CLAC, STAC and HLT (SDM volume 2; volume 3, 6.8). */

import { raise, Vector } from '../processor/fault.ts';
import { has } from '../processor/features.ts';
import type { Helper, Helpers } from '../processor/helper.ts';
import { CR4, cpl, privileged, protectedMode, virtual8086 } from '../processor/mode.ts';
import { Flag } from '../processor/state.ts';
import { Stack } from '../segments/stack.ts';
import { detachedFlags, detachedImage, isDetached, needsExtensions } from '../segments/virtual-8086.ts';

type Width = 2 | 4 | 8;

const pushf =
  (size: Width): Helper =>
  (cpu) => {
    const detached = isDetached(cpu);
    if (detached) needsExtensions(cpu, size);
    const flags = cpu.state.flags & ~(Flag.VM | Flag.RF);
    const stack = Stack.current(cpu);
    stack.push(BigInt(detached ? detachedImage(flags) : flags), size);
    stack.write();
    stack.commit();
  };

const POPPED =
  Flag.CF | Flag.PF | Flag.AF | Flag.ZF | Flag.SF | Flag.TF | Flag.DF | Flag.OF | Flag.NT | Flag.AC | Flag.ID;

const popf =
  (size: Width): Helper =>
  (cpu) => {
    const { state } = cpu;
    const detached = isDetached(cpu);
    if (detached) needsExtensions(cpu, size);
    const stack = Stack.current(cpu);
    const image = Number(stack.pop(size) & 0xffff_ffffn);
    if (detached) {
      const flags = detachedFlags(state.flags, image);
      stack.commit();
      state.flags = flags;
      return;
    }
    const level = cpl(cpu);
    let mask: number = POPPED;
    if (level <= (state.flags & Flag.IOPL) >> 12) mask |= Flag.IF;
    if (level === 0) mask |= Flag.IOPL;
    if (size === 2) mask &= 0xffff;
    stack.commit();
    state.flags = (state.flags & ~(mask | Flag.RF)) | (image & mask);
  };

/** Level 3 has a virtual interrupt flag of its own with CR4.PVI, in virtual-8086 mode with CR4.VME (SDM volume 3, 20.3 and 20.4). */
const setInterrupts =
  (on: boolean): Helper =>
  (cpu) => {
    const { state } = cpu;
    const { eflags } = state;
    const level = cpl(cpu);
    if (!protectedMode(cpu) || level <= (eflags & Flag.IOPL) >> 12) {
      state.eflags = on ? eflags | Flag.IF : eflags & ~Flag.IF;
      // Interrupts stay away for one more instruction, if they were off.
      if (on && (eflags & Flag.IF) === 0) cpu.shadow = 'sti';
      return;
    }
    const own = virtual8086(cpu) ? CR4.VME : CR4.PVI;
    if (level !== 3 || (cpu.cr4 & own) === 0 || (on && (eflags & Flag.VIP) !== 0)) raise(Vector.GP, 0);
    state.eflags = on ? eflags | Flag.VIF : eflags & ~Flag.VIF;
  };

const setAlignmentCheck =
  (on: boolean): Helper =>
  (cpu) => {
    const { state } = cpu;
    if (!has(cpu, 'SMAP') || cpl(cpu) !== 0) raise(Vector.UD);
    state.eflags = on ? state.eflags | Flag.AC : state.eflags & ~Flag.AC;
  };

/** CLI opens no window for interrupts, and at privilege 0 RFLAGS.AC is asked about at each access: execution may go on in its block. */
export const flagInstructions: Helpers = {
  pushf: pushf(2),
  pushfd: pushf(4),
  pushfq: pushf(8),
  cli: setInterrupts(false),
  clac: setAlignmentCheck(false),
  stac: setAlignmentCheck(true),
};

export const flagInstructionsEnding: Helpers = {
  popf: popf(2),
  popfd: popf(4),
  popfq: popf(8),
  sti: setInterrupts(true),
  hlt(cpu) {
    privileged(cpu);
    cpu.halted = true;
  },
};

/**
 * Notes how the processor went from one context to another, so that translated code can go the same way by itself
 * (translate/functions/transitions.ts): what it came from and to, and the descriptors that it looked at.
 */

import { isNull, Seg } from '../processor/descriptors.ts';
import type { Helper } from '../processor/helper.ts';
import type { Processor } from '../processor/processor.ts';
import { Flag, State } from '../processor/state.ts';
import { Transition, Way } from '../processor/ways.ts';
import { Msr, msrValue } from './msrs.ts';

/** A way back may take these from the program; then it is not noted. */
const DATA = [Seg.ES, Seg.DS, Seg.FS, Seg.GS] as const;
const LOCAL = 4;
const PAGE = 4096n;

/** Where a descriptor of the global table is, and what; undefined where it is not simply there. */
function descriptorAt(cpu: Processor, selector: number): [at: bigint, value: bigint] | undefined {
  if ((selector & LOCAL) !== 0) return undefined;
  const at = cpu.gdtr.base + BigInt(selector & 0xfff8);
  if (at % PAGE > PAGE - 8n) return undefined;
  return [at, cpu.memory.readSystem64(at)];
}

function noteDescriptors(cpu: Processor, entry: number): boolean {
  const { state, segments } = cpu;
  const [cs, ss] = [segments[Seg.CS]!.selector, segments[Seg.SS]!.selector];
  const code = descriptorAt(cpu, cs);
  const stack = isNull(ss) ? ([0n, 0n] as const) : descriptorAt(cpu, ss);
  if (code === undefined || stack === undefined) return false;
  state.setU64(entry + Transition.codeAt, code[0]);
  state.setU64(entry + Transition.code, code[1]);
  state.setU64(entry + Transition.stackAt, stack[0]);
  state.setU64(entry + Transition.stack, stack[1]);
  return true;
}
function noteSystemCall(cpu: Processor, entry: number): boolean {
  const { state } = cpu;
  state.setU64(entry + Transition.rip, state.rip);
  const mask = Number(msrValue(cpu, Msr.FMASK) & 0xffff_ffffn);
  state.setU32(entry + Transition.mask, mask | Flag.RF | Flag.VM);
  return true;
}
const noteNothing = () => true;

/** What is noted of each way beside where it begins and ends. */
const notes = { SYSCALL: noteSystemCall, SYSRET: noteNothing, IRET: noteDescriptors } as const;

/** A helper that goes on where it leads, and notes the way. */
export const noted =
  (name: keyof typeof notes, helper: Helper): Helper =>
  (cpu, insn) => {
    const { state, segments } = cpu;
    const from = cpu.numberContext();
    const before = cpu.mode;
    const data = DATA.map((index) => segments[index]);
    const masked = cpu.nmiMasked;
    helper(cpu, insn);
    const to = cpu.numberContext();
    if (from === 0 || to === 0 || masked || DATA.some((index, i) => segments[index] !== data[i])) return;
    const [cs, ss] = [segments[Seg.CS]!.selector, segments[Seg.SS]!.selector];
    const way = name === 'IRET' && (cs & 3) !== 0 ? Way.IRET + 1 : Way[name];
    const entry = State.transitions + way * Transition.bytes;
    state.setU32(entry + Transition.from, 0);
    if (!notes[name](cpu, entry)) return;
    state.setU32(entry + Transition.to, to);
    state.setU32(entry + Transition.step, cpu.mode.key - before.key);
    state.setU32(entry + Transition.selectors, cs | (ss << 16));
    state.setU32(entry + Transition.from, from);
  };

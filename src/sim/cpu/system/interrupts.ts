/** INT n and its like (SDM volume 2). */
import { loseStep, recordDebug } from '../processor/debug.ts';
import { Vector } from '../processor/fault.ts';
import type { Helper, Helpers } from '../processor/helper.ts';
import type { Insn } from '../processor/insn.ts';
import { Flag } from '../processor/state.ts';
import { instead } from '../segments/task-instructions.ts';
import { interruptVirtual } from '../segments/virtual-8086.ts';
import { debugStop } from './breakpoints.ts';
import { enter } from './events.ts';

/** Like an interrupt, but by the instruction: the gate's DPL counts and faults are its own. */
const software =
  (vectorOf: (insn: Insn) => number): Helper =>
  (cpu, insn) => {
    const vector = vectorOf(insn);
    if (vector === Vector.BP && insn.mnemonic === 'int3' && cpu.debugging.softwareBreakpoints) {
      cpu.stop = debugStop(cpu, Vector.BP);
      cpu.state.rip = insn.rip;
      return;
    }
    const own = insn.mnemonic === 'int' && interruptVirtual(cpu, vector, insn.next);
    if (!own) instead(cpu, enter(cpu, { kind: 'soft', vector, next: insn.next }));
    if (insn.mnemonic !== 'int') cpu.observer?.exception?.(vector, undefined, insn.next, undefined);
    loseStep(cpu);
  };

const overflow = software(() => Vector.OF);

export const softwareInterruptsEnding: Helpers = {
  int: software(({ operands }) => (operands[0]?.kind === 'imm' ? Number(operands[0].value & 0xffn) : 0)),
  int3: software(() => Vector.BP),
  into(cpu, insn) {
    if ((cpu.state.flags & Flag.OF) !== 0) overflow(cpu, insn);
  },
  /** #DB without a look at the gate's DPL; DR6 stays as it is (SDM volume 2, INT n). */
  int1(cpu, insn) {
    instead(cpu, enter(cpu, { kind: 'exception', vector: Vector.DB, next: insn.next }));
    cpu.observer?.exception?.(Vector.DB, undefined, insn.next, undefined);
    recordDebug(cpu, 0n);
    loseStep(cpu);
  },
};

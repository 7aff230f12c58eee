/** All instructions of the system side, and by which name they are in the tables. */

import type { Helpers } from '../processor/helper.ts';
import type { Insn } from '../processor/insn.ts';
import { farTransfersEnding } from '../segments/far.ts';
import { farReturnsEnding } from '../segments/far-returns.ts';
import { descriptorTables, segmentRegisters, segmentRegistersEnding } from '../segments/protection.ts';
import { controlRegisters, controlRegistersEnding } from './control.ts';
import { cpuidInstruction } from './cpuid.ts';
import { flagInstructions, flagInstructionsEnding } from './flags.ts';
import { softwareInterruptsEnding } from './interrupts.ts';
import { maintenance, maintenanceEnding } from './maintenance.ts';
import { modelSpecificRegistersEnding } from './msrs.ts';
import { randomNumbers } from './random.ts';
import { baseReads, systemCallsEnding } from './syscalls.ts';

export const systemInstructions: Helpers = {
  ...baseReads,
  ...controlRegisters,
  ...cpuidInstruction,
  ...descriptorTables,
  ...flagInstructions,
  ...maintenance,
  ...randomNumbers,
  ...segmentRegisters,
};

/** They set RIP, change the mode or a segment, or may open a window for interrupts. */
export const systemInstructionsEnding: Helpers = {
  ...controlRegistersEnding,
  ...farReturnsEnding,
  ...farTransfersEnding,
  ...flagInstructionsEnding,
  ...maintenanceEnding,
  ...modelSpecificRegistersEnding,
  ...segmentRegistersEnding,
  ...softwareInterruptsEnding,
  ...systemCallsEnding,
};

/**
 * The tables' name for an instruction: its mnemonic, but MOV, PUSH, POP, JMP and CALL are names of ordinary
 * instructions too, so that their system forms say which they are ("mov cr", "jmp far").
 */
export function formOf({ mnemonic, operands, code }: Insn): string {
  const [first, second] = operands;
  if (mnemonic === 'mov') {
    if (first?.kind === 'segment') return 'mov to sreg';
    if (second?.kind === 'segment') return 'mov from sreg';
    for (const operand of [first, second]) {
      if (operand?.kind === 'cr' || operand?.kind === 'dr' || operand?.kind === 'tr')
        return `mov ${operand.kind}`;
    }
  }
  if ((mnemonic === 'push' || mnemonic === 'pop') && first?.kind === 'segment') return `${mnemonic} sreg`;
  // Far pointers are immediate (ptr16:32) or in memory (m16:32).
  if ((mnemonic === 'jmp' || mnemonic === 'call') && /^(Jmp|Call)_(ptr|m)16\d\d$/.test(code))
    return `${mnemonic} far`;
  return mnemonic;
}

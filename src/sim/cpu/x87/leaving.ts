/** Helpers as they are where an attempt of translated code gives up, which has a use for the result itself. */
import type { Answer, Helper } from '../processor/helper.ts';
import { ARITHMETIC, State } from '../processor/state.ts';
import { operandAddress } from './stack.ts';

/** A helper that sets flags: it answers with them too. */
const thatTells =
  (helper: Helper): Answer =>
  (cpu, insn) => {
    helper(cpu, insn);
    return cpu.state.flags & ARITHMETIC;
  };
/** A helper that stores: what is in memory afterwards waits in the state page too, to be stored once more. */
const thatLeaves =
  (helper: Helper): Helper =>
  (cpu, insn) => {
    helper(cpu, insn);
    const operand = insn.operands[0]!;
    const size = operand.kind === 'mem' ? operand.size : 0;
    const bytes = cpu.memory.readBytes(operandAddress(cpu, insn, size, false), size);
    for (const [i, byte] of bytes.entries()) cpu.state.setU8(State.vector + i, byte);
  };
/** What an instruction's helper is where an attempt gives up. */
export const leaving = (mnemonic: string, helper: Helper): Helper | Answer =>
  /^fu?comi/.test(mnemonic) ? thatTells(helper) : thatLeaves(helper);

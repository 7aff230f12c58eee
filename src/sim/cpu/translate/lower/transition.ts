/** Ways to another privilege level and back that are attempts, and helpers where these give up: in 64-bit mode. */
import { Flag, State } from '../../processor/state.ts';
import type { Attempt, Quick } from '../attempt.ts';
import type { Builder } from '../builder.ts';
import { transitions } from '../functions/transitions.ts';
import type { Node } from '../ir.ts';
import type { Lower } from '../lowering.ts';
import type { CallTarget } from '../ops.ts';
import { byItself } from './interrupt-flag.ts';

/** Where they lead is in the state, whoever has gone there. */
function goes(b: Builder, quick: Quick, helper: CallTarget, ...args: readonly Node[]): void {
  const attempt: Attempt = (code) => {
    for (const index of args.keys()) code.argument(index);
    code.call(quick).op(0x45).slowIf(); // i32.eqz
  };
  b.op('attempt', args, { attempt, helper, insn: b.insn });
  b.dynamic(b.get(State.rip, 8));
}

const flags = (b: Builder): Node => b.op('or32', [b.get(State.eflags, 4), b.arithmeticFlags()]);

const syscall =
  (helper: CallTarget): Lower =>
  (b) =>
    goes(b, transitions.syscall, helper, b.next(8), flags(b));
const sysret =
  (helper: CallTarget): Lower =>
  (b) =>
    goes(b, transitions.sysret, helper);
const iret =
  (helper: CallTarget): Lower =>
  (b) => {
    // A task that is nested is refused before the stack is looked at.
    b.callIf(b.op('and32', [b.get(State.eflags, 4), b.const32(Flag.NT)]), byItself);
    const popped = (at: number) => b.load(b.stack(at, 8, false), 8);
    const short = (at: number) => b.truncate(4, popped(at));
    goes(b, transitions.iret, helper, popped(0), short(8), short(16), popped(24), short(32));
  };

/** By mnemonic, and whether it is for privilege level 0. */
export const transitionLowerings = {
  syscall: { lower: syscall, privileged: false },
  sysretq: { lower: sysret, privileged: true },
  iretq: { lower: iret, privileged: true },
} as const satisfies { [mnemonic: string]: { lower: (helper: CallTarget) => Lower; privileged: boolean } };

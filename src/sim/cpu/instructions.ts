/** All instructions: which are micro-ops, and which call a helper. What is in neither table raises #UD. */
import type { Builder } from './builder.ts';
import type { Cpu } from './cpu.ts';
import { raise, Vector } from './fault.ts';
import type { Helpers } from './helpers/helper.ts';
import type { Insn } from './insn.ts';
import type { Lowerings } from './lower/lowering.ts';

const lowered: readonly Lowerings[] = [];
const helpers: readonly Helpers[] = [];
/** They write RIP, change what translation depends on, or may open a window for interrupts. */
const ending: readonly Helpers[] = [];

const join = <T>(tables: readonly { readonly [mnemonic: string]: T }[]) =>
  new Map(tables.flatMap((table) => Object.entries(table)));

const micro = join(lowered);
const called = join(helpers);
const last = join(ending);

function unknown(cpu: Cpu, insn: Insn): never {
  cpu.unimplemented.add(insn.code);
  raise(Vector.UD);
}

export const instructions = {
  /** Every mnemonic that is implemented. */
  names: () => [...micro.keys(), ...called.keys(), ...last.keys()],

  lower(b: Builder, insn: Insn): void {
    const { mnemonic } = insn;
    const lowering = micro.get(mnemonic);
    if (lowering !== undefined) return lowering(b, insn);
    const helper = called.get(mnemonic);
    if (helper !== undefined) return b.call(helper);
    b.call(last.get(mnemonic) ?? unknown);
    b.leave();
  },
};

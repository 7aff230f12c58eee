/** All instructions: which are micro-ops, and which call a helper. What is in neither table raises #UD. */

import { avx, avxAnswers, misaligned } from './avx/index.ts';
import { emulated, givesUpBeforeWriting } from './emulator.ts';
import { bcd } from './integer/bcd.ts';
import { io, stringIo } from './integer/ports.ts';
import { strings } from './integer/strings.ts';
import { Seg } from './processor/descriptors.ts';
import { raise, Vector } from './processor/fault.ts';
import type { Answer, Helper, Helpers } from './processor/helper.ts';
import type { Insn } from './processor/insn.ts';
import type { Processor } from './processor/processor.ts';
import { State } from './processor/state.ts';
import { segmentRegistersEnding } from './segments/protection.ts';
import { sse, sseAnswers } from './sse/index.ts';
import { hypercallsEnding } from './system/hypercalls.ts';
import { formOf, systemInstructions, systemInstructionsEnding } from './system/index.ts';
import { noted } from './system/transitions.ts';
import type { Builder } from './translate/builder.ts';
import type { Emulation } from './translate/entry.ts';
import { avxLowerings, usesYmm } from './translate/lower/avx.ts';
import { floats } from './translate/lower/float.ts';
import { integer } from './translate/lower/index.ts';
import { interruptFlag } from './translate/lower/interrupt-flag.ts';
import { isAttempted, string } from './translate/lower/string.ts';
import { transitionLowerings } from './translate/lower/transition.ts';
import { isVector, usesX87, usesXmm, vectors } from './translate/lower/vector.ts';
import { type Exact, x87Lowerings } from './translate/lower/x87.ts';
import type { Lower, Lowerings } from './translate/lowering.ts';
import { leaving, x87 } from './x87/index.ts';

const each = (helpers: Helpers, lower: (helper: Helper) => Lower): Lowerings =>
  Object.fromEntries(Object.entries(helpers).map(([mnemonic, helper]) => [mnemonic, lower(helper)]));
const calls =
  (helper: Helper): Lower =>
  (b) =>
    b.call(helper);
/** A string instruction may have to be executed again, for the elements that are left: its helper moves RIP to itself then. */
const repeats = (helper: Helper): Lower => {
  const answer: Answer = (cpu, insn) => {
    helper(cpu, insn);
    return cpu.state.moved ? 1 : 0;
  };
  return (b, insn) => {
    if (isAttempted(b, insn)) string(b, insn, answer);
    else if (insn.rep === undefined) b.call(helper);
    else b.repeat(b.answer(answer));
  };
};
/** What changes RIP or what translation depends on goes on where it leads, in the mode that it leads to. */
const settled =
  (helper: Helper): Helper =>
  (cpu, insn) => {
    helper(cpu, insn);
    if (!cpu.state.moved) cpu.state.rip = insn.next;
    cpu.settle();
  };
const settles = (helper: Helper): Lower => {
  const call = settled(helper);
  return (b) => {
    b.call(call);
    b.dynamic(b.get(State.rip, 8));
  };
};
/** In 64-bit mode the mode does not depend on segments of data, and none of them but SS guards the next instruction. */
const loadsData = ({ mode }: Builder, { operands, mnemonic }: Insn): boolean => {
  const segment = operands.find(({ kind }) => kind === 'segment') as { index: number } | undefined;
  return mode.bits === 64 && !mode.single && segment?.index !== Seg.SS && mnemonic !== 'lss';
};
const loadsSegment = (helper: Helper): Lower => {
  const settling = settles(helper);
  return (b, insn) => (loadsData(b, insn) ? b.call(helper) : settling(b, insn));
};
/** What settles too: SYSCALL and the like, where translated code may know the way. */
const ways = Object.entries({ syscall: 'SYSCALL', sysretq: 'SYSRET', iretq: 'IRET' } as const).map(
  ([name, way]) => {
    const { lower, privileged } = transitionLowerings[name as keyof typeof transitionLowerings];
    const helper = systemInstructionsEnding[name]!;
    const [quick, slow] = [lower(noted(way, settled(helper))), settles(helper)];
    const lowering: Lower = (b, insn) => {
      const { bits, single, privileged: innermost } = b.mode;
      (bits === 64 && !single && (innermost || !privileged) ? quick : slow)(b, insn);
    };
    return [name, lowering] as const;
  },
);
/** A string instruction on ports: userspace may have something to do. */
const repeatsPorts =
  (helper: Helper): Lower =>
  (b, insn) => {
    b.call(helper);
    if (insn.rep !== undefined) b.leave();
  };

const lowered: readonly Lowerings[] = [
  integer,
  each(bcd, calls),
  each(strings, repeats),
  each(stringIo, repeatsPorts),
  each(systemInstructionsEnding, settles),
  each(segmentRegistersEnding, loadsSegment),
  Object.fromEntries(ways),
];
/** String instructions have these names too. */
const AMBIGUOUS = ['movsd', 'cmpsd'];
const named = (mnemonic: string) => (AMBIGUOUS.includes(mnemonic) ? `${mnemonic}.xmm` : mnemonic);
const vector = Object.fromEntries(Object.entries(sse).map(([mnemonic, helper]) => [named(mnemonic), helper]));

const helpers: readonly Helpers[] = [vector, x87, avx, systemInstructions];
/** Userspace may have something to do. */
const ending: readonly Helpers[] = [io, hypercallsEnding];

const join = <T>(tables: readonly { readonly [mnemonic: string]: T }[]) =>
  new Map(tables.flatMap((table) => Object.entries(table)));

const micro = join(lowered);
const called = join(helpers);
const last = join(ending);
/** What the attempts at SSE's floating point end in where they give up. */
const exact = new Map(Object.keys(floats).map((name) => [name, sseAnswers[name] ?? called.get(name)!]));
const exactX87 = new Map<string, Exact>(
  Object.keys(x87Lowerings).map((name) => {
    const helper = called.get(name)!;
    return [name, { helper, leaving: leaving(name, helper) }];
  }),
);

let avxTable: ReturnType<typeof avxLowerings> | undefined;
/** Made when a guest has one of these: all names begin with a V. */
function avxLowered(name: string) {
  if (name[0] !== 'v') return undefined;
  avxTable ??= avxLowerings({ misaligned });
  return Object.hasOwn(avxTable, name) ? avxTable[name] : undefined;
}

function unknown(cpu: Processor, insn: Insn): never {
  cpu.lacks(insn.code);
  raise(Vector.UD);
}

/** By which name an instruction is in the tables. */
function nameOf(insn: Insn): string {
  // AVX-512 has the names of AVX, and this processor has it not.
  if (/^(EVEX|MVEX)_/.test(insn.code)) return insn.code;
  if (insn.operands.some(({ kind }) => kind === 'xmm')) return named(insn.mnemonic);
  return formOf(insn);
}

const vectorNames: ReadonlySet<string> = new Set([
  ...Object.keys(vector),
  ...Object.keys(x87),
  ...Object.keys(avx),
]);

export const instructions = {
  emulation(insn: Insn): Emulation {
    const isVector = vectorNames.has(nameOf(insn));
    return {
      real: emulated(insn, isVector, false),
      protected: emulated(insn, isVector, true),
      givesUpBeforeWriting: givesUpBeforeWriting(insn),
    };
  },

  /** Every name that is implemented: mnemonics, and `mov cr` and the like. */
  names: () => [...micro.keys(), ...called.keys(), ...last.keys()],

  lower(b: Builder, insn: Insn): void {
    const name = nameOf(insn);
    const { privileged, single } = b.mode;
    const short = privileged && !single ? interruptFlag[name] : undefined;
    const lowering = short ?? (isVector(b, insn, name) ? vectors[name] : micro.get(name));
    const helper = called.get(name);
    const avxLowering = avxLowered(name);
    if (avxLowering !== undefined && usesYmm(b, insn))
      avxLowering(b, insn, avxAnswers[name] ?? called.get(name)!);
    else if (exact.has(name) && usesXmm(b, insn)) floats[name]!(b, insn, exact.get(name)!);
    else if (exactX87.has(name) && usesX87(b, insn)) x87Lowerings[name]!(b, insn, exactX87.get(name)!);
    else if (lowering !== undefined) lowering(b, insn);
    else if (helper !== undefined) b.call(helper);
    else {
      b.call(last.get(name) ?? unknown);
      b.leave();
    }
  },
};

/**
 * The x87's common instructions: each is an attempt (x87/quick.ts), and its helper where that gives up. FIP, FOP and FDP are
 * written here, for they are known when the code is made, but for the address.
 */
import type { Quick } from '../../processor/helper.ts';
import type { Insn, Memory, Size } from '../../processor/insn.ts';
import { State } from '../../processor/state.ts';
import { checkPending } from '../../sse/operands.ts';
import type { AttemptCode } from '../attempt.ts';
import type { Builder, Place } from '../builder.ts';
import type { Node } from '../ir.ts';
import type { CallTarget } from '../ops.ts';
import { Wasm } from '../wasm-bytes.ts';

/** What is attempted; operations by their names in mnemonics. */
export interface Quicks {
  readonly registers: { readonly [operation: string]: Quick };
  readonly memory: { readonly [operation: string]: Quick };
  readonly load: Quick;
  readonly loadBits: Quick;
  readonly duplicate: Quick;
  readonly copy: Quick;
  readonly exchange: Quick;
  readonly root: Quick;
  readonly sign: Quick;
  readonly store: Quick;
  readonly storeBits: Quick;
  readonly flags: Quick;
  readonly conditions: Quick;
  readonly conditionsOfMemory: Quick;
  readonly control: Quick;
}
/** The helper; and what it is where it stores, or answers with flags. */
export interface Exact {
  readonly helper: CallTarget;
  readonly leaving: CallTarget;
  readonly quick: Quicks;
}
export type LowerX87 = (b: Builder, insn: Insn, exact: Exact) => void;

const FS = 4;
const RSP = 4;
const RBP = 5;
const SS = 2;
const DS = 3;
const I16_STORE = 0x3b;

const register = (insn: Insn, position: number, otherwise: number): number => {
  const operand = insn.operands[position];
  return operand?.kind === 'st' ? operand.index : otherwise;
};
const memoryOf = (insn: Insn): Memory | undefined => {
  const operand = insn.operands[0];
  return operand?.kind === 'mem' ? operand : undefined;
};
/** Whose selector FDS gets: in 64-bit mode overrides but FS and GS are ignored. */
function segmentOf({ mode }: Builder, { segment, base }: Memory): number {
  if (mode.bits !== 64 || segment >= FS) return segment;
  return base === RSP || base === RBP ? SS : DS;
}

/** Of an instruction that leaves FIP, FOP and FDP alone. */
const NO_POINTERS = -1;

/** Numbers and values of 32 bits; a value of 64 gives two. */
type Argument = number | { readonly argument: number; readonly wide: boolean };

/**
 * Calls `quick` with these, and gives up where it gives 0. `address` is the op's argument with the offset of the
 * operand in memory. The call's answer is left on the stack where `keep` says so.
 */
function attempt(
  insn: Insn,
  quick: Quick,
  args: readonly Argument[],
  address?: number,
  keep?: (code: AttemptCode, answer: number) => void,
) {
  return (code: AttemptCode) => {
    let count = 0;
    for (const arg of args) {
      count++;
      if (typeof arg === 'number') {
        code.const32(arg);
        continue;
      }
      code.argument(arg.argument);
      if (!arg.wide) continue;
      count++;
      code.op(0xa7).argument(arg.argument).const64(32n).op(0x88, 0xa7); // wrap, shr_u, wrap
    }
    code.call(quick, count);
    if (keep === undefined)
      code.op(0x45).slowIf(); // eqz
    else {
      const answer = code.local(Wasm.i32);
      code.tee(answer).op(0x45).slowIf();
      keep(code, answer);
    }
    if (address === NO_POINTERS) return;
    // Behind an answer that is kept on the stack.
    code.store([Wasm.i64Store], State.fip, () => code.const64(insn.rip));
    code.store([I16_STORE], State.fop, () => code.const32(insn.fop));
    if (address !== undefined) code.store([Wasm.i64Store], State.fdp, () => code.argument(address));
  };
}

/** ES of FSW: an exception is pending (SDM volume 1, 8.1.3). */
const PENDING = 0x80;
const raisePending: CallTarget = (cpu, _insn, pending: number) => {
  if (pending !== 0) checkPending(cpu);
};

/** A pending exception comes before whatever is wrong with an operand in memory. */
const waits = (b: Builder): void =>
  b.callIf(b.op('and32', [b.get(State.fsw, 2), b.const32(PENDING)]), raisePending);

/** An operand in memory as arguments of the op and of the call; `bytes` as quick.ts has them. */
function operand(b: Builder, memory: Memory, integral: boolean): [nodes: Node[], args: Argument[]] {
  const { size } = memory;
  waits(b);
  const value = b.load(b.place(memory, size, false), size as Size);
  const address = b.effective(memory);
  const segment = segmentOf(b, memory);
  if (size === 8)
    return [
      [value, address],
      [integral ? -8 : 8, { argument: 0, wide: true }, segment],
    ];
  if (!integral)
    return [
      [value, address],
      [4, { argument: 0, wide: false }, 0, segment],
    ];
  const wide = b.signExtend(size as Size, 8, value);
  return [
    [wide, address],
    [-size, { argument: 0, wide: true }, segment],
  ];
}

const arithmetic =
  (operation: string, integral = false, pops = 0): LowerX87 =>
  (b, insn, { helper, quick }) => {
    const memory = memoryOf(insn);
    if (memory === undefined) {
      const args = [register(insn, 0, 1), register(insn, 1, 0), pops];
      b.op('attempt', [], { attempt: attempt(insn, quick.registers[operation]!, args), helper, insn });
      return;
    }
    const [nodes, args] = operand(b, memory, integral);
    b.op('attempt', nodes, { attempt: attempt(insn, quick.memory[operation]!, args, 1), helper, insn });
  };
const families = (name: string) => ({
  [`f${name}`]: arithmetic(name),
  [`f${name}p`]: arithmetic(name, false, 1),
  [`fi${name}`]: arithmetic(name, true),
});

const plain =
  (of: (quick: Quicks) => Quick, args: (insn: Insn) => readonly number[]): LowerX87 =>
  (b, insn, { helper, quick }) => {
    b.op('attempt', [], { attempt: attempt(insn, of(quick), args(insn)), helper, insn });
  };

/** The two parts of 80 bits in memory. */
function parts(b: Builder, memory: Memory, write: boolean): [low: Place, high: Place] {
  const low = b.place(memory, 10, write);
  return [low, { ...low, linear: b.op('add64', [low.linear, b.const64(8n)]) }];
}

const load =
  (integral: boolean): LowerX87 =>
  (b, insn, exact) => {
    const { helper, quick } = exact;
    const memory = memoryOf(insn);
    if (memory === undefined) return duplicate(b, insn, exact);
    if (memory.size === 10) {
      waits(b);
      const [low, high] = parts(b, memory, false);
      const nodes = [b.load(low, 8), b.load(high, 2), b.effective(memory)];
      const args = [{ argument: 0, wide: true }, { argument: 1, wide: false }, segmentOf(b, memory)];
      b.op('attempt', nodes, { attempt: attempt(insn, quick.loadBits, args, 2), helper, insn });
      return;
    }
    const [nodes, args] = operand(b, memory, integral);
    b.op('attempt', nodes, { attempt: attempt(insn, quick.load, args, 1), helper, insn });
  };
const duplicate = plain(
  ({ duplicate }) => duplicate,
  (insn) => [register(insn, 0, 0)],
);

/** The place is checked first; the value waits in the state page, as the helper leaves it too. */
const store =
  (integral: boolean, truncates: 0 | 1, pops: 0 | 1): LowerX87 =>
  (b, insn, exact) => {
    const { leaving, quick } = exact;
    const memory = memoryOf(insn);
    if (memory === undefined) return copy(pops)(b, insn, exact);
    const segment = segmentOf(b, memory);
    waits(b);
    const address = b.effective(memory);
    if (memory.size === 10) {
      const [low, high] = parts(b, memory, true);
      b.load(low, 8, true);
      b.load(high, 2, true);
      const tried = attempt(insn, quick.storeBits, [segment], 0);
      b.op('attempt', [address], { attempt: tried, helper: leaving, insn });
      b.store(low, 8, b.get(State.vector, 8));
      b.store(high, 2, b.get(State.vector + 8, 2));
      return;
    }
    const size = memory.size as Size;
    const place = b.place(memory, size, true);
    b.load(place, size, true);
    const args = [integral ? -size : size, truncates, pops, segment];
    b.op('attempt', [address], { attempt: attempt(insn, quick.store, args, 0), helper: leaving, insn });
    b.store(place, size, b.get(State.vector, size));
  };
const copy = (pops: 0 | 1) =>
  plain(
    ({ copy }) => copy,
    (insn) => [register(insn, 0, 0), pops],
  );

const compared =
  (pops: 0 | 1 | 2, integral = false): LowerX87 =>
  (b, insn, { helper, quick }) => {
    const memory = memoryOf(insn);
    if (memory === undefined) {
      const args = [register(insn, 1, 1), pops];
      b.op('attempt', [], { attempt: attempt(insn, quick.conditions, args), helper, insn });
      return;
    }
    const [nodes, args] = operand(b, memory, integral);
    const tried = attempt(insn, quick.conditionsOfMemory, [...args, pops], 1);
    b.op('attempt', nodes, { attempt: tried, helper, insn });
  };
/** The helper sets the flags itself, and answers with them. */
const comparedToFlags =
  (pops: 0 | 1): LowerX87 =>
  (b, insn, { leaving, quick }) => {
    const keep = (code: AttemptCode, answer: number) => code.get(answer).const32(0xff).op(0x71); // and
    const tried = attempt(insn, quick.flags, [register(insn, 1, 1), pops], undefined, keep);
    b.setArithmeticFlags(b.op('attempt32', [], { attempt: tried, helper: leaving, insn }));
  };

/** FNSTCW and FNSTSW ask for nothing. */
const storeControl =
  (offset: number): LowerX87 =>
  (b) =>
    b.write(0, b.get(offset, 2), 2);
const loadControl: LowerX87 = (b, insn, { helper, quick }) => {
  const args = [{ argument: 0, wide: false }];
  b.op('attempt', [b.read(0, 2)], { attempt: attempt(insn, quick.control, args, NO_POINTERS), helper, insn });
};

const ONE = [0, 0x8000_0000 | 0, 0x3fff, -1] as const;

export const x87Lowerings: { readonly [mnemonic: string]: LowerX87 } = {
  ...families('add'),
  ...families('sub'),
  ...families('subr'),
  ...families('mul'),
  ...families('div'),
  ...families('divr'),
  fld: load(false),
  fild: load(true),
  fldz: plain(
    ({ loadBits }) => loadBits,
    () => [0, 0, 0, -1],
  ),
  fld1: plain(
    ({ loadBits }) => loadBits,
    () => ONE,
  ),
  fst: store(false, 0, 0),
  fstp: store(false, 0, 1),
  fist: store(true, 0, 0),
  fistp: store(true, 0, 1),
  fisttp: store(true, 1, 1),
  fldcw: loadControl,
  fnstcw: storeControl(State.fcw),
  fnstsw: storeControl(State.fsw),
  fxch: plain(
    ({ exchange }) => exchange,
    (insn) => [register(insn, 1, 1)],
  ),
  fsqrt: plain(
    ({ root }) => root,
    () => [],
  ),
  fchs: plain(
    ({ sign }) => sign,
    () => [0xffff, 0x8000],
  ),
  fabs: plain(
    ({ sign }) => sign,
    () => [0x7fff, 0],
  ),
  fcom: compared(0),
  fcomp: compared(1),
  fcompp: compared(2),
  ficom: compared(0, true),
  ficomp: compared(1, true),
  fucom: compared(0),
  fucomp: compared(1),
  fucompp: compared(2),
  fcomi: comparedToFlags(0),
  fcomip: comparedToFlags(1),
  fucomi: comparedToFlags(0),
  fucomip: comparedToFlags(1),
};

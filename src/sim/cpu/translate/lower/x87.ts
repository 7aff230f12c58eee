/**
 * The x87's common instructions: each is an attempt by a function of WebAssembly (translate/x87), and its helper where that
 * gives up. FIP, FOP, FDP and FDS are written here, for of them only the address is not known when the code is made.
 */
import type { Insn, Memory, Size } from '../../processor/insn.ts';
import { State } from '../../processor/state.ts';
import { checkPending } from '../../sse/operands.ts';
import type { AttemptCode, Quick } from '../attempt.ts';
import type { Builder, Place } from '../builder.ts';
import type { Condition } from '../flag-values.ts';
import type { Node } from '../ir.ts';
import type { CallTarget } from '../ops.ts';
import { Wasm } from '../wasm-bytes.ts';
import { x87Functions as functions } from '../x87/functions.ts';

/** The helper; and what it is where it stores, or answers with flags. */
export interface Exact {
  readonly helper: CallTarget;
  readonly leaving: CallTarget;
}
export type LowerX87 = (b: Builder, insn: Insn, exact: Exact) => void;

/** A register as the functions have it. */
const register = (insn: Insn, position: number, otherwise: number): number => {
  const operand = insn.operands[position];
  return 16 * (operand?.kind === 'st' ? operand.index : otherwise);
};
const memoryOf = (insn: Insn): Memory | undefined => {
  const operand = insn.operands[0];
  return operand?.kind === 'mem' ? operand : undefined;
};

/** An operand in memory: where, the offset that FDP gets, and the segment whose selector FDS does. */
interface Operand {
  readonly size: Size;
  readonly place: Place;
  readonly offset: Node;
  readonly segment: number;
}
const operandOf = (b: Builder, memory: Memory, size: number, write: boolean): Operand => {
  waits(b);
  const offset = b.effective(memory);
  const place = b.placeAt(memory, offset, size, write);
  return { size: size as Size, place, offset, segment: b.dataSegment(memory) };
};

/** What a function is called with, and what else there is to an attempt. */
interface Attempted {
  readonly args?: readonly (number | Node)[];
  readonly memory?: Operand;
  /** It is a control instruction, and leaves the pointers alone. */
  readonly isControl?: boolean;
  /** Leaves the result on the stack, where the call's answer is in a local. */
  readonly keep?: (code: AttemptCode, answer: number) => void;
}
/** Calls `quick`, and gives up where it gives 0. */
function attempt(
  b: Builder,
  quick: Quick,
  helper: CallTarget,
  { args = [], memory, isControl = false, keep }: Attempted,
): Node {
  const pointers = isControl ? [] : [b.rip(), b.fop(), ...(memory === undefined ? [] : [memory.offset])];
  const values = args.filter((arg) => typeof arg !== 'number');
  const write = (code: AttemptCode) => {
    let next = pointers.length;
    for (const arg of args) {
      if (typeof arg === 'number') code.const32(arg);
      else code.argument(next++);
    }
    code.call(quick);
    if (keep === undefined)
      code.op(0x45).slowIf(); // eqz
    else {
      const answer = code.local(Wasm.i32);
      code.tee(answer).op(0x45).slowIf();
      keep(code, answer);
    }
    if (isControl) return;
    // Behind an answer that is kept on the stack.
    code.store([Wasm.i64Store], State.fip, () => code.argument(0));
    code.store([Wasm.i32Store16], State.fop, () => code.argument(1));
    if (memory === undefined) return;
    code.store([Wasm.i64Store], State.fdp, () => code.argument(2));
    const selector = State.selectors + 2 * memory.segment;
    code.store([Wasm.i32Store16], State.fds, () => code.load([Wasm.i32Load16u], selector));
  };
  const name = keep === undefined ? 'attempt' : 'attempt32';
  return b.op(name, [...pointers, ...values], { attempt: write, helper, insn: b.insn });
}

/** ES of FSW: an exception is pending (SDM volume 1, 8.1.3). */
const PENDING = 0x80;
const raisePending: CallTarget = (cpu, _insn, pending: number) => {
  if (pending !== 0) checkPending(cpu);
};

/** A pending exception comes before whatever is wrong with an operand in memory. */
const waits = (b: Builder): void =>
  b.callIf(b.op('and32', [b.get(State.fsw, 2), b.const32(PENDING)]), raisePending);

/** What memory holds, as a function of that kind has it. */
function numberIn(b: Builder, { size, place }: Operand, integral: boolean): [Kind, Node] {
  const value = b.load(place, size);
  if (integral) return ['integer', b.signExtend(size, 8, value)];
  return [size === 4 ? 'single' : 'double', value];
}
type Kind = 'single' | 'double' | 'integer';

type Operation = keyof (typeof functions)['registers'];

const arithmetic =
  (operation: Operation, integral = false, pops = 0): LowerX87 =>
  (b, insn, { helper }) => {
    const mem = memoryOf(insn);
    if (mem === undefined) {
      const args = [register(insn, 0, 1), register(insn, 1, 0), pops];
      attempt(b, functions.registers[operation], helper, { args });
      return;
    }
    const memory = operandOf(b, mem, mem.size, false);
    const [kind, value] = numberIn(b, memory, integral);
    attempt(b, functions.memory[kind][operation], helper, { args: [value], memory });
  };
const families = (name: Operation) => ({
  [`f${name}`]: arithmetic(name),
  [`f${name}p`]: arithmetic(name, false, 1),
  [`fi${name}`]: arithmetic(name, true),
});

const plain =
  (quick: Quick, args: (insn: Insn) => readonly number[] = () => []): LowerX87 =>
  (b, insn, { helper }) => {
    attempt(b, quick, helper, { args: args(insn) });
  };

/** The two parts of 80 bits in memory. */
const parts = (b: Builder, { place }: Operand): [low: Place, high: Place] => [
  place,
  { ...place, linear: b.op('add64', [place.linear, b.const64(8n)]) },
];

const duplicate = plain(functions.duplicate, (insn) => [register(insn, 0, 0)]);
const load =
  (integral: boolean): LowerX87 =>
  (b, insn, exact) => {
    const { helper } = exact;
    const mem = memoryOf(insn);
    if (mem === undefined) return duplicate(b, insn, exact);
    const memory = operandOf(b, mem, mem.size, false);
    if (mem.size === 10) {
      const [low, high] = parts(b, memory);
      attempt(b, functions.loadBits, helper, { args: [b.load(low, 8), b.load(high, 2)], memory });
      return;
    }
    const [kind, value] = numberIn(b, memory, integral);
    attempt(b, functions.load[kind], helper, { args: [value], memory });
  };
/** A significand, and the exponent of its highest bit. */
const constant = (significand: bigint, exponent: number, quick = functions.loadConstant): LowerX87 => {
  const head = significand === 0n ? 0 : 16_383 + exponent;
  return (b, _insn, { helper }) => {
    attempt(b, quick, helper, { args: [b.const64(significand), head] });
  };
};

/** The place is checked first; the value waits in the state page, as the helper leaves it too. */
const store =
  (integral: boolean, truncates: 0 | 1, pops: 0 | 1): LowerX87 =>
  (b, insn, exact) => {
    const { leaving } = exact;
    const mem = memoryOf(insn);
    if (mem === undefined) return copy(pops)(b, insn, exact);
    const memory = operandOf(b, mem, mem.size, true);
    if (mem.size === 10) {
      const [low, high] = parts(b, memory);
      b.load(low, 8, true);
      b.load(high, 2, true);
      attempt(b, functions.storeBits, leaving, { memory });
      b.store(low, 8, b.get(State.vector, 8));
      b.store(high, 2, b.get(State.vector + 8, 2));
      return;
    }
    const { size, place } = memory;
    b.load(place, size, true);
    if (integral) {
      const args = [b.const64(BigInt(64 - 8 * size)), truncates, pops];
      attempt(b, functions.storeInteger, leaving, { args, memory });
    } else {
      attempt(b, functions.store[size === 4 ? 'single' : 'double'], leaving, { args: [pops], memory });
    }
    b.store(place, size, b.get(State.vector, size));
  };
const copy = (pops: 0 | 1) => plain(functions.copy, (insn) => [register(insn, 0, 0), pops]);

const compared =
  (pops: 0 | 1 | 2, integral = false): LowerX87 =>
  (b, insn, { helper }) => {
    const mem = memoryOf(insn);
    if (mem === undefined) {
      attempt(b, functions.conditions, helper, { args: [register(insn, 1, 1), pops] });
      return;
    }
    const memory = operandOf(b, mem, mem.size, false);
    const [kind, value] = numberIn(b, memory, integral);
    attempt(b, functions.compareWith[kind], helper, { args: [value, pops], memory });
  };
/** The helper sets the flags itself, and answers with them. */
const comparedToFlags =
  (pops: 0 | 1): LowerX87 =>
  (b, insn, { leaving }) => {
    const keep = (code: AttemptCode, answer: number) => code.get(answer).const32(0xff).op(0x71); // and
    const args = [register(insn, 1, 1), pops];
    b.setArithmeticFlags(attempt(b, functions.flags, leaving, { args, keep }));
  };
const moved =
  (condition: Condition): LowerX87 =>
  (b, insn, { helper }) => {
    attempt(b, functions.move, helper, { args: [register(insn, 1, 1), b.condition(condition)] });
  };

/** FNSTCW and FNSTSW ask for nothing. */
const storeControl =
  (offset: number): LowerX87 =>
  (b) =>
    b.write(0, b.get(offset, 2), 2);
const loadControl: LowerX87 = (b, _insn, { helper }) => {
  attempt(b, functions.control, helper, { args: [b.read(0, 2)], isControl: true });
};

export const x87Lowerings: { readonly [mnemonic: string]: LowerX87 } = {
  ...families('add'),
  ...families('sub'),
  ...families('subr'),
  ...families('mul'),
  ...families('div'),
  ...families('divr'),
  fld: load(false),
  fild: load(true),
  fldz: constant(0n, 0, functions.loadBits),
  fld1: constant(1n << 63n, 0, functions.loadBits),
  fldpi: constant(0xc90f_daa2_2168_c235n, 1),
  fldl2t: constant(0xd49a_784b_cd1b_8afen, 1),
  fldl2e: constant(0xb8aa_3b29_5c17_f0bcn, 0),
  fldlg2: constant(0x9a20_9a84_fbcf_f799n, -2),
  fldln2: constant(0xb172_17f7_d1cf_79acn, -1),
  fst: store(false, 0, 0),
  fstp: store(false, 0, 1),
  fist: store(true, 0, 0),
  fistp: store(true, 0, 1),
  fisttp: store(true, 1, 1),
  fldcw: loadControl,
  fnstcw: storeControl(State.fcw),
  fnstsw: storeControl(State.fsw),
  fxch: plain(functions.exchange, (insn) => [register(insn, 1, 1)]),
  fsqrt: plain(functions.root),
  frndint: plain(functions.whole),
  fscale: plain(functions.scale),
  fxam: plain(functions.examine),
  wait: (b) => waits(b),
  fchs: plain(functions.sign, () => [0xffff, 0x8000]),
  fabs: plain(functions.sign, () => [0x7fff, 0]),
  ftst: plain(functions.test),
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
  fcmovb: moved('b'),
  fcmove: moved('e'),
  fcmovbe: moved('be'),
  fcmovu: moved('p'),
  fcmovnb: moved('ae'),
  fcmovne: moved('ne'),
  fcmovnbe: moved('a'),
  fcmovnu: moved('np'),
};

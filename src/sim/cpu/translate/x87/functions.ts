/**
 * The x87's common instructions on ordinary numbers, as functions of WebAssembly that translated code attempts. Each gives
 * 0 where it is not that, and has then changed nothing; the helper does the instruction. Of the exceptions only PE is
 * then possible (SDM volume 1, 8.5): no register is empty or in the way, no operand a NaN, infinite or denormal, and no
 * result out of range. FIP, FOP, FDP and FDS are the caller's.
 *
 * A register ST(i) is given as 16 * i.
 */
import { Rounding } from '../../fp/float.ts';
import { State } from '../../processor/state.ts';
import { Fsw } from '../../x87/stack.ts';
import type { Quick } from '../attempt.ts';
import {
  type Body,
  type Definition,
  i,
  type Local,
  l,
  select,
  statePage,
  type Value,
} from '../functions/code.ts';
import { Functions } from '../functions/module.ts';
import { type Source, type Stored, sources, toDouble, toInteger, toSingle, toWhole } from './formats.ts';
import {
  add,
  BIAS,
  comparison,
  DONE,
  divide,
  EXPONENTS,
  exponentOf,
  multiply,
  type Number80,
  root,
  roundingFlags,
  SIGN,
} from './numbers.ts';
import { ANY, type Control, INEXACT, ROUNDING, Stack, TO_NEAREST } from './stack.ts';

const module = new Functions();
const quick = (definition: Definition) => module.quick(definition);

/** A function on the stack: registers are named in `body` before it begins. */
const on = (
  params: string,
  control: Control,
  body: (f: Body, stack: Stack, ...params: Local[]) => void,
): Quick => quick({ params, body: (f, ...params) => body(f, new Stack(f, control), ...params) });

/** ST(destination) as x and the source as y become the operands of one of three functions. */
interface Operation {
  readonly of: Definition;
  readonly swapped?: boolean;
  /** The sign of which is changed. */
  readonly negated?: 'x' | 'y';
}
const operations = {
  add: { of: add },
  sub: { of: add, negated: 'y' },
  subr: { of: add, negated: 'x' },
  mul: { of: multiply },
  div: { of: divide },
  divr: { of: divide, swapped: true },
} as const satisfies { [name: string]: Operation };
const each = (make: (operation: Operation) => Quick) =>
  Object.fromEntries(Object.entries(operations).map(([name, operation]) => [name, make(operation)])) as {
    readonly [name in keyof typeof operations]: Quick;
  };

function operate(
  f: Body,
  stack: Stack,
  { of, swapped, negated }: Operation,
  place: Local,
  x: Number80,
  y: Number80,
): Local {
  const args = (which: 'x' | 'y', { significand, head }: Number80): Value[] => [
    significand,
    negated === which ? i.xor(head, SIGN) : head,
  ];
  const [first, second] = [args('x', x), args('y', y)];
  const operands = swapped === true ? [...second, ...first] : [...first, ...second];
  const outcome = f.i(f.call(of, stack.at(place), ...operands));
  f.giveUpIf(i.isZero(outcome));
  return outcome;
}

const registers = (operation: Operation) =>
  on('iii', TO_NEAREST, (f, stack, to, from, pops) => {
    const place = stack.holds(to!);
    const other = stack.holds(from!);
    stack.begin();
    const outcome = operate(f, stack, operation, place, stack.take(place), stack.take(other));
    stack.pop(pops!);
    stack.settle(outcome);
  });
const memory = ({ type, number }: Source) =>
  each((operation) =>
    on(type, TO_NEAREST, (f, stack, bits) => {
      const place = stack.holds(0);
      stack.begin();
      const y = number(f, bits!);
      stack.settle(operate(f, stack, operation, place, stack.take(place), y));
    }),
  );

const load = ({ type, number }: Source) =>
  on(type, ANY, (f, stack, bits) => {
    const place = stack.room();
    stack.begin();
    stack.put(place, number(f, bits!));
    stack.push(place);
    stack.end();
  });
/** Bits that are what they are. */
const loadBits = (control: Control) =>
  on('li', control, (_f, stack, significand, head) => {
    const place = stack.room();
    stack.begin();
    stack.put(place, { significand: significand!, head: head! });
    stack.push(place);
    stack.end();
  });

const roundingOf = ({ fcw }: Stack) => i.and(i.shr(fcw, 10), 3);
function store(stack: Stack, stored: Stored, pops: Value): void {
  stack.leave(stored.bits);
  stack.pop(pops);
  stack.end(roundingFlags(stored));
}
const storeNumber = (to: (f: Body, x: Number80) => Stored) =>
  on('i', TO_NEAREST, (f, stack, pops) => {
    const place = stack.holds(0);
    stack.begin();
    store(stack, to(f, stack.ordinary(place)), pops!);
  });

const CONDITIONS = Fsw.C0 | Fsw.C1 | Fsw.C2 | Fsw.C3;
/** C3 and C0 stand where ZF and CF do, eight bits further. */
const conditions = (stack: Stack, flags: Value): void => stack.end(i.shl(flags, 8), CONDITIONS);

/** ST(0) with another, and what is done with the flags that this gives. */
const compareRegisters = (end: (stack: Stack, flags: Value) => void) =>
  on('ii', ANY, (f, stack, other, pops) => {
    const places = [stack.holds(0), stack.holds(other!)] as const;
    stack.begin();
    const flags = f.i(comparison(stack.ordinary(places[0]), stack.ordinary(places[1])));
    stack.pop(pops!);
    end(stack, flags);
  });
const compareWith = ({ type, number }: Source) =>
  on(`${type}i`, ANY, (f, stack, bits, pops) => {
    const place = stack.holds(0);
    stack.begin();
    const y = number(f, bits!);
    const flags = f.i(comparison(stack.ordinary(place), y));
    stack.pop(pops!);
    conditions(stack, flags);
  });

const bySource = <T>(make: (source: Source) => T) => ({
  single: make(sources.single),
  double: make(sources.double),
  integer: make(sources.integer),
});

export const x87Functions = {
  /** The registers of the destination and the source, and how often it pops: 0 or 1. */
  registers: each(registers),
  memory: bySource(memory),

  load: bySource(load),
  /** FLD of 80 bits, FLDZ and FLD1: significand and head. */
  loadBits: loadBits(ANY),
  /** FLDPI and its like, as they are rounded to nearest. */
  loadConstant: loadBits(ROUNDING),
  /** FLD ST(i). */
  duplicate: on('i', ANY, (_f, stack, from) => {
    const place = stack.room();
    const source = stack.holds(from!);
    stack.begin();
    stack.put(place, stack.take(source));
    stack.push(place);
    stack.end();
  }),
  /** FST and FSTP to a register. */
  copy: on('ii', ANY, (_f, stack, to, pops) => {
    const source = stack.holds(0);
    const place = stack.holds(to!);
    stack.begin();
    stack.put(place, stack.take(source));
    stack.pop(pops!);
    stack.end();
  }),
  exchange: on('i', ANY, (_f, stack, other) => {
    const places = [stack.holds(0), stack.holds(other!)] as const;
    stack.begin();
    const [x, y] = [stack.take(places[0]), stack.take(places[1])];
    stack.put(places[0], y);
    stack.put(places[1], x);
    stack.end();
  }),
  root: on('', TO_NEAREST, (f, stack) => {
    const place = stack.holds(0);
    stack.begin();
    const { significand, head } = stack.take(place);
    const outcome = f.i(f.call(root, stack.at(place), significand, head));
    f.giveUpIf(i.isZero(outcome));
    stack.settle(outcome);
  }),
  /** FRNDINT. What has no fraction is not rounded, but here only what is not great. */
  whole: on('', INEXACT, (f, stack) => {
    const place = stack.holds(0);
    stack.begin();
    const stored = toWhole(f, stack.ordinary(place), f.i(roundingOf(stack)));
    stack.put(place, stored.number);
    stack.end(roundingFlags(stored));
  }),
  /** FSCALE by less than 2 ** 15, which is exact. */
  scale: on('', ANY, (f, stack) => {
    const place = stack.holds(0);
    const by = stack.holds(16);
    stack.begin();
    const { significand, head } = stack.ordinary(place);
    const power = stack.ordinary(by);
    // Bits behind the point: there are 48 at least, and none counts where there are more than 63.
    const behind = f.i(i.sub(BIAS + 63, exponentOf(power.head)));
    f.giveUpIf(i.lts(behind, 49));
    f.if(l.ne(significand, 0n), () => {
      const count = f.i(i.wrap(l.shr(power.significand, l.extendU(behind))));
      f.if(i.gtu(behind, 63), () => f.set(count, 0));
      f.if(i.and(power.head, SIGN), () => f.set(count, i.sub(0, count)));
      const exponent = f.i(i.add(exponentOf(head), count));
      f.giveUpIf(i.geu(i.sub(exponent, 1), EXPONENTS));
      f.set(head, i.or(i.and(head, SIGN), exponent));
    });
    stack.put(place, { significand, head });
    stack.end();
  }),
  /** FCHS and FABS: the sign's bit as it becomes by `and` and then `xor`. */
  sign: on('ii', ANY, (_f, stack, and, xor) => {
    const place = stack.holds(0);
    stack.begin();
    const { significand, head } = stack.take(place);
    stack.put(place, { significand, head: i.xor(i.and(head, and!), xor!) });
    stack.end();
  }),

  /** FST: what is stored waits in the state page. */
  store: { single: storeNumber(toSingle), double: storeNumber(toDouble) },
  /** FIST and FISTTP: the bits that its integer has not, of 64; whether it truncates in any case; and whether it pops. */
  storeInteger: on('lii', INEXACT, (f, stack, without, truncates, pops) => {
    const place = stack.holds(0);
    stack.begin();
    const rounding = f.i(select(truncates!, Rounding.ZERO, roundingOf(stack)));
    const stored = toInteger(f, stack.ordinary(place), rounding);
    f.giveUpIf(l.ne(l.sar(l.shl(stored.bits, without!), without!), stored.bits));
    store(stack, stored, pops!);
  }),
  /** FSTP of 80 bits. */
  storeBits: on('', ANY, (_f, stack) => {
    const place = stack.holds(0);
    stack.begin();
    const { significand, head } = stack.take(place);
    stack.leave(significand, head);
    stack.pop(1);
    stack.end();
  }),

  /** FCOMI and FUCOMI: 256 and the flags at their places in RFLAGS. */
  flags: compareRegisters((stack, flags) => stack.end(0, 0, i.or(flags, 0x100))),
  /** FCOM and FUCOM of registers; FTST, with a zero. */
  conditions: compareRegisters(conditions),
  test: on('', ANY, (f, stack) => {
    const place = stack.holds(0);
    stack.begin();
    const { significand, head } = stack.ordinary(place);
    conditions(stack, f.i(select(l.isZero(significand), 0x40, i.shr(head, 15))));
  }),
  /** FXAM: C2 is that of a number, C3 of zero, and C1 the sign. */
  examine: on('', ANY, (_f, stack) => {
    const place = stack.holds(0);
    stack.begin();
    const { significand, head } = stack.ordinary(place);
    const kind = select(l.isZero(significand), Fsw.C3, Fsw.C2);
    stack.end(i.or(kind, i.mul(i.shr(head, 15), Fsw.C1)), CONDITIONS);
  }),
  compareWith: bySource(compareWith),
  /** FCMOVcc: from which register, and whether. */
  move: on('ii', ANY, (f, stack, from, condition) => {
    const place = stack.holds(0);
    const source = stack.holds(from!);
    stack.begin();
    f.if(condition!, () => stack.put(place, stack.take(source)));
    stack.end(0, 0);
  }),

  /** FLDCW, where it makes nothing pending. */
  control: quick({
    params: 'i',
    body: (f, value) => {
      const base = f.i(statePage);
      const pending = i.or(i.and(i.xor(value!, -1), 0x3f), Fsw.ES);
      f.giveUpIf(i.and(i.load16(base, State.fsw), pending));
      f.store16(base, State.fcw, i.or(i.and(value!, 0x1f7f), 0x40));
      f.return(DONE);
    },
  }),
} as const;

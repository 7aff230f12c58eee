/**
 * SYSCALL, SYSRET and IRET as the processor has done them before (system/transitions.ts): from the same context, with all that it
 * looked at as it was. Anything else is the helpers'.
 */
import { tableFor } from '../../address/tlb.ts';
import { Seg } from '../../processor/descriptors.ts';
import { ARITHMETIC, Flag, FlagKind, State } from '../../processor/state.ts';
import { Transition, Way } from '../../processor/ways.ts';
import { type Body, i, type Local, l, select, statePage, type Value } from './code.ts';
import { Functions } from './module.ts';
import { placeOf } from './pages.ts';

const RCX = 1 * 8;
const RSP = 4 * 8;
const R11 = 11 * 8;
const FIXED = 2;
/** What may be set afterwards without another mode, a step, or a task that is nested. */
const PLAIN = ARITHMETIC | Flag.IF | Flag.DF | Flag.IOPL | Flag.ID | Flag.RF | FIXED;

/** The way, where it is known from here and nobody waits for anything. */
function known(f: Body, base: Local, way: Value): Local {
  const at = f.i(i.add(base, i.add(i.mul(way, Transition.bytes), State.transitions)));
  const from = f.i(i.load(at, Transition.from));
  f.giveUpIf(
    i.or(i.or(i.isZero(from), i.ne(from, i.load(base, State.context))), i.load(base, State.awaited)),
  );
  return at;
}
const checkCanonical = (f: Body, address: Value) =>
  f.giveUpIf(l.ne(l.sar(l.shl(address, 16n), 16n), address));

/** A descriptor is what it was, as the supervisor reads it. */
function checkDescriptor(f: Body, base: Local, address: Value, value: Value): void {
  const linear = f.l(address);
  f.giveUpIf(l.ne(l.load(placeOf(f, base, tableFor(false, false), linear, 7n), 0), value));
}

/** Flags, RIP, segments and mode. */
function go(f: Body, base: Local, at: Local, flags: Value, rip: Value): void {
  const image = f.i(flags);
  f.store32(base, State.eflags, i.or(i.and(image, ~(ARITHMETIC | Flag.RF)), FIXED));
  // Nobody looks at breakpoints where translated code is executed.
  f.if(i.and(image, Flag.RF), () => f.store64(base, State.resumed, l.load(base, State.count)));
  f.store64(base, State.flagA, l.extendU(i.and(image, ARITHMETIC)));
  f.store32(base, State.flagKind, FlagKind.EXPLICIT);
  f.store64(base, State.rip, rip);
  f.store32(base, State.context, i.load(at, Transition.to));
  const step = f.i(i.load(at, Transition.step));
  for (const current of [State.generation, State.globals])
    f.store32(base, current, i.add(i.load(base, current), step));
  const selectors = f.i(i.load(at, Transition.selectors));
  f.store16(base, State.selectors + 2 * Seg.CS, selectors);
  f.store16(base, State.selectors + 2 * Seg.SS, i.shr(selectors, 16));
  f.return(1);
}

const functions = new Functions();

export const transitions = {
  /** RIP of the next instruction, and RFLAGS. */
  syscall: functions.quick({
    params: 'li',
    body(f, next, flags) {
      const base = f.i(statePage);
      const at = known(f, base, Way.SYSCALL);
      f.store64(base, RCX, next!);
      f.store64(base, R11, l.extendU(flags!));
      const left = i.and(flags!, i.xor(i.load(at, Transition.mask), -1));
      go(f, base, at, left, l.load(at, Transition.rip));
    },
  }),
  sysret: functions.quick({
    params: '',
    body(f) {
      const base = f.i(statePage);
      const at = known(f, base, Way.SYSRET);
      const flags = f.i(i.load(base, R11));
      const target = f.l(l.load(base, RCX));
      f.giveUpIf(i.and(flags, ~PLAIN & SYSRET_FLAGS));
      checkCanonical(f, target);
      go(f, base, at, i.and(flags, SYSRET_FLAGS), target);
    },
  }),
  /** What is on the stack: RIP, CS, RFLAGS, RSP, SS. */
  iret: functions.quick({
    params: 'liili',
    body(f, rip, cs, flags, rsp, ss) {
      const base = f.i(statePage);
      const level = i.and(cs!, 3);
      const at = known(f, base, select(level, Way.IRET + 1, Way.IRET));
      const selectors = i.or(i.and(cs!, 0xffff), i.shl(ss!, 16));
      f.giveUpIf(i.ne(selectors, i.load(at, Transition.selectors)));
      f.giveUpIf(i.and(flags!, ~PLAIN));
      checkCanonical(f, rip!);
      checkDescriptor(f, base, l.load(at, Transition.codeAt), l.load(at, Transition.code));
      const stackAt = f.l(l.load(at, Transition.stackAt));
      f.if(i.isZero(l.isZero(stackAt)), () =>
        checkDescriptor(f, base, stackAt, l.load(at, Transition.stack)),
      );
      f.store64(base, RSP, rsp!);
      go(f, base, at, flags!, rip!);
    },
  }),
} as const;

/** What SYSRET takes of R11 (SDM volume 2, SYSRET). */
const SYSRET_FLAGS = 0x3c_7fd7;

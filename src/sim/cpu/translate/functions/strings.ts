/**
 * STOS and MOVS in 64-bit mode where all of it lies in one page that is known, upwards, and is done at once: bytes that are
 * alike, and copies that do not reach into themselves. Anything else is the helpers' (integer/strings.ts).
 */
import { PAGE } from '../../../arena.ts';
import { Flag, State } from '../../processor/state.ts';
import { type Body, i, type Local, l, select, statePage, type Value } from './code.ts';
import { Functions } from './module.ts';
import { placeOf } from './pages.ts';

const [RAX, RCX, RSI, RDI] = [0, 8, 48, 56];

/** How many bytes there are, of elements of `size` bytes; they are no more than a page has. */
function bytesOf(f: Body, base: Local, size: Local, repeats: Local): Local {
  f.giveUpIf(i.and(i.load(base, State.eflags), Flag.DF));
  const count = f.l(select(repeats, l.load(base, RCX), 1n));
  f.giveUpIf(l.gtu(count, BigInt(PAGE)));
  return f.i(i.mul(i.wrap(count), size));
}
const lastOf = (bytes: Local): Value => l.sub(l.extendU(bytes), 1n);
/** The index register has moved, and nothing is left to repeat. */
function move(f: Body, base: Local, register: number, linear: Local, bytes: Local): void {
  f.store64(base, register, l.add(linear, l.extendU(bytes)));
}
const done = (f: Body, base: Local, repeats: Local) => {
  f.if(repeats, () => f.store64(base, RCX, 0n));
  f.return(1);
};

const functions = new Functions();

export const stringFunctions = {
  /** Bytes of an element, whether there is a REP, where the TLB's table for writing is. */
  stos: functions.quick({
    params: 'iii',
    body(f, size, repeats, table) {
      const base = f.i(statePage);
      const bytes = bytesOf(f, base, size!, repeats!);
      const rax = f.l(l.load(base, RAX));
      const bits = l.mul(l.extendU(size!), 8n);
      // By a shift to the left what is above the element goes.
      const above = f.l(l.and(l.sub(64n, bits), 63n));
      const alike = l.mul(l.and(rax, 0xffn), 0x0101_0101_0101_0101n);
      f.giveUpIf(l.ne(l.shl(rax, above), l.shl(alike, above)));
      const linear = f.l(l.load(base, RDI));
      const to = placeOf(f, base, table!, linear, lastOf(bytes));
      f.fill(to, i.wrap(rax), bytes);
      move(f, base, RDI, linear, bytes);
      done(f, base, repeats!);
    },
  }),
  /** The same, and the table for reading. */
  movs: functions.quick({
    params: 'iiii',
    body(f, size, repeats, table, reads) {
      const base = f.i(statePage);
      const bytes = bytesOf(f, base, size!, repeats!);
      const [source, destination] = [f.l(l.load(base, RSI)), f.l(l.load(base, RDI))];
      const from = placeOf(f, base, reads!, source, lastOf(bytes));
      const to = placeOf(f, base, table!, destination, lastOf(bytes));
      f.giveUpIf(i.ltu(i.sub(to, from), bytes));
      f.copy(to, from, bytes);
      move(f, base, RSI, source, bytes);
      move(f, base, RDI, destination, bytes);
      done(f, base, repeats!);
    },
  }),
} as const;

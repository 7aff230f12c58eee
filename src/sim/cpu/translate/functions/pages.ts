/** Memory that functions reach by themselves: in one page, whose translation is in a table of the TLB. */
import { Tables } from '../../address/tlb.ts';
import { type Body, i, type Local, l, type Value } from './code.ts';

/**
 * Where in the arena a linear address is; gives up where its page is not known, or where it does not have what follows, too.
 * @param table where the table begins in the state page
 * @param last how many bytes behind the first the last one is, in 64 bits
 */
export function placeOf(f: Body, base: Local, table: Value, linear: Local, last: Value): Local {
  const index = i.and(i.wrap(l.shr(linear, 8n)), (Tables.entries - 1) * Tables.entryBytes);
  const entry = f.i(i.add(i.add(base, table), index));
  f.giveUpIf(l.ne(l.load(entry, 0), l.and(l.add(linear, last), -4096n)));
  return f.i(i.add(i.wrap(linear), i.load(entry, 8)));
}

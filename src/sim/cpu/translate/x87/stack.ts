/**
 * The register stack, and how an instruction begins and ends in WebAssembly (SDM volume 1, 8.1): nothing may be pending
 * in FSW, or would be with FCW's masks, no register be empty that is used, or in the way of what is pushed.
 */
import { Exception } from '../../fp/float.ts';
import { Seg } from '../../processor/descriptors.ts';
import { State } from '../../processor/state.ts';
import { EMPTY, Fsw } from '../../x87/stack.ts';
import { type Body, i, type Local, l, statePage, type Value } from '../functions/code.ts';
import { DONE, isOrdinary, type Number80, put } from './numbers.ts';

/** What FCW must have. */
export interface Control {
  readonly mask: number;
  readonly value: number;
}
/** To nearest, PE masked. */
export const TO_NEAREST: Control = { mask: 0xc20, value: 0x20 };
export const INEXACT: Control = { mask: 0x20, value: 0x20 };
export const ROUNDING: Control = { mask: 0xc00, value: 0 };
export const ANY: Control = { mask: 0, value: 0 };

const TOP_MASK = 0x3800;
/** A register takes 16 bytes: a place is a multiple of them, and TOP is in FSW. */
const PLACES = 0x70;
const TOP_TO_PLACE = 7;
/** A register's two bits of the tag word are at its place over eight. */
const PLACE_TO_TAG = 3;

export class Stack {
  readonly #f: Body;
  /** Where the state page is. */
  readonly base: Local;
  readonly fcw: Local;
  readonly #fsw: Local;
  readonly #tags: Local;
  #wrong: Value;

  /** Registers are named before begin(), which looks at all of them at once. */
  constructor(f: Body, { mask, value }: Control) {
    this.#f = f;
    this.base = f.i(statePage);
    this.fcw = f.i(i.load16(this.base, State.fcw));
    this.#fsw = f.i(i.load16(this.base, State.fsw));
    this.#tags = f.i(i.load16(this.base, State.ftw));
    this.#wrong = i.and(this.#fsw, i.or(i.and(i.xor(this.fcw, -1), 0x3f), Fsw.ES));
    if (mask !== 0) this.#wrong = i.or(this.#wrong, i.xor(i.and(this.fcw, mask), value));
  }
  /** The place of ST(i), by sixteen times `i`. */
  #place(offset: Value): Local {
    const top = i.shr(this.#fsw, TOP_TO_PLACE);
    return this.#f.i(i.and(offset === 0 ? top : i.add(top, offset), PLACES));
  }
  #tag(place: Local): Value {
    return i.and(i.shr(this.#tags, i.shr(place, PLACE_TO_TAG)), 3);
  }
  /** The place of a register that holds something. */
  holds(offset: Value): Local {
    const place = this.#place(offset);
    this.#wrong = i.or(this.#wrong, this.#tag(place));
    return place;
  }
  /** The place of the register that is pushed to. */
  room(): Local {
    const place = this.#place(PLACES);
    this.#wrong = i.or(this.#wrong, i.xor(this.#tag(place), EMPTY));
    return place;
  }
  begin(): void {
    this.#f.giveUpIf(this.#wrong);
  }

  /** Addresses, to which State.x87 is added. */
  at(place: Local): Value {
    return i.add(this.base, place);
  }
  take(place: Local): Number80 {
    const at = this.#f.i(this.at(place));
    return {
      significand: this.#f.l(l.load(at, State.x87)),
      head: this.#f.i(i.load16(at, State.x87 + 8)),
    };
  }
  /** The same; it must be an ordinary number. */
  ordinary(place: Local): Number80 {
    const x = this.take(place);
    this.#f.giveUpIf(i.isZero(isOrdinary(x)));
    return x;
  }
  put(place: Local, { significand, head }: { readonly significand: Value; readonly head: Value }): void {
    put(this.#f, this.#f.i(this.at(place)), significand, head);
  }
  /** Where a value waits for the micro-op that stores it. */
  leave(low: Value, high?: Value): void {
    this.#f.store64(this.base, State.vector, low);
    if (high !== undefined) this.#f.store16(this.base, State.vector + 8, high);
  }

  /** So many of the uppermost registers, 0 to 2, are empty from now on. */
  pop(count: Value): void {
    const f = this.#f;
    const shift = i.shr(i.and(i.shr(this.#fsw, TOP_TO_PLACE), PLACES), PLACE_TO_TAG);
    // Both bits of each, around the end of the word.
    const both = f.i(i.shl(i.sub(i.shl(1, i.shl(count, 1)), 1), shift));
    f.set(this.#tags, i.or(this.#tags, i.or(both, i.shr(both, 16))));
    f.store16(this.base, State.ftw, this.#tags);
    this.#setTop(i.add(this.#fsw, i.shl(count, 11)));
  }
  push(place: Local): void {
    const f = this.#f;
    f.store16(this.base, State.ftw, i.and(this.#tags, i.xor(i.shl(EMPTY, i.shr(place, PLACE_TO_TAG)), -1)));
    this.#setTop(i.shl(place, TOP_TO_PLACE));
  }
  #setTop(word: Value): void {
    this.#f.set(this.#fsw, i.or(i.and(this.#fsw, ~TOP_MASK), i.and(word, TOP_MASK)));
  }

  /**
   * Gives `answer`.
   * @param bits of FSW, in the place of those in `mask`; sticky ones are beside it
   */
  end(bits: Value = 0, mask: number = Fsw.C1, answer: Value = DONE): void {
    const f = this.#f;
    const kept = mask === 0 ? this.#fsw : i.and(this.#fsw, ~mask);
    f.store16(this.base, State.fsw, bits === 0 ? kept : i.or(kept, bits));
    f.store16(this.base, State.fcs, i.load16(this.base, State.selectors + 2 * Seg.CS));
    f.return(answer);
  }
  /** After arithmetic, with what that gave. */
  settle(outcome: Value): void {
    this.end(i.and(outcome, Exception.PE | Fsw.C1));
  }
}

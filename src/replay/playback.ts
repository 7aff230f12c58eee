/** Where a replay is in its recording: which call comes next, what is called back before it, and a VMM that does another thing. */
import { type ErrorData, errorOf } from '../hypervisor/error-data.ts';
import { decoded, encoded, type HandleId, sameBytes, type Value } from './codec.ts';
import { ReplayError, type ReplayFailure } from './errors.ts';
import { callbacks, type Entry, floating, type Kind, type Source } from './records.ts';
import { describe, difference } from './waist.ts';

/** What a call has got: its result, and what else its record has. */
export interface Answer {
  readonly result: Value;
  readonly rest: readonly Value[];
}

/** Who answers the VMM. */
export interface Stage {
  /** `vCPU 0` */
  nameOf(id: HandleId): string;
  /** Puts in place what the record says has changed: in pages that VMM and kernel share, and in guest memory. */
  apply(entry: Entry, mapped: readonly Value[], pages: readonly Value[], rest: readonly Value[]): void;
  callBack(entry: Entry, result: Value): void;
  /** Whatever still runs ends. */
  stalled(): void;
}

export class Playback {
  readonly source: Source;
  readonly #stallMs: number;
  readonly #stage: Stage;
  /** The next record. */
  next: Entry | undefined;
  #sequence = 0;
  /** Calls back that came before a call which the VMM has made already. */
  readonly #late: Entry[] = [];
  #scheduled = false;
  #error: ReplayError | undefined;
  /** What keeps the event loop alive, and tells of a VMM that does nothing. */
  #stall: ReturnType<typeof setTimeout> | undefined;
  #waiting = 0;

  constructor(source: Source, stallMs: number, stage: Stage) {
    this.source = source;
    this.#stallMs = stallMs;
    this.#stage = stage;
    this.advance();
  }

  /** The number of the last record that was replayed. */
  get position(): number {
    return this.next === undefined ? this.#sequence : this.#sequence - 1;
  }
  /** Whether all of it was replayed, but for what was closed. */
  get ended(): boolean {
    this.skip();
    return this.#late.length === 0 && this.next === undefined;
  }
  get error(): ReplayError | undefined {
    return this.#error;
  }

  /** Takes the next record as it is. */
  advance(): void {
    this.next = this.source.next();
    if (this.next !== undefined) this.#sequence++;
  }
  /** Over the records that are no call's. */
  skip(): void {
    while (this.next !== undefined && floating.has(this.next.kind)) {
      const entry = this.next;
      this.advance();
      if (entry.kind === 'mark') this.answer(entry);
    }
  }
  #nameOf = (id: HandleId): string => this.#stage.nameOf(id);

  /** The error that ends it, of which all later calls tell too. */
  fail(failure: ReplayFailure, expected: string | undefined, came: string, how: string): ReplayError {
    const place = { ended: 'ends after', stalled: 'waits at', diverged: 'diverges at', damaged: 'fails at' };
    const what = `${place[failure]} record ${this.#sequence}`;
    const message = `the replay ${what}: ${how}`;
    this.#error ??= new ReplayError(failure, message, { sequence: this.#sequence, expected, came });
    this.wait(-this.#waiting);
    return this.#error;
  }
  #over(came: string): ReplayError {
    const why = this.source.complete ? 'the recorded VMM ended there' : 'the recording was cut off there';
    return this.fail('ended', undefined, came, `${why}, and ${came} comes next`);
  }

  /** The record of the next call; what is to be called back before it is put by. */
  head(): Entry | undefined {
    this.skip();
    while (this.next !== undefined && callbacks.has(this.next.kind)) {
      this.#late.push(this.next);
      this.advance();
      this.skip();
    }
    return this.next;
  }

  /** Takes the record of this call. */
  take(kind: Kind, given: readonly Value[]): Answer {
    if (this.#error) throw this.#error;
    const entry = this.head();
    const bytes = encoded(given);
    const came = () => describe({ kind, given: bytes }, this.#nameOf);
    if (entry === undefined) throw this.#over(came());
    if (entry.kind !== kind || !sameBytes(entry.given, bytes)) throw this.#diverged(entry, kind, bytes);
    this.advance();
    return this.answer(entry);
  }

  #diverged(entry: Entry, kind: Kind, bytes: Uint8Array): ReplayError {
    const expected = describe(entry, this.#nameOf);
    const came = describe({ kind, given: bytes }, this.#nameOf);
    if (expected !== came)
      return this.fail('diverged', expected, came, `the recording has ${expected}, and ${came} came`);
    const [had, has] = difference(entry, bytes, this.#nameOf);
    return this.fail(
      'diverged',
      `${expected}: ${had}`,
      `${came}: ${has}`,
      `${expected} with ${had} is recorded, and with ${has} it came`,
    );
  }

  /** What the record says that has come of the call, with its effects in place. */
  answer(entry: Entry): Answer {
    const [threw, result, mapped = [], pages = [], ...rest] = decoded(entry.got);
    this.progress();
    if (threw) throw errorOf(result as ErrorData);
    this.#stage.apply(entry, mapped as Value[], pages as Value[], rest);
    return { result, rest };
  }

  // The event loop

  /** Sees to it that what is called back is called back, and that the event loop lives until then. */
  progress(): void {
    if (this.#stall !== undefined) {
      clearTimeout(this.#stall);
      this.#stall = undefined;
    }
    this.wait(0);
    while (this.next !== undefined && floating.has(this.next.kind) && this.next.kind !== 'mark')
      this.advance();
    const kind = this.next?.kind;
    // What others have written is there once the VMM's own turn is over.
    const isNext = this.#late.length > 0 || (kind !== undefined && (callbacks.has(kind) || kind === 'mark'));
    if (!isNext || this.#scheduled) return;
    this.#scheduled = true;
    soon(this.#deliver);
  }
  /** @param more so many more ends are waited for, or fewer below 0 */
  wait(more: number): void {
    this.#waiting += more;
    if (this.#waiting > 0) this.#stall ??= setTimeout(this.#stalled, this.#stallMs);
    else {
      clearTimeout(this.#stall);
      this.#stall = undefined;
    }
  }
  #stalled = (): void => {
    this.#stall = undefined;
    if (this.#error) return;
    this.skip();
    if (this.next === undefined) this.#over('the end of a run');
    else {
      const expected = describe(this.next, this.#nameOf);
      this.fail(
        'stalled',
        expected,
        'nothing',
        `${expected} is recorded, and the VMM has made no call for ${this.#stallMs / 1000} s`,
      );
    }
    this.#stage.stalled();
  };

  #deliver = (): void => {
    this.#scheduled = false;
    if (this.#error) return;
    this.skip();
    let entry = this.#late.shift();
    if (entry === undefined && this.next !== undefined && callbacks.has(this.next.kind)) {
      entry = this.next;
      this.advance();
    }
    if (entry === undefined) return;
    const { result } = this.answer(entry);
    this.#stage.callBack(entry, result);
  };

  close(): void {
    this.wait(-this.#waiting);
    this.source.close();
  }
}

/** From the event loop. A browser has no setImmediate(). */
const soon = (call: () => void): void => {
  if ('setImmediate' in globalThis) setImmediate(call);
  else setTimeout(call, 0);
};

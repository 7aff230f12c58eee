/**
 * By which vCPUs are reached from any thread, with no more than a number: a row of words for each, in memory that threads
 * share. It has what is asked of the vCPU (kick, stop, pause), whether it stands still, and whom to tell so. A vCPU looks at
 * its row whenever its time slice is over, and waits on it while it is paused. Eventfds are rows there too, so that whoever
 * runs a vCPU can signal one that another thread has made.
 * Threads that were started too early for a table have one each; an id says which table it is of, so that none reaches
 * another vCPU than its own.
 */
import { Errno } from '../../../uapi/errno.ts';
import { sharedMemory, update } from '../../shared-memory.ts';
import { GONE_MS } from './lock.ts';

/** The last number that was given and which table this is; then a row for each vCPU; then one for each eventfd. */
export type KickTable = Int32Array<ArrayBufferLike>;

const HEAD = 2;
/** vCPUs of one process that can be open at a time. */
const PLACES = 4096;
/** Who waits for one vCPU to stand still, at most. */
const WAITERS = 24;
/**
 * The words of a vCPU's row: its number, what is asked of it, its state, which thread runs it, when that has last given a sign
 * of life, and the eventfds to be signalled.
 */
const [NUMBER, REQUESTS, STATE, RUNNER, BEAT, ACKS] = [0, 1, 2, 3, 4, 5] as const;
const WORDS = ACKS + WAITERS;

/** Requests: three bits, of which the third says that somebody waits, and above them how often it is paused. */
const [KICK, STOP, WAITED, PAUSE] = [1, 2, 4, 8] as const;
const PAUSES = ~(KICK | STOP | WAITED);

/** Milliseconds, of which the lower 32 bits count. */
const now = (): number => Date.now() | 0;
/** The same as it was when performance.now() was looked at last, or a little before: one clock is dear enough for a run. */
function nowBy(ms: number): number {
  if (!(ms - looked.at < NEAR_MS && ms >= looked.at)) {
    looked.at = ms;
    looked.is = now();
  }
  return looked.is;
}
const NEAR_MS = 20;
const looked = { at: Number.NEGATIVE_INFINITY, is: 0 };
const isOld = (beat: number): boolean => ((now() - beat) | 0) > GONE_MS;

/** Where a vCPU is. In the first two it stands still. */
export const Standing = {
  /** In no run, and no answer of userspace's is waited for. */
  IDLE: 0,
  /** In a run that waits for resume(). */
  PARKED: 1,
  RUNNING: 2,
  /** In no run, and its last exit waits for userspace's answer. */
  ASKING: 3,
} as const;
export type Standing = (typeof Standing)[keyof typeof Standing];

/** Eventfds that can be open at a time, and the words of eight bytes that each has. */
const EVENTS = 16_384;
const EVENT_WORDS = 4;
const EVENTS_AT = Math.ceil((HEAD + PLACES * WORDS) / 2) * 2;
const LENGTH = EVENTS_AT + EVENTS * EVENT_WORDS * 2;
export const TABLE_BYTES = LENGTH * Int32Array.BYTES_PER_ELEMENT;

/** An id is the table's name and, in the lower bits, a number. */
const NUMBERS = 2 ** 31;
/** Names of tables are above 0, and leave an id a safe integer. */
const NAMES = 2 ** 22;
const nameBy = (number: number): number => 1 + (number % (NAMES - 1));

/** One that threads can share. @param maker the number of the thread that makes it: no other makes one */
export function makeKickTable(maker: number): KickTable {
  const table = new Int32Array(sharedMemory(TABLE_BYTES));
  table[1] = nameBy(maker);
  return table;
}

/** Where threads have no numbers: by chance another's name, once in four million. */
const makeOwnTable = (): KickTable => makeKickTable(crypto.getRandomValues(new Uint32Array(1))[0]!);

/** The words of an eventfd in a table. */
export const eventWords = (table: ArrayBufferLike, number: number): BigInt64Array =>
  new BigInt64Array(table, (EVENTS_AT + (number % EVENTS) * EVENT_WORDS * 2) * 4, EVENT_WORDS);

/** Of an eventfd: its number, 0 in a row that is free; its count; whether it is a semaphore; how many handles it has. */
export const EventWord = { NUMBER: 0, COUNT: 1, SEMAPHORE: 2, HANDLES: 3 } as const;

/** ULLONG_MAX, to which only the kernel itself counts. */
export const TOP = 2n ** 64n - 1n;

/** eventfd_signal(): at the top it stays. */
export function signalEvent(words: BigInt64Array): void {
  update(words, EventWord.COUNT, (count) => (count < TOP ? count + 1n : undefined));
  Atomics.notify(words, EventWord.COUNT);
}

/** A vCPU's own row. */
export class KickWord {
  /** What others reach it by. */
  readonly id: number;
  readonly #table: KickTable;
  readonly #at: number;
  readonly #number: number;

  constructor(table: KickTable, at: number, number: number, id: number) {
    this.#table = table;
    this.#at = at;
    this.#number = number;
    this.id = id;
  }

  /** Whether anything is asked of it at all: one look between two slices. */
  get requested(): boolean {
    return Atomics.load(this.#table, this.#at + REQUESTS) !== 0;
  }
  get kicked(): boolean {
    return (Atomics.load(this.#table, this.#at + REQUESTS) & KICK) !== 0;
  }
  get paused(): boolean {
    return (Atomics.load(this.#table, this.#at + REQUESTS) & PAUSES) !== 0;
  }
  /** A run is interrupted by the kick. */
  takeKick(): void {
    Atomics.and(this.#table, this.#at + REQUESTS, ~KICK);
  }
  get stopped(): boolean {
    return (Atomics.load(this.#table, this.#at + REQUESTS) & STOP) !== 0;
  }
  /** Whether it is stopped; it is not from now on. */
  takeStop(): boolean {
    if (!this.stopped) return false;
    return (Atomics.and(this.#table, this.#at + REQUESTS, ~STOP) & STOP) !== 0;
  }

  /**
   * A thread begins to run it. False while another one does: unless that was terminated, which only its silence tells. The sign
   * of life comes first: whoever saw a runner with the last one's would take it for gone.
   * @param ms performance.now(), where that was looked at anyway
   */
  claim(thread: number, ms?: number): boolean {
    const at = this.#at + RUNNER;
    const { runner } = this;
    if (runner !== 0 && runner !== thread && !this.isSilent) return false;
    this.beat(ms);
    return Atomics.compareExchange(this.#table, at, runner, thread) === runner;
  }
  unclaim(thread: number): void {
    Atomics.compareExchange(this.#table, this.#at + RUNNER, thread, 0);
  }
  /** The thread that runs it, or 0. */
  get runner(): number {
    return Atomics.load(this.#table, this.#at + RUNNER);
  }
  /** @param ms as claim() has it */
  beat(ms?: number): void {
    Atomics.store(this.#table, this.#at + BEAT, ms === undefined ? now() : nowBy(ms));
  }
  /** Whoever had it last has given no sign of life for so long that it is taken for gone. */
  get isSilent(): boolean {
    return isOld(Atomics.load(this.#table, this.#at + BEAT));
  }

  get standing(): Standing {
    return Atomics.load(this.#table, this.#at + STATE) as Standing;
  }
  /**
   * Who asks for a pause enters its eventfd and then looks at the state; here it is the other way round: so one of the two
   * finds what the other did.
   */
  set standing(state: Standing) {
    Atomics.store(this.#table, this.#at + STATE, state);
    if (state > Standing.PARKED || !this.requested) return;
    if ((Atomics.load(this.#table, this.#at + REQUESTS) & WAITED) !== 0) this.#acknowledge();
  }
  #acknowledge(): void {
    Atomics.and(this.#table, this.#at + REQUESTS, ~WAITED);
    for (let at = this.#at + ACKS; at < this.#at + WORDS; at++) {
      const number = Atomics.exchange(this.#table, at, 0);
      if (number === 0) continue;
      const words = eventWords(this.#table.buffer, number);
      if (Atomics.load(words, EventWord.NUMBER) === BigInt(number)) signalEvent(words);
    }
  }

  /** Waits until something else is asked of it than to pause, or for some milliseconds; false where no thread may wait. */
  wait(ms: number): boolean {
    const now = Atomics.load(this.#table, this.#at + REQUESTS);
    if ((now & PAUSES) === 0 || (now & STOP) !== 0) return true;
    try {
      Atomics.wait(this.#table as Int32Array<SharedArrayBuffer>, this.#at + REQUESTS, now, ms);
      return true;
    } catch {
      return false;
    }
  }
  /** Calls back when what is asked of it has changed; from the event loop, and never at once. */
  whenChanged(call: () => void): void {
    const table = this.#table as Int32Array<SharedArrayBuffer>;
    const now = Atomics.load(table, this.#at + REQUESTS);
    if ((now & PAUSES) === 0 || (now & STOP) !== 0) setTimeout(call, 0);
    else if (!('waitAsync' in Atomics)) setTimeout(call, POLL_MS);
    else {
      const { async, value } = Atomics.waitAsync(table, this.#at + REQUESTS, now);
      if (async) void value.then(() => queueMicrotask(call));
      else setTimeout(call, 0);
    }
  }

  /** Whoever waits for it to stand still need not any more. */
  close(): void {
    if (Atomics.compareExchange(this.#table, this.#at + NUMBER, this.#number, 0) !== this.#number) return;
    Atomics.store(this.#table, this.#at + STATE, Standing.IDLE);
    this.#acknowledge();
    Atomics.or(this.#table, this.#at + REQUESTS, STOP);
    Atomics.notify(this.#table, this.#at + REQUESTS);
  }
}

/** Where nothing tells of a change. */
const POLL_MS = 5;

export class Kicks {
  readonly table: KickTable;

  /** @param table this thread's own without it: a page that is not cross-origin isolated can share none */
  constructor(table: KickTable = makeOwnTable()) {
    this.table = table;
  }

  get #base(): number {
    return this.table[1]! * NUMBERS;
  }

  /** A number that no other thread of the process is given, above 0 and below 2^31. */
  number(): number {
    return ((Atomics.add(this.table, 0, 1) >>> 0) % 0x7fff_ffff) + 1;
  }

  /** Undefined when there are too many. An id is never given twice. */
  open(): KickWord | undefined {
    const { table } = this;
    for (let tries = 0; tries < PLACES; tries++) {
      const number = this.number();
      const at = place(number);
      if (Atomics.compareExchange(table, at + NUMBER, 0, number) !== 0) continue;
      for (let word = REQUESTS; word < WORDS; word++) Atomics.store(table, at + word, 0);
      return new KickWord(table, at, number, this.#base + number);
    }
    return undefined;
  }

  /** A row that is there already; undefined when it is not. */
  find(id: number): KickWord | undefined {
    const at = this.#at(id);
    return typeof at === 'number' ? new KickWord(this.table, at, id - this.#base, id) : undefined;
  }

  /** A row for an eventfd, with its number; undefined when there are too many. */
  openEvent(): { number: number; words: BigInt64Array } | undefined {
    for (let tries = 0; tries < EVENTS; tries++) {
      const number = this.number();
      const words = eventWords(this.table.buffer, number);
      if (Atomics.compareExchange(words, EventWord.NUMBER, 0n, BigInt(number)) === 0n)
        return { number, words };
    }
    return undefined;
  }

  /** Where the vCPU's row begins; false without such a vCPU, undefined when the id is of a table that this thread has not. */
  #at(id: number): number | false | undefined {
    if (id < NUMBERS) return false;
    const number = id - this.#base;
    if (number < 0 || number >= NUMBERS) return undefined;
    const at = place(number);
    return number !== 0 && Atomics.load(this.table, at + NUMBER) === number ? at : false;
  }

  /** Whether there is such a vCPU; undefined when the id is of a table that this thread has not. */
  kick(id: number): boolean | undefined {
    return this.#ask(id, KICK);
  }
  stop(id: number): boolean | undefined {
    return this.#ask(id, STOP);
  }
  #ask(id: number, what: number): boolean | undefined {
    const at = this.#at(id);
    if (typeof at !== 'number') return at;
    Atomics.or(this.table, at + REQUESTS, what);
    Atomics.notify(this.table, at + REQUESTS);
    return true;
  }

  /** @param event the number of an eventfd of this table, or 0 */
  pause(id: number, event = 0): number | undefined {
    const at = this.#at(id);
    if (typeof at !== 'number') return at === false ? -Errno.ESRCH : undefined;
    const { table } = this;
    Atomics.add(table, at + REQUESTS, PAUSE);
    if (event === 0) {
      this.#forget(at);
      return Atomics.load(table, at + STATE) > Standing.PARKED ? 1 : 0;
    }
    let ack = at + ACKS;
    while (ack < at + WORDS && Atomics.compareExchange(table, ack, 0, event) !== 0) ack++;
    const full = ack === at + WORDS;
    if (!full) Atomics.or(table, at + REQUESTS, WAITED);
    // One that was closed meanwhile has told whom it found.
    this.#forget(at);
    const moves = Atomics.load(table, at + STATE) > Standing.PARKED;
    if (moves && full) {
      this.resume(id);
      return -Errno.EAGAIN;
    }
    if (moves || full) return moves ? 1 : 0;
    // If it has been told in between, the eventfd is signalled.
    return Atomics.compareExchange(table, ack, event, 0) === event ? 0 : 1;
  }

  /** One that ran in a thread that is gone stands still where that has left it. */
  #forget(at: number): void {
    const { table } = this;
    const runner = Atomics.load(table, at + RUNNER);
    if (runner === 0 || !isOld(Atomics.load(table, at + BEAT))) return;
    if (Atomics.compareExchange(table, at + RUNNER, runner, 0) === runner)
      Atomics.compareExchange(table, at + STATE, Standing.RUNNING, Standing.IDLE);
  }

  resume(id: number): number | undefined {
    const at = this.#at(id);
    if (typeof at !== 'number') return at === false ? -Errno.ESRCH : undefined;
    for (;;) {
      const now = Atomics.load(this.table, at + REQUESTS);
      if ((now & PAUSES) === 0) return -Errno.EINVAL;
      if (Atomics.compareExchange(this.table, at + REQUESTS, now, now - PAUSE) === now) break;
    }
    Atomics.notify(this.table, at + REQUESTS);
    return 0;
  }
}

const place = (number: number): number => HEAD + (number % PLACES) * WORDS;

/**
 * The pager's thread: it owns the source, serves the faults that wait in the kernel (userfaultfd) and what the VMM's
 * thread asks for, and fetches the rest meanwhile. The VMM's thread may stand still in KVM_RUN all the while.
 */

import { type MessagePort, workerData } from 'node:worker_threads';
import { PAGE_SIZE as PAGE } from '../../hypervisor/args.ts';
import { VmexitError } from '../../hypervisor/errors.ts';
import type { Hypervisor } from '../../hypervisor/hypervisor.ts';
import { Userfaultfd } from '../../hypervisor/userfaultfd.ts';
import { openHypervisor } from '../../open.ts';
import { GuestPages, zeroPage } from './guest-pages.ts';
import type { PageSource } from './page-source.ts';
import { type Cause, PageStates } from './page-states.ts';
import type { Notice, Orders, Request } from './protocol.ts';
import { checked, openSource } from './source.ts';

/** What is fetched at a time when nobody waits for it: 256 KiB. */
const PREFETCH = 64;
/** How often vCPUs are kicked until the VMM has taken notice. */
const KICK_MS = 20;

class PagerThread {
  readonly #orders: Orders;
  readonly #states: PageStates;
  readonly #guest: GuestPages;
  /** From run() on. */
  #source: PageSource | undefined;
  /** Pages that the VMM's thread waits for. */
  readonly #wanted = new Map<number, Cause>();
  /** A source that sends all pages has not come to their end. */
  #pushing = false;
  /** Where fetching goes on. */
  #next = 0;
  #over = false;

  constructor(hv: Hypervisor, orders: Orders) {
    this.#orders = orders;
    this.#states = new PageStates(orders.pages, orders.states);
    this.#guest = new GuestPages(
      orders.areas.map(({ first, pages, into }) => ({
        first,
        pages,
        into: 'memory' in into ? hv.openMemory(into.memory) : hv.openUserfaultfd(into.userfaultfd),
      })),
      orders.armed.map(({ first, bitmap, pages }) => ({
        first,
        bitmap: hv.openUserfaultBitmap(bitmap, pages),
      })),
    );
  }

  /** Faults are looked at first: without a source, too, somebody may be waiting. */
  watch(): void {
    for (const { first, into } of this.#guest.areas) {
      if (!(into instanceof Userfaultfd)) continue;
      into.watch(() => this.#faults(first, into.read(), (offset) => zeroPage(into, offset)));
    }
  }
  run(): void {
    const source = openSource(this.#orders.source, this.#orders.pages);
    this.#source = source;
    if ('start' in source) {
      this.#pushing = true;
      source.start(
        (first, bytes, asked) => this.#delivered(first, bytes, asked),
        (error) => this.#ended(error),
      );
    } else if (this.#orders.prefetch) {
      this.#fetch().catch(fail);
    }
  }

  want(page: number, cause: Cause): void {
    this.#wanted.set(page, cause);
    this.#serve(page, this.#orders.batch, cause)?.catch(fail);
    this.tell();
  }

  stop(): void {
    this.#over = true;
    this.#source?.close();
    for (const { into } of this.#guest.areas) into.close();
  }

  #faults(first: number, offsets: readonly number[], there: (offset: number) => void): void {
    const cause = this.#orders.armed.length > 0 ? 'kernel' : 'fault';
    for (const offset of offsets) {
      const page = first + offset / PAGE;
      if (this.#states.isPresent(page)) there(offset);
      else if (failed) this.#letGo(page);
      else {
        this.#waited.add(page);
        this.#serve(page, this.#orders.batch, cause)?.catch(fail);
      }
    }
  }
  /** Pages that somebody waits for in the kernel. */
  readonly #waited = new Set<number>();

  /**
   * Nothing more comes. What KVM's emulator waits for cannot be interrupted: it gets zeroes, and the run that goes
   * on with them is ended by check() before anybody looks at its exit.
   */
  release(): void {
    for (const page of this.#waited) if (!this.#states.isPresent(page)) this.#letGo(page);
    this.#waited.clear();
  }
  #letGo(page: number): void {
    for (const { first, pages, into } of this.#guest.areas) {
      if (into instanceof Userfaultfd && page >= first && page < first + pages)
        zeroPage(into, (page - first) * PAGE);
    }
  }

  /** Reads and puts the page and its neighbours, unless somebody else does. A promise when the source takes its time. */
  #serve(page: number, batch: number, cause: Cause): Promise<void> | undefined {
    const source = this.#source;
    if (source === undefined) return undefined;
    if ('start' in source) {
      source.want?.(page);
      return undefined;
    }
    const begun = performance.now();
    const claim = this.#states.claim(page, batch);
    if (claim === undefined) return undefined;
    const { first, count } = claim;
    if (cause !== 'prefetch') this.#next = first + count;
    const put = (bytes: Uint8Array) => {
      if (this.#over) {
        this.#states.unclaim(first, count);
        return;
      }
      this.#put(first, checked(bytes, first, count), cause);
      if (cause !== 'prefetch') this.#states.measured((performance.now() - begun) * 1000);
    };
    const undo = (error: unknown) => {
      this.#states.unclaim(first, count);
      throw error;
    };
    try {
      const bytes = source.read(first, count);
      if (bytes instanceof Uint8Array) put(bytes);
      else return this.#inTime(bytes, first).then(put).catch(undo);
    } catch (error) {
      return Promise.reject(error).catch(undo);
    }
    return undefined;
  }

  async #inTime(bytes: Promise<Uint8Array>, page: number): Promise<Uint8Array> {
    const { timeoutMs } = this.#orders;
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      const error = new Error(`the source has not given page ${page} within ${timeoutMs} ms`);
      timer = setTimeout(reject, timeoutMs, error);
    });
    try {
      return await Promise.race([bytes, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  #put(first: number, bytes: Uint8Array, cause: Cause): void {
    this.#guest.put(first, bytes);
    const count = bytes.length / PAGE;
    for (const page of this.#waited) if (page >= first && page < first + count) this.#waited.delete(page);
    this.#states.settle(first, count, cause);
    this.tell();
  }

  /** What a source has sent, on its own or asked: each run of pages that is not there yet. */
  #delivered(first: number, bytes: Uint8Array, asked = false): void {
    const end = first + bytes.length / PAGE;
    if (this.#over) return;
    const cause = asked ? this.#causeOf(first, end) : 'push';
    for (let page = first; page < end; ) {
      const claim = this.#states.claim(page, 1);
      if (claim === undefined) {
        page++;
        continue;
      }
      let last = page + 1;
      while (last < end && this.#states.claim(last, 1) !== undefined) last++;
      this.#put(page, bytes.subarray((page - first) * PAGE, (last - first) * PAGE), cause);
      page = last;
    }
  }
  #causeOf(first: number, end: number): Cause {
    for (const [page, cause] of this.#wanted) if (page >= first && page < end) return cause;
    return this.#orders.armed.length > 0 ? 'kernel' : 'fault';
  }
  /**
   * Whoever sends all pages is heard to the end: it may keep its own until then. A page that the VMM's thread is discarding is
   * claimed, and will be there in a moment.
   */
  #ended(error?: Error): void {
    const isWhole = error === undefined && this.#states.nextAbsent(0) === undefined;
    if (!isWhole && !this.#states.complete) {
      fail(error ?? new Error('the source has ended before all pages were there'));
      return;
    }
    this.#pushing = false;
    this.tell();
  }

  async #fetch(): Promise<void> {
    for (;;) {
      // Faults and requests come first: they are events of this thread's loop.
      await new Promise((turn) => setImmediate(turn));
      if (this.#over || this.#states.failed) return;
      const page = this.#states.nextAbsent(this.#next);
      if (page === undefined) return;
      this.#next = page + PREFETCH;
      await this.#serve(page, PREFETCH, 'prefetch');
    }
  }

  #told = false;
  /** What the VMM's thread waits for, if it is there. */
  tell(): void {
    for (const page of this.#wanted.keys()) {
      if (!this.#states.isPresent(page)) continue;
      this.#wanted.delete(page);
      notify({ type: 'there', page });
    }
    if (this.#told || this.#pushing || !this.#states.complete) return;
    this.#told = true;
    notify({ type: 'complete' });
  }
}

const { orders, port } = workerData as { orders: Orders; port: MessagePort };
const notify = (notice: Notice) => port.postMessage(notice);
let hv: Hypervisor | undefined;
let thread: PagerThread | undefined;
let failed = false;

/** What of it looks at faults, without which nobody hears who waits in the kernel. */
function begin(): PagerThread {
  hv ??= openHypervisor({ backend: orders.backend });
  const begun = new PagerThread(hv, orders);
  begun.watch();
  thread = begun;
  return begun;
}

/** Nothing more comes: says so, and interrupts what waits in the kernel for pages. */
function fail(error: unknown): void {
  const states = new PageStates(orders.pages, orders.states);
  // With all pages there the VMM's thread may have closed what this one is about to open.
  if (failed || states.complete) return;
  failed = true;
  // In this order: who sees that it has failed finds out why.
  const code = error instanceof VmexitError ? error.code : 'ERR_KVM_SOURCE';
  notify({ type: 'failed', code, message: error instanceof Error ? error.message : String(error) });
  states.fail();
  const kick = () => {
    try {
      if (thread === undefined) begin(); // it may be this that has failed
    } catch {}
    for (const id of orders.kickIds) hv?.kick(id);
    thread?.release();
  };
  kick();
  const kicks = setInterval(kick, KICK_MS);
  port.on('message', () => clearInterval(kicks));
}

port.on('message', (request: Request) => {
  if (request.type === 'want') {
    if (!failed) thread?.want(request.page, request.cause);
    return;
  }
  if (request.type === 'look') {
    thread?.tell();
    return;
  }
  failed = true; // what ends by being closed has not failed
  thread?.stop();
  hv?.close();
  port.close();
});

// A call of the kernel's that fails where its loop calls back: whoever waits in the kernel must not wait for ever.
process.on('uncaughtException', fail);

try {
  begin().run();
} catch (error) {
  fail(error);
}

/**
 * Demand paging: a guest runs at once, and its memory comes from a source as it is touched, and in the background.
 *
 * Who waits for whom: in a synchronous KVM_RUN the VMM's thread stands still, so faults that wait in the kernel are
 * served by a thread of the pager's own, which owns the source. What comes as an exit, and what the VMM itself wants to
 * read (GuestMemory.ensure()), is served in the VMM's thread where the source gives its bytes at once, and is
 * awaited where it does not.
 */
import { join } from 'node:path';
import { MessageChannel, type MessagePort, receiveMessageOnPort, Worker } from 'node:worker_threads';
import { integer, object, PAGE_SIZE as PAGE } from '../../hypervisor/args.ts';
import { outOfRange, VmexitError, wrongType } from '../../hypervisor/errors.ts';
import { GuestMemory } from '../../hypervisor/guest-memory.ts';
import type { Hypervisor } from '../../hypervisor/hypervisor.ts';
import type { Slot } from '../../hypervisor/memory-map.ts';
import type { ExitHandler, Vcpu } from '../../hypervisor/vcpu.ts';
import type { Vm } from '../../hypervisor/vm.ts';
import { packageRoot } from '../../package.ts';
import { MemoryFaultFlag } from '../../uapi/constants.ts';
import { Exit } from '../../uapi/exit.ts';
import { named } from './errors.ts';
import { GuestPages } from './guest-pages.ts';
import type { PagerOptions, PagerReport } from './options.ts';
import type { PullSource } from './page-source.ts';
import { type Cause, PageStates } from './page-states.ts';
import type { Notice, Orders, Request } from './protocol.ts';
import { checked, checkSource, isImmediate, openSource, shareable } from './source.ts';
import { type Arms, arm, disarmSlots, strategies, within } from './strategy.ts';

const ALL_BATCH = 4096;
/** The pages [first, end) that have some bytes of a memory, whose pages begin with `base`. */
const pagesOf = (base: number, offset: number, size: number): [first: number, end: number] => [
  base + Math.floor(offset / PAGE),
  base + Math.ceil((offset + size) / PAGE),
];

/** The pager's thread, as it is compiled: worker threads cannot run TypeScript. */
const thread = () => join(packageRoot(), 'dist', 'vmm', 'pager', 'thread.js');

interface Waiter {
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

/**
 * Runs a guest before its memory is there: each page comes from a source when it is touched, and the rest in
 * the background. A handler for a RunLoop.
 * @example
 * ```ts
 * import { flatImage, Machine, openHypervisor, Pager, RunLoop } from 'vmexit';
 *
 * const hv = openHypervisor({ needs: ['userfault'] });
 * const machine = new Machine(hv, { memory: 0x10_0000 });
 * const { memory, vcpu, vm } = machine;
 * // A guest whose memory is elsewhere: here, in a buffer.
 * const bytes = new Uint8Array(memory.size);
 * bytes.set([0xa0, 0x00, 0x80, 0xf4], 0x1000); // mov al, [0x8000]; hlt
 * bytes[0x8000] = 42;
 * machine.load({ ...flatImage(Uint8Array.of(0xf4), 'real'), segments: [] }); // registers alone
 *
 * const source = { kind: 'buffer', bytes } as const;
 * const pager = Pager.start(hv, vm, { memories: [memory], source, vcpus: [vcpu], prefetch: false });
 * const { reason } = await new RunLoop(vcpu, { handlers: [pager] }).run({ timeoutMs: 5000 });
 * console.log(`${reason}, al is ${vcpu.getRegs().rax & 0xffn}; not all pages were needed:`);
 * console.log(pager.report.byCause.fault > 0 && pager.report.present < pager.report.pages);
 * await pager.stop();
 * machine.close();
 * pager[Symbol.dispose]();
 * hv.close();
 * // prints: halt, al is 42; not all pages were needed:
 * // prints: true
 * ```
 */
export class Pager implements ExitHandler, Disposable {
  readonly #vm: Vm;
  readonly #arms: Arms;
  /** Where each memory's pages begin. */
  readonly #spans: readonly {
    readonly first: number;
    readonly pages: number;
    readonly memory: GuestMemory;
  }[];
  readonly #states: PageStates;
  readonly #guest: GuestPages;
  readonly #batch: number;
  readonly #timeoutMs: number;
  /** The source, where it gives its bytes at once. */
  readonly #source: PullSource | undefined;
  readonly #thread: { readonly worker: Worker; readonly port: MessagePort } | undefined;
  readonly #waiting = new Map<number, Waiter[]>();
  readonly #begun = performance.now();
  #endedAt: number | undefined;
  #state: PagerReport['state'] = 'running';
  #error: VmexitError | undefined;
  /** What tell() has marked. */
  readonly #told: Int32Array;
  #armed = true;
  readonly #done: Promise<void>;
  #settle!: Waiter;

  /**
   * Arms the memories and begins. The guest may run at once: what it touches first comes first.
   * @throws TypeError, RangeError ERR_KVM_INVALID_ARG; UnavailableError when there is no way to do it here, with the
   *   reasons; VmexitError ERR_KVM_SOURCE. Nothing has changed then
   */
  static start(hv: Hypervisor, vm: Vm, options: PagerOptions): Pager {
    return new Pager(hv, vm, object('options', options));
  }

  private constructor(hv: Hypervisor, vm: Vm, options: PagerOptions) {
    const { memories, source, strategy = 'auto', prefetch = true, vcpus = [] } = options;
    if (!Array.isArray(memories) || !memories.every((memory) => memory instanceof GuestMemory))
      throw wrongType('memories', memories, 'an array of what Vm.allocate() gives');
    if (strategy !== 'auto' && !strategies.includes(strategy))
      throw outOfRange('strategy', strategy, `'auto' or one of ${strategies.join(', ')}`);
    checkSource(source);
    this.#batch = integer('batch', options.batch ?? 16, ALL_BATCH, 1);
    this.#timeoutMs = integer('timeoutMs', options.timeoutMs ?? 30_000, 2 ** 31 - 1, 1);
    this.#vm = vm;
    this.#done = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
    });
    this.#done.catch(() => {}); // who asks is told; others learn it from handle() and check()

    let pages = 0;
    const spans = memories.map((memory) => {
      const first = pages;
      pages += memory.size / PAGE;
      return { first, pages: memory.size / PAGE, memory };
    });
    const shared = shareable(source);
    this.#source = isImmediate(shared) ? (openSource(shared, pages) as PullSource) : undefined;
    this.#states = new PageStates(pages);
    const runs = this.#source?.runs && [...this.#source.runs()];
    if (runs) this.#states.only(runs);
    this.#told = this.#states.told();
    const first = (memory: GuestMemory | undefined) => spans.find((span) => span.memory === memory)!.first;
    const wanted = (slot: Slot) =>
      within(runs, first(slot.memory) + slot.memoryOffset / PAGE, (slot.end - slot.start) / PAGE);
    try {
      this.#arms = arm(vm, memories, strategy, wanted, (memory, offset) =>
        this.#now(first(memory) + Math.floor(offset / PAGE), 'kernel'),
      );
    } catch (error) {
      this.#source?.close();
      throw error;
    }
    const { slots, userfaultfds } = this.#arms;
    this.#spans = spans;
    const armed = slots.map(({ slot, bitmap }) => ({
      first: first(slot.memory) + slot.memoryOffset / PAGE,
      bitmap,
    }));
    this.#guest = new GuestPages(
      spans.map(({ memory, ...span }) => ({ ...span, into: userfaultfds.get(memory) ?? memory })),
      armed,
    );
    for (const { memory, first } of spans)
      memory.demand = {
        ensure: (offset, size) => this.#ensure(...pagesOf(first, offset, size)),
        bring: (offset, size) => this.#bring(...pagesOf(first, offset, size)),
        forget: (offset, size) => this.#forget(...pagesOf(first, offset, size)),
        tell: () => this.#tell(),
      };

    if (this.#states.complete) {
      this.#complete();
      return;
    }
    // With all of it in this thread, and nothing to be done in the background, there is no need of another.
    if (this.#source !== undefined && !prefetch && userfaultfds.size === 0) return;
    try {
      this.#thread = this.#begin({
        backend: hv.backend,
        states: this.#states.buffer,
        pages,
        source: shared,
        areas: spans.map(({ memory, ...span }) => {
          const userfaultfd = userfaultfds.get(memory);
          const into = userfaultfd ? { userfaultfd: userfaultfd.share() } : { memory: memory.share(true) };
          return { ...span, into };
        }),
        armed: armed.map(({ first, bitmap }) => ({ first, bitmap: bitmap.share(), pages: bitmap.pages })),
        prefetch,
        batch: this.#batch,
        timeoutMs: this.#timeoutMs,
        kickIds: vcpus.map(({ kickId }) => kickId),
      });
    } catch (error) {
      this.#source?.close();
      this.#disarm();
      throw error;
    }
  }

  /** By a port of its own, which can be read in the middle of a run too. */
  #begin(orders: Orders): { worker: Worker; port: MessagePort } {
    const { port1, port2: port } = new MessageChannel();
    const worker = new Worker(thread(), { workerData: { orders, port: port1 }, transferList: [port1] });
    port.on('message', (notice: Notice) => this.#notice(notice));
    worker.on('error', (cause) =>
      this.#fail(
        new VmexitError('ERR_KVM_SOURCE', `the pager's thread has ended: ${cause.message}`, { cause }),
      ),
    );
    return { worker, port };
  }
  #notice(notice: Notice): void {
    if (notice.type === 'there') this.#there(notice.page);
    else if (notice.type === 'complete') this.#complete();
    else this.#fail(new VmexitError(notice.code, notice.message));
  }

  // --- the guest's accesses ---

  /**
   * Serves a fault of a page that is not there yet. A page that is both private and not there is served here first,
   * and then converted by who serves that.
   * @returns whether it was such a fault, and the guest can run on; a promise where the source takes its time
   * @throws VmexitError ERR_KVM_SOURCE when the source has failed, ERR_KVM_PAGER when the pager was stopped
   */
  handle(vcpu: Vcpu, exit: number): boolean | Promise<boolean> {
    if (exit !== Exit.MEMORY_FAULT || (vcpu.memoryFault.flags & MemoryFaultFlag.USERFAULT) === 0)
      return false;
    const page = this.#pageAt(vcpu.memoryFault.gpa);
    if (page === undefined) return false;
    const served = this.#serve(page, 'fault');
    return served === undefined ? true : served.then(() => true);
  }

  /** Of the slots that were armed. */
  #pageAt(gpa: number): number | undefined {
    const slot = this.#vm.memoryMap.slotAt(gpa);
    const area = this.#spans.find(({ memory }) => memory === slot?.memory);
    return area && area.first + (slot!.memoryOffset + gpa - slot!.start) / PAGE;
  }

  /**
   * To be called before the guest runs, and after it has, before its exit is looked at: throws what ends the run. What
   * waits in the kernel for a page when the source fails may have been given zeroes.
   */
  check(): void {
    if (this.#error === undefined && this.#states.failed && this.#thread !== undefined) {
      // The event loop has not come to it.
      for (
        let next = receiveMessageOnPort(this.#thread.port);
        next;
        next = receiveMessageOnPort(this.#thread.port)
      )
        this.#notice(next.message as Notice);
    }
    if (this.#error !== undefined) throw this.#error;
  }

  /** Undefined when the page is there now. */
  #serve(page: number, cause: Cause): Promise<void> | undefined {
    const begun = performance.now();
    if (this.#states.isPresent(page)) {
      // Its bit was read before it was cleared.
      if (this.#armed) this.#guest.release(page, 1);
      return undefined;
    }
    this.check();
    if (this.#source === undefined) {
      return this.#want(page, cause).then(() => this.#states.measured((performance.now() - begun) * 1000));
    }
    const claim = this.#states.claim(page, this.#batch);
    if (claim === undefined) {
      // The pager's thread is at it, with bytes that it has at once.
      if (!this.#states.waitFor(page, this.#timeoutMs)) throw this.#late(page);
      return undefined;
    }
    const { first, count } = claim;
    try {
      this.#guest.put(first, checked(this.#source.read(first, count) as Uint8Array, first, count));
    } catch (error) {
      this.#states.unclaim(first, count);
      throw this.#fail(error as Error);
    }
    this.#states.settle(first, count, cause);
    this.#states.measured((performance.now() - begun) * 1000);
    if (this.#states.complete) this.#complete();
    return undefined;
  }

  #late(page: number): VmexitError {
    const why = this.#states.failed
      ? 'the source has failed'
      : `nothing has come within ${this.#timeoutMs} ms`;
    return this.#error ?? new VmexitError('ERR_KVM_SOURCE', `page ${page} is not there: ${why}`);
  }

  #want(page: number, cause: Cause): Promise<void> {
    return new Promise((resolve, reject) => {
      const waiters = this.#waiting.get(page) ?? [];
      waiters.push({ resolve, reject });
      this.#waiting.set(page, waiters);
      this.#ask({ type: 'want', page, cause });
    });
  }
  #ask(request: Request): void {
    this.#thread?.port.postMessage(request);
  }
  #there(page: number): void {
    for (const { resolve } of this.#waiting.get(page) ?? []) resolve();
    this.#waiting.delete(page);
  }

  /** The page is there when this returns. @throws what it will not come for */
  #now(page: number, cause: Cause): void {
    if (this.#states.isPresent(page)) return;
    if (this.#source !== undefined) {
      this.#serve(page, cause);
      return;
    }
    this.check();
    this.#ask({ type: 'want', page, cause });
    if (!this.#states.waitFor(page, this.#timeoutMs)) throw this.#late(page);
  }

  /** GuestMemory.ensure(). */
  async #ensure(first: number, end: number): Promise<void> {
    const waits: Promise<void>[] = [];
    for (let page = first; page < end; page++) {
      const wait = this.#serve(page, 'ensure');
      if (wait !== undefined) waits.push(wait);
    }
    await Promise.all(waits);
  }

  /** GuestMemory.write(): what the source brings later would take the place of what is written now. */
  #bring(first: number, end: number): void {
    for (let page = first; page < end; page++) this.#now(page, 'ensure');
  }

  /** GuestMemory.discard(): claims what nobody has, and waits for what somebody else is bringing. */
  #forget(first: number, end: number): boolean {
    for (let page = first; page < end; page++) {
      const mine = () => this.#states.claim(page, 1) !== undefined;
      if (mine() || (!this.#states.waitFor(page, this.#timeoutMs) && mine())) {
        this.#guest.zero(page, 1);
        this.#states.settle(page, 1, 'discard');
        this.#there(page);
      } else if (!this.#states.isPresent(page)) return false;
    }
    if (!this.#states.complete) return true;
    if (this.#thread === undefined) this.#complete();
    else this.#ask({ type: 'look' });
    return true;
  }

  /** Marks the pages that have come: those that its thread has brought, too. */
  #tell(): void {
    this.#states.tell(this.#told, (page) => {
      const { memory, first } = this.#spans.find((span) => page < span.first + span.pages)!;
      memory.markDirty((page - first) * PAGE, PAGE);
    });
  }

  // --- the end ---

  /** Resolves when all pages are there. @throws what has ended it before: ERR_KVM_SOURCE, ERR_KVM_PAGER */
  get complete(): Promise<void> {
    return this.#done;
  }

  /** What has been served so far, how, and how long it took. */
  get report(): PagerReport {
    const { pages, present, zero, byCause, latency } = this.#states;
    const { strategy, uncovered } = this.#arms;
    const elapsedMs = (this.#endedAt ?? performance.now()) - this.#begun;
    return { strategy, uncovered, pages, present, zero, byCause, latency, elapsedMs, state: this.#state };
  }

  /** The pages that are not there yet, as ranges [first, end). */
  missing(): { first: number; end: number }[] {
    return this.#states.missing();
  }

  #complete(): void {
    if (this.#state !== 'running') return;
    this.#end('complete');
    try {
      this.#disarm();
    } catch {
      // A slot whose bits are all clear stops nobody, and is tried again when this is closed.
    }
    // Who has just asked for a page that was on its way: the answer would come by a port that keeps no process alive.
    for (const page of [...this.#waiting.keys()]) this.#there(page);
    this.#settle.resolve();
  }

  #fail(cause: Error): VmexitError {
    if (this.#error !== undefined) return this.#error;
    const code = cause instanceof VmexitError ? cause.code : 'ERR_KVM_SOURCE';
    const { present, pages } = this.#states;
    const lacks = `${pages - present} of ${pages} pages are missing`;
    this.#error = new VmexitError(
      code,
      `${cause.message}; ${lacks}, and the guest cannot go on${named(this.missing())}`,
      { cause },
    );
    if (this.#state !== 'running') return this.#error;
    this.#states.fail();
    this.#end(code === 'ERR_KVM_PAGER' ? 'stopped' : 'failed');
    for (const waiters of this.#waiting.values()) for (const { reject } of waiters) reject(this.#error);
    this.#waiting.clear();
    this.#settle.reject(this.#error);
    return this.#error;
  }

  #end(state: PagerReport['state']): void {
    this.#state = state;
    this.#endedAt = performance.now();
    // After a failure its thread lives on: whoever looks at what is missing must not wait for it for ever.
    if (state !== 'failed') this.#ask({ type: 'stop' });
    this.#source?.close();
    // What it still has to do keeps nobody.
    this.#thread?.worker.unref();
    this.#thread?.port.unref();
  }

  /** Accesses need no attention any more. @throws KvmError as disarmSlots() */
  #disarm(): void {
    if (this.#armed) {
      this.#armed = false;
      this.#tell();
      for (const { memory } of this.#spans) {
        memory.demand = undefined;
        if (this.#arms.strategy === 'sim' && !memory.closed) memory.onOwnAccess(undefined);
      }
      for (const userfaultfd of this.#arms.userfaultfds.values()) userfaultfd.close();
    }
    disarmSlots(this.#vm, this.#arms.slots);
  }

  /**
   * Ends it. With pages missing the guest cannot go on: handle() and check() say so, and the pages stay armed, so that
   * none is taken for zeroes.
   */
  async stop(): Promise<void> {
    if (this.#state === 'running') this.#fail(new VmexitError('ERR_KVM_PAGER', 'the pager was stopped'));
    else if (this.#state === 'failed') this.#ask({ type: 'stop' });
    const worker = this.#thread?.worker;
    if (worker === undefined || worker.threadId < 0) return;
    worker.ref();
    await new Promise<void>((resolve) => worker.once('exit', () => resolve()));
  }

  /**
   * Ends it, and gives back all that it holds. A page that is missing reads as zeroes after that: close the VM first.
   * @throws KvmError when the kernel refuses a slot without its userfault bitmap; another call tries it again
   */
  [Symbol.dispose](): void {
    if (this.#state === 'running') this.#fail(new VmexitError('ERR_KVM_PAGER', 'the pager was closed'));
    this.#ask({ type: 'stop' });
    this.#disarm();
  }
}

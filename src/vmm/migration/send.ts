/** The source of a migration: hands its guest over, and then the pages, those first that somebody waits for. */
import { createHash } from 'node:crypto';
import { connect, type Socket } from 'node:net';
import type { AbortSignalLike } from '../../hypervisor/abort.ts';
import { integer, object, PAGE_SIZE as PAGE } from '../../hypervisor/args.ts';
import { MigrationError, VmexitError } from '../../hypervisor/errors.ts';
import type { GuestMemory } from '../../hypervisor/guest-memory.ts';
import type { Hypervisor } from '../../hypervisor/hypervisor.ts';
import type { Vcpu } from '../../hypervisor/vcpu.ts';
import type { Vm } from '../../hypervisor/vm.ts';
import { type CaptureOptions, captureState } from '../snapshot/index.ts';
import { type Address, addressName, parseAddress } from './address.ts';
import { Channel, MAX_RUN } from './channel.ts';
import { isZero, runHead } from './runs.ts';

/** What sendGuest() hands over, and to whom. */
export interface SendOptions extends CaptureOptions {
  /** Whose guest it is. */
  readonly vm: Vm;
  /** All that the VM has. None runs, from now until the promise is settled. */
  readonly vcpus: readonly Vcpu[];
  /** Where the destination listens: `unix:PATH` or `tcp:HOST:PORT`. */
  readonly to: string;
  /** How long the destination may say nothing, in milliseconds: 30,000 without it. */
  readonly timeoutMs?: number;
  /** Told as pages leave: how many have, of how many. */
  readonly onProgress?: (sent: number, pages: number) => void;
  /**
   * Cancels. Once the guest is handed over it cannot be called back: the connection is broken then, and neither side
   * goes on.
   */
  readonly signal?: AbortSignalLike | undefined;
}

/** What a migration has cost. */
export interface SendReport {
  /** Of the guest's memory; each was sent once. */
  readonly pages: number;
  /** Of those, which the destination waited for, with the neighbours that went along. */
  readonly pulled: number;
  /** Of those, which were sent without being asked for. */
  readonly pushed: number;
  /** Pages that were all zeroes, and took no room. */
  readonly zeroes: number;
  /** Milliseconds from the call until the guest was the destination's, and until all pages were there. */
  readonly handedOverMs: number;
  /** Milliseconds from the call until all pages were at the destination. */
  readonly elapsedMs: number;
}

const DEFAULT_TIMEOUT_MS = 30_000;
/** What goes with a page that somebody waits for: the pages behind it. */
const PULLED_RUN = 16;
/** Between attempts to reach the thread that is about to listen. */
const RETRY_MS = 5;

/**
 * Hands a guest over to a receiveGuest() elsewhere. It is paused here, and goes on there at once; its memory follows.
 * Only when the destination has said that every page is there is the promise resolved: the VM is to be closed then.
 *
 * Who listens at the address is believed, and what is sent can be read on the way: use a Unix socket in a folder of
 * your own, or a tunnel.
 * @throws VmexitError ERR_KVM_NOT_SAVABLE for a guest with private pages (the range is named) and what else
 *   captureState() cannot save; MigrationError ERR_KVM_MIGRATION, whose `handedOver` tells whether the guest may run on
 *   here; the signal's reason; RangeError ERR_KVM_INVALID_ARG. Nothing of the guest is lost then
 * @example
 * ```ts
 * import { tmpdir } from 'node:os';
 * import { join } from 'node:path';
 * import { flatImage, Machine, openHypervisor, RunLoop, receiveGuest, sendGuest } from 'vmexit';
 *
 * const hv = openHypervisor({ needs: ['userfault'] });
 * const machine = new Machine(hv, { memory: 0x10_0000 });
 * // out 0x10, al; inc ax; hlt
 * machine.load(flatImage(Uint8Array.of(0xe6, 0x10, 0x40, 0xf4), 'real'), { rax: 41 });
 * machine.vcpu.run(5000); // until the OUT
 *
 * // The destination would be another process; here both ends are in one.
 * const address = `unix:${join(tmpdir(), `guest-${process.pid}.sock`)}`;
 * const arrival = receiveGuest(hv, { at: address });
 * const sending = sendGuest(hv, { vm: machine.vm, vcpus: [machine.vcpu], to: address });
 *
 * const there = await arrival;
 * const [vcpu] = there.vcpus;
 * const { reason } = await new RunLoop(vcpu!, { handlers: [there.pager] }).run({ timeoutMs: 5000 });
 * console.log(`${reason} at the destination, ax is ${vcpu!.getRegs().rax}`);
 * console.log(`${(await sending).pages} pages were sent`);
 * await there.close();
 * machine.close();
 * hv.close();
 * // prints: halt at the destination, ax is 42
 * // prints: 256 pages were sent
 * ```
 */
export async function sendGuest(hv: Hypervisor, options: SendOptions): Promise<SendReport> {
  const { vm, vcpus, to, onProgress, signal, ...capturing } = object('options', options);
  const address = parseAddress('to', to);
  const timeoutMs = integer('timeoutMs', options.timeoutMs ?? DEFAULT_TIMEOUT_MS, 2 ** 31 - 1, 1);
  signal?.throwIfAborted();
  const begun = performance.now();
  const { state, memories } = captureState(hv, vm, vcpus, capturing);
  checkPresent(memories);
  const json = Buffer.from(JSON.stringify(state));

  const name = addressName(address);
  const channels: Channel[] = [];
  const open = async (retry: () => Promise<unknown> | undefined) => {
    const channel = new Channel(await reach(address, timeoutMs, retry, signal), name, timeoutMs);
    channels.push(channel);
    await channel.greet();
    return channel;
  };
  const abort = () => {
    for (const channel of channels) channel.fail(signal!.reason as Error);
  };
  signal?.addEventListener('abort', abort);
  let handedOver = false;
  let sender: PageSender | undefined;
  try {
    const control = await open(() => undefined);
    await control.send('STATE', createHash('sha256').update(json).digest(), json);
    const { body: token } = await control.receive(['ACCEPT']);
    const ready = control.receive(['READY']);
    ready.catch(() => {}); // whoever awaits it is told
    const pages = await open(() => ready);
    await pages.send('ATTACH', token);
    await pages.receive(['ATTACHED']);
    sender = new PageSender(pages, memories, timeoutMs, onProgress);
    const sent = sender.run();
    await Promise.race([ready, sent.then(() => ready)]);

    for (const channel of channels) channel.check();
    // Whatever happens to these few bytes: from here on the guest may be running there.
    handedOver = true;
    await control.send('GO');
    const handedOverMs = performance.now() - begun;
    sender.push();
    await sent;
    for (const channel of channels) channel.close();
    const { pulled, pushed, zeroes, total } = sender;
    return { pages: total, pulled, pushed, zeroes, handedOverMs, elapsedMs: performance.now() - begun };
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    for (const channel of channels) channel.refuse(signal?.aborted ? 'it was cancelled' : why);
    if (!handedOver) throw cause;
    throw new MigrationError(`${why}; ${afterHandOver(sender!)}`, { cause, handedOver });
  } finally {
    signal?.removeEventListener('abort', abort);
  }
}

const afterHandOver = ({ sent, total }: PageSender) =>
  `the guest was handed over, and ${sent} of its ${total} pages were sent: it is paused here with all of them, and may ` +
  'only run on here when it is certain that it does not run there';

/** A page that is not there yet would keep its reader waiting, or be taken for zeroes. */
function checkPresent(memories: readonly GuestMemory[]): void {
  if (memories.length === 0)
    throw new VmexitError('ERR_KVM_NOT_SAVABLE', 'the guest has no memory: there is nothing to hand over');
  const paged = memories.findIndex(({ demand }) => demand !== undefined);
  if (paged < 0) return;
  throw new VmexitError(
    'ERR_KVM_NOT_SAVABLE',
    `pages of memory ${paged} may not have arrived yet: wait until the pager is complete`,
  );
}

/**
 * @param retry undefined when somebody listens or nobody does; else what fails when nobody will: the destination's
 *   thread comes to listen a moment after it was accepted
 */
async function reach(
  address: Address,
  timeoutMs: number,
  retry: () => Promise<unknown> | undefined,
  signal: AbortSignalLike | undefined,
): Promise<Socket> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    try {
      return await connected(address, deadline - performance.now(), signal);
    } catch (cause) {
      signal?.throwIfAborted();
      const { code, message } = cause as NodeJS.ErrnoException;
      const hopeless = retry() === undefined || (code !== 'ECONNREFUSED' && code !== 'ENOENT');
      if (hopeless || performance.now() > deadline)
        throw new MigrationError(`${addressName(address)} cannot be reached: ${message}`, { cause });
      const pause = new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      await Promise.race([pause, retry()!.then(() => pause)]);
    }
  }
}

function connected(
  address: Address,
  timeoutMs: number,
  signal: AbortSignalLike | undefined,
): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ ...address });
    const settled = (error?: Error) => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', abort);
      socket.removeAllListeners();
      if (error === undefined) return resolve(socket);
      socket.on('error', () => {});
      socket.destroy();
      reject(error);
    };
    const abort = () => settled(new Error('cancelled'));
    const timer = setTimeout(
      () => settled(new Error(`it has not answered for ${timeoutMs} ms`)),
      Math.max(timeoutMs, 0),
    );
    signal?.addEventListener('abort', abort);
    socket.once('error', settled).once('connect', () => settled());
  });
}

/** Sends each page once: what is asked for first, and once it may push, the rest behind. */
class PageSender {
  readonly total: number;
  sent = 0;
  pulled = 0;
  zeroes = 0;
  readonly #channel: Channel;
  readonly #memories: readonly {
    readonly first: number;
    readonly end: number;
    readonly memory: GuestMemory;
  }[];
  readonly #timeoutMs: number;
  readonly #onProgress: ((sent: number, pages: number) => void) | undefined;
  /** 1 for each page that was sent. */
  readonly #gone: Uint8Array;
  /** In the order in which they were asked for. */
  readonly #wanted = new Set<number>();
  #next = 0;
  #pushing = false;
  #wake: () => void = () => {};

  constructor(
    channel: Channel,
    memories: readonly GuestMemory[],
    timeoutMs: number,
    onProgress: ((sent: number, pages: number) => void) | undefined,
  ) {
    let end = 0;
    this.#memories = memories.map((memory) => {
      const first = end;
      end += memory.size / PAGE;
      return { first, end, memory };
    });
    this.total = end;
    this.#channel = channel;
    this.#timeoutMs = timeoutMs;
    this.#onProgress = onProgress;
    this.#gone = new Uint8Array(end);
  }

  get pushed(): number {
    return this.sent - this.pulled;
  }

  push(): void {
    this.#pushing = true;
    this.#wake();
  }

  /** Resolves when the destination has said that it has all. */
  async run(): Promise<void> {
    let late: NodeJS.Timeout | undefined;
    const sending = this.#send().then(() => {
      const silent = `it was sent all ${this.total} pages, and has not said for ${this.#timeoutMs} ms that it has them`;
      late = setTimeout(() => this.#channel.fail(new MigrationError(silent)), this.#timeoutMs);
    });
    try {
      await Promise.all([sending, this.#listen()]);
    } finally {
      clearTimeout(late);
    }
  }

  async #listen(): Promise<void> {
    try {
      for (;;) {
        const { name, body } = await this.#channel.receive(['WANT', 'DONE'], Number.POSITIVE_INFINITY);
        if (name === 'DONE') break;
        const page = body.readUInt32LE();
        if (page >= this.total)
          throw new MigrationError(`the destination wants page ${page}, and the guest has ${this.total}`);
        if (this.#gone[page] === 0) this.#wanted.add(page);
        this.#wake();
      }
      if (this.sent === this.total) return;
      throw new MigrationError(
        `the destination says that it has all ${this.total} pages, and was sent ${this.sent}`,
      );
    } catch (error) {
      this.#channel.fail(error as Error);
      this.#wake();
      throw error;
    }
  }

  async #send(): Promise<void> {
    while (this.sent < this.total) {
      this.#channel.check();
      const [asked] = this.#wanted;
      if (asked !== undefined) {
        this.#wanted.delete(asked);
        if (this.#gone[asked] === 0) await this.#run(asked, PULLED_RUN, true);
      } else if (this.#pushing) {
        const after = this.#gone.indexOf(0, this.#next);
        await this.#run(after < 0 ? this.#gone.indexOf(0) : after, MAX_RUN, false);
      } else {
        await new Promise<void>((wake) => {
          this.#wake = wake;
        });
      }
    }
  }

  /** The page and those behind it that are not gone, as runs of contents and of zeroes. */
  async #run(page: number, most: number, asked: boolean): Promise<void> {
    const { first, end: limit, memory } = this.#memories.find(({ end }) => page < end)!;
    let end = page + 1;
    while (end < Math.min(page + most, limit) && this.#gone[end] === 0) end++;
    this.#gone.fill(1, page, end);
    this.#next = end;
    const bytes = memory.readSparse((page - first) * PAGE, (end - page) * PAGE);
    for (let at = page; at < end; ) {
      const zero = isZero(bytes, at - page);
      let to = at + 1;
      while (to < end && isZero(bytes, to - page) === zero) to++;
      const count = to - at;
      const contents = zero ? bytes.subarray(0, 0) : bytes.subarray((at - page) * PAGE, (to - page) * PAGE);
      await this.#channel.send(
        zero ? 'ZEROES' : 'PAGES',
        runHead({ first: at, count, asked }, contents),
        contents,
      );
      this.sent += count;
      if (asked) this.pulled += count;
      if (zero) this.zeroes += count;
      at = to;
    }
    this.#onProgress?.(this.sent, this.total);
  }
}

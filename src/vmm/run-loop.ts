/**
 * The loop around KVM_RUN, for a program that has an event loop of its own. run() keeps the thread for one slice at a time, so
 * that timers, signals and I/O of the VMM live on between the slices; start() leaves it free, and costs a hand-over an exit.
 */
import type { AbortSignalLike } from '../hypervisor/abort.ts';
import { outOfRange } from '../hypervisor/errors.ts';
import type { ExitHandler, Vcpu } from '../hypervisor/vcpu.ts';
import { offer } from '../hypervisor/vcpu-start.ts';
import { IoDirection } from '../uapi/constants.ts';
import { Exit, exitName } from '../uapi/exit.ts';
import type { KvmExit } from '../uapi/exits.ts';
import { Bus } from './bus.ts';

/** Who serves a guest's exits, and how long the thread is kept. */
export interface RunLoopOptions {
  /** Who answers port I/O; without it nobody does. */
  readonly ports?: Bus;
  /** Who answers accesses to guest-physical memory that no slot has. */
  readonly mmio?: Bus;
  /** Asked in order, before anything else. */
  readonly handlers?: readonly ExitHandler[];
  /** Told of each exit after it was served, with what the VMM answered in place. */
  readonly onExit?: (vcpu: Vcpu, exit: number) => void;
  /** Told between slices: the place to flush what was buffered. */
  readonly onSlice?: () => void;
  /** How long the thread is kept at a time, in milliseconds: 50 without it. */
  readonly sliceMs?: number;
  /**
   * The clock by which slices and limits are measured, in milliseconds: `performance.now` without it. Where the session is
   * recorded, one by Hypervisor.input(), so that a replay has the same slices.
   */
  readonly now?: () => number;
}

/** What ends a run that the guest does not end. */
export interface RunLimits {
  /** Milliseconds, above 0; no limit without it. */
  readonly timeoutMs?: number | undefined;
  /** Ends the run at the end of a slice, or at once when a signal has woken the thread. */
  readonly signal?: AbortSignalLike | undefined;
}

/** Why a run has ended. */
export type RunEnd =
  /** The guest has halted, and no handler has taken the exit. */
  | {
      readonly reason: 'halt';
      /**
       * It has halted with interrupts on: it waits for one, and only a handler of Exit.HLT can bring it (the kernel has no
       * interrupt controller where HLT is an exit). Without this it has ended: interrupts are off.
       */
      readonly waiting?: true;
    }
  /** stop() was called: by a device that ends the guest, for one; or the vCPU's. */
  | {
      readonly reason: 'stop';
      /** What stop() was given; 0 of the vCPU's. */
      readonly value: number;
    }
  /** `timeoutMs` has passed. */
  | { readonly reason: 'timeout' }
  /** `signal` was aborted. */
  | { readonly reason: 'abort' }
  /** An exit that nobody serves: a triple fault, an internal error of KVM's, one that is new. */
  | {
      readonly reason: 'unhandled';
      /** The exit, with its fields. */
      readonly exit: KvmExit;
    };

const DEFAULT_SLICE_MS = 50;
/** run() counts whole milliseconds here: so short a rest is not worth a timer's precision. */
const LEAST_RUN_MS = 1;

/** Ends of a run that are the host's doing and no exit of the guest's. They end the slice. */
const hostEnds: ReadonlySet<number> = new Set([Exit.DEADLINE, Exit.INTERRUPTED, Exit.INTR, Exit.AGAIN]);

/** Undefined: the guest runs on. */
type Served = RunEnd | undefined | Promise<RunEnd | undefined>;
type Serve = (loop: RunLoop) => RunEnd | undefined;

/**
 * Runs a vCPU and serves its exits: handlers first, then port and memory-mapped I/O by two buses. The event
 * loop turns between slices.
 * @example
 * ```ts
 * import { Bus, flatImage, guest, Machine, openHypervisor, RunLoop, Serial } from 'vmexit';
 *
 * const hv = openHypervisor();
 * const machine = new Machine(hv, { memory: 0x10_0000 });
 * const hi = guest(
 *   16,
 *   `
 *   ba f8 03 | mov dx, 0x3f8
 *   b0 48    | mov al, 'H'
 *   ee       | out dx, al
 *   b0 69    | mov al, 'i'
 *   ee       | out dx, al
 *   f4       | hlt
 *   `,
 * );
 * machine.load(flatImage(hi.code, 'real'));
 *
 * let text = '';
 * const ports = new Bus();
 * Serial.attach(ports, (byte) => {
 *   text += String.fromCharCode(byte);
 * });
 * const end = await new RunLoop(machine.vcpu, { ports }).run({ timeoutMs: 5000 });
 * console.log(`${text} (${end.reason})`);
 * machine.close();
 * hv.close();
 * // prints: Hi (halt)
 * ```
 */
export class RunLoop {
  /** The vCPU that it runs. */
  readonly vcpu: Vcpu;
  /** Who answers port I/O. */
  readonly ports: Bus;
  /** Who answers accesses to guest-physical memory that no slot has. */
  readonly mmio: Bus;
  readonly #handlers: readonly ExitHandler[];
  readonly #onExit: ((vcpu: Vcpu, exit: number) => void) | undefined;
  readonly #onSlice: (() => void) | undefined;
  readonly #sliceMs: number;
  readonly #now: () => number;
  readonly #counts = new Map<number, { count: number }>();
  /** The data of accesses to memory, by their length. */
  readonly #accesses: (Uint8Array | undefined)[] = [];
  #stopped: { readonly reason: 'stop'; readonly value: number } | undefined;
  /** Ends the run of start() that is in progress. */
  #aborter: AbortController | undefined;

  /** @throws RangeError ERR_KVM_INVALID_ARG for a `sliceMs` below 1 or from 2^31 on */
  constructor(vcpu: Vcpu, options: RunLoopOptions = {}) {
    const { ports = new Bus(), mmio = new Bus(), handlers = [], sliceMs = DEFAULT_SLICE_MS } = options;
    if (!(sliceMs >= LEAST_RUN_MS && sliceMs < 2 ** 31))
      throw outOfRange('sliceMs', sliceMs, 'from 1 to 2^31-1');
    this.vcpu = vcpu;
    this.ports = ports;
    this.mmio = mmio;
    this.#handlers = handlers;
    this.#onExit = options.onExit;
    this.#onSlice = options.onSlice;
    this.#sliceMs = sliceMs;
    this.#now = options.now ?? (() => performance.now());
  }

  /** The guest's exits so far, by name. What the host's own timers and signals end is not among them. */
  get exits(): Readonly<Record<string, number>> {
    return Object.fromEntries([...this.#counts].map(([exit, { count }]) => [exitName(exit), count]));
  }

  /**
   * Ends the run: one of start() at once, with its access in hand finished; one of run() once an exit is served.
   * @param value what the run's end tells
   */
  stop(value = 0): void {
    this.#stopped ??= { reason: 'stop', value };
    this.#aborter?.abort();
  }

  /**
   * Runs the guest until it ends, or until a limit. May be called again: the guest goes on where it was.
   * @throws VmexitError ERR_KVM_REFUSED or ERR_KVM_NO_PROGRESS from a memory-fault service; KvmError when KVM_RUN
   *   fails, or what a handler throws
   */
  async run({ timeoutMs = Number.POSITIVE_INFINITY, signal }: RunLimits = {}): Promise<RunEnd> {
    if (!(timeoutMs > 0)) throw outOfRange('timeoutMs', timeoutMs, 'above 0');
    const deadline = this.#now() + timeoutMs;
    this.#stopped = undefined;
    try {
      for (;;) {
        if (signal?.aborted) return this.#pause({ reason: 'abort' });
        const left = deadline - this.#now();
        if (left <= 0) return this.#pause({ reason: 'timeout' });
        this.#check();
        const sliced = this.#slice(Math.min(this.#sliceMs, left));
        const end = sliced instanceof Promise ? await sliced : sliced;
        if (end) return end.reason === 'stop' ? this.#pause(end) : end;
        this.#onSlice?.();
        await breathe();
      }
    } finally {
      this.#onSlice?.();
    }
  }

  /**
   * As run(), with the vCPU on a thread of its own (Vcpu.start()): the event loop is kept only while an exit is served. The way
   * for several vCPUs in one thread, and beside whatever must not wait.
   * @throws as run(), and as Vcpu.start()
   */
  async start(limits: RunLimits = {}): Promise<RunEnd> {
    const { timeoutMs, signal } = limits;
    const aborter = new AbortController();
    const abort = (): void => aborter.abort();
    this.#stopped = undefined;
    this.#aborter = aborter;
    let end: RunEnd | undefined;
    const goesOn = (served: RunEnd | undefined): boolean => {
      if (served === undefined) return true;
      end = served;
      return served.reason === 'stop'; // the access in hand is to be finished
    };
    const handler: ExitHandler = {
      check: () => this.#check(),
      handle: (_, exit) => {
        this.#flushSoon();
        const served = this.#serve(exit);
        return served instanceof Promise ? served.then(goesOn) : goesOn(served);
      },
    };
    try {
      if (signal?.aborted) abort();
      signal?.addEventListener('abort', abort);
      const outcome = await this.vcpu.start([handler], { timeoutMs, signal: aborter.signal });
      if (end !== undefined) return end;
      if (outcome === Exit.DEADLINE) return { reason: 'timeout' };
      return this.#stopped ?? (signal?.aborted ? { reason: 'abort' } : { reason: 'stop', value: 0 });
    } finally {
      signal?.removeEventListener('abort', abort);
      this.#aborter = undefined;
      this.#onSlice?.();
    }
  }
  #flushes = false;
  #flushSoon(): void {
    if (this.#flushes || this.#onSlice === undefined) return;
    this.#flushes = true;
    void breathe().then(() => {
      this.#flushes = false;
      this.#onSlice?.();
    });
  }

  #slice(ms: number): Served {
    const end = this.#now() + ms;
    for (let left = ms; left > 0; left = end - this.#now()) {
      const exit = this.vcpu.run(Math.max(left, LEAST_RUN_MS));
      this.#check();
      if (exit === Exit.STOPPED) return { reason: 'stop', value: 0 };
      if (hostEnds.has(exit)) return undefined;
      const ended = this.#serve(exit);
      if (ended) return ended;
    }
    return undefined;
  }

  #check(): void {
    for (const handler of this.#handlers) handler.check?.();
  }

  #serve(exit: number): Served {
    const counter = this.#counts.get(exit);
    if (counter === undefined) this.#counts.set(exit, { count: 1 });
    else counter.count++;
    return this.#onExit === undefined ? this.#offer(exit) : this.#offerAndTell(exit, this.#onExit);
  }
  #offerAndTell(exit: number, onExit: (vcpu: Vcpu, exit: number) => void): Served {
    const told = () => onExit(this.vcpu, exit);
    let served: Served;
    try {
      served = this.#offer(exit);
    } catch (error) {
      told();
      throw error;
    }
    if (served instanceof Promise) return served.finally(told);
    told();
    return served;
  }

  /** To the handlers, and then to the services. */
  #offer(exit: number): Served {
    const handled = offer(this.#handlers, this.vcpu, exit);
    return handled instanceof Promise
      ? handled.then((is) => this.#offered(exit, is))
      : this.#offered(exit, handled);
  }
  #offered(exit: number, is: boolean): RunEnd | undefined {
    if (is) return this.#stopped;
    const serve = RunLoop.#services.get(exit);
    return serve ? serve(this) : { reason: 'unhandled', exit: this.vcpu.exit };
  }

  /** Finishes the instruction in hand: only then are the registers those of the guest as it stands. */
  #pause(end: RunEnd): RunEnd {
    this.vcpu.complete((exit) => {
      if (this.#serve(exit) instanceof Promise)
        throw new Error(
          `a handler of ${exitName(exit)} must answer at once while an instruction is finished`,
        );
    });
    return end;
  }

  #port(): RunEnd | undefined {
    const { data, direction, port, size } = this.vcpu.io;
    for (let at = 0; at < data.length; at += size) {
      const element = data.length === size ? data : data.subarray(at, at + size);
      if (direction === IoDirection.OUT) this.ports.write(port, element);
      else this.ports.read(port, element);
    }
    return this.#stopped;
  }

  #memory(): RunEnd | undefined {
    const { data, isWrite, length, physAddr } = this.vcpu.mmio;
    this.#accesses[length] ??= data.subarray(0, length);
    const access = this.#accesses[length];
    if (isWrite) this.mmio.write(physAddr, access);
    else this.mmio.read(physAddr, access);
    return this.#stopped;
  }

  static readonly #services: ReadonlyMap<number, Serve> = new Map<number, Serve>([
    [Exit.IO, (loop) => loop.#port()],
    [Exit.MMIO, (loop) => loop.#memory()],
    [Exit.HLT, ({ vcpu }) => (vcpu.raw.ifFlag ? { reason: 'halt', waiting: true } : { reason: 'halt' })],
    [Exit.IRQ_WINDOW_OPEN, (loop) => loop.#stopped],
    // Told where no interrupt controller is the kernel's: an interrupt that was held back might be injected now.
    [Exit.SET_TPR, (loop) => loop.#stopped],
  ]);
}

/** Lets the event loop turn once. A browser has no setImmediate(). */
const breathe = () =>
  new Promise<void>((done) => ('setImmediate' in globalThis ? setImmediate(done) : setTimeout(done, 0)));

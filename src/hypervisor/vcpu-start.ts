/** A vCPU that runs while the event loop lives on: on a thread of its own, whose exits are served here. */
import { Exit } from '../uapi/exit.ts';
import type { AbortSignalLike } from './abort.ts';
import type { Backend, Handle, Starter } from './backend.ts';
import { outOfRange } from './errors.ts';

/** An ExitHandler as it is here, where a vCPU is only handed on. */
interface Handler<V> {
  handle(vcpu: V, exit: number): boolean | Promise<boolean>;
  check?(): void;
}

/** What ends a run that the guest does not end. */
export interface StartOptions {
  /** Milliseconds, above 0 and below 2^31; no limit without it. The run ends with Exit.DEADLINE. */
  readonly timeoutMs?: number | undefined;
  /** Ends the run once the exit in hand is served and its access is finished, with Exit.STOPPED. */
  readonly signal?: AbortSignalLike | undefined;
}

/** Ends of a run that are neither the guest's doing nor an end: the guest runs on. */
const passing: ReadonlySet<number> = new Set([Exit.INTERRUPTED, Exit.INTR]);
/** Milliseconds until KVM_RUN is tried again after EAGAIN, which it also gives while the host has no more threads. */
const AGAIN_MS = 1;

/** Offers an exit to handlers in their order, from one on: whether one has served it. */
export function offer<V>(
  handlers: readonly Handler<V>[],
  vcpu: V,
  exit: number,
  from = 0,
): boolean | Promise<boolean> {
  for (let i = from; i < handlers.length; i++) {
    const handled = handlers[i]!.handle(vcpu, exit);
    if (handled instanceof Promise) return handled.then((is) => is || offer(handlers, vcpu, exit, i + 1));
    if (handled) return true;
  }
  return false;
}

/** Asynchronous runs of one vCPU, one at a time. */
export class AsyncRuns {
  readonly #starter: Starter;
  #done: ((result: number) => void) | undefined;

  constructor(backend: Backend, vcpu: Handle) {
    this.#starter = backend.starter(vcpu, (result) => {
      const done = this.#done!;
      this.#done = undefined;
      done(result);
    });
  }

  /**
   * Begins a run: 0, or a negated errno where nothing has begun. `done` is called with what it gave.
   * @param timeoutMs 0: the access in hand is finished, which gives STOPPED
   */
  begin(timeoutMs: number, done: (result: number) => void): number {
    // Node-API is slow to find that an argument is undefined.
    const starter = this.#starter;
    const begun =
      timeoutMs === Number.POSITIVE_INFINITY
        ? starter.start()
        : starter.start(timeoutMs || undefined, timeoutMs === 0);
    if (begun === 0) this.#done = done;
    return begun;
  }

  /** The run in progress gives STOPPED; without one, nothing. */
  end(): void {
    this.#starter.end();
  }
}

/** What serve() runs a vCPU by. */
export interface Served {
  /**
   * One run: `then` is called with its outcome, or `failed` with what it throws.
   * @param timeoutMs 0: the access in hand is finished, which gives STOPPED
   */
  begin(timeoutMs: number, then: (outcome: number) => void, failed: (error: unknown) => void): void;
  /** The run in progress gives STOPPED; without one, nothing. */
  end(): void;
  /** Milliseconds. */
  now(): number;
}

/** What a timer can be set to, in milliseconds. */
const MAX_TIMEOUT = 2 ** 31 - 1;

/** Calls back once the milliseconds have passed, by performance.now(), which a timer may come before. Gives what calls it off. */
function after(ms: number, call: () => void): () => void {
  const until = performance.now() + ms;
  let timer: ReturnType<typeof setTimeout>;
  const look = (): void => {
    const left = until - performance.now();
    if (left > 0) timer = setTimeout(look, Math.ceil(left));
    else call();
  };
  look();
  return () => clearTimeout(timer);
}

/** Vcpu.start(): runs until an exit that no handler serves, and gives that. */
export function serve<V>(
  vcpu: V,
  { begin, end, now }: Served,
  handlers: readonly Handler<V>[],
  { timeoutMs = Number.POSITIVE_INFINITY, signal }: StartOptions,
): Promise<number> {
  const limited = timeoutMs !== Number.POSITIVE_INFINITY;
  if (!(timeoutMs > 0 && (timeoutMs <= MAX_TIMEOUT || !limited)))
    throw outOfRange('timeoutMs', timeoutMs, 'above 0 and below 2^31 (milliseconds), or Infinity');
  const until = limited ? now() + timeoutMs : timeoutMs;
  let ends = signal?.aborted ?? false;
  const stop = (): void => {
    ends = true;
    end();
  };
  const cancel = limited ? after(timeoutMs, stop) : undefined;
  signal?.addEventListener('abort', stop);
  return new Promise<number>((resolve, reject) => {
    const next = (): void => {
      for (const handler of handlers) handler.check?.();
      begin(ends ? 0 : Number.POSITIVE_INFINITY, exited, reject);
    };
    const exited = guarded((outcome: number): void => {
      for (const handler of handlers) handler.check?.();
      // A replay has no more than the clock to tell a limit by.
      if (outcome === Exit.STOPPED) resolve(limited && now() >= until ? Exit.DEADLINE : outcome);
      else if (passing.has(outcome)) next();
      else if (outcome === Exit.AGAIN) setTimeout(guarded(next), AGAIN_MS);
      else {
        const served = offer(handlers, vcpu, outcome);
        const then = guarded((is: boolean) => (is ? next() : resolve(outcome)));
        if (served instanceof Promise) served.then(then, reject);
        else then(served);
      }
    });
    function guarded<T>(call: (value: T) => void): (value: T) => void {
      return (value) => {
        try {
          call(value);
        } catch (error) {
          reject(error);
        }
      };
    }
    guarded(next)(undefined);
  }).finally(() => {
    cancel?.();
    signal?.removeEventListener('abort', stop);
  });
}

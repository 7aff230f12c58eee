/** What a recorded run takes from elsewhere than from its guest: the time, and Ctrl-C. Both are kept, and given back. */
import type { AbortSignalLike } from '../hypervisor/abort.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';

/** The clock of its run loop. */
export const clockOf = (hv: Hypervisor) => (): number => hv.input('clock', () => performance.now());

/** A signal as the recorded run has found it. One that comes during a replay ends that, and is no part of it. */
export class RecordedSignal implements AbortSignalLike {
  readonly #hv: Hypervisor;
  readonly #signal: AbortSignal;
  readonly #replays: boolean;
  #reason: unknown;

  constructor(hv: Hypervisor, signal: AbortSignal, replays: boolean) {
    this.#hv = hv;
    this.#signal = signal;
    this.#replays = replays;
  }

  /** The status with which interruptible() aborts is kept with it. */
  get aborted(): boolean {
    if (this.#replays) this.#signal.throwIfAborted();
    const { aborted, reason } = this.#signal;
    this.#reason = this.#hv.input('interrupted', () => (aborted ? Number(reason) : undefined));
    return this.#reason !== undefined;
  }
  get reason(): unknown {
    return this.#reason;
  }
  throwIfAborted(): void {
    if (this.aborted) throw this.#reason;
  }
  addEventListener(type: 'abort', listener: () => void): void {
    this.#signal.addEventListener(type, listener);
  }
  removeEventListener(type: 'abort', listener: () => void): void {
    this.#signal.removeEventListener(type, listener);
  }
}

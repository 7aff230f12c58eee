/**
 * An AbortSignal as far as vmexit uses it. Only the DOM's library and @types/node declare AbortSignal, and the
 * declarations of this package need neither.
 */
export interface AbortSignalLike {
  /** Whether it was aborted. */
  readonly aborted: boolean;
  /** What it was aborted with; undefined until then. */
  readonly reason: unknown;
  /** @throws the reason, if it was aborted */
  throwIfAborted(): void;
  /** Calls the listener when it is aborted. */
  addEventListener(type: 'abort', listener: () => void): void;
  /** Undoes addEventListener() of the same listener. */
  removeEventListener(type: 'abort', listener: () => void): void;
}

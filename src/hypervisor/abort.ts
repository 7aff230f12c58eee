/**
 * An AbortSignal as far as vmexit uses it. Only the DOM's library and @types/node declare AbortSignal, and the
 * declarations of this package need neither.
 */
export interface AbortSignalLike {
  readonly aborted: boolean;
  readonly reason: unknown;
  throwIfAborted(): void;
  addEventListener(type: 'abort', listener: () => void): void;
  removeEventListener(type: 'abort', listener: () => void): void;
}

/** What the pager's two threads tell each other, beside the states that they share. */
import type { BackendName, MemoryToken, UserfaultfdToken } from '../../hypervisor/backend.ts';
import type { ErrorCode } from '../../hypervisor/errors.ts';
import type { Cause } from './page-states.ts';
import type { SourceDescriptor } from './source.ts';

/** What the thread is given. */
export interface Orders {
  readonly backend: BackendName;
  readonly states: SharedArrayBuffer;
  readonly pages: number;
  readonly source: SourceDescriptor;
  readonly areas: readonly {
    readonly first: number;
    readonly pages: number;
    readonly into: { readonly memory: MemoryToken } | { readonly userfaultfd: UserfaultfdToken };
  }[];
  readonly armed: readonly { readonly first: number; readonly bitmap: MemoryToken; readonly pages: number }[];
  /** Fetch what nobody has asked for, too. */
  readonly prefetch: boolean;
  readonly batch: number;
  readonly timeoutMs: number;
  /** vCPUs that may be waiting in the kernel when the source fails. */
  readonly kickIds: readonly number[];
}

/** To the thread. */
export type Request =
  | { readonly type: 'want'; readonly page: number; readonly cause: Cause }
  /** Pages are there without it. */
  | { readonly type: 'look' }
  | { readonly type: 'stop' };

/** From the thread. */
export type Notice =
  /** A page that was wanted. */
  | { readonly type: 'there'; readonly page: number }
  | { readonly type: 'complete' }
  | { readonly type: 'failed'; readonly code: ErrorCode; readonly message: string };

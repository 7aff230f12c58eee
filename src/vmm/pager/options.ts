/** What a Pager is told, and what it tells. */
import type { GuestMemory } from '../../hypervisor/guest-memory.ts';
import type { Vcpu } from '../../hypervisor/vcpu.ts';
import type { Cause, Latency } from './page-states.ts';
import type { SourceDescriptor } from './source.ts';
import type { Strategy } from './strategy.ts';

/** What a Pager serves, from where, and how. */
export interface PagerOptions {
  /** Whose pages come from the source, in this order: of the VM's slots, and fresh, as Vm.allocate() gives it. */
  readonly memories: readonly GuestMemory[];
  /** Where the pages come from. */
  readonly source: SourceDescriptor;
  /** `auto`, which it is without this: KVM's userfault where there is one, else userfaultfd. */
  readonly strategy?: 'auto' | Strategy;
  /** Fetch in the background what nobody has asked for yet: true without it. */
  readonly prefetch?: boolean;
  /** How many neighbouring pages are served with one that is asked for: 16 without it, 1 to 4096. */
  readonly batch?: number;
  /** How long the source may take for a page, in milliseconds: 30,000 without it. */
  readonly timeoutMs?: number;
  /** vCPUs to be interrupted when the source fails while they wait for a page in the kernel. */
  readonly vcpus?: readonly Vcpu[];
}

/** How a Pager is getting on. */
export interface PagerReport {
  /** The mechanism that `auto` has found, or that was asked for. */
  readonly strategy: Strategy;
  /** Why accesses of the kernel's own are not caught: undefined when they are. */
  readonly uncovered: string | undefined;
  /** Pages of all memories. */
  readonly pages: number;
  /** Pages that are there. */
  readonly present: number;
  /** Of those, pages that the source knows to be zeroes: there from the beginning. */
  readonly zero: number;
  /** Pages by why they were served: those beside one that was asked for count with it. */
  readonly byCause: Readonly<Record<Cause, number>>;
  /** How long faults and requests have waited for their page. */
  readonly latency: Latency;
  /** Milliseconds since the start, or from there to the end. */
  readonly elapsedMs: number;
  /**
   * `running`; `complete`: every page is there; `stopped` by stop() with pages missing; `failed`: the source
   * has.
   */
  readonly state: 'running' | 'complete' | 'stopped' | 'failed';
}

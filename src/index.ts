/** vmexit: KVM for TypeScript. The kernel's structs and tables are in `vmexit/uapi`; what a page needs, in `vmexit/sim`. */
export * from './core.ts';
export { type OpenOptions, openHypervisor, type SimulatedHost } from './open.ts';
export { type Feature, features, missing } from './probe/features.ts';
export { ReplayError, type ReplayFailure } from './replay/errors.ts';
export { openReplay, Replay, type ReplayOptions } from './replay/index.ts';
export type { GuestException } from './vmm/exceptions.ts';
export { type LoadOptions, loadGuest } from './vmm/loader.ts';
export {
  type ArrivingGuest,
  type ReceivedGuest,
  type ReceiveOptions,
  receiveGuest,
  type SendOptions,
  type SendReport,
  sendGuest,
} from './vmm/migration/index.ts';
export type { PagerOptions, PagerReport } from './vmm/pager/options.ts';
export type { Latency } from './vmm/pager/page-states.ts';
export { Pager } from './vmm/pager/pager.ts';
export type { SourceDescriptor } from './vmm/pager/source.ts';
export type { Strategy } from './vmm/pager/strategy.ts';
export {
  dirtySince,
  type LazyOptions,
  openSnapshot,
  restoreLazily,
  restoreSnapshot,
  type Snapshot,
  type SnapshotMemory,
  type WriteOptions,
  type Written,
  writeSnapshot,
} from './vmm/snapshot/index.ts';
export { Trace } from './vmm/trace.ts';

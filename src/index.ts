/** vmexit: KVM for TypeScript. The kernel's structs and tables are in `vmexit/uapi`. */

export * from './hypervisor/index.ts';
export { type OpenOptions, openHypervisor } from './open.ts';
export { type Feature, features, missing } from './probe/features.ts';
export {
  Cap,
  decodeExit,
  describeExit,
  Exit,
  exitName,
  GuestMemfdFlag,
  type KvmExit,
  MemFlag,
  MemoryAttribute,
  MemoryFaultFlag,
  VmType,
} from './uapi/index.ts';
export { Bus, type Device, type Unclaimed } from './vmm/bus.ts';
export { type Converter, type Discard, type MemoryState, refusals } from './vmm/conversion.ts';
export { DEBUG_EXIT_PORT, DebugExit, SERIAL_PORT, Serial } from './vmm/devices.ts';
export { elfImage } from './vmm/elf.ts';
export { type Guest, guest } from './vmm/guest.ts';
export {
  FLAT_ADDRESS,
  flatImage,
  type GuestImage,
  type Mode,
  placeImage,
  type Segment,
} from './vmm/image.ts';
export { type LoadOptions, loadGuest } from './vmm/loader.ts';
export { enterLongMode, enterRealMode, type LongModeOptions, Selector, tablesSize } from './vmm/long-mode.ts';
export {
  MAX_MACHINE_MEMORY,
  Machine,
  type MachineOptions,
  MIN_MACHINE_MEMORY,
} from './vmm/machine.ts';
export {
  type MemoryEvent,
  type MemoryFaultCounters,
  type MemoryFaultOptions,
  MemoryFaultService,
} from './vmm/memory-faults.ts';
export {
  type ArrivingGuest,
  type ReceivedGuest,
  type ReceiveOptions,
  receiveGuest,
  type SendOptions,
  type SendReport,
  sendGuest,
} from './vmm/migration/index.ts';
export { Pager, type PagerOptions, type PagerReport } from './vmm/pager/pager.ts';
export type { SourceDescriptor } from './vmm/pager/source.ts';
export type { Strategy } from './vmm/pager/strategy.ts';
export { type Cause, type Decision, defaultPolicy, type Policy, type Request } from './vmm/policy.ts';
export { describeRegisters, isReset } from './vmm/registers.ts';
export {
  type ExitHandler,
  type RunEnd,
  type RunLimits,
  RunLoop,
  type RunLoopOptions,
} from './vmm/run-loop.ts';
export {
  type Capture,
  type CaptureOptions,
  captureState,
  type LazyOptions,
  type MachineState,
  openSnapshot,
  parseState,
  RestoredMachine,
  type RestoreOptions,
  restoreLazily,
  restoreSnapshot,
  type Snapshot,
  type SnapshotMemory,
  type WriteOptions,
  type Written,
  writeSnapshot,
} from './vmm/snapshot/index.ts';
export { Trace } from './vmm/trace.ts';

/// <reference lib="esnext.disposable" preserve="true" />
/** What needs nothing of Node's: the part that `vmexit` and `vmexit/sim` have in common. */
export * from './hypervisor/index.ts';
// What methods take and give, and docstrings name; the rest of the ABI is in vmexit/uapi.
export * from './uapi/constants.ts';
export { Cap, decodeExit, describeExit, Exit, exitName, type KvmExit } from './uapi/index.ts';
export { Bus, type Device, type Unclaimed } from './vmm/bus.ts';
export { type Converter, type Discard, type MemoryState, type Refusal, refusals } from './vmm/conversion.ts';
export {
  type DescriptorOptions,
  type DescriptorTable,
  descriptor,
  type Gate,
  type Gdt,
  placeGdt,
  placeIdt,
  placeTss,
  type SegmentRegister,
  type TablePlace,
  type TssOptions,
} from './vmm/descriptors.ts';
export { DEBUG_EXIT_PORT, DebugExit, SERIAL_PORT, Serial } from './vmm/devices.ts';
export { DirtyPages, type DirtyPagesOptions, type DirtyRange } from './vmm/dirty-pages.ts';
export { elfImage } from './vmm/elf.ts';
export { type Guest, guest } from './vmm/guest.ts';
export {
  FLAT_ADDRESS,
  type FlatOptions,
  flatImage,
  type GuestImage,
  type Mode,
  placeImage,
  type Segment,
} from './vmm/image.ts';
export {
  MAX_MACHINE_CPUS,
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
  enterLongMode,
  enterProtectedMode,
  enterRealMode,
  enterUserMode,
  type LongModeOptions,
  type ProtectedModeOptions,
  Selector,
  tablesSize,
} from './vmm/modes.ts';
export { type Mapping, PageTables, type PageTablesOptions } from './vmm/page-tables.ts';
export { type Cause, type Decision, defaultPolicy, type Policy, type Request } from './vmm/policy.ts';
export { describeRegisters, isReset } from './vmm/registers.ts';
export {
  type RunEnd,
  type RunLimits,
  RunLoop,
  type RunLoopOptions,
} from './vmm/run-loop.ts';
export { RunLoops } from './vmm/run-loops.ts';
export { RestoredMachine, type RestoreOptions } from './vmm/snapshot/restore.ts';
export { type MachineState, parseState } from './vmm/snapshot/schema.ts';
export { type Capture, type CaptureOptions, captureState } from './vmm/snapshot/state.ts';
export {
  AskOwner,
  MemoryOwner,
  type MemoryOwnerOptions,
  type MemoryOwnerToken,
} from './vmm/threads/index.ts';

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
export { type Converter, type Discard, type MemoryState, refusals } from './vmm/conversion.ts';
export { type Guest, guest } from './vmm/guest.ts';
export { enterLongMode, enterRealMode, type LongModeOptions, Selector, tablesSize } from './vmm/long-mode.ts';
export {
  type MemoryEvent,
  type MemoryFaultCounters,
  type MemoryFaultOptions,
  MemoryFaultService,
} from './vmm/memory-faults.ts';
export { type Cause, type Decision, defaultPolicy, type Policy, type Request } from './vmm/policy.ts';

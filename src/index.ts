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

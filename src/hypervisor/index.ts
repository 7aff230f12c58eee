/** The seam: what a VMM is written against, whichever backend is under it. */
export type { AbortSignalLike } from './abort.ts';
export type { Integer } from './args.ts';
export type {
  Backend,
  BackendName,
  EventFdToken,
  MemoryToken,
  Observer,
  SecondStageEvent,
  SharedVcpu,
  SharedVm,
  UserfaultfdToken,
} from './backend.ts';
export { type CoalescedAccess, CoalescedRing } from './coalesced-ring.ts';
export type { DeviceAttr } from './device-attributes.ts';
export {
  type Diagnostics,
  type DiagnosticsChannel,
  type ExitMessage,
  type IoctlMessage,
  tellDiagnostics,
} from './diagnostics.ts';
export { DirtyRing } from './dirty-ring.ts';
export type { EnabledCap } from './enabled-caps.ts';
export { type EncryptAnswer, type EncryptOp, FirmwareError } from './encrypt-op.ts';
export * from './errors.ts';
export { EventFd, type EventFdOptions, type EventFdWait } from './event-fd.ts';
export type { ExitArms } from './exit-arms.ts';
export { defaultGsiRoutes, type GsiRoute } from './gsi-routing.ts';
export { GuestMemfd } from './guest-memfd.ts';
export { type Demand, type DirtyListener, GuestMemory, MAX_MEMORY } from './guest-memory.ts';
export type { GuestPlace } from './guest-place.ts';
export { Hypervisor } from './hypervisor.ts';
export { KvmDevice } from './kvm-device.ts';
export type { LiveRegs } from './live-regs.ts';
export { MemoryMap, type Piece, type Slot } from './memory-map.ts';
export type { MsrFilterOptions, MsrFilterRange } from './msr-filter.ts';
export { type Range, RangeMap, type ValueRange } from './ranges.ts';
export type { Regs } from './regs.ts';
export type {
  EoiExit,
  HypercallExit,
  IoExit,
  MemoryFaultExit,
  MmioExit,
  RunPage,
  SyncRegsArea,
} from './run-page.ts';
export { type Statistic, Stats } from './stats.ts';
export { UserfaultBitmap } from './userfault-bitmap.ts';
export { Userfaultfd } from './userfaultfd.ts';
export { type ExitHandler, Vcpu } from './vcpu.ts';
export type { XenVcpuAttribute } from './vcpu-attributes.ts';
export type { StartOptions } from './vcpu-start.ts';
export type {
  CpuidEntry,
  DebugRegs,
  Msr,
  Sregs,
  Sregs2,
  Translation,
  VcpuEvents,
  VcpuSetup,
} from './vcpu-state.ts';
export type { VcpuToken } from './vcpu-threads.ts';
export { Vm, type VmSetup, type VmToken } from './vm.ts';
export type { EncryptedRegion } from './vm-encryption.ts';
export type { Ioeventfd, Irqfd } from './vm-events.ts';
export type {
  InterruptSetup,
  IoapicState,
  IrqchipState,
  PicState,
  PitSetup,
  PitState,
  RoutingSetup,
} from './vm-interrupts.ts';
export type { MemoryAttributes, MemoryRegion, MemoryRegion2 } from './vm-memory.ts';
export type {
  EventFdLike,
  HypervEventfdOptions,
  PmuEventFilter,
  XenHvmAttribute,
  XenReferences,
} from './vm-paravirt.ts';
export { type FxsaveArea, Xfeature, XsaveArea } from './xsave-area.ts';

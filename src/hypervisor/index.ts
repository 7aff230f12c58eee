/** The seam: what a VMM is written against, whichever backend is under it. */
export type { AbortSignalLike } from './abort.ts';
export type { Integer } from './args.ts';
export type {
  Backend,
  BackendName,
  MemoryToken,
  Observer,
  SecondStageEvent,
  UserfaultfdToken,
} from './backend.ts';
export {
  type Diagnostics,
  type DiagnosticsChannel,
  type ExitMessage,
  type IoctlMessage,
  tellDiagnostics,
} from './diagnostics.ts';
export type { EnabledCap } from './enabled-caps.ts';
export * from './errors.ts';
export { defaultGsiRoutes, type GsiRoute } from './gsi-routing.ts';
export { GuestMemfd } from './guest-memfd.ts';
export { type Demand, GuestMemory, MAX_MEMORY } from './guest-memory.ts';
export { Hypervisor } from './hypervisor.ts';
export { MemoryMap, type Piece, type Slot } from './memory-map.ts';
export { type Range, RangeMap, type ValueRange } from './ranges.ts';
export type {
  EoiExit,
  HypercallExit,
  IoExit,
  MemoryFaultExit,
  MmioExit,
  RunPage,
  SyncRegsArea,
} from './run-page.ts';
export { UserfaultBitmap } from './userfault-bitmap.ts';
export { Userfaultfd } from './userfaultfd.ts';
export { Vcpu } from './vcpu.ts';
export type {
  CpuidEntry,
  DebugRegs,
  Msr,
  Regs,
  Sregs,
  Sregs2,
  Translation,
  VcpuEvents,
  VcpuSetup,
} from './vcpu-state.ts';
export { Vm, type VmSetup } from './vm.ts';
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
export { type FxsaveArea, Xfeature, XsaveArea } from './xsave-area.ts';

/** What a VMM uses, of each of the package's entries. It is only type-checked, as strictly as a project can be. */
import {
  Bus,
  captureState,
  DebugExit,
  type Device,
  decodeExit,
  Exit,
  type ExitHandler,
  elfImage,
  enterLongMode,
  enterRealMode,
  features,
  flatImage,
  type GuestMemfd,
  type GuestMemory,
  guest,
  type Hypervisor,
  KvmError,
  loadGuest,
  Machine,
  MemoryFaultService,
  type MemoryMap,
  missing,
  openHypervisor,
  openSnapshot,
  Pager,
  type Policy,
  type RestoredMachine,
  RunLoop,
  receiveGuest,
  restoreSnapshot,
  Serial,
  sendGuest,
  Trace,
  UnavailableError,
  type UserfaultBitmap,
  type Userfaultfd,
  type Vcpu,
  type Vm,
  VmexitError,
  VmType,
  writeSnapshot,
} from 'vmexit';
import { openSimulator, type SimulatedHost } from 'vmexit/sim';
import { Errno, ioctls, kvm_userspace_memory_region2 } from 'vmexit/uapi';

const host: SimulatedHost = { vendor: 'amd', dialect: 'mainline' };
export const simulated: Promise<Hypervisor> = openSimulator(host);

const hv = openHypervisor({ backend: 'auto', needs: ['private-memory'], simulated: host });
export const lacks: readonly string[] = missing(hv, Object.keys(features) as (keyof typeof features)[]).map(
  ({ feature, reason }) => `${feature}: ${reason}`,
);

const vm: Vm = hv.createVm({ type: VmType.SW_PROTECTED });
const memory: GuestMemory = vm.allocate(1 << 20);
const secret: GuestMemfd = vm.createGuestMemfd(1 << 20);
vm.setUserMemoryRegion2({ slot: 0, guestPhysAddr: 0, memory, guestMemfd: secret });
memory.bytes.set([0xf4], 0x1000);
export const copied: Uint8Array<ArrayBuffer> = memory.read(0, 4096);
export const map: MemoryMap = vm.memoryMap;
export const bitmap = (bits: UserfaultBitmap, fd: Userfaultfd) => [bits, fd] as const;

const vcpu: Vcpu = vm.createVcpu(0);
enterRealMode(vcpu);
enterLongMode(vcpu, memory, { tables: 0x8000 });
vcpu.setRegs({ rip: 0x1000, rax: 1, rflags: 2 });
export const rip: bigint = vcpu.getRegs().rip;
const exit: number = vcpu.run(1000);
if (exit === Exit.IO) memory.write(0, vcpu.io.data);
export const told = decodeExit;

class Counter implements Device {
  readonly name = 'counter';
  read(_offset: number, data: Uint8Array): void {
    data.fill(1);
  }
  write(): void {}
}
const ports = new Bus();
ports.attach(0x10, 1, new Counter());
Serial.attach(ports, (byte) => void String.fromCharCode(byte));
const handler: ExitHandler = { handle: (_vcpu, reason) => reason === Exit.DEBUG };
const policy: Policy = ({ cause }) => (cause === 'hypercall' ? 'allow' : 'deny');
const service = new MemoryFaultService(vm, { policy });

export async function main(): Promise<number> {
  using machine = new Machine(hv, { memory: 1 << 20 });
  machine.load(flatImage(guest(16, 'f4 | hlt').code, 'real'));
  machine.load(elfImage(new Uint8Array(64)) ?? flatImage(copied, 'long'));
  machine.load(loadGuest('guest.bin', { mode: 'real' }));
  using trace = new Trace('trace.jsonl');
  using pager = await Pager.start(hv, vm, {
    memories: [memory],
    source: { kind: 'buffer', bytes: copied },
    vcpus: [vcpu],
  });
  const loop = new RunLoop(machine.vcpu, { ports, handlers: [service, pager, handler] });
  DebugExit.attach(ports, (value) => loop.stop(value));
  const cancelled = {
    aborted: false,
    reason: undefined,
    throwIfAborted() {},
    addEventListener() {},
    removeEventListener() {},
  };
  const end = await loop.run({ timeoutMs: 1000, signal: cancelled });
  const capture = captureState(hv, machine.vm, [machine.vcpu]);
  await writeSnapshot('snapshot', capture);
  const restored: RestoredMachine = restoreSnapshot(hv, openSnapshot('snapshot'));
  restored.close();
  await sendGuest(hv, { vm, vcpus: [vcpu], to: 'socket' });
  const arrived = await receiveGuest(hv, { at: 'socket' });
  void arrived;
  void trace;
  return end.reason === 'stop' ? end.value : 0;
}

export function explain(error: unknown): string {
  if (error instanceof UnavailableError) return `${error.reason}: ${error.message}`;
  if (error instanceof KvmError) return `${error.errno === Errno.EINVAL} ${error.code}`;
  if (error instanceof VmexitError) return error.code;
  return `${ioctls.KVM_RUN.request} ${kvm_userspace_memory_region2.size}`;
}

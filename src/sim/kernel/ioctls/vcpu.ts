/** What a vCPU's fd does (arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl; virt/kvm/kvm_main.c, kvm_vcpu_ioctl). */
import { MpState } from '../../../uapi/constants.ts';
import { Errno } from '../../../uapi/errno.ts';
import type { kvm_pre_fault_memory } from '../../../uapi/structs.ts';
import type { kvm_cpuid_entry2 } from '../../../uapi/x86.ts';
import { PAGE } from '../../arena.ts';
import { MMIO } from '../../cpu/processor/stage.ts';
import { type Handlers, type ListArgument, type StructArgument, Table } from '../abi/dispatch.ts';
import { hasXsave } from '../host/cpuid.ts';
import { TSC_KHZ } from '../host/host.ts';
import {
  getDebugRegs,
  getEvents,
  injectNmi,
  setDebugRegs,
  setEvents,
  setGuestDebug,
} from '../state/events.ts';
import { getFpu, getXcrs, getXsave, setFpu, setXcrs, setXsave } from '../state/fpu.ts';
import { getMsrs, setMsrs } from '../state/msrs.ts';
import { getRegs, getSregs, getSregs2, setSpecial, setSregs } from '../state/registers.ts';
import type { KvmVcpu } from '../vcpu/vcpu.ts';

const INTERRUPTS = 256;
const NO_ADDRESS = 0xffff_ffff_ffff_ffffn;

/** kvm_vcpu_pre_fault_memory(): as far as it gets; an error only when it got nowhere. */
function preFault(vcpu: KvmVcpu, argument: StructArgument<typeof kvm_pre_fault_memory>): number {
  const [start, size] = [argument.raw('gpa'), argument.raw('size')];
  const end = start + size;
  if (argument.raw('flags') !== 0n || (start | size) % BigInt(PAGE) !== 0n) return -Errno.EINVAL;
  if (size === 0n || end >= 1n << 64n) return -Errno.EINVAL;
  let at = Number(start);
  let errno = 0;
  while (at < Number(end) && errno === 0) {
    errno = preFaultPage(vcpu, at);
    if (errno === 0) at += PAGE;
  }
  const left = Number(end) - at;
  argument.answer({ gpa: at, size: left });
  return left === Number(size) ? errno : 0;
}

function preFaultPage(vcpu: KvmVcpu, gpa: number): number {
  const { memory, host } = vcpu.vm;
  const found = memory.preFault(gpa, vcpu.ring);
  if (typeof found === 'number') return found === MMIO ? -Errno.ENOENT : 0;
  return vcpu.run.tellFault(found, host.dialect);
}

type Entries = ListArgument<typeof kvm_cpuid_entry2>;

/** Before the first run; later, only what is there already (kvm_set_cpuid). */
function setCpuid(vcpu: KvmVcpu, argument: Entries): number {
  const entries = argument.all.map(({ padding: _, ...entry }) => entry);
  if (vcpu.hasRun && JSON.stringify(entries) !== JSON.stringify(vcpu.cpu.cpuid)) return -Errno.EINVAL;
  vcpu.cpu.cpuid = entries;
  return 0;
}

const handlers: Handlers<KvmVcpu> = {
  KVM_GET_REGS: ({ cpu }, argument) => argument.answer(getRegs(cpu)),
  KVM_SET_REGS: ({ runner, asksElsewhere }, argument) => {
    if (asksElsewhere) return -Errno.EBUSY; // the instruction that waits there keeps its own
    runner.setRegs(argument.value);
    return 0;
  },
  KVM_GET_SREGS: ({ cpu }, argument) => argument.answer(getSregs(cpu)),
  // kvm_run.cr8 has the last word at the next KVM_RUN.
  KVM_SET_SREGS: ({ cpu }, argument) => setSregs(cpu, argument.value),
  KVM_GET_SREGS2: ({ cpu }, argument) => argument.answer(getSregs2(cpu)),
  KVM_SET_SREGS2: ({ cpu }, argument) => setSpecial(cpu, argument.value),
  KVM_GET_FPU: ({ cpu }, argument) => argument.answer(getFpu(cpu)),
  KVM_SET_FPU: ({ cpu }, argument) => setFpu(cpu, argument.value),
  KVM_GET_XSAVE: ({ cpu }, argument) => getXsave(cpu, argument.bytes),
  KVM_GET_XSAVE2: ({ cpu }, area) => getXsave(cpu, area),
  KVM_SET_XSAVE: ({ cpu }, area) => setXsave(cpu, area),
  KVM_GET_XCRS: ({ cpu, vm }, argument) => argument.answer(getXcrs(cpu, hasXsave(vm.host))),
  KVM_SET_XCRS: ({ cpu, vm }, argument) => (hasXsave(vm.host) ? setXcrs(cpu, argument.value) : -Errno.EINVAL),
  KVM_GET_MSRS: ({ cpu }, list) => getMsrs(cpu, list),
  KVM_SET_MSRS: ({ cpu }, list) => setMsrs(cpu, list),
  KVM_SET_CPUID2: setCpuid,
  KVM_GET_CPUID2: ({ cpu }, argument) => argument.answer(cpu.cpuid),
  KVM_GET_MP_STATE: (_, argument) => argument.answer({ mpState: MpState.RUNNABLE }),
  // The other states are an in-kernel interrupt controller's.
  KVM_SET_MP_STATE: (_, argument) => (argument.value.mpState === MpState.RUNNABLE ? 0 : -Errno.EINVAL),
  KVM_GET_VCPU_EVENTS: (vcpu, argument) => argument.answer(getEvents(vcpu)),
  KVM_SET_VCPU_EVENTS: (vcpu, argument) => setEvents(vcpu, argument.value),
  KVM_GET_DEBUGREGS: ({ cpu }, argument) => argument.answer(getDebugRegs(cpu)),
  KVM_SET_DEBUGREGS: ({ cpu }, argument) => setDebugRegs(cpu, argument.value),
  KVM_SET_GUEST_DEBUG: (vcpu, argument) => setGuestDebug(vcpu, argument.value),
  KVM_TRANSLATE({ cpu }, argument) {
    const { linearAddress } = argument.value;
    const found = cpu.translate(linearAddress);
    // kvm_arch_vcpu_ioctl_translate() says of every page that it is writable and the supervisor's.
    return argument.answer({
      linearAddress,
      physicalAddress: found === undefined ? NO_ADDRESS : found.physical,
      valid: found === undefined ? 0 : 1,
      writeable: 1,
      usermode: 0,
    });
  },
  KVM_INTERRUPT({ cpu }, argument) {
    const { irq } = argument.value;
    if (irq >= INTERRUPTS) return -Errno.EINVAL;
    cpu.interrupt = { vector: irq, soft: false };
    return 0;
  },
  KVM_NMI: ({ cpu }) => injectNmi(cpu),
  KVM_GET_TSC_KHZ: () => TSC_KHZ,
  // Everything that can be enabled for a single vCPU belongs to Hyper-V's interface.
  KVM_ENABLE_CAP: () => -Errno.EINVAL,
  KVM_PRE_FAULT_MEMORY: (vcpu, argument) =>
    vcpu.vm.host.dialect.name === 'mainline' ? preFault(vcpu, argument) : -Errno.ENOTTY,
};

export const vcpuIoctls = new Table(handlers);

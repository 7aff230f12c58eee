/** KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS (arch/x86/kvm/x86.c), debug registers and breakpoints. */
import { GuestDebug, InterruptShadow, VcpuEventFlag, Vector } from '../../../uapi/constants.ts';
import { Errno } from '../../../uapi/errno.ts';
import type { Input, Value } from '../../../uapi/layout.ts';
import type { kvm_guest_debug } from '../../../uapi/structs.ts';
import type { kvm_debugregs, kvm_vcpu_events } from '../../../uapi/x86.ts';
import type { Cpu } from '../../cpu/cpu.ts';
import type { VcpuData } from './data.ts';

type Events = Value<typeof kvm_vcpu_events>;

const KNOWN = Object.values(VcpuEventFlag).reduce((all, flag) => all | flag, 0);
const NMI = 2;
const LAST_EXCEPTION = 31;
const shadows = { sti: InterruptShadow.STI, 'mov-ss': InterruptShadow.MOV_SS } as const;
/** Raised by an instruction (INT3, INTO): it is executed again instead of being injected again. */
const soft: readonly number[] = [Vector.BP, Vector.OF];

export function getEvents({ cpu, vm, exceptionPending }: VcpuData): Input<Events> {
  const { exception, interrupt } = cpu;
  const waits = exception !== undefined && !soft.includes(exception.vector);
  const pending = waits && exceptionPending;
  return {
    exception: {
      // Without KVM_CAP_EXCEPTION_PAYLOAD userspace knows of injected ones only.
      injected: waits && (!pending || !vm.exceptionPayload) ? 1 : 0,
      nr: exception?.vector ?? 0,
      hasErrorCode: exception?.errorCode === undefined ? 0 : 1,
      pending: pending ? 1 : 0,
      errorCode: exception?.errorCode ?? 0,
    },
    interrupt: {
      injected: interrupt !== undefined && !interrupt.soft ? 1 : 0,
      nr: interrupt?.vector ?? 0,
      soft: interrupt?.soft ? 1 : 0,
      shadow: cpu.shadow === undefined ? 0 : shadows[cpu.shadow],
    },
    nmi: { injected: 0, pending: cpu.nmiPending, masked: cpu.nmiMasked ? 1 : 0 },
    flags:
      VcpuEventFlag.NMI_PENDING | VcpuEventFlag.SHADOW | (vm.exceptionPayload ? VcpuEventFlag.PAYLOAD : 0),
    exceptionHasPayload: exception?.payload === undefined ? 0 : 1,
    exceptionPayload: exception?.payload ?? 0n,
  };
}

/** 0, or -EINVAL with nothing changed. */
export function setEvents(vcpu: VcpuData, events: Events): number {
  const { cpu, vm } = vcpu;
  const { exception, interrupt, nmi, smi, flags } = events;
  const payload = (flags & VcpuEventFlag.PAYLOAD) !== 0;
  if ((flags & ~KNOWN) !== 0 || (payload && !vm.exceptionPayload)) return -Errno.EINVAL;
  const pending = payload && exception.pending !== 0;
  const injected = exception.injected !== 0 && !pending;
  if ((pending || injected) && (exception.nr > LAST_EXCEPTION || exception.nr === NMI)) return -Errno.EINVAL;
  // There is no system management mode, and KVM_CAP_X86_TRIPLE_FAULT_EVENT is not there either.
  if ((flags & VcpuEventFlag.SMM) !== 0 && (smi.smm || smi.pending || smi.smmInsideNmi)) return -Errno.EINVAL;
  if ((flags & VcpuEventFlag.TRIPLE_FAULT) !== 0) return -Errno.EINVAL;

  vcpu.exceptionPending = pending;
  cpu.exception =
    pending || injected
      ? {
          vector: exception.nr,
          errorCode: exception.hasErrorCode ? exception.errorCode : undefined,
          payload: pending && events.exceptionHasPayload ? events.exceptionPayload : undefined,
        }
      : undefined;
  cpu.interrupt = interrupt.injected ? { vector: interrupt.nr, soft: interrupt.soft !== 0 } : undefined;
  if ((flags & VcpuEventFlag.SHADOW) !== 0) cpu.shadow = shadowOf(interrupt.shadow);
  if ((flags & VcpuEventFlag.NMI_PENDING) !== 0) cpu.nmiPending = nmi.pending;
  if (nmi.injected) cpu.nmiPending++; // one that was on its way: it is delivered as the next
  cpu.nmiMasked = nmi.masked !== 0;
  cpu.changed();
  return 0;
}

const shadowOf = (bits: number): Cpu['shadow'] =>
  bits & InterruptShadow.MOV_SS ? 'mov-ss' : bits & InterruptShadow.STI ? 'sti' : undefined;

/** kvm_inject_nmi(): one may wait behind the one that is being handled, and two when none is. */
export function injectNmi(cpu: Cpu): number {
  cpu.nmiPending = Math.min(cpu.nmiPending + 1, cpu.nmiMasked ? 1 : 2);
  return 0;
}

const HIGH_HALF = ~0xffff_ffffn;

export const getDebugRegs = ({ dr }: Cpu): Input<Value<typeof kvm_debugregs>> => ({
  db: dr.slice(0, 4),
  dr6: dr[6]!,
  dr7: dr[7]!,
});

export function setDebugRegs(cpu: Cpu, regs: Value<typeof kvm_debugregs>): number {
  if (regs.flags !== 0 || ((regs.dr6 | regs.dr7) & HIGH_HALF) !== 0n) return -Errno.EINVAL;
  for (const [i, address] of regs.db.entries()) cpu.dr[i] = address;
  cpu.dr[6] = regs.dr6;
  cpu.dr[7] = regs.dr7;
  cpu.changed();
  return 0;
}

/** KVM_SET_GUEST_DEBUG. KVM_GUESTDBG_BLOCKIRQ is accepted and changes nothing. */
export function setGuestDebug(vcpu: VcpuData, debug: Value<typeof kvm_guest_debug>): number {
  const { cpu } = vcpu;
  const { control } = debug;
  const inject = control & (GuestDebug.INJECT_DB | GuestDebug.INJECT_BP);
  if (inject !== 0) {
    if (cpu.exception !== undefined) return -Errno.EBUSY;
    const vector = (control & GuestDebug.INJECT_DB) !== 0 ? Vector.DB : Vector.BP;
    cpu.exception = { vector, errorCode: undefined, payload: undefined };
    vcpu.exceptionPending = true;
  }
  const has = (flag: number) => (control & GuestDebug.ENABLE) !== 0 && (control & flag) !== 0;
  const { debugreg } = debug.arch;
  cpu.debugging = {
    singleStep: has(GuestDebug.SINGLESTEP),
    softwareBreakpoints: has(GuestDebug.USE_SW_BP),
    hardware: has(GuestDebug.USE_HW_BP) ? { addresses: debugreg.slice(0, 4), dr7: debugreg[7]! } : undefined,
  };
  cpu.changed();
  return 0;
}

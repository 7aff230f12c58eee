/** What tests of interrupts need: a guest that waits for them, and the registers by which they come. */
import { expect } from 'vitest';
import { type CpuidEntry, Exit, type Hypervisor, type Vcpu, type Vm } from '../../src/index.ts';
import { viewOf } from '../../src/uapi/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { Agent, type AgentOptions } from './agent.ts';
import { type Ends, handled, installHandlers } from './handlers.ts';
import { DEADLINE_MS } from './limits.ts';
import { expectOutcome } from './run.ts';

const WAITS_PORT = 0xf2;

/** Says that it waits, and waits for one interrupt after the other. */
const waits = guest(
  64,
  `
 e6 f2 |        out 0xf2, al
 fb    | again: sti
 f4    |        hlt
 eb fc |        jmp again
`,
);

/** Registers of the local APIC, by their offsets (SDM volume 3, table 12-1). */
export const Lapic = {
  ID: 0x20,
  TPR: 0x80,
  /** The first of eight registers, of 32 vectors each. */
  ISR: 0x100,
  /** Bit 8: it is on. */
  SVR: 0xf0,
  IRR: 0x200,
  LVT_TIMER: 0x320,
  LVT_LINT0: 0x350,
  TIMER_INITIAL: 0x380,
  TIMER_CURRENT: 0x390,
  TIMER_DIVIDE: 0x3e0,
} as const;
/** The spurious vector, and the local APIC is on. */
export const LAPIC_ON = { [Lapic.SVR]: 0x1ff } as const;

/** Sets registers of the vCPU's local APIC; the others stay as they are. */
export function changeLapic(vcpu: Vcpu, registers: Readonly<Record<number, number>>): void {
  const { regs } = vcpu.getLapic();
  for (const [offset, value] of Object.entries(registers))
    viewOf(regs).setUint32(Number(offset), value, true);
  vcpu.setLapic({ regs });
}

export const lapicRegister = (vcpu: Vcpu, offset: number): number =>
  viewOf(vcpu.getLapic().regs).getUint32(offset, true);

/** Whether the local APIC has the vector's interrupt in service: delivered, and not ended (SDM volume 3, 12.8.4). */
export const servicing = (vcpu: Vcpu, vector: number): boolean =>
  ((lapicRegister(vcpu, Lapic.ISR + 0x10 * (vector >>> 5)) >>> (vector & 31)) & 1) === 1;

/** A redirection entry (82093AA, 3.2.4) to APIC id 0: fixed, physical; bit 15 is level, bit 16 is masked. */
export const Redirection = { LEVEL: 1 << 15, MASKED: 1 << 16 } as const;

export interface WaitingOptions {
  /** Instead of createIrqchip(). */
  readonly prepare?: (vm: Vm) => void;
  /** Where its handlers end their interrupts. */
  readonly ends?: Ends;
  /** Of its vCPU; 0 without it. */
  readonly id?: number;
  /** Instead of all that KVM supports. */
  readonly cpuid?: readonly CpuidEntry[];
}

/** A guest whose local APIC is on, and whose handlers tell their vectors. */
export function waitingGuest(
  hv: Hypervisor,
  { prepare, ends = 'nowhere', id = 0, cpuid }: WaitingOptions = {},
): Agent {
  const options: AgentOptions = { prepare: prepare ?? ((vm) => vm.createIrqchip()), id };
  const agent = Agent.boot(hv, options);
  try {
    if (cpuid !== undefined) agent.vcpu.setCpuid2(cpuid);
    // The host's own rate. Where its counter is not constant, KVM gives a vCPU an early estimate of that, and if it was too
    // low, a counter that stands still (arch/x86/kvm/x86.c, set_tsc_khz()).
    agent.vcpu.setTscKhz(0);
    installHandlers(agent, ends);
    changeLapic(agent.vcpu, LAPIC_ON);
    agent.beginCode(waits);
    expectOutcome(agent.vcpu, Exit.IO);
    expect(agent.vcpu.io.port).toBe(WAITS_PORT);
    return agent;
  } catch (error) {
    agent[Symbol.dispose]();
    throw error;
  }
}

/** The vector of the interrupt that the guest gets next. */
export function nextVector(agent: Agent): number {
  agent.vcpu.run(DEADLINE_MS);
  return handled(agent);
}

/** A message to APIC id 0, as KVM_SIGNAL_MSI takes it (SDM volume 3, "Message Signalled Interrupts"). */
export const message = (vector: number, addressLo = 0xfee0_0000) => ({ addressLo, data: vector });

/** Raises the line and lowers it. */
export function pulse(vm: Vm, irq: number): void {
  vm.irqLine({ irq, level: 1 });
  vm.irqLine({ irq, level: 0 });
}

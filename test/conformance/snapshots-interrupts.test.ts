/** A guest with interrupt controllers, timers and a clock in the kernel goes on elsewhere with all of them. */
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect } from 'vitest';
import {
  Cap,
  type CpuidEntry,
  defaultGsiRoutes,
  Exit,
  type GuestMemory,
  type Hypervisor,
  Irqchip,
  IrqRouting,
  type Vcpu,
  type Vm,
  X2apicApi,
} from '../../src/index.ts';
import { KvmMsr, MpState } from '../../src/uapi/index.ts';
import { receiveGuest, sendGuest } from '../../src/vmm/migration/index.ts';
import { captureState, parseState, RestoredMachine } from '../../src/vmm/snapshot/index.ts';
import { Layout } from '../support/agent.ts';
import { handled } from '../support/handlers.ts';
import {
  changeLapic,
  Lapic,
  lapicRegister,
  message,
  pulse,
  Redirection,
  waitingGuest,
} from '../support/interrupts.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { clockOf } from '../support/pvclock.ts';
import { runTo } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

const TIMER = 0x61;
const PIC_BASE = 0x30;
const MSR_TSC = 0x10;
const MSR_TSC_DEADLINE = 0x6e0;
const CLOCK = Layout.free + 0x1_0000;

/** An APIC id that takes more than a byte. */
const FAR = 300;

interface Guest extends Disposable {
  readonly vm: Vm;
  readonly vcpu: Vcpu;
  readonly ram: GuestMemory;
}

/** The machine of the state, with the memory; what it was is closed. */
function moved(
  hv: Hypervisor,
  here: Guest,
  others: readonly Vcpu[] = [],
): Guest & { machine: RestoredMachine } {
  const { state, memories } = captureState(hv, here.vm, [here.vcpu, ...others]);
  const machine = new RestoredMachine(hv, parseState(JSON.parse(JSON.stringify(state))));
  const [ram] = machine.memories;
  ram!.write(0, memories[0]!.read(0, memories[0]!.size));
  for (const vcpu of others) vcpu.close();
  here[Symbol.dispose]();
  machine.begin();
  expect(machine.differences).toEqual([]);
  const close = () => machine.close();
  return { machine, vm: machine.vm, vcpu: machine.vcpus[0]!, ram: ram!, [Symbol.dispose]: close };
}

/** The vector of the interrupt that it gets next. */
function nextVector({ vcpu }: Guest): number {
  vcpu.run(DEADLINE_MS);
  return handled({ vcpu });
}

/** Runs until interrupts of each vector have come so many times. */
function awaitTicks(guest: Guest, vectors: readonly number[], times: number): void {
  const ticks = new Map(vectors.map((vector) => [vector, 0]));
  for (let all = 0; [...ticks.values()].some((count) => count < times); all++) {
    expect(all, 'interrupts, of which one kind has stopped').toBeLessThan(300);
    const vector = nextVector(guest);
    expect(vectors).toContain(vector);
    ticks.set(vector, ticks.get(vector)! + 1);
  }
}

/** With a PIT that ticks by the PIC, and a timer of the local APIC that does. */
function tickingGuest(hv: Hypervisor): Guest {
  const agent = waitingGuest(hv, {
    ends: 'both',
    prepare(vm) {
      vm.createIrqchip();
      vm.createPit2();
    },
  });
  const { vm, vcpu } = agent;
  vm.setIrqchip({ chipId: Irqchip.PIC_MASTER, pic: { irqBase: PIC_BASE, imr: 0xfe, elcrMask: 0xf8 } });
  const pit = vm.getPit2();
  const [channel, ...more] = pit.channels;
  vm.setPit2({ ...pit, channels: [{ ...channel!, mode: 2, count: 0x8000, gate: 1 }, ...more] });
  const PERIODIC = 1 << 17;
  changeLapic(vcpu, {
    [Lapic.TIMER_DIVIDE]: 0xb,
    [Lapic.LVT_TIMER]: TIMER | PERIODIC,
    [Lapic.TIMER_INITIAL]: 30_000_000,
    [Lapic.TIMER_CURRENT]: 30_000_000,
  });
  return agent;
}

const tsc = (vcpu: Vcpu): bigint => vcpu.getMsrs([MSR_TSC])[0]!.data;

conformance('snapshots of interrupt controllers and timers', ({ needs }) => {
  const it = needs('irqchip', 'immediate-exit');

  it("ticks of the PIT and of the local APIC's timer go on, and the clock does not run backwards", (hv) => {
    let guest = tickingGuest(hv);
    try {
      guest.vcpu.setMsrs([{ index: KvmMsr.SYSTEM_TIME_NEW, data: BigInt(CLOCK) | 1n }]);
      guest.vm.setClock({ clock: 3_600_000_000_000n });
      let [time, cycles, kernels] = [0n, 0n, 0n];
      for (let moves = 0; moves < 4; moves++) {
        awaitTicks(guest, [PIC_BASE, TIMER], 3);
        const now = tsc(guest.vcpu);
        expect(now).toBeGreaterThan(cycles);
        cycles = now;
        const guests = clockOf(guest.ram, CLOCK, now);
        expect(guests).toBeGreaterThan(time > 0n ? time : 3_600_000_000_000n);
        time = guests;
        const { clock } = guest.vm.getClock();
        expect(clock).toBeGreaterThan(kernels);
        kernels = clock;
        guest = moved(hv, guest);
      }
      expect(time).toBeLessThan(2n * 3_600_000_000_000n);
    } finally {
      guest[Symbol.dispose]();
    }
  });

  it("a deadline of the local APIC's timer comes after the move, also one that has passed by then", (hv, context) => {
    context.skip(hv.checkExtension(Cap.TSC_DEADLINE_TIMER) === 0, 'this KVM has no such timer');
    const told = (leaf: CpuidEntry) =>
      leaf.function === 1 ? { ...leaf, ecx: (leaf.ecx | (1 << 24)) >>> 0 } : leaf;
    const agent = waitingGuest(hv, { ends: 'both', cpuid: hv.getSupportedCpuid().map(told) });
    const DEADLINE_MODE = 2 << 17;
    changeLapic(agent.vcpu, { [Lapic.LVT_TIMER]: TIMER | DEADLINE_MODE });
    let guest: Guest = agent;
    try {
      for (const later of [1n, BigInt(agent.vcpu.getTscKhz()) * 200n]) {
        guest.vcpu.setMsrs([{ index: MSR_TSC_DEADLINE, data: tsc(guest.vcpu) + later }]);
        guest = moved(hv, guest);
        const deadline = guest.vcpu.getMsrs([MSR_TSC_DEADLINE])[0]!.data;
        expect(nextVector(guest)).toBe(TIMER);
        if (deadline !== 0n) expect(tsc(guest.vcpu)).toBeGreaterThan(deadline);
      }
    } finally {
      guest[Symbol.dispose]();
    }
  });

  it('interrupts that are pending in the PIC, in the I/O APIC and in the local APIC come after the move', (hv) => {
    const agent = waitingGuest(hv, { ends: 'both' });
    const { vm } = agent;
    vm.setIrqchip({ chipId: Irqchip.PIC_MASTER, pic: { irqBase: PIC_BASE, imr: 0 } });
    const { ioapic } = vm.getIrqchip(Irqchip.IOAPIC);
    const redirtbl = ioapic.redirtbl
      .with(20, BigInt(0x52 | Redirection.LEVEL))
      .with(21, BigInt(0x53 | Redirection.MASKED | Redirection.LEVEL));
    vm.setIrqchip({ chipId: Irqchip.IOAPIC, ioapic: { ...ioapic, redirtbl } });
    vm.signalMsi(message(0x71));
    pulse(vm, 4);
    vm.irqLine({ irq: 20, level: 1 });
    vm.irqLine({ irq: 21, level: 1 });

    using guest = moved(hv, agent);
    const vectors = [nextVector(guest), nextVector(guest), nextVector(guest)];
    expect(vectors.toSorted()).toEqual([PIC_BASE + 4, 0x52, 0x71].toSorted());
    // The line is still raised, there too, until somebody lowers it; and the masked one comes when it is no longer masked.
    expect(nextVector(guest)).toBe(0x52);
    guest.vm.irqLine({ irq: 20, level: 0 });
    const there = guest.vm.getIrqchip(Irqchip.IOAPIC).ioapic;
    guest.vm.setIrqchip({
      chipId: Irqchip.IOAPIC,
      ioapic: { ...there, redirtbl: there.redirtbl.with(21, BigInt(0x53)) },
    });
    expect(nextVector(guest)).toBe(0x53);
  });

  it('what was made of the VM is made again: the boot processor, routes, the timer, capabilities, states of processors', (hv) => {
    const synic = hv.checkExtension(Cap.HYPERV_SYNIC2) > 0;
    const agent = waitingGuest(hv, {
      id: 1,
      prepare(vm) {
        vm.createIrqchip();
        vm.createPit2();
        vm.reinjectControl(false);
        vm.setBootCpuId(1);
        vm.enableCap({ cap: Cap.X2APIC_API, args: [X2apicApi.USE_32BIT_IDS] });
        vm.enableCap({ cap: Cap.X2APIC_API, args: [X2apicApi.DISABLE_BROADCAST_QUIRK] });
        vm.setGsiRouting([
          ...defaultGsiRoutes(),
          { gsi: 40, type: IrqRouting.MSI, msi: message(0x59, 0xfee0_1000) },
        ]);
      },
    });
    const sleeper = agent.vm.createVcpu(FAR);
    sleeper.setCpuid2(hv.getSupportedCpuid());
    // In x2APIC mode.
    sleeper.changeSregs({ apicBase: sleeper.getSregs().apicBase | (3n << 10n) });
    if (synic) {
      sleeper.enableCap({ cap: Cap.HYPERV_SYNIC2 });
      expect(sleeper.setMsrs([{ index: 0x4000_0093, data: 0x5an }])).toBe(1);
    }
    const setup = (vm: Vm) => ({ ...vm.setup });
    const before = setup(agent.vm);
    using guest = moved(hv, agent, [sleeper]);
    const [boot, other] = guest.machine.vcpus;
    expect(setup(guest.vm)).toEqual(before);
    expect([boot!.id, boot!.getMpState(), other!.id, other!.getMpState()]).toEqual([
      1,
      MpState.RUNNABLE,
      FAR,
      MpState.UNINITIALIZED,
    ]);
    expect(lapicRegister(other!, Lapic.ID)).toBe(FAR);
    if (synic) expect(other!.getMsrs([0x4000_0093])).toMatchObject([{ data: 0x5an }]);
    guest.vm.irqLine({ irq: 40, level: 1 });
    expect(nextVector(guest)).toBe(0x59);
  });

  const goesOnSplit = (hv: Hypervisor, end?: (there: Vcpu) => void): void => {
    const agent = waitingGuest(hv, {
      ends: 'lapic',
      prepare: (vm) => vm.enableCap({ cap: Cap.SPLIT_IRQCHIP, args: [24] }),
    });
    agent.vm.setGsiRouting([{ gsi: 9, type: IrqRouting.MSI, msi: { ...message(0x55 | Redirection.LEVEL) } }]);
    agent.vm.irqLine({ irq: 9, level: 1 });
    expect(nextVector(agent)).toBe(0x55);
    changeLapic(agent.vcpu, { [Lapic.TPR]: 0x10 });
    using guest = moved(hv, agent);
    expect(guest.vm.setup.irqchip).toBe('split');
    expect(lapicRegister(guest.vcpu, Lapic.TPR)).toBe(0x10);
    end?.(guest.vcpu);
  };
  it('a split irqchip goes on with its local APICs', (hv) => goesOnSplit(hv));
  needs(
    'irqchip',
    'immediate-exit',
    'interrupts-in-service',
  )('a split irqchip goes on with an interrupt in service, which ends as an exit there', (hv) =>
    goesOnSplit(hv, (vcpu) => {
      runTo(vcpu, Exit.IOAPIC_EOI);
      expect(vcpu.eoi.vector).toBe(0x55);
    }),
  );

  it('a VM or a vCPU with something that no snapshot carries is refused, and it is named', (hv) => {
    using guest = tickingGuest(hv);
    const { vcpu, vm } = guest;
    const refused = (what: string) =>
      expect(() => captureState(hv, vm, [vcpu])).toThrow(`${what}, which no snapshot carries`);
    const zone = { addr: 0xf000_0000, size: 0x1000 };
    vm.registerCoalescedMmio(zone);
    refused('the VM has coalesced writes to [0xf0000000, +0x1000)');
    vm.unregisterCoalescedMmio(zone);
    vcpu.setVapicAddr(0x7000);
    refused('vCPU 0 has a task priority in its memory (setVapicAddr())');
    vcpu.setVapicAddr(0);
    captureState(hv, vm, [vcpu]);
    vcpu.setupMce(1);
    refused('vCPU 0 has banks of machine checks of its own (setupMce())');
  });

  needs('irqchip', 'userfaultfd')('a guest that migrates ticks on at its destination', async (hv) => {
    const ticking = tickingGuest(hv);
    try {
      awaitTicks(ticking, [PIC_BASE, TIMER], 2);
      const { clock } = ticking.vm.getClock();
      const at = `unix:${join(tmpdir(), `ticking-${process.pid}.sock`)}`;
      const arrival = receiveGuest(hv, { at });
      const { vm, vcpu } = ticking;
      const sending = sendGuest(hv, { vm, vcpus: [vcpu], to: at });
      const there = await arrival;
      try {
        await sending;
        await there.pager.complete;
        expect(there.vm.getClock().clock).toBeGreaterThan(clock);
        const [arrived] = there.vcpus;
        const guest = { vm: there.vm, vcpu: arrived!, ram: there.memories[0]!, [Symbol.dispose]() {} };
        awaitTicks(guest, [PIC_BASE, TIMER], 3);
      } finally {
        await there.close();
      }
    } finally {
      ticking[Symbol.dispose]();
    }
  });
});

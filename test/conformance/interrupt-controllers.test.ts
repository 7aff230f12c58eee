/** Interrupt controllers and the timer in the kernel: what the host sets in them is what the guest gets. */
import { expect } from 'vitest';
import { Exit, type Hypervisor, Irqchip } from '../../src/index.ts';
import { MpState } from '../../src/uapi/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { Agent, Layout } from '../support/agent.ts';
import {
  changeLapic,
  Lapic,
  lapicRegister,
  message,
  nextVector,
  pulse,
  Redirection,
  waitingGuest,
} from '../support/interrupts.ts';
import { errnoOf, expectOutcome, runTo } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

/** Programs the master PIC (vectors from 0x20 on, all unmasked but line 3), the PIT, and pin 7 of the I/O APIC. */
const programs = guest(
  64,
  `
 b0 11                | mov al, 0x11
 e6 20                | out 0x20, al
 b0 20                | mov al, 0x20
 e6 21                | out 0x21, al
 b0 04                | mov al, 4
 e6 21                | out 0x21, al
 b0 01                | mov al, 1
 e6 21                | out 0x21, al
 b0 08                | mov al, 8
 e6 21                | out 0x21, al
 b0 b4                | mov al, 0xb4 # channel 2, both bytes, mode 2
 e6 43                | out 0x43, al
 b0 34                | mov al, 0x34
 e6 42                | out 0x42, al
 b0 12                | mov al, 0x12
 e6 42                | out 0x42, al
 bb 00 00 c0 fe       | mov ebx, 0xfec00000
 c7 03 1e 00 00 00    | mov dword ptr [rbx], 0x1e
 c7 43 10 77 a0 01 00 | mov dword ptr [rbx + 0x10], 0x1a077
 c3                   | ret
`,
);

/** Says so, again and again. */
const says = guest(
  64,
  `
 e6 f3 | again: out 0xf3, al
 eb fc |        jmp again
`,
);

const VECTOR = 0x55;
const OTHER = 0x66;
/** A GSI of the I/O APIC alone. */
const PIN = 20;

/** Sets redirection entries of the I/O APIC; the others stay as they are. */
function redirect({ vm }: Agent, entries: Readonly<Record<number, number>>): void {
  const { ioapic } = vm.getIrqchip(Irqchip.IOAPIC);
  const redirtbl = ioapic.redirtbl.map((entry, pin) => BigInt(entries[pin] ?? entry));
  vm.setIrqchip({ chipId: Irqchip.IOAPIC, ioapic: { ...ioapic, redirtbl } });
}

const withPit = (hv: Hypervisor): Agent =>
  waitingGuest(hv, {
    ends: 'both',
    prepare(vm) {
      vm.createIrqchip();
      vm.createPit2();
    },
  });

/** The PIT counts at this rate (1.193182 MHz). */
const PIT_HZ = 1_193_182;

/** The PIC's vectors are from here on, and only the timer's line comes through. */
const PIC = { irqBase: 0x30, imr: 0xfe, elcrMask: 0xf8 } as const;

/** Sets channel 0 of the PIT: it counts from now on. */
function setTimer({ vm }: Agent, mode: number, count: number): void {
  const pit = vm.getPit2();
  const [channel, ...others] = pit.channels;
  vm.setPit2({ ...pit, channels: [{ ...channel!, mode, count, gate: 1 }, ...others] });
}

conformance('interrupt controllers in the kernel', ({ needs }) => {
  const it = needs('irqchip');

  it('what the guest has programmed is what KVM_GET_IRQCHIP and KVM_GET_PIT2 give', (hv) => {
    using agent = Agent.boot(hv, {
      prepare(vm) {
        vm.createIrqchip();
        vm.createPit2();
      },
    });
    agent.beginCode(programs);
    agent.answer;
    const { vm } = agent;
    expect(vm.getIrqchip(Irqchip.PIC_MASTER)).toMatchObject({
      chipId: Irqchip.PIC_MASTER,
      pic: { irqBase: 0x20, imr: 8 },
    });
    expect(vm.getIrqchip(Irqchip.PIC_SLAVE)).toMatchObject({ pic: { irqBase: 0 } });
    const { ioapic } = vm.getIrqchip(Irqchip.IOAPIC);
    expect(ioapic.baseAddress).toBe(0xfec0_0000);
    expect(ioapic.redirtbl[7]).toBe(0x1_a077n);
    expect(vm.getPit2().channels[2]).toMatchObject({ mode: 2, count: 0x1234 });
  });

  it("a redirection entry that the host sets decides the guest's vector, and a masked one that there is none", (hv) => {
    using agent = waitingGuest(hv);
    for (const vector of [VECTOR, OTHER]) {
      redirect(agent, { [PIN]: vector });
      pulse(agent.vm, PIN);
      expect(nextVector(agent)).toBe(vector);
      changeLapic(agent.vcpu, { [Lapic.ISR + 0x10 * (vector >> 5)]: 0 });
    }
    redirect(agent, { [PIN]: VECTOR | Redirection.MASKED });
    pulse(agent.vm, PIN);
    agent.vm.signalMsi(message(0x31));
    expect(nextVector(agent)).toBe(0x31);
  });

  it('the mask and the first vector of the PIC that the host sets decide what the guest gets', (hv) => {
    using agent = waitingGuest(hv);
    const { vm } = agent;
    vm.setIrqchip({ chipId: Irqchip.PIC_MASTER, pic: { irqBase: 0x40, imr: 0xef } });
    pulse(vm, 3);
    pulse(vm, 4);
    expect(nextVector(agent)).toBe(0x44);
    expect(vm.getIrqchip(Irqchip.PIC_MASTER).pic).toMatchObject({ irr: 1 << 3, isr: 1 << 4 });
    // What is pending comes when it is no longer masked, and at another vector then.
    vm.setIrqchip({ chipId: Irqchip.PIC_MASTER, pic: { irqBase: 0x50, imr: 0xf7, irr: 1 << 3 } });
    expect(nextVector(agent)).toBe(0x53);
  });

  it('KVM_IRQ_LINE_STATUS tells whether an interrupt was delivered, merged with a pending one, or ignored', (hv) => {
    using agent = waitingGuest(hv);
    const { vm } = agent;
    const raise = () => vm.irqLineStatus({ irq: PIN, level: 1 });
    redirect(agent, { [PIN]: VECTOR | Redirection.MASKED });
    expect(raise()).toBeLessThan(0);
    vm.irqLine({ irq: PIN, level: 0 });
    redirect(agent, { [PIN]: VECTOR });
    expect(raise()).toBeGreaterThan(0);
    expect(raise()).toBe(0);
    expect(nextVector(agent)).toBe(VECTOR);
  });

  it('the mode and count of the PIT that the host sets decide whether one tick comes or one after the other', (hv) => {
    using agent = withPit(hv);
    agent.vm.setIrqchip({ chipId: Irqchip.PIC_MASTER, pic: PIC });
    // In this order: of what comes one after the other, some may wait to be taken when it is to come no more.
    setTimer(agent, 0, 0x800);
    expect(nextVector(agent)).toBe(PIC.irqBase);
    // By then a few more would have come.
    agent.vcpu.run(20);
    expectOutcome(agent.vcpu, Exit.DEADLINE);
    setTimer(agent, 2, 0x800);
    for (let tick = 0; tick < 5; tick++) expect(nextVector(agent)).toBe(PIC.irqBase);
    expect(agent.vm.getPit2().channels[0]).toMatchObject({ mode: 2, count: 0x800 });
  });

  for (const reinject of [true, false]) {
    it(`ticks of the PIT that the guest could not take are ${reinject ? 'made up for' : 'lost, after KVM_REINJECT_CONTROL'}`, (hv) => {
      using agent = withPit(hv);
      if (!reinject) agent.vm.reinjectControl(false);
      expect(agent.vm.setup.pit).toEqual({ flags: 0, reinject });
      agent.vm.setIrqchip({ chipId: Irqchip.PIC_MASTER, pic: PIC });
      const count = 0x4000;
      const begun = performance.now();
      setTimer(agent, 2, count);
      const due = () => Math.floor(((performance.now() - begun) / 1000) * (PIT_HZ / count));
      while (due() < 10) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10);
      let ticks = 0;
      while (due() - ticks > 1 && ticks < (reinject ? 1000 : 3)) {
        expect(nextVector(agent)).toBe(PIC.irqBase);
        ticks++;
      }
      // Either it has caught up, or it is as late as it was.
      if (reinject) expect(due() - ticks).toBeLessThanOrEqual(5);
      else expect(due() - ticks).toBeGreaterThan(5);
    });
  }

  it('a local APIC that the host turns on takes interrupts, and one that is off takes none', (hv) => {
    using agent = waitingGuest(hv);
    const { vcpu, vm } = agent;
    changeLapic(vcpu, { [Lapic.SVR]: 0xff });
    vm.signalMsi(message(VECTOR));
    changeLapic(vcpu, { [Lapic.SVR]: 0x1ff });
    vm.signalMsi(message(OTHER));
    expect(nextVector(agent)).toBe(OTHER);
  });

  it('the task priority that the host sets decides whether an interrupt waits', (hv) => {
    using agent = waitingGuest(hv);
    const { vcpu, vm } = agent;
    changeLapic(vcpu, { [Lapic.TPR]: 0x60 });
    expect(vcpu.getSregs().cr8).toBe(6n);
    vm.signalMsi(message(VECTOR));
    vm.signalMsi(message(0x71));
    expect(nextVector(agent)).toBe(0x71);
    changeLapic(vcpu, { [Lapic.TPR]: 0, [Lapic.ISR + 0x10 * (0x71 >> 5)]: 0 });
    expect(nextVector(agent)).toBe(VECTOR);
  });

  it('the timer of a local APIC that the host sets ticks at the vector that it says, and tells its count', (hv) => {
    using agent = waitingGuest(hv, { ends: 'both' });
    const PERIODIC = 1 << 17;
    changeLapic(agent.vcpu, {
      [Lapic.TIMER_DIVIDE]: 0xb,
      [Lapic.LVT_TIMER]: VECTOR | PERIODIC,
      [Lapic.TIMER_INITIAL]: 2_000_000,
      [Lapic.TIMER_CURRENT]: 2_000_000,
    });
    for (let tick = 0; tick < 3; tick++) expect(nextVector(agent)).toBe(VECTOR);
    // It is 0 where a tick is due, as it may be at any one of them on a busy host.
    const counts = Array.from({ length: 50 }, () => lapicRegister(agent.vcpu, Lapic.TIMER_CURRENT));
    expect(Math.max(...counts)).toBeGreaterThan(0);
    expect(Math.max(...counts)).toBeLessThanOrEqual(2_000_000);
  });

  it('KVM_SET_BOOT_CPU_ID decides which processor is the boot processor, and runs by itself', (hv) => {
    using agent = Agent.boot(hv, {
      prepare(vm) {
        vm.createIrqchip();
        vm.setBootCpuId(1);
      },
    });
    using boot = agent.sibling(1).vcpu;
    const BSP = 1n << 8n;
    expect(agent.vm.setup.bootCpuId).toBe(1);
    expect([agent.vcpu.getMpState(), boot.getMpState()]).toEqual([MpState.UNINITIALIZED, MpState.RUNNABLE]);
    expect([agent.vcpu, boot].map((vcpu) => vcpu.getSregs().apicBase & BSP)).toEqual([0n, BSP]);
    agent.ram.write(Layout.snippet, says.code);
    for (const vcpu of [agent.vcpu, boot]) vcpu.setRegs({ rip: Layout.snippet, rflags: 2 });
    runTo(boot, Exit.IO);
    agent.vcpu.run(20);
    expectOutcome(agent.vcpu, Exit.DEADLINE);
    expect(errnoOf(() => agent.vm.setBootCpuId(0))).toBe('EBUSY');
  });

  it('KVM_SET_MP_STATE lets another processor run without INIT and SIPI, and stops one until an interrupt', (hv) => {
    using agent = waitingGuest(hv);
    using other = agent.sibling(1).vcpu;
    other.setRegs({ rip: Layout.snippet, rflags: 2 });
    expect(other.getMpState()).toBe(MpState.UNINITIALIZED);
    other.setMpState(MpState.RUNNABLE);
    runTo(other, Exit.IO);
    agent.vcpu.complete(() => {});
    agent.ram.write(Layout.snippet, says.code);
    agent.vcpu.setRegs({ ...agent.vcpu.getRegs(), rip: Layout.snippet, rflags: 0x202 });
    agent.vcpu.setMpState(MpState.HALTED);
    agent.vcpu.run(20);
    expectOutcome(agent.vcpu, Exit.DEADLINE);
    agent.vm.signalMsi(message(VECTOR));
    expect(nextVector(agent)).toBe(VECTOR);
    expect(agent.vcpu.getMpState()).toBe(MpState.RUNNABLE);
  });

  it('what there is not is refused by its errno, and a chip without its state by its name', (hv) => {
    using vm = hv.createVm();
    expect(errnoOf(() => vm.getIrqchip(Irqchip.IOAPIC))).toBe('ENXIO');
    expect(errnoOf(() => vm.getPit2())).toBe('ENXIO');
    expect(errnoOf(() => vm.reinjectControl(false))).toBe('ENXIO');
    vm.createIrqchip();
    expect(errnoOf(() => vm.createIrqchip())).toBe('EEXIST');
    expect(errnoOf(() => vm.setPit2({}))).toBe('ENXIO');
    expect(() => vm.getIrqchip(3 as 2)).toThrow(/chipId is 3/);
    expect(() => vm.setIrqchip({ chipId: Irqchip.IOAPIC } as never)).toThrow(/chip 2 has `ioapic`/);
    expect(() => vm.setIrqchip({ chipId: Irqchip.PIC_SLAVE, pic: { imr: 256 } })).toThrow(/imr: 256/);
  });
});

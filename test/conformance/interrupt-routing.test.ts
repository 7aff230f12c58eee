/** Where interrupts lead: routes of GSIs, messages, local APICs without the kernel's I/O APIC, and x2APIC. */
import { expect } from 'vitest';
import {
  Cap,
  defaultGsiRoutes,
  Exit,
  type GsiRoute,
  type Hypervisor,
  Irqchip,
  IrqRouting,
  type Vcpu,
  type Vm,
  X2apicApi,
} from '../../src/index.ts';
import { viewOf, Xen } from '../../src/uapi/index.ts';
import type { Agent } from '../support/agent.ts';
import {
  changeLapic,
  LAPIC_ON,
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

const VECTOR = 0x55;
const OTHER = 0x66;
const GSI = 5;
/** The pins of the VMM's own I/O APIC. */
const PINS = 24;

const toMessage = (gsi: number, data: number, more: object = {}): GsiRoute => ({
  gsi,
  type: IrqRouting.MSI,
  msi: { ...message(data), ...more },
});

function split(vm: Vm): void {
  vm.enableCap({ cap: Cap.SPLIT_IRQCHIP, args: [PINS] });
}

/** Another vCPU of the VM, whose local APIC is on and in x2APIC mode. */
function x2apic(hv: Hypervisor, vm: Vm, id: number): Vcpu {
  const vcpu = vm.createVcpu(id);
  vcpu.setCpuid2(hv.getSupportedCpuid());
  enterX2apic(vcpu);
  return vcpu;
}
function enterX2apic(vcpu: Vcpu): void {
  const { apicBase } = vcpu.getSregs();
  vcpu.changeSregs({ apicBase: apicBase | (3n << 10n) });
  changeLapic(vcpu, LAPIC_ON);
}

/** Whether the vector waits in the local APIC. */
const isRequested = (vcpu: Vcpu, vector: number): boolean =>
  (lapicRegister(vcpu, Lapic.IRR + 0x10 * (vector >> 5)) & (1 << (vector & 31))) !== 0;

const x2apicVm = (hv: Hypervisor, flags: number): Vm => {
  const vm = hv.createVm();
  vm.createIrqchip();
  if (flags !== 0) vm.enableCap({ cap: Cap.X2APIC_API, args: [flags] });
  return vm;
};

conformance('routes of interrupts', ({ needs }) => {
  const it = needs('irqchip');

  it('a GSI that is routed to a message brings its vector, by a line that is raised', (hv) => {
    using agent = waitingGuest(hv);
    const { vm } = agent;
    vm.setGsiRouting([toMessage(GSI, VECTOR), toMessage(300, OTHER)]);
    expect(vm.irqLineStatus({ irq: GSI, level: 1 })).toBeGreaterThan(0);
    expect(nextVector(agent)).toBe(VECTOR);
    changeLapic(agent.vcpu, { [Lapic.ISR + 0x10 * (VECTOR >> 5)]: 0 });
    pulse(vm, 300);
    expect(nextVector(agent)).toBe(OTHER);
  });

  it('the routes that are set are all that there are, and the first ones can be set again', (hv) => {
    using agent = waitingGuest(hv);
    const { vm } = agent;
    const pic = { irqBase: 0x40, imr: 0 };
    vm.setIrqchip({ chipId: Irqchip.PIC_MASTER, pic });
    vm.setGsiRouting([toMessage(300, OTHER)]);
    expect(vm.irqLineStatus({ irq: GSI, level: 1 })).toBeLessThan(0);
    vm.irqLine({ irq: GSI, level: 0 });
    vm.setGsiRouting(defaultGsiRoutes());
    pulse(vm, GSI);
    expect(nextVector(agent)).toBe(0x40 + GSI);
    expect(vm.setup.gsiRouting?.routes).toEqual(defaultGsiRoutes());
  });

  it('a GSI can lead to a pin of another number, of a PIC and of the I/O APIC', (hv) => {
    using agent = waitingGuest(hv);
    const { vm } = agent;
    vm.setIrqchip({ chipId: Irqchip.PIC_MASTER, pic: { irqBase: 0x40, imr: 0 } });
    vm.setGsiRouting([
      { gsi: GSI, type: IrqRouting.IRQCHIP, irqchip: { irqchip: Irqchip.PIC_MASTER, pin: 7 } },
      { gsi: GSI, type: IrqRouting.IRQCHIP, irqchip: { irqchip: Irqchip.IOAPIC, pin: 3 } },
    ]);
    const { ioapic } = vm.getIrqchip(Irqchip.IOAPIC);
    const redirtbl = ioapic.redirtbl.with(3, BigInt(VECTOR));
    vm.setIrqchip({ chipId: Irqchip.IOAPIC, ioapic: { ...ioapic, redirtbl } });
    pulse(vm, GSI);
    expect([nextVector(agent), nextVector(agent)].toSorted()).toEqual([0x47, VECTOR].toSorted());
  });

  it('a synthetic interrupt of Hyper-V reaches the guest by its route', (hv, context) => {
    context.skip(hv.checkExtension(Cap.HYPERV_SYNIC2) === 0, 'this kernel has no CONFIG_KVM_HYPERV');
    using agent = waitingGuest(hv);
    const { vcpu, vm } = agent;
    vcpu.enableCap({ cap: Cap.HYPERV_SYNIC2 });
    expect(vcpu.setup.caps).toEqual([{ cap: Cap.HYPERV_SYNIC2, flags: 0, args: [0n, 0n, 0n, 0n] }]);
    // The controller is on, and source 2 has a vector (TLFS 11.8: HV_X64_MSR_SCONTROL, HV_X64_MSR_SINT2).
    const msrs = [
      { index: 0x4000_0080, data: 1n },
      { index: 0x4000_0092, data: BigInt(VECTOR) },
    ];
    expect(vcpu.setMsrs(msrs)).toBe(2);
    vm.setGsiRouting([{ gsi: GSI, type: IrqRouting.HV_SINT, hvSint: { vcpu: 0, sint: 2 } }]);
    pulse(vm, GSI);
    expect(nextVector(agent)).toBe(VECTOR);
  });

  it('what is no route is refused: by KVM with EINVAL, or before it by its name', (hv) => {
    using vm = hv.createVm();
    expect(errnoOf(() => vm.setGsiRouting([toMessage(1, 1)]))).toBe('EINVAL');
    vm.createIrqchip();
    const pin = (gsi: number, irqchip: number, number: number): GsiRoute => ({
      gsi,
      type: IrqRouting.IRQCHIP,
      irqchip: { irqchip, pin: number },
    });
    const xenEvtchn = { port: 1, vcpu: 0, priority: Xen.EVTCHN_PRIO_2LEVEL };
    const refused: GsiRoute[][] = [
      [toMessage(4096, 1)],
      [pin(1, Irqchip.IOAPIC, 24)],
      [pin(1, 3, 0)],
      [pin(1, Irqchip.IOAPIC, 1), pin(1, Irqchip.IOAPIC, 2)],
      [{ gsi: 1, type: IrqRouting.XEN_EVTCHN, xenEvtchn: { ...xenEvtchn, priority: 1 } }],
    ];
    for (const routes of refused)
      expect(
        errnoOf(() => vm.setGsiRouting(routes)),
        String(routes),
      ).toBe('EINVAL');
    expect(errnoOf(() => vm.setGsiRouting([], 1))).toBe('EINVAL');
    expect(vm.setup.gsiRouting).toBeUndefined();
    expect(() => vm.setGsiRouting([{ gsi: 1, type: 3 } as never])).toThrow(/routes\[0\]\.type is 3/);
    expect(() => vm.setGsiRouting([{ gsi: 1, type: IrqRouting.MSI } as never])).toThrow(/routes\[0\]\.msi/);
    expect(() => vm.setGsiRouting([{ ...toMessage(1, 1), irqchip: {} } as never])).toThrow(
      /routes\[0\]\.irqchip/,
    );
    expect(() => vm.setGsiRouting(Array(4097).fill(toMessage(1, 1)))).toThrow(/at most 4096/);
  });
});

conformance('a split irqchip', ({ needs }) => {
  const it = needs('irqchip');

  it('has local APICs, and neither a PIC nor an I/O APIC', (hv) => {
    using agent = waitingGuest(hv, { prepare: split });
    const { vm } = agent;
    expect(vm.setup.irqchip).toBe('split');
    expect(errnoOf(() => vm.getIrqchip(Irqchip.IOAPIC))).toBe('ENXIO');
    expect(errnoOf(() => vm.createIrqchip())).toBe('EEXIST');
    vm.signalMsi(message(VECTOR));
    expect(nextVector(agent)).toBe(VECTOR);
  });

  it("the end of a level-triggered interrupt of the VMM's I/O APIC is an exit with its vector, that of others is none", (hv) => {
    using agent = waitingGuest(hv, { prepare: split, ends: 'lapic' });
    const { vcpu, vm } = agent;
    vm.setGsiRouting([
      toMessage(GSI, VECTOR | Redirection.LEVEL),
      toMessage(6, OTHER),
      toMessage(PINS, 0x77 | Redirection.LEVEL),
    ]);
    // An edge, and a GSI beyond the pins.
    for (const [gsi, vector] of [
      [6, OTHER],
      [PINS, 0x77],
    ] as const) {
      vm.irqLine({ irq: gsi, level: 1 });
      expect(nextVector(agent)).toBe(vector);
    }
    vm.irqLine({ irq: GSI, level: 1 });
    expect(nextVector(agent)).toBe(VECTOR);
    runTo(vcpu, Exit.IOAPIC_EOI);
    expect(vcpu.eoi.vector).toBe(VECTOR);
    expect(vcpu.exit).toMatchObject({ reason: 'IOAPIC_EOI', vector: VECTOR });
    // The line is still raised: the VMM sends it again.
    vm.signalMsi(message(VECTOR | Redirection.LEVEL));
    expect(nextVector(agent)).toBe(VECTOR);
    expect(runTo(vcpu, Exit.IOAPIC_EOI)).toBe(Exit.IOAPIC_EOI);
  });
});

conformance('the API of x2APIC', ({ needs }) => {
  const it = needs('irqchip');
  const FAR = 0x123;

  it('with USE_32BIT_IDS registers have whole ids, and messages reach processors above 255', (hv) => {
    using old = x2apicVm(hv, 0);
    using one = x2apic(hv, old, 1);
    expect(lapicRegister(one, Lapic.ID)).toBe(1 << 24);

    using vm = x2apicVm(hv, X2apicApi.USE_32BIT_IDS);
    using near = x2apic(hv, vm, FAR & 0xff);
    using far = x2apic(hv, vm, FAR);
    expect([near, far].map((vcpu) => lapicRegister(vcpu, Lapic.ID))).toEqual([FAR & 0xff, FAR]);
    const address = { addressLo: 0xfee0_0000 + (FAR & 0xff) * 0x1000, addressHi: FAR & ~0xff };
    expect(vm.signalMsi({ ...address, data: VECTOR })).toBeGreaterThan(0);
    expect([near, far].map((vcpu) => isRequested(vcpu, VECTOR))).toEqual([false, true]);
    expect(errnoOf(() => vm.signalMsi({ ...address, addressHi: 1, data: VECTOR }))).toBe('EINVAL');
    vm.setGsiRouting([toMessage(GSI, OTHER, address)]);
    pulse(vm, GSI);
    expect([near, far].map((vcpu) => isRequested(vcpu, OTHER))).toEqual([false, true]);
  });

  it('with DISABLE_BROADCAST_QUIRK a message to id 0xff is for one processor, and else for all', (hv) => {
    const flags = X2apicApi.USE_32BIT_IDS;
    for (const [more, reached] of [
      [0, true],
      [X2apicApi.DISABLE_BROADCAST_QUIRK, false],
    ] as const) {
      using vm = x2apicVm(hv, flags | more);
      using vcpu = x2apic(hv, vm, 0);
      vm.signalMsi({ addressLo: 0xfeef_f000, data: VECTOR });
      expect(isRequested(vcpu, VECTOR)).toBe(reached);
    }
  });

  it('KVM_CHECK_EXTENSION tells the flags that there are, and KVM refuses any other', (hv) => {
    const known = hv.checkExtension(Cap.X2APIC_API);
    for (const [name, flag] of Object.entries(X2apicApi)) {
      using vm = hv.createVm();
      split(vm);
      const errno = errnoOf(() => vm.enableCap({ cap: Cap.X2APIC_API, args: [flag] }));
      expect(`${name}: ${errno}`).toBe(`${name}: ${(known & flag) !== 0 ? 'ok' : 'EINVAL'}`);
    }
  });

  it('where a guest may suppress broadcasts of the end of an interrupt, one that does causes no exit', (hv, context) => {
    const flag = X2apicApi.ENABLE_SUPPRESS_EOI_BROADCAST;
    context.skip((hv.checkExtension(Cap.X2APIC_API) & flag) === 0, 'newer than this kernel (after 6.12)');
    const agent: Agent = waitingGuest(hv, {
      ends: 'lapic',
      prepare(vm) {
        split(vm);
        vm.enableCap({ cap: Cap.X2APIC_API, args: [flag] });
      },
    });
    using _agent = agent;
    const SUPPRESSED = 1 << 12;
    changeLapic(agent.vcpu, { [Lapic.SVR]: LAPIC_ON[Lapic.SVR] | SUPPRESSED });
    expect(viewOf(agent.vcpu.getLapic().regs).getUint32(Lapic.SVR, true) & SUPPRESSED).toBe(SUPPRESSED);
    agent.vm.setGsiRouting([toMessage(GSI, VECTOR | Redirection.LEVEL)]);
    agent.vm.irqLine({ irq: GSI, level: 1 });
    expect(nextVector(agent)).toBe(VECTOR);
    agent.vcpu.run(20);
    expectOutcome(agent.vcpu, Exit.DEADLINE);
  });
});

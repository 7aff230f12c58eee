/** KVM_IRQFD: an eventfd that raises an interrupt of the in-kernel controllers (api.rst 4.75; virt/kvm/eventfd.c). */
import { describe, expect } from 'vitest';
import { Cap, captureState, type EventFd, type Hypervisor, type Vm } from '../../src/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { Agent } from '../support/agent.ts';
import { guestThread } from '../support/guest-thread.ts';
import { handled, installHandlers } from '../support/handlers.ts';
import { on, onEach } from '../support/host.ts';
import { errnoOf } from '../support/run.ts';

/** Where they lie by default (SDM volume 3, 11.4.1; 82093AA I/O APIC, 3.1). */
const IOAPIC = 0xfec0_0000;
const LAPIC = 0xfee0_0000;
const EOI = LAPIC + 0xb0;
/** The local APIC's spurious-interrupt vector register: bit 8 turns it on. */
const SPURIOUS = 0xf0;
/** Of a redirection entry: level-triggered, active high, to APIC 0, not masked. */
const LEVEL = 1 << 15;
const MASKED = 1 << 16;

/** A pin of the I/O APIC that is no line of the PIC's. */
const GSI = 20;
const VECTOR = 0x31;

/** Waits for one interrupt, then ends it, and answers. */
const awaitAndEnd = guest(
  64,
  `
 fb                | sti
 f4                | hlt
 fa                | cli
 c7 07 00 00 00 00 | mov dword ptr [rdi], 0
 c3                | ret
`,
);

const takesInterrupts = guest(
  64,
  `
 fb    | sti
 90 90 | nop; nop
 fa    | cli
 c3    | ret
`,
);

/** Programs the master PIC with vectors from 0x20 on, rings at the door, waits in HLT; its handler of line 4 says so. */
const awaitsPic = guest(
  16,
  `
 c7 06 90 00 26 00 |         mov word ptr [0x90], offset handler
 c7 06 92 00 00 01 |         mov word ptr [0x92], 0x100 # AT >> 4
 b0 11             |         mov al, 0x11
 e6 20             |         out 0x20, al
 b0 20             |         mov al, 0x20
 e6 21             |         out 0x21, al
 b0 04             |         mov al, 4
 e6 21             |         out 0x21, al
 b0 01             |         mov al, 1
 e6 21             |         out 0x21, al
 b0 00             |         mov al, 0
 e6 21             |         out 0x21, al
 fb                |         sti
 e6 f2             |         out 0xf2, al
 f4                | again:  hlt
 eb fd             |         jmp again
 b0 24             | handler: mov al, 0x24
 e6 f1             |         out 0xf1, al
 cf                |         iret
`,
);
const AT = 0x1000;
const DOOR_PORT = 0xf2;

const needs = on('kvm', 'irqchip');

function withAgent(hv: Hypervisor, use: (agent: Agent, eventFd: EventFd) => void): void {
  using agent = Agent.boot(hv, { prepare: (vm) => vm.createIrqchip() });
  using eventFd = hv.createEventFd();
  use(agent, eventFd);
}

/** Sets the line's entry of the I/O APIC, for APIC 0. */
function redirect(agent: Agent, entry: number): void {
  const low = 0x10 + 2 * GSI;
  for (const [register, value] of [
    [low + 1, 0],
    [low, entry],
  ] as const) {
    agent.write(IOAPIC, register);
    agent.write(IOAPIC + 0x10, value);
  }
}

/** Turns the local APIC on, and routes the line to the vector as a level-triggered interrupt. */
function routeLevel(agent: Agent, masked = 0): void {
  installHandlers(agent);
  const regs = Uint8Array.from(agent.vcpu.getLapic().regs);
  regs.set([0xff, 0x01], SPURIOUS);
  agent.vcpu.setLapic({ regs });
  redirect(agent, VECTOR | LEVEL | masked);
}

/** The guest waits for the interrupt in HLT, and has not ended it. */
function awaitInterrupt(agent: Agent): void {
  agent.beginCode(awaitAndEnd, { rdi: EOI });
  expect(handled(agent)).toBe(VECTOR);
}

/** Whether an interrupt is pending: the guest takes what there is, and waits for none. */
function interrupted(agent: Agent): boolean {
  agent.beginCode(takesInterrupts);
  return !agent.answered;
}

describe('an irqfd (kvm)', () => {
  needs('raises a line when it is signalled, of which KVM takes the count', (hv) => {
    withAgent(hv, (agent, eventFd) => {
      using resample = hv.createEventFd();
      routeLevel(agent);
      agent.vm.irqfd({ eventFd, gsi: GSI, resample });
      expect(agent.vm.setup).toMatchObject({ irqfds: 1, ioeventfds: 0 });
      eventFd.signal();
      expect(eventFd.drain()).toBeUndefined();
      awaitInterrupt(agent);
    });
  });

  needs('with resample is told once of an interrupt that was ended, whose line is lowered by then', (hv) => {
    withAgent(hv, (agent, eventFd) => {
      using resample = hv.createEventFd();
      routeLevel(agent);
      agent.vm.irqfd({ eventFd, gsi: GSI, resample });
      eventFd.signal();
      awaitInterrupt(agent);
      agent.resume();
      expect(resample.drain()).toBe(1);
      expect(interrupted(agent)).toBe(false);
    });
  });

  on(
    'kvm',
    'irqchip',
    'interrupts-in-service',
  )('with resample is not told before the guest’s end of interrupt', (hv) => {
    withAgent(hv, (agent, eventFd) => {
      using resample = hv.createEventFd();
      routeLevel(agent);
      agent.vm.irqfd({ eventFd, gsi: GSI, resample });
      eventFd.signal();
      awaitInterrupt(agent);
      expect(resample.drain()).toBeUndefined();
      agent.resume();
      expect(resample.drain()).toBe(1);
      expect(interrupted(agent)).toBe(false);
    });
  });

  needs('with resample loses nothing that comes while the line is masked', (hv) => {
    withAgent(hv, (agent, eventFd) => {
      using resample = hv.createEventFd();
      routeLevel(agent, MASKED);
      agent.vm.irqfd({ eventFd, gsi: GSI, resample });
      eventFd.signal();
      expect(interrupted(agent)).toBe(false);
      redirect(agent, VECTOR | LEVEL);
      // Newer kernels ask at the unmasking whether the device still wants it (arch/x86/kvm/ioapic.c,
      // ioapic_write_indirect()); older ones raise it.
      if (resample.drain() === 1) eventFd.signal();
      awaitInterrupt(agent);
      agent.resume();
      expect(resample.drain()).toBe(1);
    });
  });

  needs(
    'without resample raises and lowers the line at once: a level interrupt that is masked is lost',
    (hv) => {
      withAgent(hv, (agent, eventFd) => {
        routeLevel(agent, MASKED);
        agent.vm.irqfd({ eventFd, gsi: GSI });
        eventFd.signal();
        agent.vm.removeIrqfd({ eventFd, gsi: GSI }); // by then KVM has raised it
        redirect(agent, VECTOR | LEVEL);
        expect(interrupted(agent)).toBe(false);
      });
    },
  );

  needs('that was taken back raises nothing, and leaves the count to whoever drains it', (hv) => {
    withAgent(hv, (agent, eventFd) => {
      routeLevel(agent);
      using resample = hv.createEventFd();
      const irqfd = { eventFd, gsi: GSI, resample };
      agent.vm.irqfd(irqfd);
      agent.vm.removeIrqfd({ eventFd, gsi: GSI });
      agent.vm.removeIrqfd({ eventFd, gsi: GSI }); // there is none: nothing happens
      expect(agent.vm.setup.irqfds).toBe(0);
      eventFd.signal();
      expect(eventFd.drain()).toBe(1);
      expect(interrupted(agent)).toBe(false);
      agent.vm.irqfd(irqfd);
      eventFd.signal();
      awaitInterrupt(agent);
    });
  });

  needs('ends when its EventFd is closed, and with the last where there are several of one counter', (hv) => {
    withAgent(hv, (agent, alone) => {
      routeLevel(agent);
      const shared = hv.createEventFd();
      using same = hv.openEventFd(shared.share());
      using resample = hv.createEventFd();
      agent.vm.irqfd({ eventFd: shared, gsi: GSI, resample });
      agent.vm.irqfd({ eventFd: alone, gsi: GSI });
      alone.close();
      shared.close();
      // That there is no other is known of the one alone.
      expect(agent.vm.setup.irqfds).toBe(1);
      same.signal();
      awaitInterrupt(agent);
    });
  });

  needs(
    'is refused with EBUSY for an EventFd that has one, and resample with EINVAL on a split irqchip',
    (hv) => {
      withAgent(hv, ({ vm }, eventFd) => {
        vm.irqfd({ eventFd, gsi: GSI });
        expect(errnoOf(() => vm.irqfd({ eventFd, gsi: GSI + 1 }))).toBe('EBUSY');
        expect(() => vm.irqfd({ eventFd, gsi: GSI })).toThrow('give each its own');
        using split = hv.createVm();
        split.enableCap({ cap: Cap.SPLIT_IRQCHIP, args: [24] });
        using other = hv.createEventFd();
        expect(errnoOf(() => split.irqfd({ eventFd: other, gsi: 1, resample: eventFd }))).toBe('EINVAL');
        expect(errnoOf(() => split.irqfd({ eventFd: other, gsi: 1 }))).toBe('ok');
      });
    },
  );

  needs('keeps its VM out of a snapshot, by name', (hv) => {
    withAgent(hv, ({ vm, vcpu }, eventFd) => {
      vm.irqfd({ eventFd, gsi: GSI });
      expect(() => captureState(hv, vm, [vcpu])).toThrow(
        expect.objectContaining({
          code: 'ERR_KVM_NOT_SAVABLE',
          message: expect.stringContaining('irqfd: 1'),
        }),
      );
    });
  });

  needs('outlives its VM’s handle and its own: whatever is closed first, nothing of it hurts', (hv) => {
    for (const order of [
      ['vm', 'vcpu', 'eventFd'],
      ['eventFd', 'vm', 'vcpu'],
      ['vcpu', 'eventFd', 'vm'],
    ] as const) {
      const vm: Vm = hv.createVm();
      vm.createIrqchip();
      const all = { vm, vcpu: vm.createVcpu(), eventFd: hv.createEventFd() };
      vm.irqfd({ eventFd: all.eventFd, gsi: GSI });
      vm.ioeventfd({ eventFd: all.eventFd, address: DOOR_PORT, pio: true });
      for (const name of order) {
        all[name].close();
        if (!all.eventFd.closed) all.eventFd.signal();
      }
    }
  });

  needs('wakes a guest that waits in HLT in another thread, which says first that it does', async (hv) => {
    using door = hv.createEventFd();
    using bell = hv.createEventFd();
    const { end } = await guestThread({
      backend: hv.backend,
      code: awaitsPic,
      at: AT,
      door: { token: door.share(), port: DOOR_PORT },
      bell: { token: bell.share(), gsi: 4 },
    });
    expect(await door.wait()).toBe(1);
    bell.signal();
    expect(await end).toEqual({ exit: 'IO', port: 0xf1, value: 0x24 });
  });
});

describe('an irqfd', () => {
  onEach('is refused where there are no interrupt controllers, with the remedy', (hv) => {
    using vm = hv.createVm();
    using eventFd = hv.createEventFd();
    const irqfd = { eventFd, gsi: 1 };
    expect(errnoOf(() => vm.irqfd(irqfd))).toBe(hv.backend === 'kvm' ? 'EINVAL' : 'ENOTTY');
    expect(() => vm.irqfd(irqfd)).toThrow(/interrupt controllers/);
    expect(vm.setup.irqfds).toBe(0);
    if (hv.backend === 'sim') expect(hv.checkExtension(Cap.IRQFD)).toBe(0);
  });

  onEach('refuses what is no EventFd and no line', (hv) => {
    using vm = hv.createVm();
    using eventFd = hv.createEventFd();
    const invalid = expect.objectContaining({ code: 'ERR_KVM_INVALID_ARG' });
    expect(() => vm.irqfd({ eventFd: {} as EventFd, gsi: 1 })).toThrow(invalid);
    expect(() => vm.irqfd({ eventFd, gsi: -1 })).toThrow(invalid);
    expect(() => vm.irqfd({ eventFd, gsi: 1, resample: {} as EventFd })).toThrow(invalid);
    eventFd.close();
    expect(() => vm.removeIrqfd({ eventFd, gsi: 1 })).toThrow(
      expect.objectContaining({ code: 'ERR_KVM_CLOSED' }),
    );
  });
});

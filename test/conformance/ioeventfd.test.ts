/** KVM_IOEVENTFD: guest writes that signal an eventfd and are no exits (api.rst 4.59; virt/kvm/eventfd.c). */
import { expect } from 'vitest';
import {
  Cap,
  captureState,
  type EventFd,
  Exit,
  type Hypervisor,
  type Ioeventfd,
  type Vcpu,
} from '../../src/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { Agent, Layout } from '../support/agent.ts';
import { AREA } from '../support/area.ts';
import { guestThread } from '../support/guest-thread.ts';
import { errnoOf, expectOutcome } from '../support/run.ts';
import * as code from '../support/snippets.ts';
import { conformance } from '../support/suite.ts';

const MMIO = AREA + 0x10;
const PORT = 0x510;
const VALUE = 0x8877_6655_4433_2211n;

const stores = [
  [1, code.store8],
  [2, code.store16],
  [4, code.store32],
  [8, code.store64],
] as const;
const outs = [
  [1, code.out8],
  [2, code.out16],
  [4, code.out32],
] as const;

/** Tells the VMM by a port, again and again; nothing of it is an exit where an eventfd takes it. */
const rings = guest(
  16,
  `
 e6 f2 | again: out 0xf2, al
 eb fc |        jmp again
`,
);
const DOOR_PORT = 0xf2;

async function withAgent(
  hv: Hypervisor,
  use: (agent: Agent, eventFd: EventFd) => void | Promise<void>,
): Promise<void> {
  using agent = Agent.boot(hv);
  using eventFd = hv.createEventFd();
  await use(agent, eventFd);
}

/** What the guest's write of the value came to: `exit`, or nothing, and the agent went on to its answer. */
function stored(agent: Agent, snippet: (typeof stores)[number][1], value: bigint, address = MMIO): string {
  agent.beginCode(snippet, { rsi: address, rax: value });
  if (agent.answered) return 'no exit';
  expectOutcome(agent.vcpu, Exit.MMIO);
  expect(agent.vcpu.mmio.physAddr).toBe(address);
  agent.resume();
  return 'exit';
}

function sent(agent: Agent, snippet: (typeof outs)[number][1], value = 0n): string {
  agent.beginCode(snippet, { rdx: PORT, rax: value });
  if (agent.answered) return 'no exit';
  expectPort(agent.vcpu);
  agent.resume();
  return 'exit';
}

function expectPort(vcpu: Vcpu): void {
  expectOutcome(vcpu, Exit.IO);
  expect(vcpu.io.port).toBe(PORT);
}

conformance('an ioeventfd', ({ it }) => {
  it('is had where the capabilities say so', (hv) => {
    const caps = [Cap.IOEVENTFD, Cap.IOEVENTFD_NO_LENGTH, Cap.IOEVENTFD_ANY_LENGTH];
    expect(caps.map((cap) => hv.checkExtension(cap))).toEqual([1, 1, 1]);
  });

  for (const [length, snippet] of stores) {
    it(`of ${length} bytes of memory-mapped I/O is signalled by writes of just these`, (hv) =>
      withAgent(hv, (agent, eventFd) => {
        agent.vm.ioeventfd({ eventFd, address: MMIO, length });
        expect(stored(agent, snippet, VALUE)).toBe('no exit');
        expect(stored(agent, snippet, 0n)).toBe('no exit');
        expect(eventFd.drain()).toBe(2);
        for (const [other, store] of stores) {
          if (other !== length) expect(stored(agent, store, VALUE), `of ${other} bytes`).toBe('exit');
        }
        expect(stored(agent, snippet, VALUE, MMIO + 8)).toBe('exit');
        agent.beginCode(code.load64, { rsi: MMIO });
        expectOutcome(agent.vcpu, Exit.MMIO);
        agent.resume();
        expect(eventFd.drain()).toBeUndefined();
      }));
  }

  it('of any length of memory-mapped I/O is signalled by writes of all lengths', (hv) =>
    withAgent(hv, (agent, eventFd) => {
      agent.vm.ioeventfd({ eventFd, address: MMIO });
      for (const [, store] of stores) expect(stored(agent, store, VALUE)).toBe('no exit');
      expect(eventFd.drain()).toBe(stores.length);
      expect(stored(agent, code.store8, VALUE, MMIO + 1)).toBe('exit');
    }));

  it('of a port is signalled by OUT of just its length, and of any length by all', (hv) =>
    withAgent(hv, (agent, eventFd) => {
      for (const [length, out] of outs) {
        const ioeventfd = { eventFd, address: PORT, length, pio: true };
        agent.vm.ioeventfd(ioeventfd);
        for (const [other, snippet] of outs) {
          expect(sent(agent, snippet), `OUT of ${other} bytes, ${length} wanted`).toBe(
            out === snippet ? 'no exit' : 'exit',
          );
        }
        expect(eventFd.drain()).toBe(1);
        agent.vm.removeIoeventfd(ioeventfd);
      }
      agent.vm.ioeventfd({ eventFd, address: PORT, pio: true });
      for (const [, snippet] of outs) expect(sent(agent, snippet)).toBe('no exit');
      expect(eventFd.drain()).toBe(outs.length);
      agent.beginCode(code.in8, { rdx: PORT });
      expectPort(agent.vcpu);
    }));

  it('of a port is signalled by each element of OUTS', (hv) =>
    withAgent(hv, (agent, eventFd) => {
      agent.vm.ioeventfd({ eventFd, address: PORT, length: 1, pio: true });
      agent.beginCode(code.outsb, { rdx: PORT, rsi: Layout.free, rcx: 3 });
      expect(agent.answer).toBe(0n);
      expect(eventFd.drain()).toBe(3);
    }));

  it('of a port and of memory at the same number are two', (hv) =>
    withAgent(hv, (agent, eventFd) => {
      using other = hv.createEventFd();
      agent.vm.ioeventfd({ eventFd, address: PORT, pio: true });
      agent.vm.ioeventfd({ eventFd: other, address: PORT });
      expect(sent(agent, code.out8)).toBe('no exit');
      expect([eventFd.drain(), other.drain()]).toEqual([1, undefined]);
    }));

  it('with a datamatch is signalled by that value alone, and others of the address by theirs', (hv) =>
    withAgent(hv, (agent, eventFd) => {
      using other = hv.createEventFd();
      agent.vm.ioeventfd({ eventFd, address: MMIO, length: 8, datamatch: VALUE });
      agent.vm.ioeventfd({ eventFd: other, address: MMIO, length: 8, datamatch: 7 });
      agent.vm.ioeventfd({ eventFd: other, address: MMIO, length: 2, datamatch: 0x2211 });
      expect(stored(agent, code.store64, VALUE)).toBe('no exit');
      expect([eventFd.drain(), other.drain()]).toEqual([1, undefined]);
      expect(stored(agent, code.store64, 7n)).toBe('no exit');
      expect([eventFd.drain(), other.drain()]).toEqual([undefined, 1]);
      expect(stored(agent, code.store64, VALUE + 1n)).toBe('exit');
      expect(stored(agent, code.store32, 7n)).toBe('exit');
      // Of two bytes the rest of the register is not written, and not compared.
      expect(stored(agent, code.store16, VALUE)).toBe('no exit');
      expect([eventFd.drain(), other.drain()]).toEqual([undefined, 1]);
    }));

  it('takes of a write of 16 bytes what comes before the first part that is no ioeventfd', (hv) =>
    withAgent(hv, (agent, eventFd) => {
      const parts = (): number[] => {
        const found: number[] = [];
        agent.beginCode(code.load128, { rsi: Layout.free, rdi: MMIO });
        for (; !agent.answered; agent.vcpu.run(1000)) {
          expectOutcome(agent.vcpu, Exit.MMIO);
          found.push(agent.vcpu.mmio.physAddr - MMIO);
        }
        return found;
      };
      expect(parts()).toEqual([0, 8]);
      const second = { eventFd, address: MMIO + 8, length: 8 } as const;
      agent.vm.ioeventfd(second);
      expect([parts(), eventFd.drain()]).toEqual([[0, 8], undefined]);
      agent.vm.ioeventfd({ eventFd, address: MMIO, length: 8 });
      expect([parts(), eventFd.drain()]).toEqual([[], 2]);
      agent.vm.removeIoeventfd(second);
      expect([parts(), eventFd.drain()]).toEqual([[8], 1]);
    }));

  it('is refused with EEXIST where another answers to some of the same writes', (hv) =>
    withAgent(hv, (agent, eventFd) => {
      const set = (ioeventfd: Omit<Ioeventfd, 'eventFd'>) =>
        errnoOf(() => agent.vm.ioeventfd({ eventFd, ...ioeventfd }));
      expect(set({ address: MMIO, length: 4, datamatch: 1 })).toBe('ok');
      expect(set({ address: MMIO, length: 4, datamatch: 1 })).toBe('EEXIST');
      expect(set({ address: MMIO, length: 4 })).toBe('EEXIST');
      expect(set({ address: MMIO })).toBe('EEXIST');
      expect(set({ address: MMIO, length: 4, datamatch: 2 })).toBe('ok');
      expect(set({ address: MMIO, length: 8 })).toBe('ok');
      expect(set({ address: MMIO, length: 4, pio: true })).toBe('ok');
      expect(set({ address: MMIO + 1, length: 4 })).toBe('ok');
      expect(() => agent.vm.ioeventfd({ eventFd, address: MMIO })).toThrow(/address 0x100000010.*length/);
    }));

  it('is refused with EINVAL for another length, and for a datamatch of any length', (hv) =>
    withAgent(hv, ({ vm }, eventFd) => {
      const odd = { eventFd, address: MMIO, length: 3 as 4 };
      expect(errnoOf(() => vm.ioeventfd(odd))).toBe('EINVAL');
      expect(() => vm.ioeventfd(odd)).toThrow('length is 3; it must be 0, 1, 2, 4 or 8');
      expect(() => vm.ioeventfd({ eventFd, address: MMIO, datamatch: 1 })).toThrow(/EINVAL.*datamatch/);
      expect(vm.setup.ioeventfds).toBe(0);
    }));

  it('is taken back by what it was given, and the writes exit again; else ENOENT', (hv) =>
    withAgent(hv, (agent, eventFd) => {
      using other = hv.createEventFd();
      using same = hv.openEventFd(eventFd.share());
      const ioeventfd = { eventFd, address: MMIO, length: 4, datamatch: 7 } as const;
      agent.vm.ioeventfd(ioeventfd);
      const remove = (changed: Partial<Ioeventfd>) =>
        errnoOf(() => agent.vm.removeIoeventfd({ ...ioeventfd, ...changed }));
      for (const changed of [
        { eventFd: other },
        { length: 8 },
        { datamatch: 8 },
        { datamatch: undefined },
        { pio: true },
        { address: MMIO + 4 },
      ] as const) {
        expect(remove(changed)).toBe('ENOENT');
      }
      expect(stored(agent, code.store32, 7n)).toBe('no exit');
      expect(remove({ eventFd: same })).toBe('ok');
      expect(stored(agent, code.store32, 7n)).toBe('exit');
      expect(eventFd.drain()).toBe(1);
    }));

  it('stays when its EventFd is closed, and signals the same counter', (hv) =>
    withAgent(hv, (agent) => {
      const eventFd = hv.createEventFd();
      using same = hv.openEventFd(eventFd.share());
      agent.vm.ioeventfd({ eventFd, address: MMIO });
      eventFd.close();
      expect(stored(agent, code.store8, 0n)).toBe('no exit');
      expect(same.drain()).toBe(1);
      same.close();
      expect(stored(agent, code.store8, 0n)).toBe('no exit');
    }));

  it('refuses what is no EventFd, or a closed one', (hv) =>
    withAgent(hv, ({ vm }, eventFd) => {
      const invalid = expect.objectContaining({ code: 'ERR_KVM_INVALID_ARG' });
      expect(() => vm.ioeventfd({ eventFd: {} as EventFd, address: 0 })).toThrow(invalid);
      expect(() => vm.ioeventfd({ eventFd, address: -1 })).toThrow(invalid);
      expect(() => vm.ioeventfd({ eventFd, address: 0, length: 8, datamatch: 1n << 64n })).toThrow(invalid);
      eventFd.close();
      expect(() => vm.ioeventfd({ eventFd, address: 0 })).toThrow(
        expect.objectContaining({ code: 'ERR_KVM_CLOSED' }),
      );
    }));

  it('keeps its VM out of a snapshot, by name', (hv) =>
    withAgent(hv, ({ vm, vcpu }, eventFd) => {
      const ioeventfd = { eventFd, address: MMIO };
      vm.ioeventfd(ioeventfd);
      expect(() => captureState(hv, vm, [vcpu])).toThrow(
        expect.objectContaining({
          code: 'ERR_KVM_NOT_SAVABLE',
          message: expect.stringContaining('ioeventfd: 1'),
        }),
      );
      vm.removeIoeventfd(ioeventfd);
      expect(vm.setup).toMatchObject({ irqfds: 0, ioeventfds: 0 });
    }));

  it('tells the event loop of this thread, once the guest has let go of it', (hv) =>
    withAgent(hv, async (agent, eventFd) => {
      agent.vm.ioeventfd({ eventFd, address: MMIO });
      const told = new Promise<number>((resolve) => eventFd.watch(resolve));
      for (let i = 0; i < 3; i++) expect(stored(agent, code.store32, 0n)).toBe('no exit');
      expect(await told).toBe(3);
    }));

  it('tells the event loop of another thread while the guest runs', async (hv) => {
    using door = hv.createEventFd();
    const guest = { code: rings, at: 0x1000, door: { token: door.share(), port: DOOR_PORT } };
    const { kickId, end } = await guestThread({ backend: hv.backend, ...guest });
    expect(await door.wait()).toBeGreaterThan(0);
    expect(await door.wait()).toBeGreaterThan(0);
    expect(hv.kick(kickId)).toBe(true);
    expect(await end).toMatchObject({ exit: 'INTERRUPTED' });
  });
});

/** Writes that wait in a ring instead of ending KVM_RUN (api.rst, KVM_REGISTER_COALESCED_MMIO; virt/kvm/coalesced_mmio.c). */
import { describe, expect } from 'vitest';
import { Cap, Exit, UnavailableError } from '../../src/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { Agent } from '../support/agent.ts';
import { onEach, onKvm } from '../support/host.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { errnoOf, expectOutcome } from '../support/run.ts';
import { out8, out32 } from '../support/snippets.ts';

const ZONE = 0xd000_0000;
const PORT = 0x510;
/** KVM_COALESCED_MMIO_MAX, of which one place stays free. */
const PLACES = 170;
const RING_PAGE = 2 * 4096;

/** Writes rcx to the address, and so every number from there down to 1. */
const countDown = guest(
  64,
  `
 89 0e | next: mov [rsi], ecx
 ff c9 |       dec ecx
 75 fa |       jnz next
 c3    |       ret
`,
);

describe('coalesced writes (kvm)', () => {
  const it = onKvm;

  it('wait in the ring with their address, size and bytes, in order, and do not end the run', (hv) => {
    using agent = Agent.boot(hv);
    const { vcpu, vm } = agent;
    vm.registerCoalescedMmio({ addr: ZONE, size: 0x1000 });
    agent.write(ZONE + 8, 0x1122_3344_5566_7788n);
    agent.beginCode(countDown, { rsi: ZONE + 0xffc, rcx: 2 });
    expect(agent.answered).toBe(true);
    expect(vcpu.coalescedRing.length).toBe(3);
    expect([...vcpu.coalescedRing]).toEqual([
      {
        address: ZONE + 8,
        size: 8,
        data: Uint8Array.of(0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11),
        pio: false,
      },
      { address: ZONE + 0xffc, size: 4, data: Uint8Array.of(2, 0, 0, 0), pio: false },
      { address: ZONE + 0xffc, size: 4, data: Uint8Array.of(1, 0, 0, 0), pio: false },
    ]);
    expect([...vcpu.coalescedRing]).toEqual([]);
  });

  it('to ports are told apart from those to memory', (hv) => {
    using agent = Agent.boot(hv);
    const { vcpu, vm } = agent;
    expect(vm.checkExtension(Cap.COALESCED_PIO)).toBe(1);
    vm.registerCoalescedMmio({ addr: PORT, size: 4, pio: 1 });
    agent.beginCode(out8, { rdx: PORT, rax: 0x5a });
    agent.beginCode(out32, { rdx: PORT, rax: 0x1234_5678 });
    expect(agent.answered).toBe(true);
    expect([...vcpu.coalescedRing]).toEqual([
      { address: PORT, size: 1, data: Uint8Array.of(0x5a), pio: true },
      { address: PORT, size: 4, data: Uint8Array.of(0x78, 0x56, 0x34, 0x12), pio: true },
    ]);
  });

  it('end the run where the ring is full, and go on when it was read', (hv) => {
    using agent = Agent.boot(hv);
    const { vcpu, vm } = agent;
    vm.registerCoalescedMmio({ addr: ZONE, size: 0x1000 });
    agent.beginCode(countDown, { rsi: ZONE, rcx: 2 * PLACES });
    expectOutcome(vcpu, Exit.MMIO);
    expect([vcpu.mmio.physAddr, vcpu.mmio.value]).toEqual([ZONE, BigInt(PLACES + 1)]);
    const values = () =>
      [...vcpu.coalescedRing].map(({ data }) => new DataView(data.buffer).getUint32(0, true));
    const before = values();
    expect(before).toEqual(Array.from({ length: PLACES - 1 }, (_, i) => 2 * PLACES - i));
    vcpu.run(DEADLINE_MS);
    expectOutcome(vcpu, Exit.MMIO);
    expect([vcpu.mmio.value, values().length]).toEqual([1n, PLACES - 1]);
    agent.resume();
  });

  it('are in the ring of every vCPU: there is one in a VM', (hv) => {
    using agent = Agent.boot(hv);
    const other = agent.sibling(1);
    agent.vm.registerCoalescedMmio({ addr: ZONE, size: 0x1000 });
    other.write(ZONE, 7);
    expect([agent.vcpu.coalescedRing.length, other.vcpu.coalescedRing.length]).toEqual([1, 1]);
    expect([...agent.vcpu.coalescedRing].length).toBe(1);
    expect(other.vcpu.coalescedRing.length).toBe(0);
    other.vcpu.close();
  });

  it('are exits outside of zones, for reads, and once the zone is gone', (hv) => {
    using agent = Agent.boot(hv);
    const { vcpu, vm } = agent;
    vm.registerCoalescedMmio({ addr: ZONE, size: 0x1000 });
    for (const [command, address] of [
      ['write', ZONE + 0x1000],
      ['write', ZONE + 0xffc],
      ['read', ZONE],
    ] as const) {
      expect(agent.begin(command, { rdi: address }), `${command} ${address}`).toBe(Exit.MMIO);
    }
    // The write across the end of the page was two, and the first of them in the zone.
    expect([...vcpu.coalescedRing].map(({ address, size }) => [address, size])).toEqual([[ZONE + 0xffc, 4]]);
    vm.unregisterCoalescedMmio({ addr: ZONE, size: 0x1000 });
    expect(agent.begin('write', { rdi: ZONE })).toBe(Exit.MMIO);
    expect(vcpu.coalescedRing.length).toBe(0);
  });

  it('whose zone is of no known kind are refused', (hv) => {
    using vm = hv.createVm();
    expect(errnoOf(() => vm.registerCoalescedMmio({ addr: ZONE, size: 16, pio: 2 }))).toBe('EINVAL');
  });

  it('are none where the ring was overwritten by who has its page', (hv) => {
    using agent = Agent.boot(hv);
    const { vcpu, vm } = agent;
    vm.registerCoalescedMmio({ addr: ZONE, size: 0x1000 });
    agent.write(ZONE, 1);
    vcpu.raw.view.setUint32(RING_PAGE, 0xffff_ffff, true);
    vcpu.raw.view.setUint32(RING_PAGE + 4, PLACES, true);
    expect([vcpu.coalescedRing.length, [...vcpu.coalescedRing]]).toEqual([0, []]);
    agent.write(ZONE, 2);
    expect([...vcpu.coalescedRing].map(({ data }) => data[0])).toEqual([2]);
  });
});

describe('the ring of coalesced writes', () => {
  onEach('is there where KVM_CAP_COALESCED_MMIO says so, and else refused by name', (hv) => {
    using agent = Agent.boot(hv);
    if (hv.checkExtension(Cap.COALESCED_MMIO) > 0) {
      expect(agent.vcpu.coalescedRing.length).toBe(0);
    } else {
      expect(() => agent.vcpu.coalescedRing).toThrow(UnavailableError);
      expect(errnoOf(() => agent.vm.registerCoalescedMmio({ addr: ZONE, size: 4096 }))).toBe('ENOTTY');
    }
  });
});

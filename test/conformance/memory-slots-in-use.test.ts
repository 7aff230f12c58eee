/** What a running guest sees of changes to its slots; the kernel's set_memory_region_test. */
import { expect } from 'vitest';
import { Cap, Exit, type GuestMemory, type Hypervisor, MemFlag } from '../../src/index.ts';
import { Quirk } from '../../src/uapi/index.ts';
import { Agent, Layout } from '../support/agent.ts';
import { AREA, AREA_SLOT, PAGE } from '../support/area.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { expectOutcome, runTo, setWord, wordAt } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

const FIRST = 0x1111_1111_1111_1111n;
const SECOND = 0x2222_2222_2222_2222n;
const FROM_VMM = 0xbeef_beefn;

interface Parts {
  readonly agent: Agent;
  readonly ram: GuestMemory;
  /** Places the two pages of memory: the first holds FIRST, the second SECOND. */
  readonly place: (guestPhysAddr: number, memory?: GuestMemory) => void;
  readonly remove: () => void;
}

function withPages(hv: Hypervisor, use: (parts: Parts) => void): void {
  using agent = Agent.boot(hv);
  using ram = agent.vm.allocate(2 * PAGE);
  setWord(ram.bytes, 0, FIRST);
  setWord(ram.bytes, PAGE, SECOND);
  use({
    agent,
    ram,
    place: (guestPhysAddr, memory = ram) =>
      agent.vm.setUserMemoryRegion({ slot: AREA_SLOT, guestPhysAddr, memory }),
    remove: () => agent.vm.setUserMemoryRegion({ slot: AREA_SLOT, memorySize: 0 }),
  });
}

/** The guest reads at the address, and nothing is there. */
function expectMmioRead(agent: Agent, address: number): void {
  agent.begin('read', { rdi: address });
  expectOutcome(agent.vcpu, Exit.MMIO);
  const { physAddr, length, isWrite } = agent.vcpu.mmio;
  expect({ physAddr, length, isWrite }).toEqual({ physAddr: address, length: 8, isWrite: false });
  agent.vcpu.mmio.value = FROM_VMM;
  expect(agent.resume()).toBe(FROM_VMM);
}

conformance('memory slots in use', ({ it, needs }) => {
  it('the guest and the host see the same bytes', (hv) => {
    withPages(hv, ({ agent, ram, place }) => {
      place(AREA);
      expect(agent.read(AREA + PAGE)).toBe(SECOND);
      agent.write(AREA + PAGE, FROM_VMM);
      expect(wordAt(ram.bytes, PAGE)).toBe(FROM_VMM);
      setWord(ram.bytes, PAGE, FIRST);
      expect(agent.read(AREA + PAGE)).toBe(FIRST);
    });
  });

  it('a slot shows its memory from memoryOffset on', (hv) => {
    withPages(hv, ({ agent, ram }) => {
      agent.vm.setUserMemoryRegion({ slot: AREA_SLOT, guestPhysAddr: AREA, memory: ram, memoryOffset: PAGE });
      expect(agent.read(AREA)).toBe(SECOND);
    });
  });

  it('two slots of the same host memory are the same memory for the guest', (hv) => {
    withPages(hv, ({ agent, ram, place }) => {
      place(AREA);
      agent.vm.setUserMemoryRegion({ slot: AREA_SLOT + 1, guestPhysAddr: 2 * AREA - 2 * PAGE, memory: ram });
      agent.write(AREA, FROM_VMM);
      expect(agent.read(2 * AREA - 2 * PAGE)).toBe(FROM_VMM);
    });
  });

  it('a slot keeps its memory when the GuestMemory is closed', (hv) => {
    withPages(hv, ({ agent, ram, place }) => {
      place(AREA);
      ram.close();
      expect(agent.read(AREA)).toBe(FIRST);
    });
  });

  // fallocate(2): a hole reads as zero. MADV_DONTNEED on a shared mapping keeps the file's contents.
  it('discarded memory reads as zero in the guest, and MADV_DONTNEED discards nothing', (hv) => {
    const MADV_DONTNEED = 4;
    withPages(hv, ({ agent, ram, place }) => {
      place(AREA);
      expect([agent.read(AREA), agent.read(AREA + PAGE)]).toEqual([FIRST, SECOND]);
      ram.advise(MADV_DONTNEED);
      expect([agent.read(AREA), agent.read(AREA + PAGE)]).toEqual([FIRST, SECOND]);
      ram.discard(0, PAGE);
      expect([agent.read(AREA), agent.read(AREA + PAGE)]).toEqual([0n, SECOND]);
    });
  });

  needs('readonly-memory')(
    'a write to a READONLY slot is MMIO and changes nothing; reads need no exit',
    (hv) => {
      withPages(hv, ({ agent, ram }) => {
        const flags = MemFlag.READONLY;
        agent.vm.setUserMemoryRegion({ slot: AREA_SLOT, guestPhysAddr: AREA, memory: ram, flags });
        expect(agent.read(AREA)).toBe(FIRST);
        agent.begin('write', { rdi: AREA, rsi: FROM_VMM });
        expectOutcome(agent.vcpu, Exit.MMIO);
        const { physAddr, length, isWrite, value } = agent.vcpu.mmio;
        expect({ physAddr, length, isWrite, value }).toEqual({
          physAddr: AREA,
          length: 8,
          isWrite: true,
          value: FROM_VMM,
        });
        agent.resume();
        expect(wordAt(ram.bytes)).toBe(FIRST);
      });
    },
  );

  // Zapping the one slot or all of them must look the same to the guest (KVM_X86_QUIRK_SLOT_ZAP_ALL).
  for (const [when, disabled] of [
    ['', 0],
    [' without KVM_X86_QUIRK_SLOT_ZAP_ALL', Quirk.SLOT_ZAP_ALL],
  ] as const) {
    const disable = ({ vm }: Agent) => {
      if (disabled !== 0) vm.enableCap({ cap: Cap.DISABLE_QUIRKS2, args: [disabled] });
    };
    const on = disabled === 0 ? it : needs('slot-zap-quirk');

    on(`a slot that moves shows the guest other pages at once, and never the old ones${when}`, (hv) => {
      withPages(hv, ({ agent, place }) => {
        disable(agent);
        place(AREA);
        expect(agent.read(AREA)).toBe(FIRST);
        place(AREA - PAGE);
        expect(agent.read(AREA)).toBe(SECOND);
        expectMmioRead(agent, AREA + PAGE);
        place(AREA);
        expect(agent.read(AREA)).toBe(FIRST);
      });
    });

    on(`a deleted slot becomes MMIO, and fresh memory at its place reads as zero${when}`, (hv) => {
      withPages(hv, ({ agent, place, remove }) => {
        disable(agent);
        using fresh = agent.vm.allocate(2 * PAGE);
        place(AREA);
        expect(agent.read(AREA)).toBe(FIRST);
        remove();
        expectMmioRead(agent, AREA);
        place(AREA, fresh);
        expect(agent.read(AREA)).toBe(0n);
      });
    });

    on(
      `deleting the slot of the code and page tables ends the guest, without a step beyond it${when}`,
      (hv) => {
        withPages(hv, ({ agent, place }) => {
          disable(agent);
          place(AREA);
          agent.read(AREA);
          agent.vm.setUserMemoryRegion({ slot: 0, memorySize: 0 });
          runTo(agent.vcpu, Exit.SHUTDOWN, Exit.INTERNAL_ERROR);
          // After a shutdown the processor may have been reset.
          if (agent.vcpu.outcome !== Exit.INTERNAL_ERROR) return;
          const { rip } = agent.vcpu.getRegs();
          expect(rip >= BigInt(Layout.code) && rip < BigInt(Layout.snippet)).toBe(true);
        });
      },
    );
  }

  // set_memory_region_test, test_zero_memory_regions. Without a second stage there are no roots to load: ENOSPC.
  needs('two-dimensional-paging')('a VM without slots ends its first run with an internal error', (hv) => {
    using vm = hv.createVm();
    using vcpu = vm.createVcpu();
    vcpu.run(DEADLINE_MS);
    expectOutcome(vcpu, Exit.INTERNAL_ERROR);
  });
});

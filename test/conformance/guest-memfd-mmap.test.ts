/**
 * A guest_memfd with a host view (since 6.18): made with MMAP and INIT_SHARED, on a VM without private memory. The
 * guest has it through a slot whose host memory is that view. After the kernel's guest_memfd_test.
 *
 * Not shown here, for the process would die of SIGBUS: a touch beyond the end of the file, or of a file that was made
 * with MMAP alone.
 */
import { expect } from 'vitest';
import { type GuestMemfd, GuestMemfdFlag, type GuestMemory, type Hypervisor } from '../../src/index.ts';
import { Agent } from '../support/agent.ts';
import { AREA, AREA_SLOT, PAGE } from '../support/area.ts';
import { filledWith } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

const SIZE = 4 * PAGE;
const BOTH = GuestMemfdFlag.MMAP | GuestMemfdFlag.INIT_SHARED;
const MADV_DONTNEED = 4;
const MADV_HUGEPAGE = 14;

function withView(hv: Hypervisor, use: (agent: Agent, view: GuestMemory, file: GuestMemfd) => void): void {
  using agent = Agent.boot(hv);
  using file = agent.vm.createGuestMemfd(SIZE, BOTH);
  using view = file.map();
  agent.vm.setUserMemoryRegion2({ slot: AREA_SLOT, guestPhysAddr: AREA, memory: view, guestMemfd: file });
  use(agent, view, file);
}

/** Whether guest and host both see the byte in all of the page. */
const bothSee = (agent: Agent, view: GuestMemory, page: number, byte: number) =>
  agent.holds(AREA + page * PAGE, PAGE, byte) &&
  filledWith(view.bytes.subarray(page * PAGE, (page + 1) * PAGE), byte);

conformance('guest_memfd with a host view', ({ needs }) => {
  const it = needs('guest-memfd-mmap');

  it('the view is the file, all of it, and begins as zero', (hv) => {
    withView(hv, (_agent, view) => {
      expect(view.size).toBe(SIZE);
      expect(filledWith(view.bytes, 0)).toBe(true);
    });
  });

  it("the guest sees the host's bytes, and the host the guest's", (hv) => {
    withView(hv, (agent, view) => {
      view.bytes.fill(0xaa);
      expect(agent.holds(AREA, SIZE, 0xaa)).toBe(true);
      agent.fill(AREA, SIZE, 0xff);
      expect(filledWith(view.bytes, 0xff)).toBe(true);
    });
  });

  it('a punched page reads as zero for both, and the others keep what they held', (hv) => {
    withView(hv, (agent, view, file) => {
      agent.fill(AREA, SIZE, 0xaa);
      file.punchHole(PAGE, PAGE);
      expect([0, 1, 2, 3].map((page) => bothSee(agent, view, page, page === 1 ? 0 : 0xaa))).toEqual([
        true,
        true,
        true,
        true,
      ]);
    });
  });

  it('MADV_DONTNEED on the view drops nothing of the file', (hv) => {
    withView(hv, (agent, view) => {
      agent.fill(AREA, SIZE, 0xaa);
      view.advise(MADV_DONTNEED);
      expect(bothSee(agent, view, 0, 0xaa)).toBe(true);
    });
  });

  it('MADV_HUGEPAGE on the view is accepted', (hv) => {
    withView(hv, (_agent, view) => view.advise(MADV_HUGEPAGE));
  });

  it('two views of a file are the same memory', (hv) => {
    withView(hv, (agent, view, file) => {
      using second = file.map();
      agent.fill(AREA, PAGE, 0x11);
      expect(filledWith(second.bytes.subarray(0, PAGE), 0x11)).toBe(true);
      second.bytes.fill(0x22);
      expect(bothSee(agent, view, 3, 0x22)).toBe(true);
    });
  });

  it('a slot can show a part of the file', (hv) => {
    withView(hv, (agent, view, file) => {
      view.bytes.fill(0x33, 2 * PAGE, 3 * PAGE);
      agent.vm.setUserMemoryRegion2({ slot: AREA_SLOT, memorySize: 0 });
      agent.vm.setUserMemoryRegion2({
        slot: AREA_SLOT,
        guestPhysAddr: AREA,
        memory: view,
        memoryOffset: 2 * PAGE,
        guestMemfd: file,
        guestMemfdOffset: 2 * PAGE,
      });
      expect(agent.holds(AREA, PAGE, 0x33)).toBe(true);
    });
  });

  it('a file without both flags has no view: map() refuses it', (hv) => {
    using vm = hv.createVm();
    for (const flags of [0, GuestMemfdFlag.MMAP]) {
      using file = vm.createGuestMemfd(SIZE, flags);
      expect(() => file.map(), `flags ${flags}`).toThrow(
        expect.objectContaining({ code: 'ERR_KVM_REFUSED' }),
      );
    }
  });
});

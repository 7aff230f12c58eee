/** STI's shadow, which translated code lets end by itself: wherever a run ends, it is there behind STI and nowhere else. */
import { expect, it } from 'vitest';
import { Exit, enterProtectedMode, openHypervisor, type Vcpu } from '../../src/index.ts';
import { InterruptShadow } from '../../src/uapi/index.ts';
import { guest } from '../../src/vmm/guest.ts';

const START = 0x1000;
const IF = 0x200n;
/** A block of its own behind each STI, and one that STI is in the middle of. */
const opens = guest(
  32,
  `
 fb    | again: sti
 90    |        nop
 fa    |        cli
 40    |        inc eax
 fb    |        sti
 fa    |        cli
 eb f8 |        jmp again
`,
);
/** Offsets of what STI is before. */
const BEHIND = [1, 5];
/** Offsets at which interrupts are on. */
const OPEN = [1, 2, 5];

function withGuest(use: (vcpu: Vcpu) => void): void {
  using hv = openHypervisor({ backend: 'sim' });
  using vm = hv.createVm();
  using ram = vm.allocate(0x1_0000);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
  using vcpu = vm.createVcpu(0);
  enterProtectedMode(vcpu, ram, { tables: 0x8000 });
  ram.write(START, opens.code);
  vcpu.setRegs({ rip: START, rflags: 2 });
  use(vcpu);
}

it('is over with one instruction, whatever ends the run', () =>
  withGuest((vcpu) => {
    const seen = new Set<number>();
    for (let i = 0; i < 500; i++) {
      expect([Exit.DEADLINE, Exit.INTERRUPTED]).toContain(vcpu.run(0.01 + (i % 7) / 50));
      const { rip, rflags } = vcpu.getRegs();
      const at = Number(rip) - START;
      seen.add(at);
      const { shadow } = vcpu.getVcpuEvents().interrupt;
      expect([at, shadow]).toEqual([at, BEHIND.includes(at) ? InterruptShadow.STI : 0]);
      expect([at, (rflags & IF) !== 0n]).toEqual([at, OPEN.includes(at)]);
    }
    expect([...seen].filter((at) => BEHIND.includes(at))).not.toEqual([]);
    expect([...seen].filter((at) => !BEHIND.includes(at))).not.toEqual([]);
  }));

it('keeps a window for interrupts closed until it is over', () =>
  withGuest((vcpu) => {
    for (let i = 0; i < 200; i++) {
      vcpu.raw.requestInterruptWindow = false;
      vcpu.run(0.05);
      const before = vcpu.getRegs().rax;
      vcpu.raw.requestInterruptWindow = true;
      expect(vcpu.run(1000)).toBe(Exit.IRQ_WINDOW_OPEN);
      const { rip, rax } = vcpu.getRegs();
      const at = Number(rip) - START;
      // The first that there is: each turn of the guest's counts, and has one.
      expect(BigInt.asUintN(32, rax - before)).toBeLessThanOrEqual(1n);
      // Behind the second STI comes CLI, which is the one instruction: the window is the first's.
      expect(at).toBe(2);
    }
  }));

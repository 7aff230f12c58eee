import { describe, expect, it } from 'vitest';
import { Exit, openHypervisor } from '../../src/index.ts';
import { GuestDebug } from '../../src/uapi/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { enterLongMode } from '../../src/vmm/modes.ts';
import { runTo } from '../support/run.ts';

const code = guest(
  64,
  `
 8b 07    | mov eax, [rdi]
 89 47 08 | mov [rdi + 8], eax
 01 07    | add [rdi], eax
 f4       | hlt
`,
);
const DATA = 0x3000;
/** DR7: breakpoint 0 enabled, of 4 bytes, on writes (1) or on all accesses (3). */
const dr7 = (kind: 1 | 3) => 0x401n | (BigInt(kind) << 16n) | (3n << 18n);

/** Where RIP is at each stop of userspace's data breakpoint at DATA. */
function stops(kind: 1 | 3): number[] {
  using hv = openHypervisor({ backend: 'sim' });
  using vm = hv.createVm();
  using ram = vm.allocate(0x10_0000);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
  ram.write(0x1000, code.code);
  using vcpu = vm.createVcpu(0);
  vcpu.setCpuid2(hv.getSupportedCpuid());
  enterLongMode(vcpu, ram, { tables: 0x1_0000, identity: 2 ** 30 });
  vcpu.setRegs({ rip: 0x1000, rdi: DATA, rflags: 2 });
  vcpu.setGuestDebug({
    control: GuestDebug.ENABLE | GuestDebug.USE_HW_BP,
    arch: { debugreg: [BigInt(DATA), 0n, 0n, 0n, 0n, 0n, 0n, dr7(kind)] },
  });
  const found: number[] = [];
  while (runTo(vcpu, Exit.DEBUG, Exit.HLT) === Exit.DEBUG) {
    found.push(Number(vcpu.getRegs().rip) - 0x1000);
    expect(found.length).toBeLessThan(10);
  }

  return found;
}

describe('a data breakpoint of userspace, on the simulator', () => {
  it('stops after each instruction that reads or writes there', () => {
    expect(stops(3)).toEqual([2, 7]);
  });
  it('stops after those that write there, if it is for writes', () => {
    expect(stops(1)).toEqual([7]);
  });
});

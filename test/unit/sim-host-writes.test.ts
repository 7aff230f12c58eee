/** What the host does to a guest's memory between two runs is there in the next, by whatever way it was done. */
import { afterEach, describe, expect, it, vi } from 'vitest';
import {
  Exit,
  enterLongMode,
  enterRealMode,
  type GuestMemory,
  guest,
  openHypervisor,
  type Vcpu,
  type Vm,
} from '../../src/index.ts';
import { CodePage } from '../../src/sim/cpu/translate/code-page.ts';
import { runTo } from '../support/run.ts';

const CODE = 0x1000;
/** Where MOV's immediate is. */
const VALUE = CODE + 1;
const PAGE = 4096;
const { code } = guest(
  16,
  `
 b0 07 | up: mov al, 7
 e6 80 |     out 0x80, al
 eb fa |     jmp up
`,
);
/** The same, with another value. */
const changed = code.with(1, 9);

interface Machine {
  readonly vm: Vm;
  readonly vcpu: Vcpu;
  readonly ram: GuestMemory;
}

/** A guest that has said 7 so often that its code is as fast as it becomes. */
function withGuest(use: (machine: Machine) => void): void {
  using hv = openHypervisor({ backend: 'sim' });
  using vm = hv.createVm();
  using ram = vm.allocate(0x10_0000);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
  ram.write(CODE, code);
  using vcpu = vm.createVcpu(0);
  enterRealMode(vcpu);
  vcpu.setRegs({ rip: CODE, rsp: 0x8000, rflags: 2 });
  for (let i = 0; i < 100; i++) {
    runTo(vcpu, Exit.IO);
    expect(vcpu.io.value).toBe(7);
  }
  use({ vm, vcpu, ram });
}

const ways: readonly (readonly [name: string, write: (machine: Machine) => void])[] = [
  ['GuestMemory.write()', ({ ram }) => ram.write(VALUE, Uint8Array.of(9))],
  [
    'another memory in its slot',
    ({ vm }) => {
      const other = vm.allocate(0x10_0000);
      other.write(CODE, changed);
      const slot = { slot: 0, guestPhysAddr: 0 };
      vm.setUserMemoryRegion({ ...slot, memorySize: 0 });
      vm.setUserMemoryRegion({ ...slot, memory: other });
    },
  ],
  [
    'discard(), and write() after it',
    ({ ram }) => {
      ram.discard(CODE, PAGE);
      ram.write(CODE, changed);
    },
  ],
  [
    'another vCPU',
    ({ vm, ram }) => {
      ram.write(0x3000, guest(16, ' c6 06 01 10 09 | mov byte ptr [0x1001], 9\n f4 | hlt').code);
      using other = vm.createVcpu(1);
      enterRealMode(other);
      other.setRegs({ rip: 0x3000, rflags: 2 });
      runTo(other, Exit.HLT);
    },
  ],
  [
    'its memory, opened once more',
    ({ ram }) => {
      using hv = openHypervisor({ backend: 'sim' });
      using again = hv.openMemory(ram.share());
      again.write(VALUE, Uint8Array.of(9));
    },
  ],
  [
    'a view',
    ({ ram }) => {
      ram.bytes[VALUE] = 9;
    },
  ],
];

afterEach(() => vi.restoreAllMocks());

it('a guest whose page tables are taken away with its slot finds none, on the simulator', () => {
  using hv = openHypervisor({ backend: 'sim' });
  using vm = hv.createVm();
  using ram = vm.allocate(0x10_0000);
  const slot = { slot: 0, guestPhysAddr: 0 };
  vm.setUserMemoryRegion({ ...slot, memory: ram });
  ram.write(CODE, code);
  using vcpu = vm.createVcpu(0);
  vcpu.setCpuid2(hv.getSupportedCpuid());
  enterLongMode(vcpu, ram, { tables: 0x1_0000, identity: 2 ** 30 });
  vcpu.setRegs({ rip: CODE, rsp: 0x8000, rflags: 2 });
  for (let i = 0; i < 3; i++) runTo(vcpu, Exit.IO);
  vm.setUserMemoryRegion({ ...slot, memorySize: 0 });
  // No table, so no handler of the fault either.
  runTo(vcpu, Exit.SHUTDOWN);
});

describe('code that the host changes between two exits, on the simulator', () => {
  it('is not looked at while the host has no way to write unseen, and writes nothing', () => {
    withGuest(({ vcpu }) => {
      const holds = vi.spyOn(CodePage.prototype, 'holds');
      for (let i = 0; i < 10; i++) runTo(vcpu, Exit.IO);
      expect(holds).not.toHaveBeenCalled();
    });
  });

  // A view comes last: from then on all of it may be written unseen.
  it.each(ways)('by %s', (_, write) => {
    withGuest((machine) => {
      write(machine);
      runTo(machine.vcpu, Exit.IO); // the jump, and then the new value
      expect(machine.vcpu.io.value).toBe(9);
    });
  });

  it('by a view that was taken long ago', () => {
    withGuest(({ vcpu, ram }) => {
      const { bytes } = ram;
      for (let value = 10; value < 20; value++) {
        bytes[VALUE] = value;
        runTo(vcpu, Exit.IO);
        expect(vcpu.io.value).toBe(value);
      }
    });
  });
});

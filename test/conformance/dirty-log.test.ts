/** api.rst, KVM_GET_DIRTY_LOG. */
import { expect } from 'vitest';
import { Exit, flatImage, type Hypervisor, Machine, MemFlag } from '../../src/index.ts';
import { onEachWith } from '../support/host.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { errnoOf } from '../support/run.ts';

const PAGE = 4096;
const PAGES = 65;
const BASE = 0x8000;
const it = onEachWith('dirty-log');

// mov byte ptr [0x9000], 1; hlt; mov byte ptr [0xb000], 1; hlt; hlt
const code = Uint8Array.of(0xc6, 0x06, 0, 0x90, 1, 0xf4, 0xc6, 0x06, 0, 0xb0, 1, 0xf4, 0xf4);

/** A guest that writes to the second page of slot 1, and then to its fourth. Slot 0 ends where it begins. */
function withLog(hv: Hypervisor, use: (machine: Machine, log: () => number[]) => void): void {
  using machine = new Machine(hv, { memory: 0x1_0000 });
  const { vm, memory } = machine;
  machine.load(flatImage(code, 'real'));
  vm.setUserMemoryRegion({ slot: 0, memorySize: 0 });
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory, memorySize: BASE });
  using logged = vm.allocate(PAGES * PAGE);
  vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: BASE, memory: logged, flags: MemFlag.LOG_DIRTY_PAGES });
  const log = () => {
    const bitmap = vm.getDirtyLog(1);
    return Array.from({ length: bitmap.length * 8 }, (_, page) => page).filter(
      (page) => (bitmap[page >> 3]! & (1 << (page & 7))) !== 0,
    );
  };
  use(machine, log);
}

it('tells the pages that were written since it was read last, in whole words', (hv) =>
  withLog(hv, ({ vm, vcpu }, log) => {
    expect(log()).toEqual([]);
    expect(vcpu.run(DEADLINE_MS)).toBe(Exit.HLT);
    expect(log()).toEqual([1]);
    expect(vcpu.run(DEADLINE_MS)).toBe(Exit.HLT);
    expect(log()).toEqual([3]);
    expect(vcpu.run(DEADLINE_MS)).toBe(Exit.HLT);
    expect(log()).toEqual([]);
    expect(vm.getDirtyLog(1).length).toBe(16);
  }));

it('is there only of a slot that has one: ENOENT', (hv) =>
  withLog(hv, ({ vm }) => {
    expect(errnoOf(() => vm.getDirtyLog(0))).toBe('ENOENT');
    expect(errnoOf(() => vm.getDirtyLog(2))).toBe('ENOENT');
    expect(() => vm.getDirtyLog(0)).toThrow(
      /slot 0 is not there, or is not set with MemFlag.LOG_DIRTY_PAGES/,
    );
    vm.setUserMemoryRegion({ slot: 1, memorySize: 0 });
    expect(errnoOf(() => vm.getDirtyLog(1))).toBe('ENOENT');
  }));

it('refuses numbers that no slot has', (hv) =>
  withLog(hv, ({ vm }) => {
    for (const slot of [-1, 0x1_0000, 0.5, 'one' as never])
      expect(() => vm.getDirtyLog(slot)).toThrow(expect.objectContaining({ code: 'ERR_KVM_INVALID_ARG' }));
  }));

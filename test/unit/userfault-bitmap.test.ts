import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Hypervisor, openHypervisor, type Vm } from '../../src/index.ts';
import { Random } from '../differential/random.ts';
import { Agent } from '../support/agent.ts';
import { AREA, PAGE } from '../support/area.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { copy, insb } from '../support/snippets.ts';

let hv: Hypervisor;
let vm: Vm;
beforeAll(() => {
  hv = openHypervisor({ backend: 'sim' });
  vm = hv.createVm();
});
afterAll(() => {
  vm.close();
  hv.close();
});

const invalid = expect.objectContaining({ code: 'ERR_KVM_INVALID_ARG' });
const closed = expect.objectContaining({ code: 'ERR_KVM_CLOSED' });

describe('a userfault bitmap', () => {
  it('is clear at first, and has each bit as it was last set or released', () => {
    const pages = 301;
    using bitmap = vm.createUserfaultBitmap(pages);
    expect(bitmap.pages).toBe(pages);
    const model = new Array<boolean>(pages).fill(false);
    const random = new Random(7, 0);
    for (let round = 0; round < 300; round++) {
      const first = random.below(pages + 1);
      const count = random.below(pages - first + 1);
      const on = random.oneIn(2);
      if (on) bitmap.set(first, count);
      else bitmap.release(first, count);
      model.fill(on, first, first + count);
      expect(Array.from({ length: pages }, (_, page) => bitmap.isSet(page))).toEqual(model);
    }
  });

  it('lies in memory as KVM reads it: bit i is bit i mod 8 of byte i / 8, and no other is touched', () => {
    using bitmap = vm.createUserfaultBitmap(40);
    bitmap.set(3, 20);
    bitmap.release(9);
    const { bytes } = bitmap.memory;
    expect([...bytes.subarray(0, 5)]).toEqual([0b1111_1000, 0b1111_1101, 0b0111_1111, 0, 0]);
    bitmap.set(39);
    expect([...bytes.subarray(3, 6)]).toEqual([0, 0x80, 0]);
  });

  it('sets and releases one page without a count, and none with 0', () => {
    using bitmap = vm.createUserfaultBitmap(2);
    bitmap.set(1);
    bitmap.set(0, 0);
    expect([bitmap.isSet(0), bitmap.isSet(1)]).toEqual([false, true]);
    bitmap.release(1, 0);
    bitmap.release(2, 0);
    expect(bitmap.isSet(1)).toBe(true);
  });

  it('refuses pages that it has not, and changes nothing then', () => {
    using bitmap = vm.createUserfaultBitmap(8);
    for (const [first, count] of [
      [8, 1],
      [0, 9],
      [-1, 1],
      [0.5, 1],
      [0, -1],
      ['0', 1],
    ] as [number, number][]) {
      expect(() => bitmap.set(first, count)).toThrow(invalid);
      expect(() => bitmap.release(first, count)).toThrow(invalid);
    }
    expect(() => bitmap.isSet(8)).toThrow(invalid);
    expect(bitmap.memory.bytes[0]).toBe(0);
  });

  it('has from 1 to 2^31 - 1 bits', () => {
    for (const pages of [0, -1, 1.5, 2 ** 31, Number.NaN, '4', undefined] as number[])
      expect(() => vm.createUserfaultBitmap(pages)).toThrow(invalid);
  });

  it('is refused by a slot that has more pages, in words that name both, before any ioctl', () => {
    using memory = vm.allocate(3 * PAGE);
    using userfaultBitmap = vm.createUserfaultBitmap(2);
    const region = { slot: 5, guestPhysAddr: AREA, memory, userfaultBitmap };
    expect(() => vm.setUserMemoryRegion2(region)).toThrow(invalid);
    expect(() => vm.setUserMemoryRegion2(region)).toThrow(/pages is 2; it must be at least the 3 pages/);
    expect(vm.memoryMap.slotById(5)).toBeUndefined();
    for (const wrong of [null, {}, memory, 1] as never[])
      expect(() => vm.setUserMemoryRegion2({ ...region, userfaultBitmap: wrong })).toThrow(invalid);
  });

  it('is in the record of the slot while that has it', () => {
    using memory = vm.allocate(PAGE);
    using userfaultBitmap = vm.createUserfaultBitmap(1);
    const region = { slot: 6, guestPhysAddr: AREA, memory };
    vm.setUserMemoryRegion2({ ...region, userfaultBitmap });
    expect(vm.memoryMap.slotById(6)).toMatchObject({ flags: 8, userfaultBitmap });
    vm.setUserMemoryRegion2(region);
    expect(vm.memoryMap.slotById(6)).toMatchObject({ flags: 0, userfaultBitmap: undefined });
    vm.setUserMemoryRegion2({ slot: 6, memorySize: 0 });
  });

  it('cannot be used once it is closed', () => {
    const bitmap = vm.createUserfaultBitmap(1);
    bitmap.close();
    bitmap.close();
    expect(bitmap.closed).toBe(true);
    expect(() => bitmap.set(0)).toThrow(closed);
    expect(() => bitmap.release(0)).toThrow(closed);
    expect(() => bitmap.isSet(0)).toThrow(closed);
    expect(() => bitmap.share()).toThrow(closed);
    using memory = vm.allocate(PAGE);
    expect(() => vm.setUserMemoryRegion2({ slot: 7, memory, userfaultBitmap: bitmap })).toThrow(closed);
  });

  it('opened by its token has the same bits', () => {
    using bitmap = vm.createUserfaultBitmap(100);
    using other = hv.openUserfaultBitmap(bitmap.share(), 100);
    bitmap.set(0, 100);
    other.release(42);
    expect([bitmap.isSet(41), bitmap.isSet(42)]).toEqual([true, false]);
    expect(() => hv.openUserfaultBitmap(bitmap.share(), 8 * PAGE + 1)).toThrow(invalid);
  });
});

describe("the simulated kernel's own accesses", () => {
  /** Runs a snippet to its end, and gives what onOwnAccess() told. */
  function told(begin: (agent: Agent) => void): number[] {
    using agent = Agent.boot(hv);
    using memory = agent.vm.allocate(4 * PAGE);
    agent.vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: AREA, memory });
    const offsets: number[] = [];
    expect(memory.onOwnAccess((offset) => offsets.push(offset))).toBe(true);
    for (begin(agent); !agent.answered; agent.vcpu.run(DEADLINE_MS));
    memory.onOwnAccess();
    return [...new Set(offsets)];
  }

  it('are told of, by page, before they happen', () => {
    expect(told((agent) => agent.beginCode(insb, { rdx: 0x80, rdi: AREA + PAGE, rcx: 8 }))).toEqual([PAGE]);
    const fromDevice = { rsi: 2 * AREA - PAGE, rdi: AREA + 3 * PAGE };
    expect(told((agent) => agent.beginCode(copy, fromDevice))).toEqual([3 * PAGE]);
  });

  it("are not the guest's", () => {
    expect(told((agent) => agent.begin('write', { rdi: AREA, rsi: 1 }))).toEqual([]);
  });

  it('are told to functions', () => {
    using memory = vm.allocate(PAGE);
    expect(() => memory.onOwnAccess('no' as never)).toThrow(invalid);
  });
});

/** api.rst, KVM_GET_DIRTY_LOG. */
import { describe, expect } from 'vitest';
import { Cap, DirtyLog, Exit, flatImage, guest, type Hypervisor, Machine, MemFlag } from '../../src/index.ts';
import { Agent } from '../support/agent.ts';
import { onEachWith } from '../support/host.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { errnoOf } from '../support/run.ts';

const PAGE = 4096;
const PAGES = 65;
const BASE = 0x8000;
const HIGH = 0x4000_0000;
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

it('counts a page at each write since it was read last, and not when it is read', (hv) => {
  using agent = Agent.boot(hv, { privilege: 3 });
  const { vm } = agent;
  using logged = vm.allocate(4 * PAGE);
  vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: HIGH, memory: logged, flags: MemFlag.LOG_DIRTY_PAGES });
  for (const value of [1, 2]) {
    agent.write(HIGH + PAGE, value);
    expect(vm.getDirtyLog(1)[0]).toBe(0b10);
    agent.read(HIGH + PAGE);
    expect(vm.getDirtyLog(1)[0]).toBe(0);
  }
});

const itTwice = onEachWith('dirty-log', 'two-dimensional-paging');
itTwice('counts a page as written when it is first mapped, and then not when it is read', (hv) => {
  using agent = Agent.boot(hv);
  const { vm } = agent;
  using logged = vm.allocate(4 * PAGE);
  vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: HIGH, memory: logged, flags: MemFlag.LOG_DIRTY_PAGES });
  agent.read(HIGH + PAGE);
  expect(vm.getDirtyLog(1)[0]).toBe(0b10);
  agent.read(HIGH + PAGE);
  expect(vm.getDirtyLog(1)[0]).toBe(0);
  agent.write(HIGH + PAGE, 1);
  expect(vm.getDirtyLog(1)[0]).toBe(0b10);
});

it('begins when the flag is set, and write-protects what is mapped by then', (hv) => {
  using agent = Agent.boot(hv);
  const { vm } = agent;
  using logged = vm.allocate(4 * PAGE);
  const region = { slot: 1, guestPhysAddr: HIGH, memory: logged };
  vm.setUserMemoryRegion(region);
  agent.write(HIGH, 1);
  agent.write(HIGH + PAGE, 1);
  vm.setUserMemoryRegion({ ...region, flags: MemFlag.LOG_DIRTY_PAGES });
  expect(vm.getDirtyLog(1)[0]).toBe(0);
  agent.write(HIGH + PAGE, 2);
  expect(vm.getDirtyLog(1)[0]).toBe(0b10);
  vm.setUserMemoryRegion(region);
  agent.write(HIGH, 3);
  vm.setUserMemoryRegion({ ...region, flags: MemFlag.LOG_DIRTY_PAGES });
  expect(vm.getDirtyLog(1)[0]).toBe(0);
  expect(agent.read(HIGH)).toBe(3n);
});

it('has nothing of a read-only slot', (hv) => {
  using agent = Agent.boot(hv);
  const { vm, vcpu } = agent;
  using rom = vm.allocate(PAGE);
  const flags = MemFlag.LOG_DIRTY_PAGES | MemFlag.READONLY;
  vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: HIGH, memory: rom, flags });
  agent.read(HIGH);
  expect(agent.begin('write', { rdi: HIGH, rsi: 1 })).toBe(Exit.MMIO);
  vcpu.complete(() => {});
  expect(vm.getDirtyLog(1)[0]).toBe(0);
});

const copyWord = guest(
  64,
  `
 48 a5 | movsq
 c3    | ret
`,
);

it('tells what KVM itself writes when it emulates an instruction', (hv) => {
  using agent = Agent.boot(hv);
  const { vm, vcpu } = agent;
  using logged = vm.allocate(4 * PAGE);
  vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: HIGH, memory: logged, flags: MemFlag.LOG_DIRTY_PAGES });
  agent.read(HIGH + PAGE);
  vm.getDirtyLog(1);
  // From where no memory is, to there.
  const outcome = agent.beginCode(copyWord, { rsi: 2 * HIGH, rdi: HIGH + PAGE });
  expect(outcome).toBe(Exit.MMIO);
  vcpu.mmio.data.fill(7);
  expect(agent.resume()).toBeDefined();
  expect(logged.read(PAGE, 8)).toEqual(new Uint8Array(8).fill(7));
  expect(vm.getDirtyLog(1)[0]).toBe(0b10);
});

describe('with KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2', () => {
  const PAGES = 130;
  const word = (log: Uint8Array, page: number) => (log[page >> 3]! >> (page & 7)) & 1;

  function withManual(hv: Hypervisor, options: number, use: (agent: Agent) => void): void {
    using agent = Agent.boot(hv);
    const { vm } = agent;
    vm.enableCap({ cap: Cap.MANUAL_DIRTY_LOG_PROTECT2, args: [BigInt(options)] });
    using memory = vm.allocate(PAGES * PAGE);
    vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: HIGH, memory, flags: MemFlag.LOG_DIRTY_PAGES });
    use(agent);
  }

  it('reading the log clears nothing, and KVM_CLEAR_DIRTY_LOG clears and write-protects what it names', (hv) =>
    withManual(hv, DirtyLog.MANUAL_PROTECT_ENABLE, (agent) => {
      const { vm } = agent;
      for (const page of [2, 3, 70, 129]) agent.write(HIGH + page * PAGE, 1);
      const log = () => {
        const bits = vm.getDirtyLog(1);
        return Array.from({ length: bits.length * 8 }, (_, page) => page).filter(
          (page) => word(bits, page) === 1,
        );
      };
      expect(log()).toEqual([2, 3, 70, 129]);
      expect(log()).toEqual([2, 3, 70, 129]);
      vm.clearDirtyLog(1, Uint8Array.of(0b1000, 0, 0, 0, 0, 0, 0, 0), { count: 64 });
      expect(log()).toEqual([2, 70, 129]);
      agent.write(HIGH + 3 * PAGE, 2);
      expect(log()).toEqual([2, 3, 70, 129]);
      vm.clearDirtyLog(1, Uint8Array.of(0b10), { first: 128 }); // to the slot's end
      expect(log()).toEqual([2, 3, 70]);
      vm.clearDirtyLog(1, vm.getDirtyLog(1));
      expect(log()).toEqual([]);
    }));

  it('all pages count as written at first, and are write-protected as they are cleared', (hv) =>
    withManual(hv, DirtyLog.MANUAL_PROTECT_ENABLE | DirtyLog.INITIALLY_SET, (agent) => {
      const { vm } = agent;
      const all = vm.getDirtyLog(1);
      expect(Array.from({ length: all.length * 8 }, (_, page) => word(all, page))).toEqual(
        Array.from({ length: all.length * 8 }, (_, page) => (page < PAGES ? 1 : 0)),
      );
      vm.clearDirtyLog(1, new Uint8Array(8).fill(0xff), { count: 64 });
      agent.write(HIGH + 7 * PAGE, 1);
      const log = vm.getDirtyLog(1);
      expect([7, 8, 63, 64, 129].map((page) => word(log, page))).toEqual([1, 0, 0, 1, 1]);
    }));

  it('refuses parts that are not of the slot, and options that KVM does not know', (hv) =>
    withManual(hv, DirtyLog.MANUAL_PROTECT_ENABLE, ({ vm }) => {
      const bits = new Uint8Array(64);
      for (const part of [
        { first: 1 },
        { count: 63 },
        { first: 64, count: 1 },
        { first: 192 },
        { count: 192 },
      ])
        expect([part, errnoOf(() => vm.clearDirtyLog(1, bits, part))]).toEqual([part, 'EINVAL']);
      expect(errnoOf(() => vm.clearDirtyLog(0, bits))).toBe('ENOENT');
      expect(errnoOf(() => vm.clearDirtyLog(9, bits))).toBe('ENOENT');
      for (const call of [
        () => vm.clearDirtyLog(1, new Uint8Array(8), { count: 65 }),
        () => vm.clearDirtyLog(1, [1] as never),
        () => vm.clearDirtyLog(1, bits, { first: -1 }),
      ])
        expect(call).toThrow(expect.objectContaining({ code: 'ERR_KVM_INVALID_ARG' }));
      for (const options of [DirtyLog.INITIALLY_SET, 4, 7])
        expect(
          errnoOf(() => vm.enableCap({ cap: Cap.MANUAL_DIRTY_LOG_PROTECT2, args: [BigInt(options)] })),
        ).toBe('EINVAL');
      expect(errnoOf(() => vm.enableCap({ cap: Cap.MANUAL_DIRTY_LOG_PROTECT2, flags: 1 }))).toBe('EINVAL');
    }));
});

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

it('is written to an array that is given, and to none that is too short', (hv) =>
  withLog(hv, ({ vm, vcpu }) => {
    vcpu.run(DEADLINE_MS);
    const into = new Uint8Array(24).fill(0xff);
    expect(vm.getDirtyLog(1, 0, into)).toEqual(Uint8Array.of(0b10, ...new Array(15).fill(0)));
    expect([...into]).toEqual([0b10, ...new Array(15).fill(0), ...new Array(8).fill(0xff)]);
    expect(() => vm.getDirtyLog(1, 0, new Uint8Array(8))).toThrow(
      expect.objectContaining({ code: 'ERR_KVM_INVALID_ARG' }),
    );
  }));

it('refuses numbers that no slot has', (hv) =>
  withLog(hv, ({ vm }) => {
    for (const slot of [-1, 0x1_0000, 0.5, 'one' as never])
      expect(() => vm.getDirtyLog(slot)).toThrow(expect.objectContaining({ code: 'ERR_KVM_INVALID_ARG' }));
  }));

/** What errors say beside an errno: the cause, and what helps. */
import { existsSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { flatImage, Machine, openHypervisor, Trace, VmexitError } from '../../src/index.ts';
import { onEach, onLinux } from '../support/host.ts';
import { DEADLINE_MS } from '../support/limits.ts';

const message = (call: () => void): string => {
  try {
    call();
  } catch (error) {
    return (error as Error).message;
  }
  throw new Error('nothing was thrown');
};

describe('setCpuid2', () => {
  onEach('says of a vCPU that has run that it keeps its CPUID', (hv) => {
    using machine = new Machine(hv, { memory: 0x1_0000 });
    const { vcpu } = machine;
    machine.load(flatImage(Uint8Array.of(0xf4), 'real'));
    const entries = vcpu.getCpuid2();
    vcpu.setCpuid2(entries.slice(1));
    vcpu.setCpuid2(entries);
    vcpu.run(DEADLINE_MS);
    vcpu.setCpuid2(entries); // the same again is no change
    const changed = entries.map((entry) =>
      entry.function === 1 ? { ...entry, ecx: (entry.ecx ^ 1) >>> 0 } : entry,
    );
    expect(() => vcpu.setCpuid2(changed)).toThrow(
      expect.objectContaining({
        name: 'KvmError',
        code: 'EINVAL',
        request: 'KVM_SET_CPUID2',
        message: expect.stringMatching(
          /a vCPU that has run keeps its CPUID.*before the first run\(\), or to a new vCPU/,
        ),
      }),
    );
  });
});

describe('what the simulator has not got', () => {
  using hv = openHypervisor({ backend: 'sim' });
  const machine = new Machine(hv, { memory: 0x1_0000 });
  const { vm, vcpu } = machine;

  it.each<[string, () => void, RegExp]>([
    [
      'createIrqchip()',
      () => vm.createIrqchip(),
      /^KVM_CREATE_IRQCHIP failed with ENOTTY: the simulator has no interrupt/,
    ],
    ['createPit2()', () => vm.createPit2(), /no interrupt controllers and no timers/],
    ['getLapic()', () => void vcpu.getLapic(), /no interrupt controllers/],
    ['getClock()', () => void vm.getClock(), /no kvmclock/],
    ['setTscKhz()', () => vcpu.setTscKhz(1000), /counts instructions/],
    ['smi()', () => vcpu.smi(), /no system-management mode/],
  ])('%s says so', (_, call, says) => {
    expect(message(call)).toMatch(says);
  });
});

onLinux('a trace on a full disk says so, once', (context) => {
  context.skip(!existsSync('/dev/full'), 'there is no /dev/full here');
  using hv = openHypervisor({ backend: 'sim' });
  using machine = new Machine(hv, { memory: 0x1_0000 });
  const trace = new Trace('/dev/full');
  trace.begin(machine.vcpu);
  expect(() => trace.flush()).toThrow(
    expect.objectContaining({
      code: 'ERR_KVM_TRACE',
      message: 'the trace /dev/full cannot be written (ENOSPC)',
    }),
  );
  trace.close();
});

it('what was closed is named as it is everywhere', () => {
  const hv = openHypervisor({ backend: 'sim' });
  const vm = hv.createVm({ type: 1 });
  const vcpu = vm.createVcpu(3);
  const memory = vm.allocate(4096);
  const guestMemfd = vm.createGuestMemfd(4096);
  const bitmap = vm.createUserfaultBitmap(1);
  for (const opened of [vcpu, memory, guestMemfd, bitmap, vm, hv]) opened.close();
  const calls: readonly [string, () => void][] = [
    ['hypervisor', () => hv.createVm()],
    ['VM', () => vm.createVcpu()],
    ['vCPU', () => vcpu.getRegs()],
    ['vCPU', () => vcpu.run()],
    ['vCPU', () => vcpu.kick()],
    ['guest memory', () => memory.write(0, new Uint8Array(1))],
    ['guest_memfd', () => guestMemfd.allocate(0, 4096)],
    ['userfault bitmap', () => bitmap.set(0)],
  ];
  for (const [what, call] of calls) {
    expect(call).toThrow(VmexitError);
    expect(message(call)).toBe(`this ${what} was closed and cannot be used any more`);
  }
});

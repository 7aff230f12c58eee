/** The service at faults that repeat, on a scripted backend: what it still tries, and where it ends the run. */
import { describe, expect, it } from 'vitest';
import { MemoryFaultFlag, VmType } from '../../src/index.ts';
import { Errno } from '../../src/uapi/errno.ts';
import { ioctls } from '../../src/uapi/ioctls.ts';
import { kvm_pre_fault_memory } from '../../src/uapi/structs.ts';
import { memoryFault } from '../support/scripted-backend.ts';
import { machine, PAGE, thrown } from '../support/scripted-machine.ts';

const { PRIVATE } = MemoryFaultFlag;

describe('a private page that KVM takes for MMIO, fault after fault', () => {
  const stale = memoryFault({ gpa: 0x1000, flags: 0 });
  const preFaults = ({ backend }: ReturnType<typeof machine>) =>
    backend.calls
      .filter(({ name }) => name === 'KVM_PRE_FAULT_MEMORY')
      .map(({ argument }) => kvm_pre_fault_memory.decode(argument as Uint8Array));

  it('is mapped as private once its fault has come again unchanged, without a conversion', () => {
    const m = machine(VmType.SW_PROTECTED);
    m.makePrivate(0x1000);
    for (let i = 0; i < 2; i++) m.play(stale);
    expect(preFaults(m)).toEqual([]);
    expect(m.play(stale)).toBe(true);
    expect(preFaults(m)).toMatchObject([{ gpa: 0x1000, size: PAGE }]);
    expect([m.conversions(), m.punches()]).toEqual([[], []]);
    expect(m.service.counters).toMatchObject({ memoryFaults: 3, retries: 2, stale: 1, preFaultFailures: 0 });
    expect(m.events.at(-1)).toMatchObject({
      cause: 'stale',
      action: 'map',
      gpa: 0x1000,
      flags: 0,
      result: 0,
    });
  });

  it('ends the run when that does not help: it is tried once', () => {
    const m = machine(VmType.SW_PROTECTED, { maxRepeats: 3 });
    m.makePrivate(0x1000);
    const error = thrown(() => {
      for (let i = 0; i < 10; i++) m.play(stale);
    });
    expect(error.code).toBe('ERR_KVM_NO_PROGRESS');
    expect(m.service.counters).toMatchObject({ memoryFaults: 5, stale: 1 });
  });

  it('is tried before a guard that allows a single repeat ends the run', () => {
    const m = machine(VmType.SW_PROTECTED, { maxRepeats: 1 });
    m.makePrivate(0x1000);
    for (let i = 0; i < 3; i++) expect(m.play(stale)).toBe(true);
    expect(thrown(() => m.play(stale)).code).toBe('ERR_KVM_NO_PROGRESS');
  });

  it('is counted and traced as a failure where the kernel has no KVM_PRE_FAULT_MEMORY, and run again', () => {
    const m = machine(VmType.SW_PROTECTED);
    m.makePrivate(0x1000);
    m.backend.results.KVM_PRE_FAULT_MEMORY = -Errno.ENOTTY;
    for (let i = 0; i < 3; i++) expect(m.play(stale)).toBe(true);
    expect(m.service.counters).toMatchObject({ stale: 0, preFaultFailures: 1 });
    expect(m.events.at(-1)).toMatchObject({ cause: 'stale', action: 'map', result: -Errno.ENOTTY });
  });

  it.each([
    ['its fault says that it is private: an access that KVM emulates', 0x1000, PRIVATE],
    ['it is shared now', 0x2000, 0],
  ])('is not what it is when %s', (_, gpa, flags) => {
    const m = machine(VmType.SW_PROTECTED);
    m.makePrivate(0x1000);
    for (let i = 0; i < 5; i++) m.play(memoryFault({ gpa, flags }));
    expect(preFaults(m)).toEqual([]);
    expect(m.service.counters).toMatchObject({ retries: 5, stale: 0 });
  });
});

describe('the guard', () => {
  it('ends a run whose instruction faults at one page without any progress, and shows the state', () => {
    const m = machine(VmType.SW_PROTECTED, { maxRepeats: 3 });
    const fault = memoryFault({ gpa: 0x1000, flags: 0x20 });
    for (let i = 0; i < 4; i++) m.play(fault);
    const error = thrown(() => m.play(fault));
    expect(error.code).toBe('ERR_KVM_NO_PROGRESS');
    expect(error.message).toContain('[0x1000, 0x2000) (now shared, slot 0 [0x0, 0x10000) with guest_memfd)');
    expect(error.message).toContain('flags 0x20 (with bits that this version does not know)');
  });

  it('ends a ping-pong of one instruction that wants the same page in both states', () => {
    const m = machine(VmType.SNP, { maxRepeats: 3 });
    const error = thrown(() => {
      for (let i = 0; i < 10; i++) m.play(memoryFault({ gpa: 0x1000, flags: i % 2 ? 0 : PRIVATE }));
    });
    expect(error.code).toBe('ERR_KVM_NO_PROGRESS');
  });

  it('lets a guest go on that faults at one page for ever but gets on', () => {
    const m = machine(VmType.SW_PROTECTED, { maxRepeats: 3 });
    let rip = 0n;
    const ioctl = m.backend.ioctl.bind(m.backend);
    m.backend.ioctl = (handle, request, argument) => {
      if (request === ioctls.KVM_GET_REGS.request) {
        ioctls.KVM_GET_REGS.struct.set(new DataView((argument as Uint8Array).buffer), 0, {
          ...ioctls.KVM_GET_REGS.struct.decode(argument as Uint8Array),
          rip: rip++ % 2n,
        });
        return 0;
      }
      return ioctl(handle, request, argument);
    };
    for (let i = 0; i < 50; i++) expect(m.play(memoryFault({ gpa: 0x1000 }))).toBe(true);
  });
});

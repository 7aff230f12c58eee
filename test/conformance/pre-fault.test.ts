/** api.rst, KVM_PRE_FAULT_MEMORY (since 6.11); the kernel's pre_fault_memory_test. */
import { expect } from 'vitest';
import { Exit, type Hypervisor } from '../../src/index.ts';
import { ioctls } from '../../src/uapi/index.ts';
import { Agent } from '../support/agent.ts';
import { AREA, Area, PAGE } from '../support/area.ts';
import { errnoOf, expectOutcome, wordAt } from '../support/run.ts';
import { conformance } from '../support/suite.ts';
import { Tap } from '../support/tap.ts';

const LARGE = 2 * 2 ** 20;
const SIZE = LARGE + PAGE;
const VALUE = 0x0123_4567_89ab_cdefn;
const FROM_VMM = 0xbeef_beefn;

/** Shared memory of a default VM, and both kinds of a SW_PROTECTED one, at AREA. */
const kinds = ['a default VM', 'shared memory of a SW_PROTECTED VM', 'private memory'] as const;

function withMemory(hv: Hypervisor, kind: (typeof kinds)[number], use: (agent: Agent) => void): void {
  if (kind === 'a default VM') {
    using agent = Agent.boot(hv);
    using ram = agent.vm.allocate(SIZE);
    agent.vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: AREA, memory: ram });
    use(agent);
    return;
  }
  using area = new Area(hv, SIZE);
  if (kind === 'private memory') area.make('private');
  use(area.agent);
}

/** Part of the area, bytes that are left, or the errno when nothing was mapped. */
const answers: readonly (readonly [string, number, number, number | string])[] = [
  ['2 MiB inside a slot are all mapped: 0 bytes are left', 0, LARGE, 0],
  ['the last page is mapped', SIZE - PAGE, PAGE, 0],
  ['two pages from the last one: one is mapped, 4096 bytes are left', SIZE - PAGE, 2 * PAGE, PAGE],
  ['a page outside of every slot gives ENOENT', SIZE, PAGE, 'ENOENT'],
  ['a range outside of every slot gives ENOENT', SIZE + PAGE, LARGE, 'ENOENT'],
  ['a size of 0 gives EINVAL', 0, 0, 'EINVAL'],
  ['a size that is not whole pages gives EINVAL', 0, PAGE + 1, 'EINVAL'],
  ['an address inside a page gives EINVAL', 1, PAGE, 'EINVAL'],
];

/** A private page with nothing behind it: a pre-fault of it fails. */
function withUnbacked(hv: Hypervisor, use: (area: Area) => void): void {
  using area = new Area(hv);
  area.unbind();
  area.bind({ secret: null });
  area.make('private', 0, PAGE);
  use(area);
}

conformance('pre-faulting', ({ needs }) => {
  for (const kind of kinds) {
    const it = kind === 'a default VM' ? needs('pre-fault') : needs('pre-fault', 'private-memory');

    for (const [sentence, offset, size, expected] of answers) {
      it(`${sentence} (${kind})`, (hv) => {
        withMemory(hv, kind, ({ vcpu }) => {
          let left: number | undefined;
          const errno = errnoOf(() => {
            left = vcpu.preFaultMemory(AREA + offset, size);
          });
          expect(left ?? errno).toBe(expected);
        });
      });
    }

    it(`the guest uses pre-faulted memory without an exit (${kind})`, (hv) => {
      withMemory(hv, kind, (agent) => {
        expect(agent.vcpu.preFaultMemory(AREA, SIZE)).toBe(0);
        agent.fill(AREA, SIZE, 0x5a);
        expect(agent.holds(AREA, SIZE, 0x5a)).toBe(true);
      });
    });
  }

  needs('pre-fault')('flags, and a range that ends above 2^64, give EINVAL', (hv) => {
    using tap = new Tap(hv.backend);
    using agent = Agent.boot(tap.hv);
    expect(agent.vcpu.closed).toBe(false);
    const top = 2n ** 64n - BigInt(PAGE);
    expect(tap.ioctl(ioctls.KVM_PRE_FAULT_MEMORY, { gpa: 0, size: PAGE, flags: 1 })).toBe('EINVAL');
    expect(tap.ioctl(ioctls.KVM_PRE_FAULT_MEMORY, { gpa: top, size: 2 * PAGE })).toBe('EINVAL');
  });

  const itPrivate = needs('pre-fault', 'private-memory', 'memory-fault');

  itPrivate('memory is pre-faulted as what it is: private pages are not the shared ones', (hv) => {
    using area = new Area(hv);
    area.make('private', 0, PAGE);
    area.agent.vcpu.preFaultMemory(AREA, 2 * PAGE);
    area.agent.write(AREA, VALUE);
    area.agent.write(AREA + PAGE, VALUE);
    expect([wordAt(area.shared.bytes), wordAt(area.shared.bytes, PAGE)]).toEqual([0n, VALUE]);
  });

  itPrivate(
    'a private page with nothing behind it gives EFAULT, and leaves MEMORY_FAULT in exit_reason',
    (hv) => {
      withUnbacked(hv, ({ agent: { vcpu } }) => {
        expect(vcpu.raw.exitReason).not.toBe(Exit.MEMORY_FAULT);
        expect(errnoOf(() => vcpu.preFaultMemory(AREA, PAGE))).toBe('EFAULT');
        expect(vcpu.raw.exitReason).toBe(Exit.MEMORY_FAULT);
      });
    },
  );

  // The mails about KVM_CAP_MEMORY_FAULT_INFO: an EINTR must not be misinterpreted because of what stands in exit_reason.
  itPrivate(
    'an interrupted run after it is no memory fault, although MEMORY_FAULT stands in exit_reason',
    (hv) => {
      withUnbacked(hv, ({ agent: { vcpu } }) => {
        errnoOf(() => vcpu.preFaultMemory(AREA, PAGE));
        vcpu.immediateExit = true;
        vcpu.run();
        expectOutcome(vcpu, Exit.INTERRUPTED);
        expect(vcpu.raw.exitReason).toBe(Exit.MEMORY_FAULT);
      });
    },
  );

  // memory_fault and mmio share the exit union: gpa lies where mmio.data does.
  itPrivate(
    'a failing pre-fault overwrites the pending exit: what an MMIO read was answered is lost',
    (hv) => {
      withUnbacked(hv, ({ agent }) => {
        agent.begin('read', { rdi: 2 * AREA - PAGE });
        expectOutcome(agent.vcpu, Exit.MMIO);
        agent.vcpu.mmio.value = FROM_VMM;
        errnoOf(() => agent.vcpu.preFaultMemory(AREA, PAGE));
        expect(agent.resume()).toBe(BigInt(AREA));
      });
    },
  );

  itPrivate('an answer written after the pre-fault reaches the guest', (hv) => {
    withUnbacked(hv, ({ agent }) => {
      agent.begin('read', { rdi: 2 * AREA - PAGE });
      expectOutcome(agent.vcpu, Exit.MMIO);
      errnoOf(() => agent.vcpu.preFaultMemory(AREA, PAGE));
      agent.vcpu.mmio.value = FROM_VMM;
      expect(agent.resume()).toBe(FROM_VMM);
    });
  });

  itPrivate('a private page beyond every slot gives EFAULT', (hv) => {
    using area = new Area(hv);
    area.vm.setMemoryAttributes({ address: AREA + area.size, size: PAGE, attributes: 8 });
    expect(errnoOf(() => area.agent.vcpu.preFaultMemory(AREA + area.size, PAGE))).toBe('EFAULT');
  });
});

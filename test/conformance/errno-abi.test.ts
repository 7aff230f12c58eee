/**
 * The errno ABI (api.rst, KVM_CAP_MEMORY_FAULT_INFO, and the mails of November 2023 about it): kvm_run.memory_fault is valid if and only if KVM_RUN failed with EFAULT or EHWPOISON and
 * exit_reason is KVM_EXIT_MEMORY_FAULT. Everything else that ends KVM_RUN leaves in exit_reason what stood there, and
 * some reasons must survive a KVM_RUN with immediate_exit. (KVM_ENABLE_CAP of the capability: capabilities.test.ts; a
 * failed KVM_PRE_FAULT_MEMORY: pre-fault.test.ts.)
 */
import { expect } from 'vitest';
import { Exit, type Hypervisor, type Vcpu } from '../../src/index.ts';
import { Errno, EXIT_OFFSET, errnoName, exitArms, kvm_run } from '../../src/uapi/index.ts';
import { Agent, Layout } from '../support/agent.ts';
import { AREA, AREA_SLOT, Area, PAGE } from '../support/area.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { errnoOf, expectOutcome, runTo } from '../support/run.ts';
import * as code from '../support/snippets.ts';
import { conformance } from '../support/suite.ts';
import { Tap } from '../support/tap.ts';

const { EAGAIN, EBADF, EFAULT, EHWPOISON, EINTR, EINVAL, EIO, ENOMEM, EPERM } = Errno;

function withAgent(hv: Hypervisor, use: (agent: Agent) => void): void {
  using agent = Agent.boot(hv);
  use(agent);
}

/** A run that is over before the guest's first instruction. */
function runInterrupted(vcpu: Vcpu): void {
  vcpu.immediateExit = true;
  vcpu.run(DEADLINE_MS);
  expectOutcome(vcpu, Exit.INTERRUPTED);
  vcpu.immediateExit = false;
}

/** Ways to an exit whose reason then stands in kvm_run. */
const exits = [
  ['IO', (agent: Agent) => agent.beginCode(code.out8, { rdx: 0x80 })],
  ['MMIO', (agent: Agent) => agent.begin('write', { rdi: AREA })],
  ['HLT', (agent: Agent) => agent.begin('hlt')],
] as const;

/** What KVM_RUN returns, what stands in exit_reason, and the outcome: a number of `Exit`, or the errno thrown. */
const injected: readonly (readonly [number, number, number | string])[] = [
  [EFAULT, Exit.MEMORY_FAULT, Exit.MEMORY_FAULT],
  [EHWPOISON, Exit.MEMORY_FAULT, Exit.MEMORY_POISONED],
  [EFAULT, Exit.UNKNOWN, Exit.FAULT],
  [EFAULT, Exit.MMIO, Exit.FAULT],
  [EHWPOISON, Exit.UNKNOWN, 'EHWPOISON'],
  [EINTR, Exit.MEMORY_FAULT, Exit.INTERRUPTED],
  [EAGAIN, Exit.MEMORY_FAULT, Exit.AGAIN],
  // kvm_gmem_get_pfn's errno is returned as it is after the exit was annotated.
  [ENOMEM, Exit.MEMORY_FAULT, 'ENOMEM'],
  [EIO, Exit.MEMORY_FAULT, 'EIO'],
  [EINVAL, Exit.MEMORY_FAULT, 'EINVAL'],
  [EBADF, Exit.MEMORY_FAULT, 'EBADF'],
  // How the first of the three ABIs told of a fault; its exit number means something else today.
  [EPERM, Exit.RISCV_CSR, 'EPERM'],
];

const outcomeName = (outcome: number | string) =>
  typeof outcome === 'string'
    ? `the error ${outcome}`
    : Object.entries(Exit).find(([, n]) => n === outcome)![0];

conformance('the errno ABI', ({ it, needs }) => {
  const itExits = needs('immediate-exit');

  for (const [name, arrange] of exits) {
    itExits(
      `exit_reason ${name} is preserved across a run with immediate_exit, which is an interruption`,
      (hv) => {
        withAgent(hv, (agent) => {
          arrange(agent);
          expectOutcome(agent.vcpu, Exit[name]);
          runInterrupted(agent.vcpu);
          expect(agent.vcpu.raw.exitReason).toBe(Exit[name]);
        });
      },
    );
  }

  itExits(
    'EINTR with MEMORY_FAULT standing in exit_reason is an interruption, and KVM leaves it there',
    (hv) => {
      withAgent(hv, ({ vcpu }) => {
        vcpu.raw.exitReason = Exit.MEMORY_FAULT;
        runInterrupted(vcpu);
        expect(vcpu.raw.exitReason).toBe(Exit.MEMORY_FAULT);
      });
    },
  );

  itExits('a run that enters the guest clears what stood in exit_reason', (hv) => {
    withAgent(hv, (agent) => {
      agent.vcpu.raw.exitReason = Exit.MEMORY_FAULT;
      agent.begin('hlt');
      expectOutcome(agent.vcpu, Exit.HLT);
      expect(agent.vcpu.raw.exitReason).toBe(Exit.HLT);
    });
  });

  needs('sync-regs')(
    'EINVAL with MEMORY_FAULT standing in exit_reason is an error and no memory fault',
    (hv) => {
      withAgent(hv, ({ vcpu }) => {
        vcpu.raw.exitReason = Exit.MEMORY_FAULT;
        vcpu.syncRegs.valid = 2 ** 31;
        expect(errnoOf(() => vcpu.run(DEADLINE_MS))).toBe('EINVAL');
        expect(vcpu.raw.exitReason).toBe(Exit.MEMORY_FAULT);
      });
    },
  );

  needs('private-memory', 'memory-fault')('after a memory fault is decoded, exit_reason is reset', (hv) => {
    using area = new Area(hv);
    area.unbind();
    area.make('private');
    area.agent.begin('read', { rdi: AREA });
    expectOutcome(area.agent.vcpu, Exit.MEMORY_FAULT);
    expect(area.agent.vcpu.raw.exitReason).toBe(Exit.UNKNOWN);
    runInterrupted(area.agent.vcpu);
  });

  // kvm_handle_error_pfn returns -EFAULT as it is: the capability's text promises more than x86 does.
  needs('unbacked-fault')(
    'a slot with no mapping behind it gives an EFAULT without fault information',
    (hv) => {
      withAgent(hv, (agent) => {
        agent.vm.setUserMemoryRegion({ slot: AREA_SLOT, guestPhysAddr: AREA, memorySize: PAGE });
        agent.begin('read', { rdi: AREA });
        expectOutcome(agent.vcpu, Exit.FAULT);
        expect(agent.vcpu.raw.exitReason).not.toBe(Exit.MEMORY_FAULT);
      });
    },
  );

  needs('unbacked-fault')(
    'an EFAULT without fault information can be mended and the access retried',
    (hv) => {
      withAgent(hv, (agent) => {
        const slot = { slot: AREA_SLOT, guestPhysAddr: AREA };
        using ram = agent.vm.allocate(PAGE);
        agent.vm.setUserMemoryRegion({ ...slot, memorySize: PAGE });
        agent.begin('read', { rdi: AREA });
        expectOutcome(agent.vcpu, Exit.FAULT);
        agent.vm.setUserMemoryRegion({ ...slot, memorySize: 0 });
        agent.vm.setUserMemoryRegion({ ...slot, memory: ram });
        ram.bytes[0] = 7;
        expect(agent.resume()).toBe(7n);
      });
    },
  );

  for (const [errno, standing, outcome] of injected) {
    const reason = standing === Exit.RISCV_CSR ? '36' : outcomeName(standing);
    it(`injected: ${errnoName(errno)} with exit_reason ${reason} is ${outcomeName(outcome)}`, (hv) => {
      using tap = new Tap(hv.backend);
      using vm = tap.hv.createVm();
      using vcpu = vm.createVcpu();
      tap.injectRun({
        result: -errno,
        leaves: (page) => {
          page.setUint32(kvm_run.fields.exitReason.offset, standing, true);
          exitArms.memoryFault.set(page, EXIT_OFFSET, { flags: 8, gpa: AREA, size: PAGE });
        },
      });
      if (typeof outcome === 'string') {
        expect(errnoOf(() => vcpu.run())).toBe(outcome);
        expect(vcpu.raw.exitReason).toBe(standing);
        return;
      }
      expect(vcpu.run()).toBe(outcome);
      if (outcome !== Exit.MEMORY_FAULT && outcome !== Exit.MEMORY_POISONED) {
        expect(vcpu.raw.exitReason).toBe(standing);
        return;
      }
      expect(vcpu.exit).toMatchObject({ flags: { private: true }, gpa: AREA, size: PAGE });
      expect(vcpu.raw.exitReason).toBe(Exit.UNKNOWN);
    });
  }

  it('the guest of an interrupted run goes on as if nothing had been', (hv) => {
    withAgent(hv, (agent) => {
      agent.prepare('write', { rdi: Layout.free, rsi: 5 });
      runInterrupted(agent.vcpu);
      runTo(agent.vcpu, Exit.IO);
      expect(agent.read(Layout.free)).toBe(5n);
    });
  });
});

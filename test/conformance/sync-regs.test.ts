/** KVM_CAP_SYNC_REGS (api.rst, 6.74 and kvm_valid_regs); the kernel's sync_regs_test. */
import { expect } from 'vitest';
import { Exit, type Hypervisor } from '../../src/index.ts';
import { SyncRegs } from '../../src/uapi/index.ts';
import { Agent, Layout } from '../support/agent.ts';
import { errnoOf, runTo } from '../support/run.ts';
import * as code from '../support/snippets.ts';
import { conformance } from '../support/suite.ts';

const ALL = SyncRegs.REGS | SyncRegs.SREGS | SyncRegs.EVENTS;
const UNKNOWN = 2 ** 31;
const STUFFED = 0xbad_1deadn;

/** A guest that counts in rbx, and says so on a port each time. */
function withCounter(hv: Hypervisor, use: (agent: Agent) => void): void {
  using agent = Agent.boot(hv);
  agent.ram.bytes.set(code.count.code, Layout.snippet);
  agent.vcpu.setRegs({ rip: Layout.snippet, rsp: Layout.stack, rflags: 2n, rbx: 1n, rdx: 0x80 });
  use(agent);
}

conformance('sync regs', ({ needs }) => {
  const it = needs('sync-regs');

  for (const field of ['valid', 'dirty'] as const) {
    for (const [name, bits] of [
      ['alone', UNKNOWN],
      ['among known ones', UNKNOWN + ALL],
    ] as const) {
      it(`an unknown bit in kvm_${field}_regs, ${name}, makes KVM_RUN fail with EINVAL`, (hv) => {
        withCounter(hv, ({ vcpu }) => {
          vcpu.syncRegs[field] = bits;
          expect(errnoOf(() => vcpu.run(1000))).toBe('EINVAL');
          vcpu.syncRegs[field] = 0;
          runTo(vcpu, Exit.IO);
        });
      });
    }
  }

  it('with every valid bit set, what lies in kvm_run is what the ioctls give', (hv) => {
    withCounter(hv, ({ vcpu }) => {
      vcpu.syncRegs.valid = ALL;
      runTo(vcpu, Exit.IO);
      const { regs, sregs, events } = vcpu.syncRegs;
      expect(regs).toEqual(vcpu.getRegs());
      expect(sregs).toEqual(vcpu.getSregs());
      expect(events).toEqual(vcpu.getVcpuEvents());
    });
  });

  it('only the sets that are asked for are written', (hv) => {
    withCounter(hv, ({ vcpu }) => {
      const { sregs } = vcpu.syncRegs;
      vcpu.syncRegs.valid = SyncRegs.REGS;
      runTo(vcpu, Exit.IO);
      expect(vcpu.syncRegs.regs).toEqual(vcpu.getRegs());
      expect(vcpu.syncRegs.sregs).toEqual(sregs);
    });
  });

  it('dirty registers are what the guest goes on with, and KVM clears the bits', (hv) => {
    withCounter(hv, ({ vcpu }) => {
      vcpu.syncRegs.valid = ALL;
      runTo(vcpu, Exit.IO);
      vcpu.syncRegs.regs = { ...vcpu.syncRegs.regs, rbx: STUFFED };
      vcpu.syncRegs.dirty = SyncRegs.REGS | SyncRegs.SREGS;
      runTo(vcpu, Exit.IO);
      expect(vcpu.syncRegs.dirty).toBe(0);
      expect(vcpu.syncRegs.regs.rbx).toBe(STUFFED + 1n);
      expect(vcpu.getRegs().rbx).toBe(STUFFED + 1n);
    });
  });

  it('dirty special registers are kept: the APIC base', (hv) => {
    withCounter(hv, ({ vcpu }) => {
      const enabled = 1n << 11n;
      vcpu.syncRegs.valid = ALL;
      runTo(vcpu, Exit.IO);
      vcpu.syncRegs.sregs = { ...vcpu.syncRegs.sregs, apicBase: enabled };
      vcpu.syncRegs.dirty = SyncRegs.SREGS;
      runTo(vcpu, Exit.IO);
      expect([vcpu.syncRegs.sregs.apicBase, vcpu.getSregs().apicBase]).toEqual([enabled, enabled]);
    });
  });

  it('without dirty bits what is written there is overwritten by what the guest has', (hv) => {
    withCounter(hv, ({ vcpu }) => {
      vcpu.syncRegs.valid = ALL;
      runTo(vcpu, Exit.IO);
      vcpu.syncRegs.regs = { ...vcpu.syncRegs.regs, rbx: 0xdead_beefn };
      runTo(vcpu, Exit.IO);
      expect(vcpu.syncRegs.regs.rbx).toBe(2n);
    });
  });

  it('without any bit nothing is copied in or out: the guest has what SET_REGS gave it', (hv) => {
    withCounter(hv, ({ vcpu }) => {
      runTo(vcpu, Exit.IO);
      vcpu.syncRegs.regs = { ...vcpu.syncRegs.regs, rbx: 0xaaaan };
      vcpu.setRegs({ ...vcpu.getRegs(), rbx: STUFFED });
      runTo(vcpu, Exit.IO);
      expect(vcpu.syncRegs.regs.rbx).toBe(0xaaaan);
      expect(vcpu.getRegs().rbx).toBe(STUFFED + 1n);
    });
  });

  it('with dirty bits and no valid ones the guest takes the registers, and none are written back', (hv) => {
    withCounter(hv, ({ vcpu }) => {
      runTo(vcpu, Exit.IO);
      vcpu.syncRegs.regs = { ...vcpu.getRegs(), rbx: STUFFED };
      vcpu.syncRegs.dirty = SyncRegs.REGS;
      runTo(vcpu, Exit.IO);
      expect(vcpu.syncRegs.regs.rbx).toBe(STUFFED);
      expect(vcpu.getRegs().rbx).toBe(STUFFED + 1n);
    });
  });

  it('special registers that no processor can have make KVM_RUN fail with EINVAL', (hv) => {
    withCounter(hv, ({ vcpu }) => {
      vcpu.syncRegs.valid = ALL;
      runTo(vcpu, Exit.IO);
      const { sregs } = vcpu.syncRegs;
      // Long mode without CR4.PAE (SDM volume 3, 10.8.5): what the races of sync_regs_test aim at.
      vcpu.syncRegs.sregs = { ...sregs, cr4: sregs.cr4 & ~(1n << 5n) };
      vcpu.syncRegs.dirty = SyncRegs.SREGS;
      expect(errnoOf(() => vcpu.run(1000))).toBe('EINVAL');
      vcpu.syncRegs.sregs = sregs;
      vcpu.syncRegs.dirty = SyncRegs.SREGS;
      runTo(vcpu, Exit.IO);
    });
  });

  it('an exception number that no processor has makes KVM_RUN fail with EINVAL', (hv) => {
    withCounter(hv, ({ vcpu }) => {
      vcpu.syncRegs.valid = ALL;
      runTo(vcpu, Exit.IO);
      const { events } = vcpu.syncRegs;
      for (const nr of [2, 32, 255]) {
        vcpu.syncRegs.events = { ...events, exception: { ...events.exception, nr, injected: 1 } };
        vcpu.syncRegs.dirty = SyncRegs.EVENTS;
        expect
          .soft(
            errnoOf(() => vcpu.run(1000)),
            `exception ${nr}`,
          )
          .toBe('EINVAL');
      }
      vcpu.syncRegs.dirty = 0;
      runTo(vcpu, Exit.IO);
    });
  });
});

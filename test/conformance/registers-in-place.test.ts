/** The general registers in place: KVM_GET_REGS and KVM_SET_REGS with their argument where it is (api.rst 4.11, 4.12). */
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { expect } from 'vitest';
import { Exit, flatImage, type Hypervisor, Machine, type Vcpu } from '../../src/index.ts';
import { runTo } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

/** inc ax; hlt; inc bx; hlt */
const code = Uint8Array.of(0x40, 0xf4, 0x43, 0xf4);

function withGuest(hv: Hypervisor, use: (vcpu: Vcpu) => void): void {
  using machine = new Machine(hv, { memory: 0x10_0000 });
  machine.load(flatImage(code, 'real'), { rax: 41, rbx: 1, r15: 0xffff_ffff_ffff_ffffn });
  use(machine.vcpu);
}

conformance('registers in place', ({ it }) => {
  it('are what the guest has when they are loaded, and what it goes on with when they are stored', (hv) =>
    withGuest(hv, (vcpu) => {
      const { regs } = vcpu;
      for (let round = 0; round < 3; round++) {
        runTo(vcpu, Exit.HLT);
        regs.load();
        expect({ ...vcpu.getRegs() }).toMatchObject({ rax: regs.rax, rip: regs.rip, r15: regs.r15 });
        regs.rax = 100n + BigInt(round);
        regs.rip -= 2n; // the instruction before HLT once more
        regs.store();
        expect(vcpu.getRegs().rax).toBe(100n + BigInt(round));
      }
      runTo(vcpu, Exit.HLT);
      expect(vcpu.getRegs().rax).toBe(103n);
      expect(vcpu.regs).toBe(regs);
    }));

  it("are not the guest's until they are stored, and lost when they are loaded again", (hv) =>
    withGuest(hv, (vcpu) => {
      const { regs } = vcpu;
      regs.load();
      regs.rbx = 7n;
      expect(regs.rbx).toBe(7n);
      expect(vcpu.getRegs().rbx).toBe(1n);
      regs.load();
      expect(regs.rbx).toBe(1n);
    }));

  it('take what 64 bits hold, and an error names the register', (hv) =>
    withGuest(hv, ({ regs }) => {
      regs.load();
      for (const wrong of [2n ** 64n, 0.5, 'x', -(2n ** 64n)])
        expect(() => Object.assign(regs, { r9: wrong })).toThrow(/r9/);
      regs.r9 = -1n;
      expect(regs.r9).toBe(0xffff_ffff_ffff_ffffn);
    }));

  it('are told of on the channel, and are refused when the vCPU is closed', (hv) =>
    withGuest(hv, (vcpu) => {
      const { regs } = vcpu;
      const told: unknown[] = [];
      const listener = (message: unknown) => told.push((message as { name: string }).name);
      subscribe('vmexit:ioctl', listener);
      regs.load();
      regs.store();
      unsubscribe('vmexit:ioctl', listener);
      expect(told).toEqual(['KVM_GET_REGS', 'KVM_SET_REGS']);
      vcpu.close();
      for (const use of [() => regs.load(), () => regs.store()])
        expect(use).toThrow(expect.objectContaining({ code: 'ERR_KVM_CLOSED' }));
    }));
});

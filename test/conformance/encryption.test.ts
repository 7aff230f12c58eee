/**
 * Encrypted memory on a host without such hardware: that each call is refused as the kernel refuses it there. What reaches
 * the kernel of a command is in test/unit/encrypt-op.test.ts.
 */
import { expect } from 'vitest';
import { Cap, VmType } from '../../src/index.ts';
import { errnoOf } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

const SEV = [VmType.SEV, VmType.SEV_ES, VmType.SNP];

conformance('encrypted memory', ({ it }) => {
  it('a VM that is not of such a type has no commands and no regions', (hv, context) => {
    const types = hv.checkExtension(Cap.VM_TYPES);
    context.skip(
      SEV.some((type) => (types & (1 << type)) !== 0),
      'this host has SEV: KVM answers otherwise, and sev_guest_init() takes VMs of type DEFAULT',
    );
    using vm = hv.createVm();
    using memory = vm.allocate(4096);
    expect(errnoOf(() => vm.memoryEncryptOp('KVM_SEV_INIT'))).toBe('ENOTTY');
    expect(errnoOf(() => vm.memoryEncryptOp('KVM_SEV_LAUNCH_START', { data: { policy: 1 } }))).toBe('ENOTTY');
    expect(errnoOf(() => vm.memoryEncryptRegRegion({ memory }))).toBe('ENOTTY');
    expect(errnoOf(() => vm.memoryEncryptUnregRegion({ memory }))).toBe('ENOTTY');
    for (const type of SEV) expect(errnoOf(() => hv.createVm({ type }))).toBe('EINVAL');
  });

  it('a vCPU that is not of a TDX guest has no commands', (hv) => {
    using vm = hv.createVm();
    using vcpu = vm.createVcpu();
    expect(errnoOf(() => vcpu.memoryEncryptOp('KVM_TDX_INIT_VCPU'))).toBe('ENOTTY');
  });

  it('names a command and a field that cannot be before anything changes', (hv) => {
    using vm = hv.createVm();
    using memory = vm.allocate(8192);
    const invalid = expect.objectContaining({ code: 'ERR_KVM_INVALID_ARG' });
    const issue = (...args: Parameters<typeof vm.memoryEncryptOp>) =>
      expect(() => vm.memoryEncryptOp(...args));
    issue('KVM_TDX_INIT_VM').toThrow(invalid);
    issue('toString' as never).toThrow(invalid);
    issue('KVM_SEV_LAUNCH_START', { data: { dhUaddr: 5 } }).toThrow(invalid);
    issue('KVM_SEV_LAUNCH_START', { data: { policies: 5 } }).toThrow(invalid);
    issue('KVM_SEV_LAUNCH_UPDATE_DATA', { data: { uaddr: new Uint8Array(16), len: 16 } }).toThrow(invalid);
    issue('KVM_SEV_LAUNCH_FINISH', { data: { len: 5 } }).toThrow(invalid);
    issue('KVM_SEV_LAUNCH_START', { entries: [{}] }).toThrow(invalid);
    expect(() => vm.memoryEncryptRegRegion({ memory, offset: 4096, size: 8192 })).toThrow(invalid);
    expect(() => vm.memoryEncryptRegRegion({} as never)).toThrow(invalid);
  });
});

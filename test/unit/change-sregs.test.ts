/** Vcpu.changeSregs(): a part of the special registers, the others as they were. */
import { expect } from 'vitest';
import { onEach } from '../support/host.ts';

onEach('the fields that are given change, also within a segment, and no other does', (hv) => {
  using vm = hv.createVm();
  using vcpu = vm.createVcpu();
  const before = vcpu.getSregs();
  expect([before.cs.base, before.cr2]).not.toEqual([0x4000n, 0x1234n]);
  vcpu.changeSregs({ cs: { base: 0x4000n, selector: 0x400 }, cr2: 0x1234n });
  expect(vcpu.getSregs()).toEqual({
    ...before,
    cs: { ...before.cs, base: 0x4000n, selector: 0x400 },
    cr2: 0x1234n,
  });
});

onEach('a value that does not fit is refused, and nothing changes', (hv) => {
  using vm = hv.createVm();
  using vcpu = vm.createVcpu();
  const before = vcpu.getSregs();
  expect(() => vcpu.changeSregs({ cr2: 0x1234n, cs: { selector: 0x1_0000 } })).toThrow(
    expect.objectContaining({
      code: 'ERR_KVM_INVALID_ARG',
      message: expect.stringMatching(/cs\.?.*selector/),
    }),
  );
  expect(vcpu.getSregs()).toEqual(before);
});

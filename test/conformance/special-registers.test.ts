/** KVM_SET_SREGS2 and KVM_SET_XCRS (api.rst), by what the guest has of them. */
import { expect } from 'vitest';
import { Cap, Exit } from '../../src/index.ts';
import { Sregs2Flag } from '../../src/uapi/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { enterProtectedMode } from '../../src/vmm/modes.ts';
import { Agent, Layout } from '../support/agent.ts';
import { errnoOf, runTo } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

const load = guest(
  32,
  `
 8b 06 | mov eax, [esi]
 e7 10 | out 0x10, eax
`,
);
/** rax: XCR0. */
const xgetbv = guest(
  64,
  `
 31 c9    | xor ecx, ecx
 0f 01 d0 | xgetbv
 c3       | ret
`,
);

const CR0_PG = 1n << 31n;
const CR4_PAE = 1n << 5n;
const CR4_OSXSAVE = 1n << 18n;
const { PDPTRS_VALID } = Sregs2Flag;
/** Present; and as a page of 2 MiB that can be written. */
const PRESENT = 1n;
const LARGE = 0x83n;
const DIRECTORY = Layout.free + 0x1000;
const LARGE_PAGE = 0x20_0000;
const CPUID_XSAVE = 1 << 26;

conformance('special registers', ({ it, needs }) => {
  // A PVM host has paging in long mode only.
  needs('hardware-virtualization')(
    'KVM_SET_SREGS2 gives a guest with PAE its page-directory pointers, and KVM_GET_SREGS2 has them',
    (hv) => {
      using agent = Agent.boot(hv);
      const { vcpu, ram } = agent;
      expect(vcpu.getSregs2()).toMatchObject({ flags: 0, pdptrs: [0n, 0n, 0n, 0n] });
      enterProtectedMode(vcpu, ram, { tables: Layout.tables });
      const word = (at: number, value: bigint) => {
        ram.write(at, new Uint8Array(BigUint64Array.of(value).buffer));
      };
      const pointers = [BigInt(DIRECTORY) | PRESENT, 0n, 0n, 0n];
      for (const [i, pointer] of pointers.entries()) word(Layout.free + 8 * i, pointer);
      word(DIRECTORY, LARGE);
      word(DIRECTORY + 8, LARGE); // the same memory once more
      word(0x5000, 0x1234_5678n);
      // The simulator reads them at each walk and has none to tell (docs/simulator.md).
      const told = hv.backend === 'sim' ? { flags: 0 } : { flags: PDPTRS_VALID, pdptrs: pointers };
      const sregs = vcpu.getSregs2();
      vcpu.setSregs2({
        ...sregs,
        cr0: sregs.cr0 | CR0_PG,
        cr3: BigInt(Layout.free),
        cr4: sregs.cr4 | CR4_PAE,
        efer: 0n,
        flags: PDPTRS_VALID,
        pdptrs: pointers,
      });
      expect(vcpu.getSregs2()).toMatchObject(told);
      ram.write(Layout.snippet, load.code);
      vcpu.setRegs({ rip: LARGE_PAGE + Layout.snippet, rsi: LARGE_PAGE + 0x5000, rflags: 2n });
      runTo(vcpu, Exit.IO);
      expect([vcpu.io.port, vcpu.io.value]).toEqual([0x10, 0x1234_5678]);
      expect(vcpu.getSregs2()).toMatchObject(told);
    },
  );

  it('KVM_SET_XCRS sets what XGETBV reads, and not what the processor has no room for', (hv, context) => {
    using agent = Agent.boot(hv);
    const { vcpu } = agent;
    const [leaf] = hv.getSupportedCpuid().filter((entry) => entry.function === 1);
    const has = (leaf!.ecx & CPUID_XSAVE) !== 0 && hv.checkExtension(Cap.XCRS) > 0;
    context.skip(!has, 'this processor has no XSAVE');
    vcpu.changeSregs({ cr4: vcpu.getSregs().cr4 | CR4_OSXSAVE });
    const set = (value: bigint) => errnoOf(() => vcpu.setXcrs({ nrXcrs: 1, xcrs: [{ xcr: 0, value }] }));
    for (const value of [1n, 3n]) {
      expect(set(value)).toBe('ok');
      expect(vcpu.getXcrs().xcrs[0]?.value).toBe(value);
      agent.beginCode(xgetbv);
      expect(agent.answer).toBe(value);
    }
    expect([set(0n), set(2n), set(1n << 62n)]).toEqual(['EINVAL', 'EINVAL', 'EINVAL']);
  });
});

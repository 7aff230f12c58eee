/** The registers of the x87, SSE and AVX by their names (api.rst, 4.42 and 4.43; SDM volume 1, 13.4). */
import { expect } from 'vitest';
import { Exit, enterLongMode, type Hypervisor, type Vcpu, Xfeature, XsaveArea } from '../../src/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { errnoOf, runTo } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

const CODE = 0x1000;
const DATA = 0x2000;
const PAGE = 0x1000;

function withVcpu(hv: Hypervisor, listing: string, use: (vcpu: Vcpu, data: () => Uint8Array) => void): void {
  using vm = hv.createVm();
  using memory = vm.allocate(0x2_0000);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory });
  using vcpu = vm.createVcpu();
  vcpu.setCpuid2(hv.getSupportedCpuid());
  enterLongMode(vcpu, memory, { tables: 0x1_0000 });
  // At privilege 3, with ports: there the processor itself executes x87 and SSE on every host.
  const { cs, ss } = vcpu.getSregs();
  vcpu.changeSregs({
    cs: { selector: cs.selector | 3, dpl: 3 },
    ss: { selector: ss.selector | 3, dpl: 3 },
  });
  memory.write(CODE, guest(64, listing).code);
  vcpu.setRegs({ rip: CODE, rsp: DATA, rflags: 0x3002, rdi: DATA });
  use(vcpu, () => memory.read(DATA, PAGE));
}
const areaOf = (vcpu: Vcpu) => new XsaveArea(vcpu.getXsave());

conformance('the XSAVE area by names', ({ it }) => {
  it('is how the guest finds its registers: MXCSR, an XMM register, the x87 control word', (hv) => {
    withVcpu(
      hv,
      `
 0f ae 1f       | stmxcsr [rdi]
 0f 11 4f 10    | movups [rdi + 16], xmm1
 9b d9 7f 04    | fstcw [rdi + 4]
 e6 f4          | out 0xf4, al
`,
      (vcpu, data) => {
        const area = areaOf(vcpu);
        expect(area.fxsave).toMatchObject({ mxcsr: 0x1f80, cwd: 0x37f });
        const xmm1 = Uint8Array.from({ length: 16 }, (_, i) => i + 1);
        const { xmmSpace } = area.fxsave;
        area.change({ mxcsr: 0x5fa0, cwd: 0x27f, xmmSpace: xmmSpace.with(1, xmm1) });
        vcpu.setXsave(area.bytes);
        runTo(vcpu, Exit.IO);
        expect([...data().subarray(0, 6)]).toEqual([0xa0, 0x5f, 0, 0, 0x7f, 2]);
        expect([...data().subarray(16, 32)]).toEqual([...xmm1]);
        // What the kernel's own struct leaves out.
        expect(vcpu.getFpu().mxcsr).toBe(0);
      },
    );
  });

  it('is what the guest has left there: a register on the x87 stack, the sticky flags of SSE', (hv) => {
    withVcpu(
      hv,
      `
 d9 e8          | fld1
 0f 57 c0       | xorps xmm0, xmm0
 f3 0f 53 c8    | rcpss xmm1, xmm0
 c7 07 80 1f 00 00 | mov dword ptr [rdi], 0x1f80
 c7 47 04 00 00 40 40 | mov dword ptr [rdi + 4], 0x40400000
 f3 0f 10 57 04 | movss xmm2, [rdi + 4]
 f3 0f 5e d0    | divss xmm2, xmm0
 e6 f4          | out 0xf4, al
`,
      (vcpu) => {
        runTo(vcpu, Exit.IO);
        const { components, fxsave } = areaOf(vcpu);
        expect(components & 3n).toBe(BigInt(Xfeature.FP | Xfeature.SSE));
        expect(fxsave.mxcsr & 0x3f).toBe(0x04); // divided by zero
        expect(fxsave.twd).toBe(0x80);
        expect(fxsave.swd >> 11).toBe(7);
        expect([...fxsave.stSpace[0]!.subarray(0, 10)]).toEqual([0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
        expect([...fxsave.xmmSpace[2]!.subarray(0, 4)]).toEqual([0, 0, 0x80, 0x7f]);
      },
    );
  });

  it('has YMM registers where the host has AVX, and their lower halves everywhere', (hv) => {
    withVcpu(hv, 'f4 | hlt', (vcpu) => {
      const area = areaOf(vcpu);
      const value = Uint8Array.from({ length: 32 }, (_, i) => 0xff - i);
      area.setYmm(15, value);
      expect([...area.getYmm(15)]).toEqual([...value]);
      const set = errnoOf(() => vcpu.setXsave(area.bytes));
      if (set === 'ok') expect([...areaOf(vcpu).getYmm(15)]).toEqual([...value]);
      else expect(set).toBe('EINVAL');
      const low = areaOf(vcpu);
      low.change({ xmmSpace: low.fxsave.xmmSpace.with(15, value.slice(0, 16)) });
      vcpu.setXsave(low.bytes);
      expect([...areaOf(vcpu).getYmm(15).subarray(0, 16)]).toEqual([...value.subarray(0, 16)]);
    });
  });

  it('refuses what does not fit, and is as it was', (hv) => {
    withVcpu(hv, 'f4 | hlt', (vcpu) => {
      const area = areaOf(vcpu);
      const before = area.bytes.slice();
      const invalid = { code: 'ERR_KVM_INVALID_ARG' };
      expect(() => area.change({ cwd: 1, mxcsr: -1 })).toThrow(expect.objectContaining(invalid));
      expect(() => area.change({ mxscr: 0 } as object)).toThrow(/no field mxscr; its fields are cwd/);
      expect(() => area.getYmm(16)).toThrow(/index is 16/);
      expect(() => area.setYmm(0, new Uint8Array(33))).toThrow(/length is 33/);
      expect(() => new XsaveArea(new Uint8Array(512))).toThrow(/length is 512; it must be 832 or more/);
      expect(() => new XsaveArea('' as never)).toThrow(TypeError);
      expect(Buffer.compare(area.bytes, before)).toBe(0);
    });
  });
});

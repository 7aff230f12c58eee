/** The arms of kvm_run's exit union, read and answered in place. Offsets are those of the kernel's header: the union is at 32. */
import { describe, expect, it } from 'vitest';
import { RunPage } from '../../src/hypervisor/run-page.ts';
import { exitArms, kvm_run } from '../../src/uapi/index.ts';

function pageOf(...words: (readonly [at: number, value: bigint])[]) {
  const page = new RunPage(new Uint8Array(kvm_run.size));
  for (const [at, value] of words) page.view.setBigUint64(at, value, true);
  return page;
}

describe('the arms of the exit union', () => {
  it('are all there by the names of the table, and read what stands in the page', () => {
    const page = pageOf([32, 0xfee0_0080n], [40, 1n]);
    const structs = Object.entries(exitArms).filter(([, type]) => 'fields' in type);
    expect(Object.keys(page.arms)).toEqual(structs.map(([name]) => name));
    expect([page.arms.tprAccess.rip, page.arms.tprAccess.isWrite]).toEqual([0xfee0_0080n, 1]);
    page.view.setBigUint64(32, 5n, true);
    expect(page.arms.tprAccess.rip).toBe(5n);
  });

  it("take an answer where KVM reads one: an MSR's, Hyper-V's, Xen's, TDX's, SNP's", () => {
    const page = pageOf();
    page.arms.msr.error = 1;
    page.arms.msr.data = 0x1122_3344_5566_7788n;
    expect([page.view.getUint8(32), page.view.getBigUint64(48, true)]).toEqual([1, 0x1122_3344_5566_7788n]);
    page.arms.hyperv.hcall.result = 2n;
    expect(page.view.getBigUint64(48, true)).toBe(2n);
    page.arms.hyperv.syndbg.status = 3n;
    expect(page.view.getBigUint64(56, true)).toBe(3n);
    page.arms.xen.hcall.result = 4n;
    expect(page.view.getBigUint64(56, true)).toBe(4n);
    page.arms.tdx.unknown.ret = 5n;
    expect([page.view.getBigUint64(48, true), page.arms.tdx.getQuote.ret]).toEqual([5n, 5n]);
    page.arms.snpReqCerts.ret = 28n;
    expect(page.view.getBigUint64(48, true)).toBe(28n);
  });

  it('refuse what is no answer: a field that KVM only tells, one that there is not, a value that does not fit', () => {
    const { msr } = pageOf().arms;
    expect(() => Object.assign(msr, { index: 1 })).toThrow(TypeError);
    expect(() => Object.assign(msr, { eror: 1 })).toThrow(TypeError);
    expect(() => Object.assign(msr, { error: 256 })).toThrow(/kvm_run\.msr\.error: 256 is not an integer/);
  });

  it('of a closed vCPU refuse to be read', () => {
    const page = pageOf();
    const { msr } = page.arms;
    page.close();
    expect(() => msr.data).toThrow('this vCPU was closed');
  });
});

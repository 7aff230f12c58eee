/** A guest that expects Xen (api.rst, KVM_CAP_XEN_HVM, KVM_XEN_HVM_CONFIG, KVM_EXIT_XEN). */
import { expect } from 'vitest';
import {
  Cap,
  Exit,
  type GuestMemory,
  type Hypervisor,
  Xen,
  XenAttr,
  XenEvtchnFlag,
  XenHvmConfigFlag,
  XenVcpuAttr,
} from '../../src/index.ts';
import { Agent, Layout } from '../support/agent.ts';
import { on } from '../support/host.ts';
import { wrmsr } from '../support/msr-guest.ts';
import { errnoOf, expectOutcome, filledWith, wordAt } from '../support/run.ts';

const MSR = 0x4000_0000;
const PAGE = Layout.free + 0x1000;
/** Of the page of hypercalls that KVM makes, the entry of each number. */
const ENTRY = 32;
const XEN_VERSION = 17;
/** A number that KVM serves none of. */
const PLATFORM_OP = 7;
const ENOSYS = 38n;
/** xen.h: in a shared info page of 64 bits, the channels that have events; in a vCPU's, whether and where there are some. */
const PENDING = 2048;
const UPCALL_PENDING = 0;
const PENDING_SEL = 8;
const EVTCHNSTAT = { interdomain: 2, ipi: 5 } as const;

const it = on('kvm', 'xen');
const withHva = on('kvm', 'xen', 'xen-hva');

function bootXen(hv: Hypervisor): Agent {
  const agent = Agent.boot(hv);
  agent.vm.xenHvmConfig({
    flags: XenHvmConfigFlag.INTERCEPT_HCALL | XenHvmConfigFlag.EVTCHN_SEND,
    msr: MSR,
  });
  fillPage(agent);
  return agent;
}
/** The guest has its page of hypercalls filled. */
function fillPage(agent: Agent): void {
  agent.beginCode(wrmsr, { rcx: MSR, rax: PAGE, rdx: 0 });
  agent.answer;
}
const call = (agent: Agent, nr: number, ...[rdi = 0, rsi = 0, rdx = 0, r10 = 0, r8 = 0, r9 = 0]: number[]) =>
  agent.begin('call', { r15: PAGE + nr * ENTRY, rdi, rsi, rdx, r10, r8, r9 });

it('a hypercall that KVM does not serve is Exit.XEN, and the guest receives the result that is set', (hv) => {
  using agent = bootXen(hv);
  const { vcpu } = agent;
  call(agent, PLATFORM_OP, 1, 2, 3, 4, 5, 6);
  expectOutcome(vcpu, Exit.XEN);
  const { xen } = vcpu;
  expect([xen.hcall.input, xen.hcall.longmode, xen.hcall.cpl]).toEqual([BigInt(PLATFORM_OP), 1, 0]);
  expect(xen.hcall.params).toEqual([1n, 2n, 3n, 4n, 5n, 6n]);
  expect(vcpu.exit).toMatchObject({ reason: 'XEN', hcall: { input: BigInt(PLATFORM_OP), cpl: 0 } });
  xen.hcall.result = -ENOSYS;
  expect(BigInt.asIntN(64, agent.resume())).toBe(-ENOSYS);
});

it('KVM itself serves the version that XenAttr.XEN_VERSION sets', (hv) => {
  using agent = bootXen(hv);
  agent.vm.setXenHvmAttr({ type: XenAttr.XEN_VERSION, u: { xenVersion: 0x4_0011 } });
  expect(agent.vm.getXenHvmAttr(XenAttr.XEN_VERSION).u.xenVersion).toBe(0x4_0011);
  call(agent, XEN_VERSION);
  expect(agent.answer).toBe(0x4_0011n);
});

it('without INTERCEPT_HCALL the guest gets a page of the blob, also once its memory was closed', (hv) => {
  using agent = Agent.boot(hv);
  const memory = agent.vm.allocate(3 * 4096);
  memory.bytes.fill(0x5a, 4096);
  agent.vm.xenHvmConfig({ msr: MSR, blobSize64: 2 }, { blob64: { memory, offset: 4096 } });
  memory.close();
  fillPage(agent);
  expect(filledWith(agent.ram.bytes.subarray(PAGE, PAGE + 4096), 0x5a)).toBe(true);
});

it('refuses a blob that is missing or shorter than told, and changes nothing', (hv) => {
  using agent = bootXen(hv);
  using memory = agent.vm.allocate(4096);
  const invalid = expect.objectContaining({ code: 'ERR_KVM_INVALID_ARG' });
  const config = { msr: MSR, blobSize64: 2 };
  expect(() => agent.vm.xenHvmConfig(config)).toThrow(invalid);
  expect(() => agent.vm.xenHvmConfig(config, { blob64: { memory } })).toThrow(invalid);
  expect(() => agent.vm.xenHvmConfig(config, { blob64: { memory: {} as GuestMemory } })).toThrow(invalid);
  expect(errnoOf(() => agent.vm.xenHvmConfig({ flags: 1 << 20, msr: MSR }))).toBe('EINVAL');
  call(agent, PLATFORM_OP);
  expectOutcome(agent.vcpu, Exit.XEN);
});

withHva('an event comes in the shared info and the vCPU info that are given by a place in memory', (hv) => {
  using agent = bootXen(hv);
  using memory = agent.vm.allocate(3 * 4096);
  const [shared, info] = [4096, 2 * 4096 + 64];
  agent.vm.setXenHvmAttr({ type: XenAttr.SHARED_INFO_HVA }, { place: { memory, offset: shared } });
  agent.vcpu.setXenVcpuAttr({ type: XenVcpuAttr.VCPU_INFO_HVA }, { memory, offset: info });
  const port = 70;
  agent.vm.xenHvmEvtchnSend({ port, vcpu: 0, priority: Xen.EVTCHN_PRIO_2LEVEL });
  expect(wordAt(memory.bytes, shared + PENDING + 8)).toBe(1n << BigInt(port - 64));
  expect([memory.bytes[info + UPCALL_PENDING], wordAt(memory.bytes, info + PENDING_SEL)]).toEqual([1, 2n]);
  // Where they lie in this process is nobody's business.
  expect(agent.vm.getXenHvmAttr(XenAttr.SHARED_INFO_HVA).u.sharedInfo.hva).toBe(0n);
  expect(agent.vcpu.getXenVcpuAttr(XenVcpuAttr.VCPU_INFO_HVA).u.hva).toBe(0n);
});

withHva('memory that KVM writes events to stays mapped when it is closed', (hv) => {
  using agent = bootXen(hv);
  const memory = agent.vm.allocate(2 * 4096);
  agent.vm.setXenHvmAttr({ type: XenAttr.SHARED_INFO_HVA }, { place: { memory } });
  agent.vcpu.setXenVcpuAttr({ type: XenVcpuAttr.VCPU_INFO_HVA }, { memory, offset: 4096 });
  memory.close();
  // What would lie at those addresses now, if they were free.
  using others = agent.vm.allocate(2 * 4096);
  agent.vm.xenHvmEvtchnSend({ port: 3, vcpu: 0, priority: Xen.EVTCHN_PRIO_2LEVEL });
  expect(filledWith(others.bytes, 0)).toBe(true);
});

withHva('an address may be taken back, and one that cannot be is refused', (hv) => {
  using agent = bootXen(hv);
  using memory = agent.vm.allocate(2 * 4096);
  const send = () => agent.vm.xenHvmEvtchnSend({ port: 3, vcpu: 0, priority: Xen.EVTCHN_PRIO_2LEVEL });
  const shared = (offset: number) =>
    agent.vm.setXenHvmAttr({ type: XenAttr.SHARED_INFO_HVA }, { place: { memory, offset } });
  const info = (offset: number) =>
    agent.vcpu.setXenVcpuAttr({ type: XenVcpuAttr.VCPU_INFO_HVA }, { memory, offset });
  expect(errnoOf(() => shared(8))).toBe('EINVAL');
  expect(errnoOf(() => info(1))).toBe('ENXIO');
  const invalid = expect.objectContaining({ code: 'ERR_KVM_INVALID_ARG' });
  expect(() => shared(8192)).toThrow(invalid);
  expect(() => agent.vm.setXenHvmAttr({ type: XenAttr.LONG_MODE }, { place: { memory } })).toThrow(invalid);
  shared(0);
  info(4096);
  agent.vm.setXenHvmAttr({ type: XenAttr.SHARED_INFO_HVA });
  agent.vcpu.setXenVcpuAttr({ type: XenVcpuAttr.VCPU_INFO_HVA });
  expect(errnoOf(send)).not.toBe('ok');
});

it('attributes that are set are those that are read', (hv) => {
  using agent = bootXen(hv);
  const { vm, vcpu } = agent;
  vm.setXenHvmAttr({ type: XenAttr.LONG_MODE, u: { longMode: 1 } });
  expect(vm.getXenHvmAttr(XenAttr.LONG_MODE).u.longMode).toBe(1);
  vm.setXenHvmAttr({ type: XenAttr.UPCALL_VECTOR, u: { vector: 0x40 } });
  expect(vm.getXenHvmAttr(XenAttr.UPCALL_VECTOR).u.vector).toBe(0x40);
  expect(errnoOf(() => vm.setXenHvmAttr({ type: XenAttr.UPCALL_VECTOR, u: { vector: 3 } }))).toBe('EINVAL');
  expect(vm.getXenHvmAttr(XenAttr.SHARED_INFO).u.sharedInfo.gfn).toBe(Xen.INVALID_GFN);
  vm.setXenHvmAttr({ type: XenAttr.SHARED_INFO, u: { sharedInfo: { gfn: Layout.free >> 12 } } });
  expect(vm.getXenHvmAttr(XenAttr.SHARED_INFO).u.sharedInfo.gfn).toBe(BigInt(Layout.free >> 12));
  vcpu.setXenVcpuAttr({ type: XenVcpuAttr.VCPU_ID, u: { vcpuId: 5 } });
  expect(vcpu.getXenVcpuAttr(XenVcpuAttr.VCPU_ID).u.vcpuId).toBe(5);
  vcpu.setXenVcpuAttr({ type: XenVcpuAttr.UPCALL_VECTOR, u: { vector: 0x33 } });
  expect(vcpu.getXenVcpuAttr(XenVcpuAttr.UPCALL_VECTOR).u.vector).toBe(0x33);
  vcpu.setXenVcpuAttr({ type: XenVcpuAttr.VCPU_INFO, u: { gpa: Layout.free + 0x2000 } });
  expect(vcpu.getXenVcpuAttr(XenVcpuAttr.VCPU_INFO).u.gpa).toBe(BigInt(Layout.free + 0x2000));
  expect(errnoOf(() => vm.getXenHvmAttr(99))).toBe('ENOENT');
  expect(errnoOf(() => vcpu.getXenVcpuAttr(99))).toBe('ENOENT');
});

it('an event channel is there once, until it is taken back; one to an eventfd needs one', (hv) => {
  using agent = bootXen(hv);
  const port = { port: 9, vcpu: 0, priority: Xen.EVTCHN_PRIO_2LEVEL };
  const evtchn = (fields: object) =>
    errnoOf(() =>
      agent.vm.setXenHvmAttr({ type: XenAttr.EVTCHN, u: { evtchn: { sendPort: 9, ...fields } } }),
    );
  const ipi = { type: EVTCHNSTAT.ipi, deliver: { port } };
  expect(evtchn(ipi)).toBe('ok');
  expect(evtchn(ipi)).toBe('EEXIST');
  expect(evtchn({ flags: XenEvtchnFlag.DEASSIGN })).toBe('ok');
  expect(evtchn({ flags: XenEvtchnFlag.DEASSIGN })).toBe('ENOENT');
  expect(evtchn({ type: EVTCHNSTAT.interdomain })).toBe('EBADF');
});

on('sim')('the simulator has no Xen, and says so', (hv) => {
  using agent = Agent.boot(hv);
  expect(hv.checkExtension(Cap.XEN_HVM)).toBe(0);
  for (const issue of [
    () => agent.vm.xenHvmConfig({ msr: MSR }),
    () => agent.vm.getXenHvmAttr(XenAttr.LONG_MODE),
    () => agent.vm.setXenHvmAttr({ type: XenAttr.LONG_MODE }),
    () => agent.vm.xenHvmEvtchnSend({ port: 1 }),
    () => agent.vcpu.getXenVcpuAttr(XenVcpuAttr.VCPU_ID),
    () => agent.vcpu.setXenVcpuAttr({ type: XenVcpuAttr.VCPU_ID }),
  ])
    expect(errnoOf(issue)).toBe('ENOTTY');
});

/**
 * A guest that is a hypervisor (APM volume 2, chapter 15): what KVM knows of its guest, got and set (api.rst,
 * KVM_GET_NESTED_STATE), and saved with the machine.
 */
import { describe, expect } from 'vitest';
import { Cap, Exit, type Hypervisor } from '../../src/index.ts';
import { kvm_nested_state, NestedState, RunFlag } from '../../src/uapi/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { captureState, parseState, RestoredMachine } from '../../src/vmm/snapshot/index.ts';
import { Agent, Layout } from '../support/agent.ts';
import { type It, onKvm } from '../support/host.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { expectOutcome } from '../support/run.ts';

const EFER_SVME = 1n << 12n;
const MSR_VM_HSAVE_PA = 0xc001_0117;
const VMCB = Layout.free;
const HSAVE = Layout.free + 0x1000;
const INNER = Layout.free + 0x2000;
const INNER_STACK = Layout.free + 0x4000;
const INNER_PORT = 0xf3;
/** VMEXIT_VMMCALL (APM volume 2, appendix C). */
const VMEXIT_VMMCALL = 0x81n;
/** Bytes of a VMCB12 behind the header. */
const VMCB_SIZE = 0x1000;

/** Runs the nested guest, and gives why it came back: the agent's answer. */
const hypervisor = guest(
  64,
  `
 0f 01 d8    | vmrun
 0f 01 dc    | stgi
 48 8b 47 70 | mov rax, [rdi+0x70]     # EXITCODE
 c3          | ret
`,
);
const inner = guest(
  64,
  `
 b0 2a    | mov al, 42
 e6 f3    | out 0xf3, al
 0f 01 d9 | vmmcall
 f4       | hlt
`,
);

/** Fields of a VMCB (APM volume 2, appendix B). */
const Vmcb = {
  INTERCEPTS: 0x10,
  ASID: 0x58,
  SEGMENTS: 0x400,
  GDTR: 0x460,
  LDTR: 0x470,
  IDTR: 0x480,
  TR: 0x490,
  EFER: 0x4d0,
  CR4: 0x548,
  CR3: 0x550,
  CR0: 0x558,
  DR7: 0x560,
  DR6: 0x568,
  RFLAGS: 0x570,
  RIP: 0x578,
  RSP: 0x5d8,
  PAT: 0x668,
} as const;
const INTERCEPT_VMRUN_AND_VMMCALL = 3;

/** A nested guest in the agent's own mode, with all of its memory. */
function vmcbFor(agent: Agent): Uint8Array {
  const view = new DataView(new ArrayBuffer(VMCB_SIZE));
  const sregs = agent.vcpu.getSregs();
  const segment = (at: number, s: typeof sregs.cs) => {
    const attributes =
      s.type | (s.s << 4) | (s.dpl << 5) | (s.present << 7) | (s.l << 9) | (s.db << 10) | (s.g << 11);
    view.setUint16(at, s.selector, true);
    view.setUint16(at + 2, attributes, true);
    view.setUint32(at + 4, s.limit, true);
    view.setBigUint64(at + 8, s.base, true);
  };
  const { es, cs, ss, ds, fs, gs } = sregs;
  for (const [i, s] of [es, cs, ss, ds, fs, gs].entries()) segment(Vmcb.SEGMENTS + 16 * i, s);
  segment(Vmcb.LDTR, sregs.ldt);
  segment(Vmcb.TR, sregs.tr);
  for (const [at, { base, limit }] of [
    [Vmcb.GDTR, sregs.gdt],
    [Vmcb.IDTR, sregs.idt],
  ] as const) {
    view.setUint32(at + 4, limit, true);
    view.setBigUint64(at + 8, base, true);
  }
  view.setUint32(Vmcb.INTERCEPTS, INTERCEPT_VMRUN_AND_VMMCALL, true);
  view.setUint32(Vmcb.ASID, 1, true);
  for (const [at, value] of [
    [Vmcb.EFER, sregs.efer],
    [Vmcb.CR4, sregs.cr4],
    [Vmcb.CR3, sregs.cr3],
    [Vmcb.CR0, sregs.cr0],
    [Vmcb.DR7, 0x400n],
    [Vmcb.DR6, 0xffff_0ff0n],
    [Vmcb.RFLAGS, 2n],
    [Vmcb.RIP, BigInt(INNER)],
    [Vmcb.RSP, BigInt(INNER_STACK)],
    [Vmcb.PAT, 0x0007_0406_0007_0406n],
  ] as const)
    view.setBigUint64(at, value, true);
  return new Uint8Array(view.buffer);
}

/** An agent whose own guest has come to its OUT. */
function bootNested(hv: Hypervisor): Agent {
  const agent = Agent.boot(hv);
  const { vcpu, ram } = agent;
  vcpu.changeSregs({ efer: vcpu.getSregs().efer | EFER_SVME });
  vcpu.setMsrs([{ index: MSR_VM_HSAVE_PA, data: BigInt(HSAVE) }]);
  ram.write(VMCB, vmcbFor(agent));
  ram.write(INNER, inner.code);
  agent.beginCode(hypervisor, { rax: VMCB, rdi: VMCB });
  expectOutcome(vcpu, Exit.IO);
  expect([vcpu.io.port, vcpu.io.value]).toEqual([INNER_PORT, 42]);
  return agent;
}

/** Where KVM gives its guests SVM. */
const it: It = (sentence, shows, limitMs) =>
  onKvm(
    sentence,
    (hv, context) => {
      const svm = hv
        .getSupportedCpuid()
        .some((leaf) => leaf.function === 0x8000_0001 && (leaf.ecx & 4) !== 0);
      context.skip(!svm, 'this KVM has no SVM for its guests (kvm_amd.nested): the guests here are of that');
      return shows(hv, context);
    },
    limitMs,
  );

describe('a guest that is a hypervisor (kvm)', () => {
  it('has a nested state that says so, and where its VMCB is', (hv) => {
    using plain = Agent.boot(hv);
    const header = kvm_nested_state.decode(plain.vcpu.getNestedState());
    expect([header.size, header.format, header.flags & NestedState.GUEST_MODE]).toEqual([128, 1, 0]);
    using agent = bootNested(hv);
    const { vcpu } = agent;
    expect(vcpu.raw.flags & RunFlag.GUEST_MODE).toBe(RunFlag.GUEST_MODE);
    const bytes = vcpu.getNestedState();
    const state = kvm_nested_state.decode(bytes);
    expect(bytes.length).toBe(128 + VMCB_SIZE);
    expect(agent.vm.checkExtension(Cap.NESTED_STATE)).toBeGreaterThanOrEqual(bytes.length);
    expect([state.flags & NestedState.GUEST_MODE, state.hdr.svm.vmcbPa]).toEqual([
      NestedState.GUEST_MODE,
      BigInt(VMCB),
    ]);
    expect(agent.resume()).toBe(VMEXIT_VMMCALL);
    expect(kvm_nested_state.decode(vcpu.getNestedState()).flags & NestedState.GUEST_MODE).toBe(0);
  });

  it('goes on in another vCPU that was given its state', (hv) => {
    using agent = bootNested(hv);
    const { vcpu, vm } = agent;
    vcpu.complete(() => expect.unreachable());
    using other = vm.createVcpu(1);
    other.setCpuid2(hv.getSupportedCpuid());
    other.setSregs2(vcpu.getSregs2());
    other.setRegs(vcpu.getRegs());
    other.setMsrs(vcpu.getMsrs([MSR_VM_HSAVE_PA]));
    other.setNestedState(vcpu.getNestedState());
    other.run(DEADLINE_MS);
    expectOutcome(other, Exit.IO);
    expect([other.io.port, other.getRegs().rax]).toEqual([0xf0, VMEXIT_VMMCALL]);
  });

  it('is saved and restored in the middle of its guest', (hv) => {
    using agent = bootNested(hv);
    const { state, memories } = captureState(hv, agent.vm, [agent.vcpu]);
    using machine = new RestoredMachine(hv, parseState(JSON.parse(JSON.stringify(state))));
    memories.forEach((memory, i) => {
      machine.memories[i]!.write(0, memory.bytes);
    });
    machine.begin();
    const [vcpu] = machine.vcpus;
    vcpu!.run(DEADLINE_MS);
    expectOutcome(vcpu!, Exit.IO);
    expect([vcpu!.io.port, vcpu!.getRegs().rax]).toEqual([0xf0, VMEXIT_VMMCALL]);
    // The one that was saved goes on as well.
    expect(agent.resume()).toBe(VMEXIT_VMMCALL);
  });
});

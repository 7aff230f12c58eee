/** Where #DB comes: TF behind the instructions that change it, and what MOV SS holds back (SDM volume 3, 18.3). */
import { expect } from 'vitest';
import {
  descriptor,
  Exit,
  enterProtectedMode,
  type Hypervisor,
  placeGdt,
  placeIdt,
  placeTss,
  Selector,
} from '../../src/index.ts';
import { viewOf } from '../../src/uapi/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { Agent, Layout } from '../support/agent.ts';
import {
  At,
  debugExceptions,
  END,
  handlerOf,
  MSR,
  prepare,
  steppedThrough,
  TF,
} from '../support/debug-guest.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { expectOutcome } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

const step = (...offsets: number[]) => offsets.map((offset) => `${offset} 4000`);

function withAgent(hv: Hypervisor, use: (agent: Agent) => void): void {
  using agent = Agent.boot(hv);
  use(agent);
}

conformance('debug exceptions', ({ needs }) => {
  // A KVM without a second stage executes the guest's privilege 0 with its emulator, and returns from it in its own way.
  const it = needs('two-dimensional-paging');

  it('POPF that sets TF is not stepped, and one that clears it is', (hv) => {
    const code = guest(
      64,
      `
 9c                      |  0: pushfq
 48 81 0c 24 00 01 00 00 |  1: or qword ptr [rsp], 0x100
 9d                      |  9: popfq
 90                      | 10: nop
 9c                      | 11: pushfq
 48 81 24 24 ff fe ff ff | 12: and qword ptr [rsp], ~0x100
 9d                      | 20: popfq
 90                      | 21: nop
 f4                      | 22: hlt
`,
    );
    withAgent(hv, (agent) => expect(debugExceptions(agent, code)).toEqual(step(11, 12, 20, 21)));
  });

  it('IRET that sets TF is not stepped, and one that clears it is', (hv) => {
    const code = guest(
      64,
      `
 ff 74 24 20 |  0: push qword ptr [rsp + 32]  # SS
 ff 74 24 20 |  4: push qword ptr [rsp + 32]  # RSP
 41 50       |  8: push r8                    # flags with TF
 41 51       | 10: push r9
 41 52       | 12: push r10
 48 cf       | 14: iretq
 90          | 16: nop
 41 ff 33    | 17: push qword ptr [r11]
 41 ff 73 08 | 20: push qword ptr [r11 + 8]
 6a 02       | 24: push 2
 41 51       | 26: push r9
 41 54       | 28: push r12
 48 cf       | 30: iretq
 90          | 32: nop
 f4          | 33: hlt
`,
    );
    withAgent(hv, (agent) => {
      const top = Layout.stack - 0x100;
      const view = viewOf(agent.ram.bytes);
      view.setBigUint64(top + 32, BigInt(Selector.DATA), true);
      view.setBigUint64(top + 24, BigInt(Layout.stack), true);
      view.setBigUint64(top + 64, BigInt(Selector.DATA), true);
      view.setBigUint64(top + 72, BigInt(Layout.stack), true);
      const found = debugExceptions(agent, code, {
        rsp: top,
        r8: 2n | TF,
        r9: Selector.CODE64,
        r10: Layout.snippet + 16,
        r11: top + 64,
        r12: Layout.snippet + 32,
      });
      expect(found).toEqual(step(17, 20, 24, 26, 28, 30, 32));
    });
  });

  const sysret = guest(
    64,
    `
 48 0f 07 | 0: sysretq
 90       | 3: nop
 cd 80    | 4: int 0x80
`,
  );
  const target = { rcx: Layout.snippet + 3 };

  it('SYSRET that loads TF is stepped at its end', (hv) => {
    withAgent(hv, (agent) =>
      expect(debugExceptions(agent, sysret, { ...target, r11: 2n | TF })).toEqual(step(3, 4)),
    );
  });
  it('SYSRET that clears TF is not', (hv) => {
    withAgent(hv, (agent) =>
      expect(debugExceptions(agent, sysret, { ...target, r11: 2n, rflags: 2n | TF })).toEqual([]),
    );
  });

  const syscall = guest(
    64,
    `
 90    | 0: nop
 0f 05 | 1: syscall
 90    | 3: nop
 90    | 4: nop
 cd 80 | 5: int 0x80
`,
  );
  for (const [what, mask, stepped] of [
    ['that keeps TF is stepped at its end', 0n, step(1, 4, 5)],
    ['whose mask clears TF is not stepped', TF, step(1)],
  ] as const) {
    it(`SYSCALL ${what}`, (hv) => {
      withAgent(hv, (agent) => {
        agent.vcpu.setMsrs([
          { index: MSR.LSTAR, data: BigInt(Layout.snippet + 4) },
          { index: MSR.FMASK, data: mask },
        ]);
        expect(debugExceptions(agent, syscall, { rflags: 2n | TF })).toEqual(stepped);
      });
    });
  }

  it('SYSENTER and SYSEXIT leave TF alone: each is stepped at its end', (hv) => {
    const program = guest(
      32,
      `
 0f 00 d8 |  0: ltr ax                    # by the guest: QEMU takes no busy TSS of 32 bits
 0f 34    |  3: sysenter
 90       |  5: nop
 89 d8    |  6: mov eax, ebx
 89 c1    |  8: mov ecx, eax
 0f 35    | 10: sysexit
 90       | 12: nop
 cd 80    | 13: int 0x80
`,
    );
    withAgent(hv, ({ ram, vcpu }) => {
      enterProtectedMode(vcpu, ram, { tables: Layout.tables });
      const tss = placeTss(
        { memory: ram, address: At.tss },
        { bits: 32, stack: At.stack, stackSegment: 0x10 },
      );
      const { table, segments } = placeGdt(
        { memory: ram, address: At.gdt },
        {
          code: descriptor.code({ bits: 32 }),
          data: descriptor.data(),
          userCode: descriptor.code({ bits: 32, dpl: 3 }),
          userData: descriptor.data({ dpl: 3 }),
          tss,
        },
      );
      const { selector } = segments.code;
      const gates = {
        1: { offset: handlerOf(1), selector },
        [END]: { offset: handlerOf(END), selector, dpl: 3 },
      };
      ram.bytes.set([0xe6, 0xf1, 0xcf], handlerOf(1)); // out 0xf1, al; iretd
      ram.bytes[handlerOf(END)] = 0xf4;
      vcpu.changeSregs({ gdt: table, idt: placeIdt({ memory: ram, address: At.idt }, 32, gates) });
      vcpu.setMsrs([
        { index: MSR.SYSENTER_CS, data: BigInt(selector) },
        { index: MSR.SYSENTER_ESP, data: BigInt(Layout.stack) },
        { index: MSR.SYSENTER_EIP, data: BigInt(Layout.snippet + 6) },
      ]);
      const regs = { rax: segments.tss.selector, rbx: Layout.stack, rdx: Layout.snippet + 12 };
      expect(steppedThrough({ ram, vcpu }, program, { ...regs, rflags: 2n | TF })).toEqual(
        step(3, 6, 8, 10, 12, 13),
      );
    });
  });

  it('INT n is not stepped, nor is its handler; what follows its return is', (hv) => {
    const code = guest(
      64,
      `
 90    | 0: nop
 cd 81 | 1: int 0x81
 90    | 3: nop
 cd 80 | 4: int 0x80
`,
    );
    withAgent(hv, (agent) => expect(debugExceptions(agent, code, { rflags: 2n | TF })).toEqual(step(1, 4)));
  });

  it('MOV SS loses its step; the instruction behind it has one', (hv) => {
    const code = guest(
      64,
      `
 8e d0 | 0: mov ss, eax
 90    | 2: nop
 90    | 3: nop
 cd 80 | 4: int 0x80
`,
    );
    withAgent(hv, (agent) =>
      expect(debugExceptions(agent, code, { rflags: 2n | TF, rax: Selector.DATA })).toEqual(step(3, 4)),
    );
  });

  it('HLT with TF ends the run first, and is stepped when the guest goes on', (hv) => {
    const code = guest(
      64,
      `
 f4    | 0: hlt
 90    | 1: nop
 cd 80 | 2: int 0x80
`,
    );
    withAgent(hv, (agent) => {
      expect(debugExceptions(agent, code, { rflags: 2n | TF })).toEqual([]);
      expect(agent.vcpu.getRegs().rip).toBe(BigInt(Layout.snippet + 1));
      expectOutcome(agent.vcpu, Exit.HLT);
      agent.vcpu.run(DEADLINE_MS);
      expectOutcome(agent.vcpu, Exit.IO);
      const { rsp } = agent.vcpu.getRegs();
      expect(viewOf(agent.ram.bytes).getBigUint64(Number(rsp), true)).toBe(BigInt(Layout.snippet + 1));
    });
  });

  it('a breakpoint on the code behind MOV SS: AMD looks at it, Intel does not', (hv) => {
    const code = guest(
      64,
      `
 0f 23 c1 |  0: mov dr0, rcx
 0f 23 fa |  3: mov dr7, rdx
 0f 23 fa |  6: mov dr7, rdx             # now without an exit
 8e d0    |  9: mov ss, eax
 90       | 11: nop
 90       | 12: nop
 f4       | 13: hlt
`,
    );
    const [leaf] = hv.getSupportedCpuid().filter((entry) => entry.function === 0);
    const isIntel = leaf!.ebx === 0x756e_6547; // "Genu"
    withAgent(hv, (agent) => {
      prepare(agent);
      const { ram, vcpu } = agent;
      ram.bytes.set(code.code, Layout.snippet);
      const regs = { rax: Selector.DATA, rcx: Layout.snippet + 11, rdx: 0x402 };
      vcpu.setRegs({ rip: Layout.snippet, rsp: Layout.stack, rflags: 2, ...regs });
      vcpu.run(DEADLINE_MS);
      expectOutcome(vcpu, isIntel ? Exit.HLT : Exit.IO);
      if (!isIntel) expect(vcpu.getDebugRegs().dr6 & 0xe00fn).toBe(1n);
    });
  });
});

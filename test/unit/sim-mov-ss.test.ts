/** What MOV SS and POP SS hold back (SDM volume 3, 6.8.3), on each vendor's processor. */
import { describe, expect, it } from 'vitest';
import { Exit, openHypervisor, Selector } from '../../src/index.ts';
import { InterruptShadow } from '../../src/uapi/index.ts';
import { type Guest, guest } from '../../src/vmm/guest.ts';
import { Agent, Layout } from '../support/agent.ts';
import { debugExceptions, handlerOf, TF } from '../support/debug-guest.ts';
import { runTo } from '../support/run.ts';

const vendors = ['intel', 'amd'] as const;
const DATA = Layout.free + 0x8000;
/** DR7: breakpoint 0 on accesses to 4 bytes. */
const DR7 = 0x400n | 2n | (15n << 16n);

/** Where #DB comes, and DR6, when the guest's first instruction loads SS from where a breakpoint is. */
function found(vendor: (typeof vendors)[number], code: Guest, rflags = 2n): string[] {
  using hv = openHypervisor({ backend: 'sim', simulated: { vendor } });
  using agent = Agent.boot(hv);
  agent.ram.bytes[DATA] = Selector.DATA;
  agent.vcpu.setDebugRegs({ ...agent.vcpu.getDebugRegs(), db: [BigInt(DATA), 0n, 0n, 0n], dr7: DR7 });
  return debugExceptions(agent, code, { rdi: DATA, rflags });
}
/** The offset of a vector's handler in the same terms. */
const handler = (vector: number) => handlerOf(vector) - Layout.snippet;

describe.each(vendors)('a data breakpoint that is hit by an instruction that loads SS (%s)', (vendor) => {
  it('comes behind the next instruction', () => {
    const code = guest(
      64,
      `
 8e 17 | 0: mov ss, [rdi]
 90    | 2: nop
 90    | 3: nop
 cd 80 | 4: int 0x80
`,
    );
    expect(found(vendor, code)).toEqual(['3 1']);
    // With the next one's single step.
    expect(found(vendor, code, 2n | TF)).toEqual(['3 4001', '4 4000']);
  });

  it('comes behind the next one that does not load SS', () => {
    const code = guest(
      64,
      `
 8e 17 | 0: mov ss, [rdi]
 8e 17 | 2: mov ss, [rdi]
 90    | 4: nop
 cd 80 | 5: int 0x80
`,
    );
    expect(found(vendor, code)).toEqual(['5 1']);
  });

  it('comes in the handler that INT n goes to: its own runs twice behind INT 1', () => {
    const int81 = guest(
      64,
      `
 8e 17 | 0: mov ss, [rdi]
 cd 81 | 2: int 0x81
 cd 80 | 4: int 0x80
`,
    );
    const int1 = guest(
      64,
      `
 8e 17 | 0: mov ss, [rdi]
 cd 01 | 2: int 1
 cd 80 | 4: int 0x80
`,
    );
    expect(found(vendor, int81)).toEqual([`${handler(0x81)} 1`]);
    expect(found(vendor, int1)).toEqual([`${handler(1)} 1`, '4 0']);
  });

  it('comes in the handler of a fault of the next instruction', () => {
    const code = guest(
      64,
      `
 8e 17 | 0: mov ss, [rdi]
 0f 0b | 2: ud2
`,
    );
    expect(found(vendor, code)).toEqual([`${handler(6)} 1`]);
  });
});

describe.each(vendors)('a code breakpoint on the instruction behind one that loads SS (%s)', (vendor) => {
  it(`is ${vendor === 'intel' ? 'passed over' : 'heeded'}`, () => {
    const code = guest(
      64,
      `
 8e d0 | 0: mov ss, eax
 90    | 2: nop
 90    | 3: nop
 cd 80 | 4: int 0x80
`,
    );
    using hv = openHypervisor({ backend: 'sim', simulated: { vendor } });
    using agent = Agent.boot(hv);
    const at = BigInt(Layout.snippet);
    // One on the instruction after that too, which is heeded by both.
    const dr7 = 0x400n | 0b1010n;
    agent.vcpu.setDebugRegs({ ...agent.vcpu.getDebugRegs(), db: [at + 2n, at + 3n, 0n, 0n], dr7 });
    const all = debugExceptions(agent, code, { rax: Selector.DATA });
    expect(all).toEqual(vendor === 'intel' ? ['3 2'] : ['2 1', '3 2']);
  });
});

describe('the shadow of MOV SS', () => {
  const code = guest(
    64,
    `
 8e d0 | 0: mov ss, eax
 88 07 | 2: mov [rdi], al
 f4    | 4: hlt
`,
  );
  const shadowOf = (agent: Agent) => agent.vcpu.getVcpuEvents().interrupt.shadow;

  it('lasts while the instruction in it cannot be done', () => {
    using hv = openHypervisor({ backend: 'sim' });
    using agent = Agent.boot(hv);
    agent.vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 0x4000_0000, memorySize: 0x1000 });
    agent.ram.bytes.set(code.code, Layout.snippet);
    agent.vcpu.setRegs({ rip: Layout.snippet, rax: Selector.DATA, rdi: 0x4000_0000, rflags: 2 });
    runTo(agent.vcpu, Exit.FAULT);
    expect(shadowOf(agent)).toBe(InterruptShadow.MOV_SS);
    agent.vcpu.setRegs({ ...agent.vcpu.getRegs(), rdi: DATA });
    runTo(agent.vcpu, Exit.HLT);
    expect(shadowOf(agent)).toBe(0);
  });

  it('begins where the selector was read from a device', () => {
    using hv = openHypervisor({ backend: 'sim' });
    using agent = Agent.boot(hv);
    agent.ram.bytes.set([0x8e, 0x17, 0xe6, 0x80, 0xf4], Layout.snippet); // mov ss, [rdi]; out 0x80, al; hlt
    agent.vcpu.setRegs({ rip: Layout.snippet, rdi: 0x4000_0000, rflags: 2 });
    runTo(agent.vcpu, Exit.MMIO);
    agent.vcpu.mmio.value = BigInt(Selector.DATA);
    agent.vcpu.complete((exit) => {
      throw new Error(`exit ${exit}`);
    });
    expect(shadowOf(agent)).toBe(InterruptShadow.MOV_SS);
  });
});

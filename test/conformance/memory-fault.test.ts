/**
 * KVM_EXIT_MEMORY_FAULT as today's kernels have it: api.rst, KVM_EXIT_MEMORY_FAULT and KVM_CAP_MEMORY_FAULT_INFO; the
 * kernel's private_mem_kvm_exits_test.
 *
 * On a SW_PROTECTED VM the attribute itself says whether an access is private (arch/x86/kvm/mmu/mmu.c), so what ends
 * here are private accesses that find nothing behind them. The other condition of the documents, a guest that asks
 * for the kind that the page is not, needs SNP or TDX.
 */
import { expect } from 'vitest';
import { Exit, type Hypervisor, MemoryFaultFlag } from '../../src/index.ts';
import { dialects } from '../../src/uapi/index.ts';
import { Layout } from '../support/agent.ts';
import { AREA, Area, PAGE } from '../support/area.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { expectOutcome, setWord, wordAt } from '../support/run.ts';
import { load64 } from '../support/snippets.ts';
import { conformance } from '../support/suite.ts';

const PRIVATE = 0x0123_4567_89ab_cdefn;
const SHARED = 0x5a5a_5a5a_5a5a_5a5an;

function withPrivateArea(hv: Hypervisor, use: (area: Area) => void): void {
  using area = new Area(hv);
  area.make('private');
  use(area);
}

/** The fault that the last run ended with. */
function faultOf({ vcpu }: Area['agent']): { flags: number; gpa: number; size: number } {
  expectOutcome(vcpu, Exit.MEMORY_FAULT);
  const { flags, gpa, size } = vcpu.memoryFault;
  return { flags, gpa, size };
}

const faultAt = (gpa: number) => ({ flags: MemoryFaultFlag.PRIVATE, gpa, size: PAGE });

/** What leaves nothing behind the area's private pages. All four are steady: nothing but the VMM changes them. */
const causes: readonly (readonly [string, (area: Area) => void])[] = [
  ['no slot', (area) => area.unbind()],
  [
    'a slot without a guest_memfd',
    (area) => {
      area.unbind();
      area.bind({ secret: null });
    },
  ],
  ['a slot whose guest_memfd is closed', (area) => area.secret.close()],
  [
    'a slot that was deleted after the guest had used it',
    (area) => {
      area.agent.write(AREA, PRIVATE);
      area.unbind();
    },
  ],
];

const accesses = [
  ['a read', 'read'],
  ['a write', 'write'],
  ['an instruction fetch', 'call'],
] as const;

conformance('memory faults', ({ needs }) => {
  const it = needs('private-memory', 'memory-fault');

  for (const [cause, arrange] of causes) {
    for (const [access, command] of accesses) {
      it(`${access} of a private page with ${cause} is a memory fault: PRIVATE, the page, 4096 bytes`, (hv) => {
        withPrivateArea(hv, (area) => {
          arrange(area);
          area.agent.begin(command, { rdi: AREA + PAGE, r15: AREA + PAGE });
          expect(faultOf(area.agent)).toEqual(faultAt(AREA + PAGE));
        });
      });
    }
  }

  it('the fault names the page, whatever the byte in it', (hv) => {
    withPrivateArea(hv, (area) => {
      area.unbind();
      area.agent.begin('read', { rdi: AREA + 2 * PAGE + 0x123 });
      expect(faultOf(area.agent)).toEqual(faultAt(AREA + 2 * PAGE));
    });
  });

  it('an access across two pages faults for the one that has nothing behind it', (hv) => {
    withPrivateArea(hv, (area) => {
      area.make('shared', 0, PAGE);
      area.unbind();
      area.bind({ secret: null });
      area.agent.beginCode(load64, { rsi: AREA + PAGE - 2 });
      expect(faultOf(area.agent)).toEqual(faultAt(AREA + PAGE));
    });
  });

  it('a shared page in the same slot does not fault', (hv) => {
    withPrivateArea(hv, (area) => {
      area.make('shared', 0, PAGE);
      area.unbind();
      area.bind({ secret: null });
      setWord(area.shared.bytes, 0, SHARED);
      expect(area.agent.read(AREA)).toBe(SHARED);
    });
  });

  it('nothing of the access has happened: rip still points at the instruction', (hv) => {
    withPrivateArea(hv, (area) => {
      const { agent } = area;
      area.unbind();
      agent.beginCode(load64, { rsi: AREA, rax: 77 });
      faultOf(agent);
      const { rip, rax } = agent.vcpu.getRegs();
      expect({ rip, rax }).toEqual({ rip: BigInt(Layout.snippet), rax: 77n });
    });
  });

  it('running on without a change gives the same fault again: KVM does not resolve it', (hv) => {
    withPrivateArea(hv, (area) => {
      area.unbind();
      area.agent.begin('read', { rdi: AREA });
      for (let i = 0; i < 3; i++) {
        expect(faultOf(area.agent)).toEqual(faultAt(AREA));
        area.agent.vcpu.run(DEADLINE_MS);
      }
    });
  });

  // The page is private already, so doing what the flag says changes nothing. A VMM that trusts it alone never ends.
  it('converting to what the flag says does not help', (hv) => {
    withPrivateArea(hv, (area) => {
      area.unbind();
      area.agent.begin('read', { rdi: AREA });
      faultOf(area.agent);
      area.make('private');
      area.agent.vcpu.run(DEADLINE_MS);
      expect(faultOf(area.agent)).toEqual(faultAt(AREA));
    });
  });

  // The exit's first descriptions say it so: userspace may handle the error and return to KVM to retry the previous memory access.
  it('a slot with a guest_memfd resolves it: the access is retried and finds the private memory', (hv) => {
    withPrivateArea(hv, (area) => {
      area.agent.write(AREA, PRIVATE);
      area.unbind();
      area.agent.begin('read', { rdi: AREA });
      faultOf(area.agent);
      area.bind();
      expect(area.agent.resume()).toBe(PRIVATE);
    });
  });

  it('making the page shared resolves it: the access is retried and finds the shared memory', (hv) => {
    withPrivateArea(hv, (area) => {
      area.unbind();
      area.bind({ secret: null });
      area.agent.begin('write', { rdi: AREA, rsi: SHARED });
      faultOf(area.agent);
      area.make('shared', 0, PAGE);
      area.agent.resume();
      expect(wordAt(area.shared.bytes)).toBe(SHARED);
    });
  });

  it('making a page shared where no slot is turns the fault into MMIO', (hv) => {
    withPrivateArea(hv, (area) => {
      area.unbind();
      area.agent.begin('read', { rdi: AREA });
      faultOf(area.agent);
      area.make('shared', 0, PAGE);
      area.agent.vcpu.run(DEADLINE_MS);
      expectOutcome(area.agent.vcpu, Exit.MMIO);
      area.agent.vcpu.mmio.value = SHARED;
      expect(area.agent.resume()).toBe(SHARED);
    });
  });

  // What was in the file stays with the file's inode, and a closed one cannot be bound again.
  it('after the guest_memfd is closed another one resolves it, with zeroes', (hv) => {
    withPrivateArea(hv, (area) => {
      area.agent.write(AREA, PRIVATE);
      area.secret.close();
      area.agent.begin('read', { rdi: AREA });
      faultOf(area.agent);
      using fresh = area.vm.createGuestMemfd(area.size);
      area.unbind();
      area.bind({ secret: fresh });
      expect(area.agent.resume()).toBe(0n);
    });
  });

  it("the exit's object and the dialect's decoder say the same", (hv) => {
    withPrivateArea(hv, (area) => {
      const { agent } = area;
      area.unbind();
      agent.begin('read', { rdi: AREA });
      faultOf(agent);
      const fault = { flags: { private: true, userfault: false, unknown: 0n }, gpa: AREA, size: PAGE };
      expect(agent.vcpu.exit).toMatchObject({ reason: 'MEMORY_FAULT', ...fault });
      expect(dialects.mainline.decode(agent.vcpu.raw.view)).toEqual(fault);
      expect(agent.vcpu.memoryFault.isPrivate).toBe(true);
    });
  });
});

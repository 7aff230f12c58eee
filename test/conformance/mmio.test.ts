/** KVM_EXIT_MMIO: accesses to guest-physical memory that no slot has (api.rst, "The kvm_run structure"). */
import { expect } from 'vitest';
import { Exit, type Hypervisor, type Vcpu } from '../../src/index.ts';
import { Selector } from '../../src/vmm/modes.ts';
import { Agent, Layout } from '../support/agent.ts';
import { AREA, AREA_SLOT, PAGE } from '../support/area.ts';
import { expectOutcome, runTo, setWord, wordAt } from '../support/run.ts';
import * as code from '../support/snippets.ts';
import { conformance } from '../support/suite.ts';

const MMIO = AREA;
const VALUE = 0x8877_6655_4433_2211n;
const OLD = 0x1111_1111_1111_1111n;

/** What rax is after a load: a byte or a word leaves the rest as it was, a doubleword clears it. */
const loads = [
  [1, code.load8, 0x1111_1111_1111_1111n],
  [2, code.load16, 0x1111_1111_1111_2211n],
  [4, code.load32, 0x4433_2211n],
  [8, code.load64, VALUE],
] as const;

const stores = [
  [1, code.store8],
  [2, code.store16],
  [4, code.store32],
  [8, code.store64],
] as const;

function withAgent(hv: Hypervisor, use: (agent: Agent) => void): void {
  using agent = Agent.boot(hv);
  use(agent);
}

/** The exit that the last run ended with. */
function mmioOf(vcpu: Vcpu) {
  expectOutcome(vcpu, Exit.MMIO);
  const { physAddr, length, isWrite } = vcpu.mmio;
  return { physAddr, length, isWrite };
}

const read = (physAddr: number, length: number) => ({ physAddr, length, isWrite: false });
const write = (physAddr: number, length: number) => ({ physAddr, length, isWrite: true });

conformance('memory-mapped I/O', ({ it }) => {
  for (const [size, snippet, rax] of loads) {
    it(`a read of ${size} bytes exits, and the guest gets as many bytes of the VMM's answer`, (hv) => {
      withAgent(hv, (agent) => {
        agent.beginCode(snippet, { rsi: MMIO + 8, rax: OLD });
        expect(mmioOf(agent.vcpu)).toEqual(read(MMIO + 8, size));
        agent.vcpu.mmio.value = VALUE;
        expect(agent.resume()).toBe(rax);
      });
    });
  }

  for (const [size, snippet] of stores) {
    it(`a write of ${size} bytes exits with the bytes`, (hv) => {
      withAgent(hv, (agent) => {
        agent.beginCode(snippet, { rsi: MMIO + 8, rax: VALUE });
        expect(mmioOf(agent.vcpu)).toEqual(write(MMIO + 8, size));
        expect(agent.vcpu.mmio.value).toBe(BigInt.asUintN(8 * size, VALUE));
        agent.resume();
      });
    });
  }

  it('a read of 16 bytes is two exits of 8', (hv) => {
    withAgent(hv, (agent) => {
      agent.beginCode(code.load128, { rsi: MMIO, rdi: Layout.free });
      expect(mmioOf(agent.vcpu)).toEqual(read(MMIO, 8));
      agent.vcpu.mmio.value = 1n;
      runTo(agent.vcpu, Exit.MMIO);
      expect(mmioOf(agent.vcpu)).toEqual(read(MMIO + 8, 8));
      agent.vcpu.mmio.value = 2n;
      agent.resume();
      expect([wordAt(agent.ram.bytes, Layout.free), wordAt(agent.ram.bytes, Layout.free + 8)]).toEqual([
        1n,
        2n,
      ]);
    });
  });

  it('an access that begins in MMIO and ends in memory exits for its first bytes only', (hv) => {
    withAgent(hv, (agent) => {
      using ram = agent.vm.allocate(PAGE);
      agent.vm.setUserMemoryRegion({ slot: AREA_SLOT, guestPhysAddr: MMIO + PAGE, memory: ram });
      setWord(ram.bytes, 0, VALUE);
      agent.beginCode(code.load64, { rsi: MMIO + PAGE - 2 });
      expect(mmioOf(agent.vcpu)).toEqual(read(MMIO + PAGE - 2, 2));
      agent.vcpu.mmio.value = 0xaabbn;
      expect(agent.resume()).toBe(BigInt.asUintN(64, VALUE << 16n) | 0xaabbn);
    });
  });

  it('a copy from MMIO to MMIO is a read and a write of what was read', (hv) => {
    withAgent(hv, (agent) => {
      agent.beginCode(code.copy, { rsi: MMIO, rdi: MMIO + PAGE });
      expect(mmioOf(agent.vcpu)).toEqual(read(MMIO, 8));
      agent.vcpu.mmio.value = VALUE;
      runTo(agent.vcpu, Exit.MMIO);
      expect(mmioOf(agent.vcpu)).toEqual(write(MMIO + PAGE, 8));
      expect(agent.vcpu.mmio.value).toBe(VALUE);
      agent.resume();
    });
  });

  it('a copy from MMIO to memory is one exit', (hv) => {
    withAgent(hv, (agent) => {
      agent.beginCode(code.copy, { rsi: MMIO, rdi: Layout.free });
      mmioOf(agent.vcpu);
      agent.vcpu.mmio.value = VALUE;
      agent.resume();
      expect(wordAt(agent.ram.bytes, Layout.free)).toBe(VALUE);
    });
  });

  it('a push of what MMIO holds puts it on the stack', (hv) => {
    withAgent(hv, (agent) => {
      agent.beginCode(code.push, { rsi: MMIO });
      mmioOf(agent.vcpu);
      agent.vcpu.mmio.value = VALUE;
      expect(agent.resume()).toBe(VALUE);
    });
  });

  it("a far jump's pointer with REX.W has 8 bytes of offset: KVM decodes it, on AMD's processors too", (hv) => {
    withAgent(hv, (agent) => {
      const target = Layout.snippet + 0x100;
      agent.ram.bytes.set(code.answer42.code, target);
      agent.beginCode(code.farJump, { rsi: MMIO });
      expect(mmioOf(agent.vcpu)).toEqual(read(MMIO, 8));
      agent.vcpu.mmio.value = BigInt(target);
      runTo(agent.vcpu, Exit.MMIO);
      expect(mmioOf(agent.vcpu)).toEqual(read(MMIO + 8, 2));
      agent.vcpu.mmio.value = BigInt(Selector.CODE64);
      expect(agent.resume()).toBe(42n);
    });
  });

  it("a far pointer with REX.W is loaded with 8 bytes of offset: KVM decodes it, on AMD's processors too", (hv) => {
    withAgent(hv, (agent) => {
      agent.beginCode(code.loadFs, { rsi: MMIO });
      expect(mmioOf(agent.vcpu)).toEqual(read(MMIO, 8));
      agent.vcpu.mmio.value = VALUE;
      runTo(agent.vcpu, Exit.MMIO);
      expect(mmioOf(agent.vcpu)).toEqual(read(MMIO + 8, 2));
      agent.vcpu.mmio.value = BigInt(Selector.DATA);
      expect(agent.resume()).toBe(VALUE);
    });
  });

  it('LZCNT and TZCNT are BSR and BSF where KVM executes them', (hv) => {
    for (const [snippet, found] of [
      [code.leadingZeros, 3n],
      [code.trailingZeros, 2n],
    ] as const) {
      withAgent(hv, (agent) => {
        agent.beginCode(snippet, { rsi: MMIO });
        expect(mmioOf(agent.vcpu)).toEqual(read(MMIO, 8));
        agent.vcpu.mmio.value = 0b1100n;
        expect(agent.resume()).toBe(found);
      });
    }
  });

  it("a near jump's operand-size prefix counts for nothing where KVM decodes it", (hv) => {
    withAgent(hv, (agent) => {
      const target = Layout.snippet + 0x100;
      agent.ram.bytes.set(code.answer42.code, target);
      agent.beginCode(code.nearJump16, { rsi: MMIO });
      const first = mmioOf(agent.vcpu);
      expect(first).toEqual(read(MMIO, 8));
      agent.vcpu.mmio.value = BigInt(target);
      expect(agent.resume()).toBe(42n);
    });
  });

  it('a jump to where no slot is cannot be emulated: an internal error, or a shutdown', (hv) => {
    withAgent(hv, (agent) => {
      agent.beginCode(code.jump, { rsi: MMIO });
      expectOutcome(agent.vcpu, Exit.INTERNAL_ERROR, Exit.SHUTDOWN);
      expect(agent.vcpu.exit).not.toHaveProperty('instruction');
    });
  });
});

/** The code segment's limit, for instructions that follow one another (SDM volume 3, 5.3). */
import { describe, expect, it } from 'vitest';
import { Exit, enterRealMode, openHypervisor, type Vcpu } from '../../src/index.ts';
import { Vector } from '../../src/uapi/index.ts';
import { runTo } from '../support/run.ts';

const NOP = 0x90;
const HLT = 0xf4;
const tiers = ['closures', 'wasm', 'both'] as const;

/** In real mode, or in protected mode of 32 bits with a limit that is counted in bytes. */
const modes = {
  'real mode': { limit: 0xffff, base: 0 },
  'a 32-bit segment': { limit: 0x2345, base: 0x4000 },
} as const;
type Mode = keyof typeof modes;

interface Machine {
  readonly vcpu: Vcpu;
  readonly ram: Uint8Array;
  /** Runs from an offset on, to the first exception or HLT: [vector, error code, RIP], or RIP behind the HLT. */
  readonly from: (rip: number) => number[];
}

function withGuest(mode: Mode, tier: (typeof tiers)[number], use: (machine: Machine) => void): void {
  using hv = openHypervisor({ backend: 'sim', simulated: { tier } });
  using vm = hv.createVm();
  using ram = vm.allocate(0x10_0000);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
  using vcpu = vm.createVcpu();
  enterRealMode(vcpu);
  const sregs = vcpu.getSregs();
  const cs = { ...sregs.cs, base: BigInt(modes[mode].base), limit: modes[mode].limit, g: 0 };
  if (mode === 'real mode') vcpu.setSregs({ ...sregs, cs, idt: { base: 0n, limit: 0 } });
  else {
    const flat = (segment: typeof sregs.ds) => ({ ...segment, limit: 0xffff_ffff, g: 1, db: 1 });
    const [ds, ss] = [flat(sregs.ds), flat(sregs.ss)];
    vcpu.setSregs({
      ...sregs,
      cr0: sregs.cr0 | 1n,
      cs: { ...cs, selector: 8, db: 1 },
      ds: { ...ds, selector: 16 },
      ss: { ...ss, selector: 16 },
      idt: { base: 0n, limit: 0 },
    });
  }
  const from = (rip: number): number[] => {
    let first: number[] | undefined;
    vcpu.observe({
      exception: (vector, errorCode, at) => {
        first ??= [vector, errorCode ?? -1, Number(at)];
      },
    });
    vcpu.setRegs({ rip, rsp: 0x800, rflags: 2 });
    runTo(vcpu, Exit.HLT, Exit.SHUTDOWN);
    return first ?? [Number(vcpu.getRegs().rip)];
  };
  use({ vcpu, ram: ram.bytes, from });
}

describe.each(Object.keys(modes) as Mode[])('%s, on the simulator', (mode) => {
  const { limit, base } = modes[mode];
  const GP = (rip: number) => [Vector.GP, 0, rip];

  describe.each(tiers)('(%s)', (tier) => {
    it('executes an instruction that ends at the limit, and faults behind it', () => {
      withGuest(mode, tier, ({ ram, from }) => {
        ram.fill(NOP, base + limit - 40, base + limit + 40);
        expect(from(limit - 39)).toEqual(GP(limit + 1));
        ram[base + limit] = HLT;
        expect(from(limit - 39)).toEqual([limit + 1]);
        expect(from(limit)).toEqual([limit + 1]);
      });
    });

    it('faults at an instruction that crosses the limit, which has not happened', () => {
      withGuest(mode, tier, ({ vcpu, ram, from }) => {
        // mov al, 1; mov al, 2: the second's immediate is beyond.
        ram.set([0xb0, 1, 0xb0, 2, HLT], base + limit - 2);
        expect(from(limit - 2)).toEqual(GP(limit));
        expect(vcpu.getRegs().rax & 0xffn).toBe(1n);
        expect(from(limit)).toEqual(GP(limit));
      });
    });

    it('goes on behind a branch that is not taken no further than the limit', () => {
      withGuest(mode, tier, ({ ram, from }) => {
        ram.set([0x74, 0xfe], base + limit - 1); // je to itself, with ZF clear
        ram[base + limit + 1] = HLT;
        expect(from(limit - 1)).toEqual(GP(limit + 1));
      });
    });

    it('faults where the registers say to begin beyond it', () => {
      withGuest(mode, tier, ({ ram, from }) => {
        ram[base + limit + 5] = HLT;
        expect(from(limit + 5)).toEqual(GP(limit + 5));
      });
    });

    it('knows an instruction that is invalid within the limit', () => {
      withGuest(mode, tier, ({ ram, from }) => {
        ram.set([0x0f, 0x0b], base + limit - 1);
        expect(from(limit - 1)).toEqual([Vector.UD, -1, limit - 1]);
      });
    });

    it('heeds a limit that has become smaller since the code was translated', () => {
      withGuest(mode, tier, ({ vcpu, ram, from }) => {
        ram.fill(NOP, base + limit - 0x20, base + limit);
        ram[base + limit] = HLT;
        for (let i = 0; i < 50; i++) expect(from(limit - 0x20)).toEqual([limit + 1]);
        const sregs = vcpu.getSregs();
        vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, limit: limit - 0x10 } });
        expect(from(limit - 0x20)).toEqual(GP(limit - 0xf));
      });
    });
  });
});

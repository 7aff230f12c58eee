/** Instructions that come to MMIO again and again: as closures, and as what they become when they have run often. */
import { describe, expect, it } from 'vitest';
import { Exit, openHypervisor } from '../../src/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { enterLongMode } from '../../src/vmm/modes.ts';
import { runTo } from '../support/run.ts';

const ROUNDS = 150;
const DEVICE = 0x4000_0000;

const code = guest(
  64,
  `
 48 8b 07       | again: mov rax, [rdi]
 48 01 c3       |        add rbx, rax
 01 4f 08       |        add [rdi + 8], ecx
 f3 0f 6f 47 10 |        movdqu xmm0, [rdi + 16]
 66 0f d4 c8    |        paddq xmm1, xmm0
 0f b6 57 21    |        movzx edx, byte ptr [rdi + 33]
 48 01 d6       |        add rsi, rdx
 66 89 57 28    |        mov [rdi + 40], dx
 ff c9          |        dec ecx
 75 df          |        jnz again
 66 49 0f 7e c8 |        movq r8, xmm1
 66 0f 73 d9 08 |        psrldq xmm1, 8
 66 49 0f 7e c9 |        movq r9, xmm1
 f4             |        hlt
`,
);

describe('instructions that read MMIO many times, on the simulator', () => {
  it('have one exit for each fragment each time, in order, and are given what was answered', () => {
    using hv = openHypervisor({ backend: 'sim' });
    using vm = hv.createVm();
    using ram = vm.allocate(0x10_0000);
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
    ram.write(0x1000, code.code);
    using vcpu = vm.createVcpu(0);
    vcpu.setCpuid2(hv.getSupportedCpuid());
    enterLongMode(vcpu, ram, { tables: 0x1_0000, identity: 2 * 2 ** 30 });
    vcpu.setRegs({ rip: 0x1000, rdi: DEVICE, rcx: ROUNDS, rflags: 2 });

    const sums = { quad: 0n, low: 0n, high: 0n, byte: 0n };
    const { mmio } = vcpu;
    /** Serves an exit that must be this read, or write. */
    const read = (offset: number, length: number, value: bigint): bigint => {
      expect(runTo(vcpu, Exit.MMIO)).toBe(Exit.MMIO);
      expect([mmio.isWrite, mmio.physAddr - DEVICE, mmio.length]).toEqual([false, offset, length]);
      mmio.value = value;
      return value;
    };
    const written = (offset: number, length: number): bigint => {
      expect(runTo(vcpu, Exit.MMIO)).toBe(Exit.MMIO);
      expect([mmio.isWrite, mmio.physAddr - DEVICE, mmio.length]).toEqual([true, offset, length]);
      return mmio.value;
    };
    for (let i = 0; i < ROUNDS; i++) {
      const n = BigInt(i);
      sums.quad += read(0, 8, (n << 40n) + 1n);
      read(8, 4, 1000n + n);
      expect(written(8, 4)).toBe(1000n + BigInt(ROUNDS));
      sums.low += read(16, 8, 3n * n);
      sums.high += read(24, 8, (5n * n) << 32n);
      sums.byte += read(33, 1, n);
      expect(written(40, 2)).toBe(n);
    }
    expect(runTo(vcpu, Exit.HLT)).toBe(Exit.HLT);
    const { rbx, r8, r9, rsi } = vcpu.getRegs();
    expect({ quad: rbx, low: r8, high: r9, byte: rsi }).toEqual(sums);
    expect(vcpu.completed).toBe(BigInt(ROUNDS * 10 + 4));
  });
});

import { describe, expect, it } from 'vitest';
import { Seg } from '../../src/sim/cpu/processor/descriptors.ts';
import { Vector } from '../../src/sim/cpu/processor/fault.ts';
import { features } from '../../src/sim/cpu/processor/features.ts';
import { CR0, CR4, EFER } from '../../src/sim/cpu/processor/mode.ts';
import { supportedCpuid } from '../../src/sim/cpu/system/claims.ts';
import { cpuid } from '../../src/sim/cpu/system/cpuid.ts';
import { Msr, msrIndexList, readMsr, writeMsr } from '../../src/sim/cpu/system/msrs.ts';
import { At, code, Machine } from './sim-cpu-system.ts';

const GP0: [number, number] = [Vector.GP, 0];
const UD: [number, undefined] = [Vector.UD, undefined];
const [RAX, RCX, RDX, RBX] = [0, 1, 2, 3];

describe('control registers', () => {
  const mov = (m: Machine, hex: string, value: number | bigint) => {
    m.setGpr(RAX, value);
    return code(m.execute(hex));
  };

  it.each([
    ['paging without protection', '0f 22 c0', CR0.PG, GP0],
    ['write-through without cache disable', '0f 22 c0', CR0.PE | CR0.NW, GP0],
    ['a reserved bit of CR4', '0f 22 e0', 1 << 13, GP0],
    ['PCIDs outside IA-32e mode', '0f 22 e0', CR4.PCIDE, GP0],
  ])('refuse %s', (_name, hex, value, expected) => {
    const m = new Machine().protected();
    const { cr0, cr4 } = m.cpu;
    expect(mov(m, hex, value >>> 0)).toEqual(expected);
    expect([m.cpu.cr0, m.cpu.cr4]).toEqual([cr0, cr4]);
  });

  it('are for privilege level 0', () => {
    const m = new Machine().protected(3);
    for (const hex of [
      '0f 20 c0',
      '0f 22 c0',
      '0f 21 c0',
      '0f 06',
      '0f 01 f0',
      'f4',
      '0f 08',
      '0f 09',
      '0f 01 38',
      '0f 30',
      '0f 32',
      '0f 00 d8',
      '0f 00 d0',
      '0f 01 10',
      '0f 01 18',
    ]) {
      expect(code(m.execute(hex)), hex).toEqual(GP0);
    }
  });

  it('start and end IA-32e mode with paging', () => {
    const m = new Machine().long(0, true);
    m.cpu.cr0 = (m.cpu.cr0 & ~CR0.PG) >>> 0;
    m.cpu.efer = EFER.LME;
    m.cpu.changed();
    const on = m.cpu.cr0 | CR0.PG;
    expect(mov(m, '0f 22 c0', on >>> 0)).toBeUndefined();
    expect(m.cpu.efer).toBe(EFER.LME | EFER.LMA);
    expect(mov(m, '0f 22 e0', 0)).toEqual(GP0); // PAE stays
    expect(mov(m, '0f 22 c0', (on & ~CR0.PG) >>> 0)).toBeUndefined();
    expect(m.cpu.efer).toBe(EFER.LME);
    m.cpu.cr4 = 0;
    expect(mov(m, '0f 22 c0', on >>> 0)).toEqual(GP0); // without PAE
  });

  it('do not end IA-32e mode from 64-bit code, and have 64 bits there', () => {
    const m = new Machine().long();
    expect(mov(m, '0f 22 c0', (m.cpu.cr0 & ~CR0.PG) >>> 0)).toEqual(GP0);
    expect(mov(m, '0f 22 c0', 1n << 32n)).toEqual(GP0);
    expect(mov(m, '0f 22 d8', 1n << 46n)).toEqual(GP0);
    expect(mov(m, '0f 22 d8', At.pml4)).toBeUndefined();
    expect(mov(m, '44 0f 22 c0', 16)).toEqual(GP0);
    expect(mov(m, '44 0f 22 c0', 9)).toBeUndefined();
    expect(m.cpu.cr8).toBe(9);
    expect(m.execute('0f 20 c3')).toBeUndefined();
    expect(m.gpr(RBX)).toBe(BigInt(m.cpu.cr0 >>> 0));
  });

  it('have the features of CPUID and no others', () => {
    const m = new Machine({ cpuid: [] }).protected();
    for (const bit of [CR4.SMEP, CR4.SMAP, CR4.FSGSBASE, CR4.UMIP, CR4.OSXSAVE]) {
      expect(mov(m, '0f 22 e0', bit)).toEqual(GP0);
    }
    const whole = new Machine().protected();
    expect(mov(whole, '0f 22 e0', CR4.SMEP | CR4.SMAP | CR4.FSGSBASE | CR4.UMIP)).toBeUndefined();
  });

  it('LMSW sets PE and does not clear it; CLTS clears TS; SMSW is refused to the user with UMIP', () => {
    const m = new Machine().protected();
    m.setGpr(RAX, 0xe);
    expect(m.execute('0f 01 f0')).toBeUndefined();
    expect(m.cpu.cr0 & 0xf).toBe(0xf);
    expect(m.execute('0f 06')).toBeUndefined();
    expect(m.cpu.cr0 & CR0.TS).toBe(0);
    const user = new Machine().protected(3);
    expect(user.execute('0f 01 e0')).toBeUndefined();
    expect(user.gpr(RAX)).toBe(BigInt(user.cpu.cr0 >>> 0));
    user.cpu.cr4 |= CR4.UMIP;
    for (const hex of ['0f 01 e0', '0f 01 00', '0f 01 08', '0f 00 c0', '0f 00 c8'])
      expect(code(user.execute(hex))).toEqual(GP0);
  });
});

describe('debug registers', () => {
  it('keep what is fixed in DR6 and DR7, and alias DR4 and DR5 without CR4.DE', () => {
    const m = new Machine().protected();
    m.setGpr(RAX, 0xffff_ffffn);
    expect(m.execute('0f 23 f0')).toBeUndefined();
    expect(m.execute('0f 23 f8')).toBeUndefined();
    expect([m.cpu.dr[6], m.cpu.dr[7]]).toEqual([0xffff_efffn, 0xffff_2fffn]);
    m.cpu.dr[7] = 0x400n;
    expect(m.execute('0f 21 e3')).toBeUndefined();
    expect(m.gpr(RBX)).toBe(0xffff_efffn);
    m.cpu.cr4 |= CR4.DE;
    expect(code(m.execute('0f 21 e3'))).toEqual(UD);
  });

  it('have no upper halves in DR6 and DR7', () => {
    const m = new Machine().long();
    m.setGpr(RAX, 1n << 32n);
    expect(code(m.execute('0f 23 f8'))).toEqual(GP0);
    expect(m.execute('0f 23 c0')).toBeUndefined();
    expect(m.cpu.dr[0]).toBe(1n << 32n);
  });
});

describe('model-specific registers', () => {
  const write = (m: Machine, index: number, value: bigint) => {
    m.setGpr(RCX, index);
    m.setGpr(RAX, value & 0xffff_ffffn);
    m.setGpr(RDX, value >> 32n);
    return code(m.execute('0f 30'));
  };

  it('are written and read by their halves', () => {
    const m = new Machine().long();
    expect(write(m, Msr.LSTAR, 0xffff_8000_1234_5678n)).toBeUndefined();
    m.setGpr(RAX, 0xffff_ffff_ffff_ffffn);
    expect(m.execute('0f 32')).toBeUndefined();
    expect([m.gpr(RAX), m.gpr(RDX)]).toEqual([0x1234_5678n, 0xffff_8000n]);
  });

  it.each<[string, number, bigint]>([
    ['one that is not there', 0x1234, 0n],
    ['LSTAR that is not canonical', Msr.LSTAR, 1n << 47n],
    ['FS_BASE that is not canonical', Msr.FS_BASE, 1n << 63n],
    ['reserved bits of EFER', Msr.EFER, 1n << 12n],
    ['LME while paging is on', Msr.EFER, 0n],
    ['a memory type that there is not', Msr.PAT, 2n],
    ['MTRR_CAP', Msr.MTRR_CAP, 0n],
    ['reserved bits of APIC_BASE', Msr.APIC_BASE, 0xfee0_0c00n],
  ])('refuse %s', (_name, index, value) => {
    expect(write(new Machine().long(), index, value)).toEqual(GP0);
  });

  it('EFER keeps LMA whatever is written to it', () => {
    const m = new Machine().long();
    expect(write(m, Msr.EFER, BigInt(EFER.LME | EFER.NXE))).toBeUndefined();
    expect(m.cpu.efer).toBe(EFER.LME | EFER.LMA | EFER.NXE);
  });

  it('the time-stamp counter counts instructions from where it was set', () => {
    const m = new Machine().long();
    m.cpu.state.count = 1000n;
    expect(write(m, Msr.TSC, 5000n)).toBeUndefined();
    m.cpu.state.count = 1010n;
    expect(m.execute('0f 31')).toBeUndefined();
    expect([m.gpr(RAX), readMsr(m.cpu, Msr.TSC_ADJUST)]).toEqual([5010n, 4000n]);
    expect(write(m, Msr.TSC_ADJUST, 0n)).toBeUndefined();
    expect(readMsr(m.cpu, Msr.TSC)).toBe(1010n);
    m.cpu.cr4 |= CR4.TSD;
    m.cpu.segments[Seg.SS] = { ...m.segment(Seg.SS), dpl: 3 };
    m.cpu.changed();
    expect(code(m.execute('0f 31'))).toEqual(GP0);
  });

  it('userspace may restore what the guest may not write', () => {
    const m = new Machine({ cpuid: [] }).long();
    expect(writeMsr(m.cpu, Msr.EFER, BigInt(EFER.NXE | EFER.LME))).toBe(false);
    expect(writeMsr(m.cpu, Msr.EFER, BigInt(EFER.NXE | EFER.LME), true)).toBe(true);
    expect(readMsr(m.cpu, Msr.TSC_AUX)).toBeUndefined();
    expect(readMsr(m.cpu, Msr.TSC_AUX, true)).toBe(0n);
  });

  it('all that are listed can be read, and written with what they hold', () => {
    for (const vendor of ['intel', 'amd'] as const) {
      const m = new Machine({ vendor }).long();
      const list = msrIndexList(vendor);
      expect(new Set(list).size).toBe(list.length);
      expect(list).toContain(Msr.KERNEL_GS_BASE);
      for (const index of list) {
        const value = readMsr(m.cpu, index, true);
        expect(value, index.toString(16)).toBeDefined();
        expect(writeMsr(m.cpu, index, value!, true), index.toString(16)).toBe(true);
      }
    }
  });

  it('tell a guest with a C-bit that it is one of SEV-SNP', () => {
    const m = new Machine({ vendor: 'amd', choice: { bit: 51, set: 'private' } }).long();
    expect(readMsr(m.cpu, Msr.AMD_SEV_STATUS)).toBe(7n);
    expect(readMsr(new Machine({ vendor: 'amd' }).cpu, Msr.AMD_SEV_STATUS)).toBeUndefined();
  });
});

describe('CPUID', () => {
  const leaf = (m: Machine, eax: number, ecx = 0) => {
    m.setGpr(RAX, eax);
    m.setGpr(RCX, ecx);
    expect(m.execute('0f a2')).toBeUndefined();
    return [RAX, RBX, RCX, RDX].map((index) => Number(m.gpr(index)));
  };

  it('gives the vendor, and a brand', () => {
    for (const [vendor, name] of [
      ['intel', 'GenuineIntel'],
      ['amd', 'AuthenticAMD'],
    ] as const) {
      const m = new Machine({ vendor }).protected();
      const [, ebx, ecx, edx] = leaf(m, 0);
      const bytes = new Uint8Array(new Uint32Array([ebx!, edx!, ecx!]).buffer);
      expect(new TextDecoder().decode(bytes)).toBe(name);
      expect(features(m.cpu.cpuid)).toMatchObject({ vendor, physicalBits: vendor === 'intel' ? 46 : 48 });
      const brand = [2, 3, 4].flatMap((part) => leaf(m, 0x8000_0000 + part));
      expect(new TextDecoder().decode(new Uint32Array(brand))).toMatch(
        /^vmexit simulated x86-64 processor\0+$/,
      );
    }
  });

  it('follows CR4.OSXSAVE and the enable bit of APIC_BASE', () => {
    const cpuidEntries = supportedCpuid('intel').map((entry) =>
      entry.function === 1 ? { ...entry, ecx: entry.ecx | (1 << 26) } : entry,
    );
    const m = new Machine({ cpuid: cpuidEntries }).protected();
    expect(leaf(m, 1)[2]! & (1 << 27)).toBe(0);
    m.cpu.cr4 |= CR4.OSXSAVE;
    expect(leaf(m, 1)[2]! & (1 << 27)).not.toBe(0);
    expect(leaf(m, 1)[3]! & (1 << 9)).not.toBe(0);
    writeMsr(m.cpu, Msr.APIC_BASE, 0xfee0_0100n);
    expect(leaf(m, 1)[3]! & (1 << 9)).toBe(0);
  });

  it('gives the highest basic leaf beyond the highest one on Intel, and nothing on AMD', () => {
    const intel = new Machine().protected();
    expect(leaf(intel, 0x20)).toEqual(leaf(intel, 0xd));
    expect(leaf(intel, 0x8000_0100)).toEqual(leaf(intel, 0xd));
    expect(leaf(intel, 5)).toEqual([0, 0, 0, 0]);
    expect(leaf(intel, 7, 3)).toEqual([0, 0, 0, 0]);
    expect(leaf(new Machine({ vendor: 'amd' }).protected(), 0x20)).toEqual([0, 0, 0, 0]);
    expect(cpuid(new Machine({ cpuid: [] }).cpu, 0, 0)).toEqual([0, 0, 0, 0]);
  });

  it('tells the position of the C-bit', () => {
    const m = new Machine({ vendor: 'amd', choice: { bit: 51, set: 'private' } }).protected();
    const [eax, ebx] = leaf(m, 0x8000_001f);
    expect([eax! & (1 << 4), ebx! & 63]).toEqual([1 << 4, 51]);
  });
});

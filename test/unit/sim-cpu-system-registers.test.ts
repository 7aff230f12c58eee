import { describe, expect, it } from 'vitest';
import { cpuid, features, supportedCpuid } from '../../src/sim/cpu/cpuid.ts';
import { Seg } from '../../src/sim/cpu/descriptors.ts';
import { Vector } from '../../src/sim/cpu/fault.ts';
import { CR0, CR4, EFER } from '../../src/sim/cpu/mode.ts';
import { Msr, msrIndexList, readMsr, writeMsr } from '../../src/sim/cpu/msrs.ts';
import { Flag } from '../../src/sim/cpu/state.ts';
import { checkPorts } from '../../src/sim/cpu/tss.ts';
import { At, code, Gdt, Machine } from './sim-cpu-system.ts';

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

describe('SYSCALL and SYSRET', () => {
  function ready(vendor: 'intel' | 'amd', level: 0 | 3, compatible = false): Machine {
    const m = new Machine({ vendor }).long(level, compatible);
    m.cpu.msrs.set(Msr.STAR, (0x1bn << 48n) | (0x08n << 32n));
    m.cpu.msrs.set(Msr.LSTAR, 0xffff_8000_0000_1000n);
    m.cpu.msrs.set(Msr.CSTAR, 0xffff_8000_0000_2000n);
    m.cpu.msrs.set(Msr.FMASK, BigInt(Flag.IF | Flag.DF));
    return m;
  }

  it('goes to LSTAR at level 0 with the flags masked, and comes back', () => {
    const m = ready('intel', 3);
    m.cpu.state.flags = Flag.IF | Flag.DF | Flag.CF | 2;
    expect(m.execute('0f 05')).toBeUndefined();
    expect([m.gpr(RCX), m.gpr(11)]).toEqual([BigInt(At.code + 2), BigInt(Flag.IF | Flag.DF | Flag.CF | 2)]);
    expect([m.cpu.state.rip, m.cpu.state.flags]).toEqual([0xffff_8000_0000_1000n, Flag.CF | 2]);
    expect([m.segment(Seg.CS).selector, m.segment(Seg.SS).selector, m.cpu.user]).toEqual([8, 0x10, false]);
    expect(m.execute('48 0f 07')).toBeUndefined();
    expect([m.segment(Seg.CS).selector, m.segment(Seg.SS).selector, m.cpu.user]).toEqual([0x2b, 0x23, true]);
    expect([m.cpu.state.rip, m.cpu.state.flags]).toEqual([
      BigInt(At.code + 2),
      Flag.IF | Flag.DF | Flag.CF | 2,
    ]);
  });

  it('is for AMD in compatibility mode, through CSTAR', () => {
    expect(code(ready('intel', 3, true).execute('0f 05'))).toEqual(UD);
    const amd = ready('amd', 3, true);
    expect(amd.execute('0f 05')).toBeUndefined();
    expect([amd.cpu.state.rip, amd.cpu.mode.bits]).toEqual([0xffff_8000_0000_2000n, 64]);
    expect(amd.execute('0f 07')).toBeUndefined();
    expect([amd.cpu.mode.bits, amd.cpu.state.rip]).toEqual([32, BigInt(At.code + 2)]);
  });

  it('needs EFER.SCE, and SYSRET level 0', () => {
    const m = ready('intel', 3);
    expect(code(m.execute('48 0f 07'))).toEqual(GP0);
    m.cpu.efer &= ~EFER.SCE;
    expect(code(m.execute('0f 05'))).toEqual(UD);
    expect(code(m.execute('48 0f 07'))).toEqual(UD);
  });

  it('SYSRET to an address that is not canonical faults before it on Intel, behind it on AMD', () => {
    for (const vendor of ['intel', 'amd'] as const) {
      const m = ready(vendor, 0);
      m.setGpr(RCX, 1n << 47n);
      const fault = m.execute('48 0f 07');
      expect([code(fault), m.cpu.user]).toEqual(vendor === 'intel' ? [GP0, false] : [undefined, true]);
    }
  });

  it('SYSRET leaves the attributes of SS alone on AMD', () => {
    for (const [vendor, base] of [
      ['intel', 0n],
      ['amd', 0x1000n],
    ] as const) {
      const m = ready(vendor, 0);
      m.cpu.segments[Seg.SS] = { ...m.segment(Seg.SS), base: 0x1000n };
      m.execute('48 0f 07');
      expect(m.segment(Seg.SS)).toMatchObject({ selector: 0x23, base, dpl: 3 });
    }
  });
});

describe('SYSENTER and SYSEXIT', () => {
  it('go to fixed flat segments and back', () => {
    const m = new Machine().protected(3);
    expect(code(m.execute('0f 34'))).toEqual(GP0);
    m.cpu.msrs.set(Msr.SYSENTER_CS, 8n);
    m.cpu.msrs.set(Msr.SYSENTER_ESP, 0x4_0000n);
    m.cpu.msrs.set(Msr.SYSENTER_EIP, 0x5_0000n);
    m.cpu.state.flags |= Flag.IF;
    expect(m.execute('0f 34')).toBeUndefined();
    expect([m.segment(Seg.CS).selector, m.segment(Seg.SS).selector, m.rsp, m.cpu.state.rip]).toEqual([
      8,
      16,
      0x4_0000n,
      0x5_0000n,
    ]);
    expect([m.cpu.state.flags & Flag.IF, m.cpu.user]).toEqual([0, false]);
    m.setGpr(RCX, 0x1111);
    m.setGpr(RDX, 0x2222);
    expect(m.execute('0f 35')).toBeUndefined();
    expect([m.segment(Seg.CS).selector, m.segment(Seg.SS).selector, m.rsp, m.cpu.state.rip]).toEqual([
      0x1b,
      0x23,
      0x1111n,
      0x2222n,
    ]);
  });

  it("are not AMD's in long mode", () => {
    for (const [vendor, expected] of [
      ['intel', undefined],
      ['amd', UD],
    ] as const) {
      const m = new Machine({ vendor }).long(3);
      m.cpu.msrs.set(Msr.SYSENTER_CS, 8n);
      expect(code(m.execute('0f 34'))).toEqual(expected);
    }
  });
});

describe('the bases of FS and GS', () => {
  it('are read and written with CR4.FSGSBASE, and exchanged by SWAPGS', () => {
    const m = new Machine().long();
    m.setGpr(RAX, 0xffff_8000_0000_0000n);
    expect(code(m.execute('f3 48 0f ae d8'))).toEqual(UD);
    m.cpu.cr4 |= CR4.FSGSBASE;
    expect(m.execute('f3 48 0f ae d8')).toBeUndefined();
    m.cpu.msrs.set(Msr.KERNEL_GS_BASE, 0x1234n);
    expect(m.execute('0f 01 f8')).toBeUndefined();
    expect([m.segment(Seg.GS).base, m.cpu.msrs.get(Msr.KERNEL_GS_BASE)]).toEqual([
      0x1234n,
      0xffff_8000_0000_0000n,
    ]);
    expect(m.execute('f3 48 0f ae cb')).toBeUndefined();
    expect(m.gpr(RBX)).toBe(0x1234n);
    m.setGpr(RAX, 1n << 47n);
    expect(code(m.execute('f3 48 0f ae d0'))).toEqual(GP0);
  });

  it('survive a null selector on AMD, not on Intel', () => {
    for (const [vendor, base] of [
      ['intel', 0n],
      ['amd', 0x5000n],
    ] as const) {
      const m = new Machine({ vendor }).long();
      m.cpu.segments[Seg.FS] = { ...m.segment(Seg.FS), base: 0x5000n };
      m.setGpr(RAX, 0);
      expect(m.execute('8e e0')).toBeUndefined();
      expect(m.segment(Seg.FS)).toMatchObject({ base, unusable: 1, selector: 0 });
    }
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
    expect(leaf(intel, 0x20)).toEqual(leaf(intel, 7));
    expect(leaf(intel, 0x8000_0100)).toEqual(leaf(intel, 7));
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

describe('I/O rights', () => {
  const refused = (m: Machine, port: number, size: number) =>
    code(m.fault(() => checkPorts(m.cpu, port, size)));

  it('come with IOPL, or else with the bitmap of the TSS', () => {
    const m = new Machine().protected(3);
    m.set16(At.tss + 102, 0x68);
    m.bytes(At.tss + 0x68, 'ff'.repeat(0x200));
    expect(refused(m, 0x80, 1)).toEqual(GP0);
    m.bytes(At.tss + 0x68 + 0x10, 'f0');
    expect(refused(m, 0x80, 4)).toBeUndefined();
    expect(refused(m, 0x81, 4)).toEqual(GP0);
    m.bytes(At.tss + 0x68 + 0x10, '7f fe');
    expect(refused(m, 0x87, 2)).toBeUndefined();
    m.cpu.tr = { ...m.cpu.tr, limit: 0x68 + 0x10 };
    expect(refused(m, 0x87, 1)).toEqual(GP0);
    m.cpu.state.flags |= Flag.IOPL;
    expect(refused(m, 0x87, 1)).toBeUndefined();
    expect(refused(new Machine().protected(), 0x87, 1)).toBeUndefined();
  });
});

describe('flags', () => {
  it('POPF changes IOPL at level 0 alone, and IF where IOPL allows it', () => {
    for (const [level, iopl, expected] of [
      [0, 0, Flag.IOPL | Flag.IF],
      [3, 0, 0],
      [3, Flag.IOPL, Flag.IOPL | Flag.IF],
    ] as const) {
      const m = new Machine().protected(level);
      m.cpu.state.flags = iopl | 2;
      m.rsp = At.stack - 4;
      m.set32(At.stack - 4, 0xffff_ffff);
      expect(m.execute('9d')).toBeUndefined();
      expect(m.cpu.state.flags & (Flag.IOPL | Flag.IF | Flag.RF | Flag.VM | Flag.VIP)).toBe(expected);
      expect(m.cpu.state.flags & (Flag.AC | Flag.ID | Flag.TF)).toBe(Flag.AC | Flag.ID | Flag.TF);
    }
  });

  it('PUSHF shows neither RF nor VM', () => {
    const m = new Machine().protected();
    m.cpu.state.flags = Flag.RF | Flag.AC | Flag.CF | 2;
    expect(m.execute('9c')).toBeUndefined();
    expect(m.u32(At.stack - 4)).toBe(Flag.AC | Flag.CF | 2);
  });

  it('CLI and STI need IOPL, or have a virtual flag with CR4.PVI; STI casts a shadow when IF was clear', () => {
    const m = new Machine().protected();
    expect(m.execute('fb')).toBeUndefined();
    expect([m.cpu.state.flags & Flag.IF, m.cpu.shadow]).toEqual([Flag.IF, 'sti']);
    m.cpu.shadow = undefined;
    m.execute('fb');
    expect(m.cpu.shadow).toBeUndefined();
    const user = new Machine().protected(3);
    expect(code(user.execute('fa'))).toEqual(GP0);
    user.cpu.cr4 |= CR4.PVI;
    expect(user.execute('fb')).toBeUndefined();
    expect(user.cpu.state.flags & (Flag.VIF | Flag.IF)).toBe(Flag.VIF);
    user.cpu.state.flags |= Flag.VIP;
    expect(code(user.execute('fb'))).toEqual(GP0);
  });

  it('STAC and CLAC are for level 0', () => {
    const m = new Machine().protected();
    expect(m.execute('0f 01 cb')).toBeUndefined();
    expect(m.cpu.state.flags & Flag.AC).toBe(Flag.AC);
    expect(m.execute('0f 01 ca')).toBeUndefined();
    expect(m.cpu.state.flags & Flag.AC).toBe(0);
    expect(code(new Machine().protected(3).execute('0f 01 ca'))).toEqual(UD);
  });
});

describe('segment registers and descriptor tables', () => {
  it.each<[string, number, [number, number] | undefined]>([
    ['null', 0, undefined],
    ['data', Gdt.DATA0, undefined],
    ['code that can be read', Gdt.CODE0, undefined],
    ['conforming code with any RPL', Gdt.CONFORMING0 | 3, undefined],
    ['code that cannot be read', Gdt.EXECUTE_ONLY, [Vector.GP, Gdt.EXECUTE_ONLY]],
    ['data with an RPL above its DPL', Gdt.DATA0 | 3, [Vector.GP, Gdt.DATA0]],
    ['a TSS', Gdt.TSS, [Vector.GP, Gdt.TSS]],
    ['what is not present', Gdt.ABSENT, [Vector.NP, Gdt.ABSENT]],
    ['what is beyond the table', 0x400, [Vector.GP, 0x400]],
  ])('DS takes %s as it should', (_name, selector, expected) => {
    const m = new Machine().protected();
    m.setGpr(RAX, selector);
    expect(code(m.execute('8e d8'))).toEqual(expected);
    expect(m.segment(Seg.DS).selector).toBe(expected === undefined ? selector : Gdt.DATA0);
  });

  it.each<[string, number, [number, number] | undefined]>([
    ['data', Gdt.DATA0, undefined],
    ['null', 0, GP0],
    ['another RPL', Gdt.DATA0 | 1, [Vector.GP, Gdt.DATA0]],
    ['another DPL', Gdt.DATA3, [Vector.GP, Gdt.DATA3]],
    ['what cannot be written', Gdt.READ_ONLY, [Vector.GP, Gdt.READ_ONLY]],
    ['code', Gdt.CODE0, [Vector.GP, Gdt.CODE0]],
    ['what is not present', Gdt.ABSENT, [Vector.SS, Gdt.ABSENT]],
  ])('SS takes %s as it should', (_name, selector, expected) => {
    const m = new Machine().protected();
    m.setGpr(RAX, selector);
    expect(code(m.execute('8e d0'))).toEqual(expected);
    expect(m.cpu.shadow).toBe(expected === undefined ? 'mov-ss' : undefined);
  });

  it('POP SS adds to the stack pointer before the stack changes, and not at all when it faults', () => {
    const m = new Machine().protected();
    m.rsp = At.stack - 4;
    m.set32(At.stack - 4, Gdt.SMALL);
    expect(m.execute('17')).toBeUndefined();
    expect([m.rsp, m.segment(Seg.SS).limit]).toEqual([BigInt(At.stack), 0xfff]);
    const bad = new Machine().protected();
    bad.rsp = At.stack - 4;
    bad.set32(At.stack - 4, 0);
    expect(code(bad.execute('17'))).toEqual(GP0);
    expect(bad.rsp).toBe(BigInt(At.stack - 4));
  });

  it('LSS loads both or nothing', () => {
    const m = new Machine().protected();
    m.setGpr(RAX, At.data);
    m.set32(At.data, 0x1234);
    m.set16(At.data + 4, Gdt.DATA3);
    expect(code(m.execute('0f b2 20'))).toEqual([Vector.GP, Gdt.DATA3]);
    expect(m.rsp).toBe(BigInt(At.stack));
    m.set16(At.data + 4, Gdt.DATA0);
    expect(m.execute('0f b2 20')).toBeUndefined();
    expect(m.rsp).toBe(0x1234n);
  });

  it('LGDT takes 24 bits of the base with an operand of 16, SGDT stores all', () => {
    const m = new Machine().protected();
    m.setGpr(RAX, At.data);
    m.set16(At.data, 0x1ff);
    m.set32(At.data + 2, 0x1234_5678);
    expect(m.execute('66 0f 01 10')).toBeUndefined();
    expect(m.cpu.gdtr).toEqual({ base: 0x34_5678n, limit: 0x1ff });
    expect(m.execute('0f 01 10')).toBeUndefined();
    expect(m.cpu.gdtr.base).toBe(0x1234_5678n);
    m.setGpr(RAX, At.data + 16);
    expect(m.execute('66 0f 01 00')).toBeUndefined();
    expect([m.u16(At.data + 16), m.u32(At.data + 18)]).toEqual([0x1ff, 0x1234_5678]);
  });

  it('LIDT refuses a base that is not canonical in 64-bit mode', () => {
    const m = new Machine().long();
    m.setGpr(RAX, At.data);
    m.set64(At.data + 2, 1n << 50n);
    expect(code(m.execute('0f 01 18'))).toEqual(GP0);
  });

  it('LTR marks the task busy, and does not take it again', () => {
    const m = new Machine().long();
    m.setGpr(RAX, Gdt.TSS);
    m.set64(At.gdt + Gdt.TSS + 8, 0xffff_8000n);
    expect(m.execute('0f 00 d8')).toBeUndefined();
    expect(m.cpu.tr).toMatchObject({
      selector: Gdt.TSS,
      base: 0xffff_8000_0000_8000n,
      limit: 0x1fff,
      type: 11,
    });
    expect(m.u8(At.gdt + Gdt.TSS + 5)).toBe(0x8b);
    expect(code(m.execute('0f 00 d8'))).toEqual([Vector.GP, Gdt.TSS]);
    m.setGpr(RAX, 0);
    expect(code(m.execute('0f 00 d8'))).toEqual(GP0);
    expect(code(new Machine().real().execute('0f 00 d8'))).toEqual(UD);
  });

  it('LLDT makes local selectors usable', () => {
    const m = new Machine().protected();
    m.set64(At.ldt + 8, m.u64(At.gdt + Gdt.DATA0));
    m.setGpr(RAX, Gdt.LDT);
    expect(m.execute('0f 00 d0')).toBeUndefined();
    m.setGpr(RAX, 0x0c);
    expect(m.execute('8e d8')).toBeUndefined();
    m.setGpr(RAX, Gdt.CODE0);
    expect(code(m.execute('0f 00 d0'))).toEqual([Vector.GP, Gdt.CODE0]);
    m.setGpr(RAX, 0);
    expect(m.execute('0f 00 d0')).toBeUndefined();
    m.setGpr(RAX, 0x0c);
    expect(code(m.execute('8e d8'))).toEqual([Vector.GP, 0x0c]);
  });

  it('LAR, LSL, VERR and VERW tell in ZF whether the program may know', () => {
    const m = new Machine().protected(3);
    const ask = (hex: string, selector: number) => {
      m.setGpr(RCX, selector);
      m.setGpr(RAX, 0x5555);
      expect(m.execute(hex)).toBeUndefined();
      return (m.cpu.state.flags & Flag.ZF) !== 0;
    };
    expect(ask('0f 02 c1', Gdt.DATA3 | 3)).toBe(true);
    expect(m.gpr(RAX)).toBe(0x00cf_f300n);
    expect(ask('0f 02 c1', Gdt.DATA0 | 3)).toBe(false);
    expect(m.gpr(RAX)).toBe(0x5555n);
    expect(ask('0f 03 c1', Gdt.CONFORMING0)).toBe(true);
    expect(m.gpr(RAX)).toBe(0xffff_ffffn);
    expect(ask('0f 03 c1', 0)).toBe(false);
    expect(ask('0f 00 e1', Gdt.DATA3 | 3)).toBe(true);
    expect(ask('0f 00 e9', Gdt.DATA3 | 3)).toBe(true);
    expect(ask('0f 00 e9', Gdt.CODE3 | 3)).toBe(false);
    expect(ask('0f 00 e1', Gdt.DATA0)).toBe(false);
    expect(code(new Machine().real().execute('0f 02 c1'))).toEqual(UD);
  });

  it('ARPL raises the RPL of its first operand', () => {
    const m = new Machine().protected();
    m.setGpr(RAX, 0xabcd_1230n);
    m.setGpr(RCX, 2);
    expect(m.execute('63 c8')).toBeUndefined();
    expect([m.gpr(RAX), m.cpu.state.flags & Flag.ZF]).toEqual([0xabcd_1232n, Flag.ZF]);
    expect(m.execute('63 c8')).toBeUndefined();
    expect(m.cpu.state.flags & Flag.ZF).toBe(0);
  });
});

describe('translations and waiting', () => {
  it('INVPCID checks its type, its descriptor and its address', () => {
    const m = new Machine().long();
    const invpcid = (type: number, low: bigint, high: bigint) => {
      m.setGpr(RAX, type);
      m.setGpr(RCX, At.data);
      m.set64(At.data, low);
      m.set64(At.data + 8, high);
      return code(m.execute('66 0f 38 82 01'));
    };
    expect(invpcid(2, 0n, 0n)).toBeUndefined();
    expect(invpcid(4, 0n, 0n)).toEqual(GP0);
    expect(invpcid(2, 1n << 12n, 0n)).toEqual(GP0);
    expect(invpcid(0, 0n, 1n << 47n)).toEqual(GP0);
    expect(invpcid(1, 5n, 0n)).toEqual(GP0);
    m.cpu.cr4 |= CR4.PCIDE;
    expect(invpcid(1, 5n, 0n)).toBeUndefined();
  });

  it('CLFLUSH faults as a read does; MONITOR and MWAIT do nothing at level 0; RDPMC has no counters', () => {
    const m = new Machine().long();
    m.setGpr(RAX, 0x4000_0000);
    expect(m.execute('0f ae 38')).toMatchObject({ vector: Vector.PF, errorCode: 0, address: 0x4000_0000n });
    m.setGpr(RAX, At.data);
    for (const hex of ['0f ae 38', '0f 01 c8', '0f 01 c9', '0f 09', '0f 08'])
      expect(m.execute(hex), hex).toBeUndefined();
    expect(code(m.execute('0f 33'))).toEqual(GP0);
    expect(code(new Machine().long(3).execute('0f 01 c8'))).toEqual(UD);
  });

  it('HLT halts', () => {
    const m = new Machine().protected();
    expect(m.execute('f4')).toBeUndefined();
    expect([m.cpu.halted, m.cpu.state.rip]).toEqual([true, BigInt(At.code + 1)]);
  });
});

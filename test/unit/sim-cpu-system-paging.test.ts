import { describe, expect, it } from 'vitest';
import { pdptesAreValid, walked } from '../../src/sim/cpu/address/paging.ts';
import { GuestFault, Vector } from '../../src/sim/cpu/processor/fault.ts';
import { halves } from '../../src/sim/cpu/processor/halves.ts';
import { CR0, CR4, EFER } from '../../src/sim/cpu/processor/mode.ts';
import { Access } from '../../src/sim/cpu/processor/stage.ts';
import { Flag } from '../../src/sim/cpu/processor/state.ts';
import { At, Machine, MEMORY, type Options } from './sim-cpu-system.ts';

const { READ, WRITE, FETCH } = Access;
type Kind = 'user' | 'supervisor' | 'implicit';

const look = (m: Machine, linear: bigint, access: Access = READ, kind: Kind = 'supervisor') =>
  walked(m.cpu, ...halves(linear), access, kind === 'user', kind === 'implicit');
/** The error code of the #PF. */
function refused(
  m: Machine,
  linear: bigint,
  access: Access = READ,
  kind: Kind = 'supervisor',
): number | undefined {
  const fault = m.fault(() => look(m, linear, access, kind));
  if (fault === undefined) return undefined;
  expect([fault.vector, fault.address]).toEqual([Vector.PF, linear]);
  return fault.errorCode;
}

const PT = 0x4000;
/** 64-bit mode, with the first 2 MiB in 4 KiB pages whose entries a test writes. */
function small(options?: Options): Machine {
  const m = new Machine(options).long();
  m.set64(At.pd, BigInt(PT) | 7n);
  return m;
}
const page = (m: Machine, number: number, flags: bigint, address = 0x5000n) =>
  m.set64(PT + 8 * number, address | flags);

const NX = 1n << 63n;

describe('4-level paging', () => {
  it('maps pages of 4 KiB, 2 MiB and 1 GiB', () => {
    const m = small();
    page(m, 3, 7n);
    expect(look(m, 0x3abcn).physical).toBe(0x5000);
    m.set64(At.pd + 8, 0x123_4000_0000n | 0x87n);
    expect(look(m, 0x2f_e123n).physical).toBe(0x123_400f_e000);
    m.set64(At.pdpt + 8, 0x4000_0000n | 0x87n);
    expect(look(m, 0x7abc_d123n).physical).toBe(0x7abc_d000);
  });

  it('finds its way by all 48 bits of the address', () => {
    const m = new Machine().long();
    m.set64(At.pml4 + 8 * 0x1ff, BigInt(At.pdpt) | 3n);
    m.set64(At.pdpt + 8 * 0x1aa, BigInt(At.pd) | 3n);
    m.set64(At.pd + 8 * 0x155, BigInt(PT) | 3n);
    m.set64(PT + 8 * 0x0cc, 0xa_b000n | 3n);
    const linear =
      (0xffffn << 48n) | (0x1ffn << 39n) | (0x1aan << 30n) | (0x155n << 21n) | (0xccn << 12n) | 0x123n;
    expect(look(m, linear).physical).toBe(0xa_b000);
  });

  it('raises a page fault whose code tells what was tried and whether a page is there', () => {
    const m = small();
    page(m, 1, 0n);
    expect(refused(m, 0x1000n)).toBe(0);
    expect(refused(m, 0x1000n, WRITE)).toBe(2);
    expect(refused(m, 0x1000n, READ, 'user')).toBe(4);
    expect(refused(m, 0x1000n, FETCH, 'user')).toBe(0x14);
    page(m, 2, 3n); // the supervisor's
    expect(refused(m, 0x2000n, READ, 'user')).toBe(5);
    expect(refused(m, 0x2000n, WRITE)).toBeUndefined();
    page(m, 3, 5n); // read-only
    expect(refused(m, 0x3000n, WRITE, 'user')).toBe(7);
    expect(refused(m, 0x3000n, WRITE)).toBe(3);
    m.cpu.cr0 &= ~CR0.WP;
    expect(refused(m, 0x3000n, WRITE)).toBeUndefined();
    expect(refused(m, 0x3000n, WRITE, 'user')).toBe(7);
    page(m, 4, 7n | NX);
    expect(refused(m, 0x4000n, FETCH)).toBe(0x11);
    expect(refused(m, 0x4000n, FETCH, 'user')).toBe(0x15);
    expect(refused(m, 0x4000n)).toBeUndefined();
  });

  it('takes the rights of all levels together', () => {
    const m = small();
    page(m, 1, 7n);
    m.set64(At.pml4, BigInt(At.pdpt) | 3n);
    expect(refused(m, 0x1000n, READ, 'user')).toBe(5);
    m.set64(At.pml4, BigInt(At.pdpt) | 5n);
    expect(refused(m, 0x1000n, WRITE)).toBe(3);
    m.set64(At.pml4, BigInt(At.pdpt) | 7n | NX);
    expect(refused(m, 0x1000n, FETCH)).toBe(0x11);
  });

  it('holds NX reserved while EFER.NXE is clear, and reports no fetch then', () => {
    const m = small();
    page(m, 1, 7n | NX);
    m.cpu.efer &= ~EFER.NXE;
    expect(refused(m, 0x1000n)).toBe(9);
    expect(refused(m, 0x1000n, FETCH)).toBe(9);
  });

  it('holds address bits above MAXPHYADDR and low bits of large pages reserved', () => {
    const m = small();
    page(m, 1, 7n | (1n << 46n));
    expect(refused(m, 0x1000n)).toBe(9);
    page(m, 2, 7n | (1n << 52n)); // ignored
    expect(refused(m, 0x2000n)).toBeUndefined();
    m.set64(At.pd + 8, 0x2000n | 0x87n);
    expect(refused(m, 0x20_0000n)).toBe(9);
    m.set64(At.pd + 8, 0x1000n | 0x87n); // PAT
    expect(refused(m, 0x20_0000n)).toBeUndefined();
    m.set64(At.pml4, BigInt(At.pdpt) | 0x87n);
    expect(refused(m, 0x1000n)).toBe(9);
  });

  it('prevents the supervisor from executing and from touching pages of the user (SMEP, SMAP)', () => {
    const m = small();
    page(m, 1, 7n);
    page(m, 2, 3n);
    m.cpu.cr4 |= CR4.SMEP | CR4.SMAP;
    expect(refused(m, 0x1000n, FETCH)).toBe(0x11);
    expect(refused(m, 0x2000n, FETCH)).toBeUndefined();
    expect(refused(m, 0x1000n, READ)).toBe(1);
    expect(refused(m, 0x1000n, WRITE)).toBe(3);
    m.cpu.state.flags |= Flag.AC;
    expect(refused(m, 0x1000n, WRITE)).toBeUndefined();
    expect(refused(m, 0x1000n, READ, 'implicit')).toBe(1);
    expect(refused(m, 0x1000n, FETCH)).toBe(0x11);
    expect(refused(m, 0x1000n, WRITE, 'user')).toBeUndefined();
  });

  it('asks RFLAGS.AC and who accesses it anew for a page of the user that the supervisor has touched before (SMAP)', () => {
    const m = small();
    page(m, 1, 7n);
    m.cpu.cr4 |= CR4.SMAP;
    const { memory, state } = m.cpu;
    state.flags |= Flag.AC;
    memory.write32(0x1000n, 7);
    expect(memory.read32(0x1000n)).toBe(7);
    expect(() => memory.readSystem32(0x1000n)).toThrow(GuestFault);
    state.flags &= ~Flag.AC;
    expect(() => memory.read32(0x1000n)).toThrow(GuestFault);
    expect(() => memory.write32(0x1000n, 8)).toThrow(GuestFault);
  });

  it('sets the accessed flags of all levels and the dirty flag of the page, and none for what is refused', () => {
    const m = small();
    page(m, 1, 5n);
    expect(refused(m, 0x1000n, WRITE)).toBe(3);
    expect(m.u64(PT + 8)).toBe(0x5005n);
    const read = look(m, 0x1000n);
    expect([m.u64(At.pml4), m.u64(At.pdpt), m.u64(At.pd)].map((entry) => entry & 0x60n)).toEqual([
      0x20n,
      0x20n,
      0x20n,
    ]);
    expect(m.u64(PT + 8)).toBe(0x5025n);
    expect(read.writable).toBe(false);
    page(m, 2, 7n);
    expect(look(m, 0x2000n).writable).toBe(false); // not dirty: a write has to walk again
    expect(look(m, 0x2000n, WRITE).writable).toBe(true);
    expect(m.u64(PT + 16)).toBe(0x5067n);
    expect(look(m, 0x2000n).writable).toBe(true);
  });

  it('leaves tables in read-only memory as they are, and finds none where no memory is', () => {
    const m = small();
    page(m, 1, 7n);
    m.readOnly.add(PT);
    expect(look(m, 0x1000n, WRITE).physical).toBe(0x5000);
    expect(m.u64(PT + 8)).toBe(0x5007n);
    m.set64(At.pd, BigInt(MEMORY) | 7n);
    expect(refused(m, 0x1000n)).toBe(0);
  });

  it('tells global pages only with CR4.PGE', () => {
    const m = small();
    page(m, 1, 0x107n);
    expect(look(m, 0x1000n).global).toBe(false);
    m.cpu.cr4 |= CR4.PGE;
    expect(look(m, 0x1000n).global).toBe(true);
  });
});

describe('32-bit paging', () => {
  const PD = 0x3000;
  function legacy(cr4: number = CR4.PSE): Machine {
    const m = new Machine().protected();
    m.cpu.cr3 = BigInt(PD);
    m.cpu.cr4 = cr4;
    m.cpu.cr0 = (m.cpu.cr0 | CR0.PG | CR0.WP) >>> 0;
    m.cpu.changed();
    m.set32(PD + 4 * 0x200, PT | 7);
    m.set32(PT + 4 * 3, 0x5007);
    return m;
  }

  it('is not in the way while CR0.PG is clear', () => {
    const m = new Machine().protected();
    expect(look(m, 0x1234_5678n, WRITE)).toMatchObject({ physical: 0x1234_5000, writable: true });
  });

  it('maps pages of 4 KiB through two levels, and of 4 MiB', () => {
    const m = legacy();
    expect(look(m, 0x8000_3abcn).physical).toBe(0x5000);
    expect(refused(m, 0x8000_4000n, WRITE, 'user')).toBe(6);
    m.set32(PD + 4, 0x0040_0087);
    expect(look(m, 0x40_1fffn).physical).toBe(0x40_1000);
    expect(m.u32(PD + 4)).toBe(0x0040_00a7);
  });

  it('puts 4 MiB pages above 4 GiB by PSE-36, with bit 21 reserved', () => {
    const m = legacy();
    m.set32(PD + 4, 0x0040_0087 | (0xab << 13));
    expect(look(m, 0x41_2345n).physical).toBe(0xab_0041_2000);
    m.set32(PD + 4, 0x0060_0087);
    expect(refused(m, 0x40_0000n)).toBe(9);
  });

  it('ignores PS without CR4.PSE', () => {
    const m = legacy(0);
    m.set32(PD + 4 * 0x200, PT | 0x87);
    expect(look(m, 0x8000_3000n).physical).toBe(0x5000);
  });

  it('reports a fetch with SMEP alone, having no NX', () => {
    const m = legacy();
    expect(refused(m, 0x1000n, FETCH)).toBe(0);
    m.cpu.cr4 |= CR4.SMEP;
    expect(refused(m, 0x1000n, FETCH)).toBe(0x10);
  });
});

describe('PAE paging', () => {
  function pae(): Machine {
    const m = new Machine().protected();
    m.cpu.cr3 = 0x2020n;
    m.cpu.cr4 = CR4.PAE;
    m.cpu.efer = EFER.NXE;
    m.cpu.cr0 = (m.cpu.cr0 | CR0.PG | CR0.WP) >>> 0;
    m.cpu.changed();
    m.set64(0x2020 + 8 * 3, BigInt(At.pd) | 1n);
    m.set64(At.pd + 8, BigInt(PT) | 7n);
    m.set64(PT + 8 * 5, 0x5000n | 7n);
    return m;
  }

  it('maps 4 KiB and 2 MiB through tables that CR3 places on 32 bytes', () => {
    const m = pae();
    expect(look(m, 0xc020_5123n).physical).toBe(0x5000);
    m.set64(At.pd + 16, 0x12_3400_0000n | 0x87n);
    expect(look(m, 0xc045_6789n).physical).toBe(0x12_3405_6000);
    expect(refused(m, 0x1000n)).toBe(0);
    expect(m.u64(0x2020 + 24)).toBe(BigInt(At.pd) | 1n); // no accessed flag
  });

  it('holds bits 62:52 reserved, which 4-level paging ignores', () => {
    const m = pae();
    m.set64(PT + 8 * 5, 0x5000n | 7n | (1n << 52n));
    expect(refused(m, 0xc020_5000n)).toBe(9);
  });

  it('does not load page-directory pointers with reserved bits', () => {
    const m = pae();
    expect(pdptesAreValid(m.cpu, m.cpu.cr3)).toBe(true);
    m.set64(0x2020, BigInt(At.pd) | 3n);
    expect(pdptesAreValid(m.cpu, m.cpu.cr3)).toBe(false);
    m.set64(0x2020, BigInt(At.pd) | 2n); // not present: not looked at
    expect(pdptesAreValid(m.cpu, m.cpu.cr3)).toBe(true);
  });
});

describe('guests that choose', () => {
  const C = 1n << 51n;
  const snp = { vendor: 'amd', choice: { bit: 51, set: 'private' } } as const;
  const tdx = { vendor: 'intel', choice: { bit: 47, set: 'shared' } } as const;

  it('says private by the C-bit for data, and always for fetches and for the tables themselves', () => {
    const m = small(snp);
    page(m, 1, 7n | C);
    page(m, 2, 7n);
    m.asked.length = 0;
    expect(look(m, 0x1000n)).toMatchObject({ physical: 0x5000, wants: true });
    expect(look(m, 0x2000n)).toMatchObject({ physical: 0x5000, wants: false });
    expect(look(m, 0x2000n, FETCH)).toMatchObject({ physical: 0x5000, wants: true });
    expect(m.asked.every(([, , wants]) => wants === true)).toBe(true);
    expect(m.asked.length).toBeGreaterThan(8);
  });

  it('finds tables with the C-bit in CR3 and in every entry', () => {
    const m = small(snp);
    m.cpu.cr3 |= C;
    m.set64(At.pml4, BigInt(At.pdpt) | 7n | C);
    m.set64(At.pdpt, BigInt(At.pd) | 7n | C);
    m.set64(At.pd, BigInt(PT) | 7n | C);
    page(m, 1, 7n | C);
    expect(look(m, 0x1000n)).toMatchObject({ physical: 0x5000, wants: true });
  });

  it('says shared by the shared bit, and faults on fetches from shared memory', () => {
    const m = small(tdx);
    page(m, 1, 7n | (1n << 47n));
    page(m, 2, 7n);
    expect(look(m, 0x1000n)).toMatchObject({ physical: 0x5000, wants: false });
    expect(look(m, 0x2000n)).toMatchObject({ physical: 0x5000, wants: true });
    expect(refused(m, 0x1000n, FETCH)).toBe(0x19);
    m.set64(At.pd, BigInt(PT) | 7n | (1n << 47n));
    expect(refused(m, 0x2000n)).toBe(9);
  });

  it('is private without paging', () => {
    expect(look(new Machine(snp).protected(), 0x1000n).wants).toBe(true);
    expect(look(new Machine().protected(), 0x1000n).wants).toBeUndefined();
  });
});

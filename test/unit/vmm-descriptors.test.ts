import { afterAll, describe, expect, it } from 'vitest';
import {
  descriptor,
  enterProtectedMode,
  enterRealMode,
  enterUserMode,
  Machine,
  openHypervisor,
  PageTables,
  placeGdt,
  placeIdt,
  placeTss,
} from '../../src/index.ts';

const MIB = 2 ** 20;
const hv = openHypervisor({ backend: 'sim' });
const machine = new Machine(hv, { memory: MIB });
const { memory, vcpu } = machine;
afterAll(() => {
  machine.close();
  hv.close();
});
const words = (at: number, count: number): bigint[] => [
  ...new BigUint64Array(memory.read(at, 8 * count).buffer),
];

describe('tables of descriptors', () => {
  // As Linux has them: arch/x86/include/asm/desc_defs.h, DESC_CODE64 and the like, accessed.
  it('have each kind of segment as the processor reads it', () => {
    const { table, segments } = placeGdt(
      { memory, address: 0x1000 },
      {
        code64: descriptor.code({ bits: 64 }),
        code32: descriptor.code({ bits: 32 }),
        code16: descriptor.code({ bits: 16, base: 0xf_0000, limit: 0xffff }),
        data: descriptor.data(),
        user: descriptor.data({ dpl: 3 }),
        down: descriptor.data({ expandDown: true, writable: false, limit: 0x7fff }),
        tss: descriptor.tss({ base: 0xffff_8000_1234_5678n }),
        ldt: descriptor.ldt({ base: 0x4000, limit: 0x17 }),
      },
    );
    expect(words(0x1000, 11)).toEqual([
      0n,
      0x00af_9b00_0000_ffffn,
      0x00cf_9b00_0000_ffffn,
      0x0000_9b0f_0000_ffffn,
      0x00cf_9300_0000_ffffn,
      0x00cf_f300_0000_ffffn,
      0x0040_9500_0000_7fffn,
      0x1200_8934_5678_0067n,
      0xffff_8000n,
      0x0000_8200_4000_0017n,
      0n,
    ]);
    expect(table).toEqual({ base: 0x1000n, limit: 11 * 8 - 1 });
    expect(Object.values(segments).map(({ selector }) => selector)).toEqual([
      8, 0x10, 0x18, 0x20, 0x2b, 0x30, 0x38, 0x48,
    ]);
    expect(segments.tss.type).toBe(0xb);
  });

  it('have gates of each size, and none for what is not given', () => {
    const gates = {
      3: { offset: 0xffff_8000_8765_4321n, selector: 8, dpl: 3, ist: 2, kind: 'trap' },
    } as const;
    const table = placeIdt({ memory, address: 0x2000, linear: -0x1000n }, 64, gates);
    expect(table).toEqual({ base: 0xffff_ffff_ffff_f000n, limit: 0xfff });
    expect(words(0x2000 + 48, 2)).toEqual([0x8765_ef02_0008_4321n, 0xffff_8000n]);
    expect(memory.read(0x2000, 0x1000).filter((byte) => byte !== 0)).toHaveLength(10);
    expect(placeIdt({ memory, address: 0x2000 }, 16, { 1: { offset: 0x1234, selector: 8 } }).limit).toBe(
      0x7ff,
    );
    expect(words(0x2008, 1)).toEqual([0x0000_8600_0008_1234n]);
  });

  it('lie where memory that does not begin at 0 has them', () => {
    const place = { memory, address: 0x10_1000, base: 0x10_0000 };
    expect(placeGdt(place, { code: descriptor.code({ bits: 32 }) }).table.base).toBe(0x10_1000n);
    expect(words(0x1008, 1)).toEqual([0x00cf_9b00_0000_ffffn]);
  });
});

describe('page tables', () => {
  it('have large pages, and tables for small ones beside them', () => {
    const tables = new PageTables(memory, { at: 0x1_0000 });
    tables.map({ linear: 0, size: 2 ** 22, pageSize: 2 ** 21 });
    tables.map({
      linear: 2 ** 30,
      physical: 0x5000,
      size: 0x2000,
      user: true,
      writable: false,
      noExecute: true,
    });
    expect(tables.root).toBe(0x1_0000n);
    expect(tables.count).toBe(5);
    expect(words(0x1_2000, 3)).toEqual([0x83n, 0x20_0083n, 0n]);
    expect(words(0x1_4000, 3)).toEqual([0x8000_0000_0000_5005n, 0x8000_0000_0000_6005n, 0n]);
    expect(tables.entryOf(2 ** 30 + 0x1000)).toBe(0x1_4008);
    expect(tables.entryOf(2 ** 21)).toBe(0x1_2008);
    expect(tables.entryOf(-1n)).toBe(0x1_0ff8);
  });
});

const place = { memory, address: 0 };
const tables = () => new PageTables(memory, { at: 0x1_0000, size: 0x4000 });
const gate = { offset: 0, selector: 8 };
const data = descriptor.data();
const bad: readonly [what: string, call: () => unknown, says: RegExp][] = [
  [
    'a size of code that there is not',
    () => descriptor.code({ bits: 8 as 16 }),
    /code\.bits is 8.*16, 32, 64/,
  ],
  ['code without options', () => descriptor.code(undefined as never), /options is undefined/],
  ['a privilege that there is not', () => descriptor.data({ dpl: 4 }), /data\.dpl is 4/],
  [
    'a limit that no descriptor can have',
    () => descriptor.data({ limit: 2 ** 20 }),
    /data\.limit is .*4096 less 1/,
  ],
  ['a base that is no number', () => descriptor.data({ base: '0' as never }), /data\.base is "0"/],
  [
    'a table beyond the memory',
    () => placeGdt({ memory, address: MIB - 8 }, { a: descriptor.data() }),
    /address is/,
  ],
  ['a vector that there is not', () => placeIdt(place, 64, { 256: gate }), /vector is 256/],
  ['a vector with a name', () => placeIdt(place, 64, { pf: gate } as never), /vector is NaN/],
  [
    'an offset of too many bits',
    () => placeIdt(place, 32, { 1: { ...gate, offset: 2 ** 32 } }),
    /offset is .*32 bits/,
  ],
  ['an IST in 32 bits', () => placeIdt(place, 32, { 1: { ...gate, ist: 1 } }), /gates\[1\]\.ist is 1/],
  [
    'a kind of gate that there is not',
    () => placeIdt(place, 64, { 1: { ...gate, kind: 'call' as 'trap' } }),
    /kind/,
  ],
  ['a stack of too many bits', () => placeTss(place, { bits: 32, stack: 2 ** 32 }), /stack is/],
  ['eight ISTs', () => placeTss(place, { stack: 0, ist: Array(8).fill(0) }), /ist is/],
  [
    'tables that are not page-aligned',
    () => new PageTables(memory, { at: 0x100 }),
    /at is 256.*multiple of 4096/,
  ],
  ['tables beyond the memory', () => new PageTables(memory, { at: MIB }), /at is/],
  [
    'a page of another size',
    () => tables().map({ linear: 0, pageSize: 8192 }),
    /pageSize is .*4096, 2097152/,
  ],
  ['an address that is not canonical', () => tables().map({ linear: 2n ** 47n }), /linear is .*canonical/],
  ['half a page', () => tables().map({ linear: 0, size: 0x1800 }), /size is 0x1800.*multiple of 4096/],
  ['a page that is not aligned', () => tables().map({ linear: 0, physical: 1 }), /physical is 1/],
  [
    'more tables than there is room for',
    () => tables().map({ linear: 0, size: 2 ** 22 }),
    /size is 0x4000; it must be more: 4 tables fill it/,
  ],
  [
    'a small page in a large one',
    () => {
      const some = tables();
      some.map({ linear: 0, pageSize: 2 ** 21 });
      some.map({ linear: 0x1000 });
    },
    /where no page of 2097152 bytes is mapped/,
  ],
  [
    'pages beyond the lower half of the address space',
    () => tables().map({ linear: 2n ** 47n - 4096n, size: 0x2000 }),
    /size is 0x2000/,
  ],
  [
    'pages beyond the last address',
    () => tables().map({ linear: 2n ** 64n - 4096n, physical: 0, size: 0x2000 }),
    /size is 0x2000/,
  ],
  [
    'a field that a descriptor has no room for',
    () => placeGdt(place, { a: { ...data, type: 16 } }),
    /a\.type is 16/,
  ],
  ['a GDT beyond the memory', () => enterProtectedMode(vcpu, memory, { tables: MIB }), /tables is/],
  [
    'segments of privilege 0 for privilege 3',
    () => enterUserMode(vcpu, { code: descriptor.code({ bits: 64 }), data: descriptor.data({ dpl: 3 }) }),
    /code\.dpl is 0; it must be 3/,
  ],
];
it.each(bad)('refuses %s, with an error that says so', (_what, call, says) => {
  expect(call).toThrow(
    expect.objectContaining({ code: 'ERR_KVM_INVALID_ARG', message: expect.stringMatching(says) }),
  );
});

// biome-ignore lint/suspicious/noExplicitAny: wrong on purpose.
const wrongCalls: readonly (readonly [what: string, call: (wrong: any) => unknown])[] = [
  ['place', (wrong) => placeGdt(wrong, {})],
  ['memory of a place', (wrong) => placeIdt({ ...place, memory: wrong }, 64, {})],
  ['memory of tables', (wrong) => new PageTables(wrong, { at: 0 })],
  ['memory of a mode', (wrong) => enterProtectedMode(vcpu, wrong, { tables: 0 })],
  ['segment', (wrong) => placeGdt(place, { wrong })],
  ['code segment', (wrong) => enterUserMode(vcpu, { code: wrong, data })],
  ['vCPU', (wrong) => enterProtectedMode(wrong, memory, { tables: 0 })],
  ['vCPU to put in real mode', (wrong) => enterRealMode(wrong)],
];
it.each(wrongCalls)('refuses what is no %s', (_what, call) => {
  for (const wrong of [undefined, null, 8, {}])
    expect(() => call(wrong), String(wrong)).toThrow(
      expect.objectContaining({ code: 'ERR_KVM_INVALID_ARG' }),
    );
});

it('writes no table whose linear address it refuses', () => {
  const before = memory.read(place.address, 64);
  for (const write of [
    (at: typeof place & { linear: number }) => placeGdt(at, { data }),
    (at: typeof place & { linear: number }) => placeIdt(at, 32, { 0: { offset: 0x1234, selector: 8 } }),
    (at: typeof place & { linear: number }) => placeTss(at, { stack: 0x1234 }),
  ]) {
    expect(() => write({ ...place, linear: 1.5 })).toThrow(/linear is 1\.5/);
    expect(memory.read(place.address, 64)).toEqual(before);
  }
});

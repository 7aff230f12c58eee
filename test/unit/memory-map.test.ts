/** The record of a VM's memory, against a model that keeps one value a page. */
import { describe, expect, it } from 'vitest';
import { MemoryMap, RangeMap, type Slot } from '../../src/hypervisor/index.ts';

/** A small seeded generator (mulberry32): a failure names its seed. */
function random(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

describe('RangeMap', () => {
  it.each([1, 2, 3, 4, 5])('answers as one value a page does, after 500 random changes (seed %i)', (seed) => {
    const next = random(seed);
    const pages = 40;
    const model = new Array<number>(pages).fill(0);
    const map = new RangeMap<number>(0);
    for (let i = 0; i < 500; i++) {
      const start = next(pages);
      const end = start + next(pages - start + 1);
      const value = next(3);
      map.set(start, end, value);
      model.fill(value, start, end);

      expect(Array.from({ length: pages }, (_, page) => map.at(page))).toEqual(model);
      const ranges = [...map.within(0, pages)];
      expect(ranges.flatMap((r) => new Array<number>(r.end - r.start).fill(r.value))).toEqual(model);
      // Merged: neighbours differ, so the map does not grow with what was done to it.
      for (const [at, range] of ranges.entries()) expect(range.value).not.toBe(ranges[at + 1]?.value);

      const from = next(pages);
      const to = from + 1 + next(pages - from);
      for (const wanted of [0, 1, 2]) {
        expect(map.is(from, to, wanted)).toBe(model.slice(from, to).every((page) => page === wanted));
      }
    }
  });

  it('covers all addresses', () => {
    const map = new RangeMap('shared');
    map.set(2 ** 40, 2 ** 52, 'private');
    expect([...map.within(0, 2 ** 53)]).toEqual([
      { start: 0, end: 2 ** 40, value: 'shared' },
      { start: 2 ** 40, end: 2 ** 52, value: 'private' },
      { start: 2 ** 52, end: 2 ** 53, value: 'shared' },
    ]);
  });
});

describe('MemoryMap', () => {
  const slot = (number: number, start: number, end: number, addressSpace = 0): Slot => ({
    slot: number,
    addressSpace,
    flags: 0,
    start,
    end,
    memory: undefined,
    memoryOffset: 0,
    guestMemfd: undefined,
    guestMemfdOffset: 0,
    userfaultBitmap: undefined,
  });

  it('finds the slot of an address, and none in a hole', () => {
    const map = new MemoryMap();
    map.recordSlot(slot(1, 0x8000, 0xa000));
    map.recordSlot(slot(0, 0x1000, 0x3000));
    expect([0xfff, 0x1000, 0x2fff, 0x3000, 0x8000, 0x9fff, 0xa000].map((at) => map.slotAt(at)?.slot)).toEqual(
      [undefined, 0, 0, undefined, 1, 1, undefined],
    );
    expect(map.end).toBe(0xa000);
  });

  it('cuts a range at the borders of slots, holes included', () => {
    const map = new MemoryMap();
    map.recordSlot(slot(0, 0x1000, 0x3000));
    map.recordSlot(slot(1, 0x3000, 0x4000));
    map.recordSlot(slot(2, 0x8000, 0xa000));
    const pieces = [...map.pieces(0, 0x9000)].map(({ start, end, slot }) => [start, end, slot?.slot]);
    expect(pieces).toEqual([
      [0, 0x1000, undefined],
      [0x1000, 0x3000, 0],
      [0x3000, 0x4000, 1],
      [0x4000, 0x8000, undefined],
      [0x8000, 0x9000, 2],
    ]);
  });

  it('forgets a slot that is deleted and moves one that is moved', () => {
    const map = new MemoryMap();
    map.recordSlot(slot(0, 0x1000, 0x3000));
    map.recordSlot(slot(0, 0x5000, 0x7000));
    expect(map.slotAt(0x1000)).toBeUndefined();
    expect(map.slotAt(0x5000)?.slot).toBe(0);
    map.recordSlot(slot(0, 0, 0));
    expect(map.slots).toEqual([]);
  });

  it('keeps the slots of SMM apart', () => {
    const map = new MemoryMap();
    map.recordSlot(slot(0, 0x1000, 0x3000, 1));
    expect(map.slotAt(0x1000)).toBeUndefined();
    expect(map.slotById(0, 1)?.start).toBe(0x1000);
    map.recordSlot(slot(0, 0, 0, 1));
    expect(map.slotById(0, 1)).toBeUndefined();
  });
});

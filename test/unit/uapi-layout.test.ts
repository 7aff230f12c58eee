import { describe, expect, it } from 'vitest';
import {
  array,
  bytes,
  i16,
  i32,
  i64,
  over,
  size64,
  struct,
  u8,
  u16,
  u32,
  u64,
  union,
  viewOf,
} from '../../src/uapi/index.ts';

const fresh = () => new DataView(new ArrayBuffer(16));

describe('a struct', () => {
  const mixed = struct('mixed', { a: u8, b: u32, c: u16, d: u64, e: u8 });

  it('puts every field at a multiple of its alignment and pads to the widest', () => {
    const offsets = Object.values(mixed.fields).map((field) => field.offset);
    expect(offsets).toEqual([0, 4, 8, 16, 24]);
    expect([mixed.size, mixed.align]).toEqual([32, 8]);
  });

  it('encodes little-endian into zeroed bytes and decodes what it encoded', () => {
    const value = { a: 1, b: 0x01020304, c: 0xffff, d: 0x8877665544332211n, e: 7 };
    const data = mixed.encode(value);
    expect([...data.subarray(0, 10)]).toEqual([1, 0, 0, 0, 4, 3, 2, 1, 0xff, 0xff]);
    expect(mixed.decode(data)).toEqual(value);
    expect(mixed.encode({}).every((byte) => byte === 0)).toBe(true);
  });

  it('decodes bytes that lie in the middle of a buffer', () => {
    const data = new Uint8Array(64);
    data.set(mixed.encode({ b: 9 }), 24);
    expect(mixed.decode(data.subarray(24, 24 + mixed.size)).b).toBe(9);
  });

  it('nests, and writes the inner fields that are given', () => {
    const outer = struct('outer', { head: u8, inner: mixed, list: array(mixed, 2) });
    expect(outer.fields.inner.offset).toBe(8);
    const decoded = outer.decode(outer.encode({ inner: { c: 5 }, list: [{ a: 1 }, { a: 2 }] }));
    expect(decoded.inner.c).toBe(5);
    expect(decoded.list.map((element) => element.a)).toEqual([1, 2]);
  });

  it('lets fields share bytes, as in a nameless union', () => {
    const level = struct('level', { irq: u32, status: over('irq', i32), level: u32 });
    expect(level.size).toBe(8);
    expect(level.decode(level.encode({ irq: 0xffff_ffff }))).toEqual({
      irq: 0xffff_ffff,
      status: -1,
      level: 0,
    });
  });

  it('grows to hold the widest of the fields that share bytes', () => {
    expect(struct('event', { type: u32, flags: u64, data: over('flags', array(u64, 4)) }).size).toBe(40);
  });

  it('has all arms of a union at offset 0', () => {
    const either = union('either', { small: u16, large: array(u64, 2) });
    expect([either.size, either.fields.small.offset, either.fields.large.offset]).toEqual([16, 0, 0]);
  });
});

describe('a value that does not fit', () => {
  const target = struct('target', { small: u8, wide: u64, size: size64, raw: bytes(2), list: array(u16, 2) });
  const encode = (value: object) => () => target.encode(value);

  it.each([
    [{ small: 256 }, 'target.small: 256 is not an integer from 0 to 255'],
    [{ small: -1 }, 'target.small: -1'],
    [{ small: 1.5 }, 'target.small: 1.5'],
    [{ small: Number.NaN }, 'target.small: NaN'],
    [{ small: '7' }, 'target.small: 7 is not an integer'],
    [{ wide: 1n << 64n }, 'target.wide: 18446744073709551616 does not fit in 64 bits'],
    [{ wide: 0.5 }, 'target.wide'],
    [{ size: 2 ** 53 }, 'target.size: 9007199254740992'],
    [{ size: -1 }, 'target.size: -1'],
    [{ raw: new Uint8Array(3) }, 'target.raw: 3 bytes in a field of 2'],
    [{ list: [1, 2, 3] }, 'target.list: 3 elements in an array of 2'],
    [{ list: [1, 65536] }, 'target.list: 65536'],
  ])('%o is a RangeError that names the field', (value, message) => {
    expect(encode(value)).toThrow(RangeError);
    expect(encode(value)).toThrow(message);
  });

  it('of the wrong type is a TypeError that names the field', () => {
    expect(encode({ wide: Symbol('x') })).toThrow(TypeError);
    expect(encode({ list: null })).toThrow('target.list');
  });

  it('under a name that the struct does not have is a TypeError that lists the fields', () => {
    expect(encode({ smal: 1 })).toThrow(
      'target has no field smal; its fields are small, wide, size, raw, list',
    );
    expect(encode({ toString: 1 })).toThrow(TypeError);
  });
});

describe('the integer types', () => {
  it('take every value of their width and give it back', () => {
    const view = fresh();
    for (const [type, low, high] of [
      [u8, 0, 0xff],
      [u16, 0, 0xffff],
      [i16, -0x8000, 0x7fff],
      [u32, 0, 0xffff_ffff],
      [i32, -0x8000_0000, 0x7fff_ffff],
      [size64, 0, Number.MAX_SAFE_INTEGER],
    ] as const) {
      for (const value of [low, high, 0, 1]) {
        type.set(view, 0, value);
        expect(type.get(view, 0)).toBe(value);
      }
      expect(() => type.set(view, 0, low - 1)).toThrow(RangeError);
      expect(() => type.set(view, 0, high + 1)).toThrow(RangeError);
    }
  });

  it('store a negative 64-bit value as its two’s complement', () => {
    const view = fresh();
    u64.set(view, 0, -22n);
    expect(u64.get(view, 0)).toBe(0xffff_ffff_ffff_ffean);
    expect(i64.get(view, 0)).toBe(-22n);
  });

  it('take numbers and bigints alike', () => {
    const type = struct('either', { register: u64, address: size64, count: u8 });
    const decoded = type.decode(type.encode({ register: 5, address: 0x1_0000_0000n, count: 3n }));
    expect(decoded).toEqual({ register: 5n, address: 0x1_0000_0000, count: 3 });
  });

  it('write only their own bytes', () => {
    const view = fresh();
    new Uint8Array(view.buffer).fill(0xaa);
    u32.set(view, 4, 0);
    expect(view.getUint32(0)).toBe(0xaaaa_aaaa);
    expect(view.getUint32(8)).toBe(0xaaaa_aaaa);
  });
});

describe('bytes', () => {
  it('are read as a copy, also from shared memory', () => {
    const view = viewOf(new Uint8Array(new SharedArrayBuffer(4)));
    view.setUint8(1, 7);
    const copy = bytes(2).get(view, 1);
    view.setUint8(1, 9);
    expect([...copy]).toEqual([7, 0]);
  });
});

/** KVM's statistics in their binary form (api.rst, KVM_GET_STATS_FD), also such as no kernel of today gives. */
import { describe, expect, it } from 'vitest';
import type { Backend, Handle } from '../../src/hypervisor/backend.ts';
import { Fd } from '../../src/hypervisor/fd.ts';
import { type Stats, statsOf } from '../../src/hypervisor/stats.ts';
import { Errno, ioctls, kvm_stats_desc, kvm_stats_header } from '../../src/uapi/index.ts';

const NAME_SIZE = 48;
const ID_OFFSET = 24;
const DESC_OFFSET = ID_OFFSET + NAME_SIZE;
const STEP = kvm_stats_desc.size + NAME_SIZE;

type Descriptor = { name: string } & Partial<
  Record<'flags' | 'exponent' | 'size' | 'offset' | 'bucketSize', number>
>;

/** The file that a kernel would give. */
function fileOf(
  descriptors: readonly Descriptor[],
  values: readonly bigint[],
  header: object = {},
): Uint8Array {
  const dataOffset = DESC_OFFSET + descriptors.length * STEP;
  const file = new Uint8Array(dataOffset + 8 * values.length);
  const text = (at: number, word: string) => file.set(new TextEncoder().encode(word), at);
  file.set(
    kvm_stats_header.encode({
      nameSize: NAME_SIZE,
      numDesc: descriptors.length,
      idOffset: ID_OFFSET,
      descOffset: DESC_OFFSET,
      dataOffset,
      ...header,
    }),
  );
  text(ID_OFFSET, 'kvm-1/vcpu-0');
  for (const [i, { name, ...fields }] of descriptors.entries()) {
    file.set(kvm_stats_desc.encode({ size: 1, ...fields }), DESC_OFFSET + i * STEP);
    text(DESC_OFFSET + i * STEP + kvm_stats_desc.size, name);
  }
  file.set(new Uint8Array(BigUint64Array.from(values).buffer), dataOffset);
  return file;
}

/** A backend that has but this file, and what of it is open. */
function backendOf(file: Uint8Array) {
  const open = new Set<unknown>();
  const backend = {
    name: 'kvm',
    create: () => {
      const handle = {} as Handle;
      open.add(handle);
      return handle;
    },
    readStats: (_: Handle, offset: number, bytes: Uint8Array) => {
      const found = file.subarray(offset, offset + bytes.length);
      bytes.set(found);
      return found.length;
    },
    close: (handle: Handle) => open.delete(handle),
  } as unknown as Backend;
  return { of: new Fd(backend, {} as Handle, 'vCPU'), open };
}

const make = (file: Uint8Array): Stats => statsOf(backendOf(file).of, ioctls.KVM_GET_STATS_FD);

describe('statistics', () => {
  it('have names, units, scales and as many values as they say', () => {
    const stats = make(
      fileOf(
        [
          { name: 'exits', flags: 0x000, offset: 0 },
          { name: 'wait_ns', flags: 0x024, exponent: -9, size: 2, offset: 8 },
          { name: 'size', flags: 0x113, exponent: 10, bucketSize: 5, offset: 24 },
        ],
        [7n, 1n, 2n, 3n],
      ),
    );
    expect(stats.id).toBe('kvm-1/vcpu-0');
    const common = { exponent: 0, bucketSize: 0 };
    expect([...stats.read().values()]).toEqual([
      { ...common, name: 'exits', type: 'CUMULATIVE', unit: 'NONE', base: 10, flags: 0, values: [7n] },
      {
        ...common,
        name: 'wait_ns',
        type: 'LOG_HIST',
        unit: 'SECONDS',
        base: 10,
        exponent: -9,
        flags: 0x24,
        values: [1n, 2n],
      },
      {
        name: 'size',
        type: 'LINEAR_HIST',
        unit: 'BYTES',
        base: 2,
        exponent: 10,
        bucketSize: 5,
        flags: 0x113,
        values: [3n],
      },
    ]);
  });

  it('of kinds that are newer than this package keep their bits', () => {
    const [found] = make(fileOf([{ name: 'new', flags: 0xedf5 }], [1n]))
      .read()
      .values();
    expect(found).toMatchObject({
      type: undefined,
      unit: undefined,
      base: undefined,
      flags: 0xedf5,
      values: [1n],
    });
  });

  it('that cannot be are refused by name, and the file is closed', () => {
    const one = [{ name: 'exits' }];
    for (const [file, what] of [
      [fileOf(one, [1n], { nameSize: 1000 }), 'name_size: 1000'],
      [fileOf(one, [1n], { numDesc: 0xffff_ffff }), 'num_desc'],
      [fileOf([{ name: 'x', offset: 0xffff_fff8 }], [1n]), 'the values'],
      [fileOf([{ name: 'x', size: 5000 }], [1n]), 'size: 5000'],
      [fileOf(one, [1n]).subarray(0, 30), '48 bytes at 24: 6'],
      [new Uint8Array(0), '24 bytes at 0: 0'],
    ] as const) {
      const { of, open } = backendOf(file);
      expect(() => statsOf(of, ioctls.KVM_GET_STATS_FD)).toThrow(
        expect.objectContaining({ code: 'ERR_KVM_UNAVAILABLE', message: expect.stringContaining(what) }),
      );
      expect(open.size).toBe(0);
    }
  });

  it('that the kernel does not give are its errno', () => {
    const { of } = backendOf(new Uint8Array(0));
    Object.assign(of.backend, { readStats: () => -Errno.EIO });
    expect(() => statsOf(of, ioctls.KVM_GET_STATS_FD)).toThrow(expect.objectContaining({ code: 'EIO' }));
  });
});

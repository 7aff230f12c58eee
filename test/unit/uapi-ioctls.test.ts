import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { Cap, capName, Errno, errnoName, type FdKind, type Ioctl, ioctls } from '../../src/uapi/index.ts';

const rows: Ioctl[] = Object.values(ioctls);

describe('the ioctl table', () => {
  it('has rows that know their own name', () => {
    expect(rows.map((row) => row.name)).toEqual(Object.keys(ioctls));
  });

  it('gives no two requests on one kind of fd the same number', () => {
    for (const kind of ['system', 'vm', 'vcpu', 'gmem', 'device'] satisfies FdKind[]) {
      const requests = rows.filter((row) => row.on.includes(kind)).map((row) => row.request);
      expect(new Set(requests).size).toBe(requests.length);
    }
  });

  it('encodes requests as unsigned 32-bit numbers of type 0xae', () => {
    for (const { request } of rows) {
      expect(request).toBe(request >>> 0);
      expect((request >> 8) & 0xff).toBe(0xae);
    }
  });

  it('names for every list the field of its head that counts the elements', () => {
    const lists = rows.filter((row) => row.kind === 'array');
    expect(lists.length).toBeGreaterThan(0);
    for (const { struct, count, element, max } of lists) {
      expect(Object.keys(struct.fields)).toContain(count);
      expect(element.size).toBeGreaterThan(0);
      expect(max).toBeGreaterThan(0);
    }
  });

  it('says of five requests that they make a fd', () => {
    expect(rows.filter((row) => row.returns === 'fd').map((row) => row.name)).toEqual([
      'KVM_CREATE_VM',
      'KVM_CREATE_VCPU',
      'KVM_CREATE_GUEST_MEMFD',
      'KVM_CREATE_DEVICE',
      'KVM_GET_STATS_FD',
    ]);
  });
});

describe('names of numbers', () => {
  it('are the kernel’s, and show a number that has none', () => {
    expect([errnoName(Errno.EINVAL), errnoName(133), errnoName(999)]).toEqual([
      'EINVAL',
      'EHWPOISON',
      'E999',
    ]);
    expect(capName(Cap.MEMORY_ATTRIBUTES)).toBe('KVM_CAP_MEMORY_ATTRIBUTES');
    expect(capName(999)).toBe('KVM_CAP_999');
  });

  it('belong to one capability each', () => {
    const numbers = Object.values(Cap);
    expect(new Set(numbers).size).toBe(numbers.length);
  });
});

describe('src/uapi', () => {
  it('imports nothing but itself, so that it runs in a browser', () => {
    const folder = new URL('../../src/uapi/', import.meta.url);
    const sources = readdirSync(folder, { recursive: true })
      .map(String)
      .filter((file) => file.endsWith('.ts'))
      .map((file) => readFileSync(new URL(file, folder), 'utf8'));
    const imports = sources.flatMap((text) =>
      [...text.matchAll(/from '([^']+)'/g)].map((match) => match[1]!),
    );
    expect(imports.length).toBeGreaterThan(10);
    expect(imports.filter((path) => !/^\.\/(constants\/)?[\w-]+\.ts$/.test(path))).toEqual([]);
  });
});

/** The addon's table of requests against the one in src/uapi: the two are written by hand, and must say the same. */
import { describe, expect, it as test } from 'vitest';
import { loadNative, type NativeRow } from '../../src/kvm/native.ts';
import { type FdKind, type Ioctl, ioctls } from '../../src/uapi/index.ts';
import { noAddon } from '../support/host.ts';

/** enum Kind of native/handle.h. */
const bits: Readonly<Record<FdKind, number>> = { system: 1, vm: 2, vcpu: 4, gmem: 8, device: 16 };
/** enum Arg of native/ioctls.cc. */
const args = ['none', 'integer', 'struct', 'array', 'sized'];
const makes: Readonly<Record<string, number>> = {
  KVM_CREATE_VM: bits.vm,
  KVM_CREATE_VCPU: bits.vcpu,
  KVM_CREATE_GUEST_MEMFD: bits.gmem,
  KVM_CREATE_DEVICE: bits.device,
  KVM_GET_STATS_FD: 512,
};

/** In src/uapi alone: requests that no method needs yet. KVM_RUN is a function of the addon's own. */
const notInTheAddon = [
  'KVM_SET_NR_MMU_PAGES',
  'KVM_CREATE_PIT',
  'KVM_GET_PIT',
  'KVM_SET_PIT',
  'KVM_RUN',
  'KVM_SET_SIGNAL_MASK',
];

const rows: readonly NativeRow[] = noAddon === undefined ? loadNative().requests() : [];

const it = (sentence: string, shows: () => void) =>
  test(sentence, (context) => {
    context.skip(noAddon !== undefined, noAddon);
    shows();
  });

const uapi = (name: string): Ioctl => {
  const row = (ioctls as Readonly<Record<string, Ioctl>>)[name];
  if (row === undefined) throw new Error(`${name} is in the addon's table and not in src/uapi/ioctls.ts`);
  return row;
};

describe("the addon's table", () => {
  it('has every request once, under the number and the name of src/uapi', () => {
    expect(new Set(rows.map(({ name }) => name)).size).toBe(rows.length);
    expect(rows.length).toBeGreaterThan(50);
    for (const { name, request } of rows) expect(request, name).toBe(uapi(name).request);
  });

  it('gives no two requests the same number: it is what the addon finds a row by', () => {
    expect(new Set(rows.map(({ request }) => request)).size).toBe(rows.length);
  });

  it('says as src/uapi does on which fds a request is known, and which it makes', () => {
    for (const row of rows) {
      const { on, returns } = uapi(row.name);
      expect(row.on, row.name).toBe(on.reduce((mask, kind) => mask | bits[kind], 0));
      expect(row.makes, row.name).toBe(makes[row.name] ?? 0);
      expect(row.makes !== 0, row.name).toBe(returns === 'fd');
    }
  });

  it('says as src/uapi does what kind of argument it is', () => {
    const kindOf = ({ arg, references }: NativeRow) => (references.length > 0 ? 'pointers' : args[arg]);
    for (const row of rows) expect(kindOf(row), row.name).toBe(uapi(row.name).kind);
  });

  it('refers to what src/uapi says, in that order and in the fields of those names', () => {
    for (const { name, references } of rows) {
      const row = uapi(name);
      if (row.kind !== 'pointers') continue;
      expect(
        references.map((reference) => reference.name),
        name,
      ).toEqual(row.references);
      for (const { name: field, offset } of references)
        if (field in row.struct.fields)
          expect(offset, `${name}: ${field}`).toBe(row.struct.fields[field]?.offset);
    }
  });

  it('counts the elements of lists where src/uapi does, with the same size, and allows as many', () => {
    const lists = rows.filter(({ arg }) => args[arg] === 'array');
    expect(lists.length).toBeGreaterThan(5);
    for (const row of lists) {
      const list = uapi(row.name);
      if (list.kind !== 'array') throw new Error(`${row.name} is no list in src/uapi`);
      expect(row.count, row.name).toBe(list.struct.fields[list.count]?.offset);
      expect(row.element, row.name).toBe(list.element.size);
      expect(row.max, row.name).toBeGreaterThanOrEqual(list.max);
      expect(row.countSize, row.name).toBe(list.struct.fields[list.count]?.type.size);
    }
  });

  it('bounds each struct whose size the kernel tells as src/uapi does, and knows the field that says it', () => {
    const sized = rows.filter(({ arg }) => args[arg] === 'sized');
    expect(sized.length).toBeGreaterThan(3);
    for (const row of sized) {
      const known = uapi(row.name);
      if (known.kind !== 'sized') throw new Error(`${row.name} has one size in src/uapi`);
      expect([row.least, row.most], row.name).toEqual([known.least, known.most]);
      const field = known.count === undefined ? undefined : known.struct.fields[known.count];
      expect([row.count, row.countSize], row.name).toEqual([field?.offset ?? 0, field?.type.size ?? 0]);
    }
  });

  it('takes for each struct as many bytes as the layout in src/uapi has', () => {
    for (const { name, request, element } of rows) {
      const row = uapi(name);
      if (row.kind === 'struct' || row.kind === 'pointers') {
        expect(((request >>> 16) & 0x3fff) + element, name).toBe(row.struct.size);
      }
    }
  });

  it('lacks these requests of src/uapi, not in the addon yet, and no others', () => {
    const there = new Set(rows.map(({ name }) => name));
    expect(Object.keys(ioctls).filter((name) => !there.has(name))).toEqual(notInTheAddon);
  });
});

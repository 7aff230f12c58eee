/** The files of differential snapshots: what they build on is found, checked, and named when it is not right. */
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeEach, expect, it } from 'vitest';
import {
  captureState,
  DirtyPages,
  type GuestMemory,
  openHypervisor,
  openSnapshot,
  VmexitError,
  writeSnapshot,
} from '../../src/index.ts';

const PAGE = 4096;
const root = mkdtempSync(join(tmpdir(), 'vmexit-since-'));
afterAll(() => rmSync(root, { recursive: true }));
const hv = openHypervisor({ backend: 'sim' });
afterAll(() => hv.close());

let folder = '';
let cases = 0;
beforeEach(() => {
  folder = join(root, `${cases++}`);
  mkdirSync(folder);
});
const file = (name: string) => join(folder, name);

/** A VM with memories of these many pages. */
function machine(...sizes: number[]) {
  const vm = hv.createVm();
  const memories: GuestMemory[] = [];
  const add = (pages: number) => {
    const memory = vm.allocate(pages * PAGE);
    vm.setUserMemoryRegion({ slot: memories.length, guestPhysAddr: memories.length * 2 ** 30, memory });
    memories.push(memory);
    return memory;
  };
  for (const pages of sizes) add(pages);
  const vcpu = vm.createVcpu(0);
  vcpu.setCpuid2(hv.getSupportedCpuid());
  const capture = () => captureState(hv, vm, [vcpu]);
  const close = () => {
    vcpu.close();
    vm.close();
    for (const memory of memories) memory.close();
  };
  return { vm, vcpu, memories, add, capture, [Symbol.dispose]: close };
}
type Guest = ReturnType<typeof machine>;

const byte = (memory: GuestMemory, page: number, value: number) =>
  memory.write(page * PAGE, Uint8Array.of(value));
const filesContents = (path: string) => {
  using snapshot = openSnapshot(path);
  return snapshot.memories.map((memory) => Buffer.from(memory.read(0, memory.pages)));
};
const isWhole = (guest: Guest, path: string) =>
  filesContents(path).map((bytes, i) => bytes.equals(guest.memories[i]!.read(0, bytes.length)));

/** Three files that build on each other: `whole`, `first`, `second`. */
async function chain(guest: Guest): Promise<void> {
  const [memory] = guest.memories;
  for (let page = 0; page < 20; page++) byte(memory!, page, page + 1);
  await writeSnapshot(file('whole'), guest.capture());
  byte(memory!, 3, 0x33);
  await writeSnapshot(file('first'), guest.capture(), { since: file('whole') });
  memory!.discard(4 * PAGE, PAGE);
  await writeSnapshot(file('second'), guest.capture(), { since: file('first') });
}

async function refusal(call: () => unknown, code = 'ERR_KVM_SNAPSHOT'): Promise<string> {
  try {
    await call();
  } catch (error) {
    expect(error).toBeInstanceOf(VmexitError);
    expect((error as VmexitError).code).toBe(code);
    return (error as Error).message;
  }
  throw new Error('nothing was thrown');
}

it('a file that holds all is one that older versions read', async () => {
  using guest = machine(4);
  byte(guest.memories[0]!, 1, 1);
  await writeSnapshot(file('whole'), guest.capture());
  const bytes = readFileSync(file('whole'));
  expect(bytes.readUInt32LE(8)).toBe(1);
  const head = JSON.parse(bytes.subarray(64, 64 + bytes.readUInt32LE(24)).toString());
  expect(Object.keys(head)).toEqual(['state', 'memories']);
});

it('a page is found in the file that has changed it last, and zeroes are none', async () => {
  using guest = machine(64);
  await chain(guest);
  expect(isWhole(guest, file('second'))).toEqual([true]);
  using snapshot = openSnapshot(file('second'));
  const [memory] = snapshot.memories;
  expect(memory!.stored).toBe(19);
  expect([2, 3, 4, 5, 20].map((page) => memory!.isStored(page))).toEqual([true, true, false, true, false]);
  expect([...memory!.runs(100)]).toEqual([
    { first: 0, count: 4 },
    { first: 5, count: 15 },
  ]);
  expect([...memory!.read(2, 4)].filter((value) => value !== 0)).toEqual([3, 0x33, 6]);
  using first = openSnapshot(file('first'));
  expect(first.memories[0]!.read(4, 1)[0]).toBe(5);
});

it('a chain may be long', async () => {
  using guest = machine(40);
  const [memory] = guest.memories;
  await writeSnapshot(file('0'), guest.capture());
  for (let i = 1; i < 16; i++) {
    byte(memory!, i, i);
    byte(memory!, 0, i);
    const written = await writeSnapshot(file(`${i}`), guest.capture(), { since: file(`${i - 1}`) });
    expect(written).toMatchObject({ changed: 2, stored: 2 });
  }
  using snapshot = openSnapshot(file('15'));
  expect(snapshot.chain.length).toBe(16);
  expect(isWhole(guest, file('15'))).toEqual([true]);
});

it('the chain may move as a whole, and be opened by a link', async () => {
  using guest = machine(64);
  await chain(guest);
  const moved = join(root, 'moved');
  renameSync(folder, moved);
  symlinkSync(join(moved, 'second'), join(root, 'link'));
  expect(isWhole(guest, join(root, 'link'))).toEqual([true]);
});

it('memories that came or have another size are held whole', async () => {
  using guest = machine(8);
  byte(guest.memories[0]!, 2, 2);
  await writeSnapshot(file('whole'), guest.capture());
  const added = guest.add(5);
  byte(added, 4, 4);
  const written = await writeSnapshot(file('first'), guest.capture(), { since: file('whole') });
  expect(written.changed).toBe(1);
  byte(added, 3, 3);
  await writeSnapshot(file('second'), guest.capture(), { since: file('first') });
  expect(isWhole(guest, file('second'))).toEqual([true, true]);
  using other = machine(5, 8);
  byte(other.memories[0]!, 1, 1);
  await writeSnapshot(file('other'), other.capture(), { since: file('second') });
  expect(isWhole(other, file('other'))).toEqual([true, true]);
});

it.each(['whole', 'first'])(
  'names a base that is missing, cut off, altered or another one (%s)',
  async (name) => {
    using guest = machine(64);
    await chain(guest);
    const bytes = readFileSync(file(name));
    const whose = name === 'whole' ? 'first' : 'second';
    const names = new RegExp(`^snapshot .*${whose}: it holds what has changed since .*${name}`);
    const damages: [RegExp, () => void][] = [
      [/cannot be opened \(ENOENT\)/, () => rmSync(file(name))],
      [/it is truncated: it has \d+ bytes/, () => truncateSync(file(name), bytes.length - 1)],
      [/it is no snapshot/, () => writeFileSync(file(name), 'something else'.repeat(1000))],
      [/head or bitmaps were altered/, () => writeFileSync(file(name), bytes.with(100, bytes[100]! ^ 1))],
    ];
    for (const [why, damage] of damages) {
      damage();
      const message = await refusal(() => openSnapshot(file('second')));
      expect(message).toMatch(names);
      expect(message).toMatch(why);
      writeFileSync(file(name), bytes);
    }
    // The same machine, with the same pages in it, and other contents: only the checksums tell.
    byte(guest.memories[0]!, 9, 0x99);
    rmSync(file(name));
    guest.memories[0]!.write(4 * PAGE, Uint8Array.of(5));
    if (name === 'whole') await writeSnapshot(file(name), guest.capture());
    else await writeSnapshot(file(name), guest.capture(), { since: file('whole') });
    expect(await refusal(() => openSnapshot(file('second')))).toMatch(
      new RegExp(`${names.source}, and that is another snapshot now: put back the one that it was`),
    );
  },
);

it('a page that was altered in a base is found when it is read, and its file is named', async () => {
  using guest = machine(64);
  await chain(guest);
  const bytes = readFileSync(file('whole'));
  bytes[bytes.length - 20 * 4 - 10 * PAGE]! ^= 1;
  writeFileSync(file('whole'), bytes);
  using snapshot = openSnapshot(file('second'));
  expect(await refusal(() => snapshot.memories[0]!.read(0, 64))).toMatch(
    /whole: page 10 of memory 0 was altered/,
  );
  expect(
    await refusal(() => writeSnapshot(file('third'), guest.capture(), { since: file('second') })),
  ).toMatch(/whole: page 10/);
  expect(existsSync(file('third'))).toBe(false);
});

it('is not written over a file that it needs', async () => {
  using guest = machine(64);
  await chain(guest);
  symlinkSync(file('whole'), file('link'));
  for (const name of ['second', 'whole', 'link']) {
    const before = readFileSync(file(name));
    expect(
      await refusal(() => writeSnapshot(file(name), guest.capture(), { since: file('second') })),
    ).toMatch(/what it would hold is what has changed since .*, the same file/);
    expect(readFileSync(file(name)).equals(before)).toBe(true);
  }
  copyFileSync(file('second'), file('copy'));
  await writeSnapshot(file('copy'), guest.capture(), { since: file('second') });
});

it('is written again after a failure, with all that has changed', async () => {
  using guest = machine(64);
  using dirty = DirtyPages.start(guest.vm, { vcpus: [guest.vcpu] });
  const [memory] = guest.memories;
  byte(memory!, 1, 1);
  await writeSnapshot(file('whole'), guest.capture(), { dirty });
  byte(memory!, 2, 2);
  const abort = new AbortController();
  const failed = writeSnapshot(file('first'), guest.capture(), {
    since: file('whole'),
    dirty,
    signal: abort.signal,
    onProgress: () => abort.abort(),
  });
  await expect(failed).rejects.toMatchObject({ name: 'AbortError' });
  byte(memory!, 3, 3);
  const read: number[] = [];
  const original = memory!.readSparse.bind(memory);
  memory!.readSparse = (offset, size) => {
    read.push(offset / PAGE);
    return original(offset, size);
  };
  const written = await writeSnapshot(file('first'), guest.capture(), { since: file('whole'), dirty });
  expect(written.changed).toBe(2);
  expect(read).toEqual([2]); // pages 2 and 3 alone were looked at
  expect(isWhole(guest, file('first'))).toEqual([true]);
});

it('looks at everything where somebody else has taken the marks, or they are since another snapshot', async () => {
  using guest = machine(64);
  using dirty = DirtyPages.start(guest.vm, { vcpus: [guest.vcpu] });
  const [memory] = guest.memories;
  await writeSnapshot(file('whole'), guest.capture(), { dirty });
  byte(memory!, 2, 2);
  dirty.take();
  byte(memory!, 3, 3);
  const first = await writeSnapshot(file('first'), guest.capture(), { since: file('whole'), dirty });
  expect(first.changed).toBe(2);
  byte(memory!, 4, 4);
  // Since `first`, not since `whole`.
  const second = await writeSnapshot(file('second'), guest.capture(), { since: file('whole'), dirty });
  expect(second.changed).toBe(3);
  expect(isWhole(guest, file('second'))).toEqual([true]);
});

/** The file of a snapshot: what is written is read again, and nothing else is taken for it. */
import { once } from 'node:events';
import {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, it } from 'vitest';
import {
  Cap,
  exitName,
  type Hypervisor,
  MemoryAttribute,
  openHypervisor,
  VmexitError,
  VmType,
} from '../../src/index.ts';
import {
  captureState,
  type MachineState,
  openSnapshot,
  parseState,
  RestoredMachine,
  restoreSnapshot,
  type Snapshot,
  writeSnapshot,
} from '../../src/vmm/snapshot/index.ts';
import { DEADLINE_MS } from '../support/limits.ts';

const PAGE = 4096;
const folder = mkdtempSync(join(tmpdir(), 'vmexit-snapshot-'));
afterAll(() => rmSync(folder, { recursive: true }));
const file = (name: string) => join(folder, name);

const hv: Hypervisor = openHypervisor({ backend: 'sim' });
afterAll(() => hv.close());

/** Numbers that look random and are the same each time (xorshift32). */
function random(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % below;
  };
}

/** A machine with memories of these many pages, one slot each. */
function machine(...sizes: number[]) {
  const vm = hv.createVm();
  const memories = sizes.map((pages, slot) => {
    const memory = vm.allocate(pages * PAGE);
    vm.setUserMemoryRegion({ slot, guestPhysAddr: slot * 2 ** 30, memory });
    return memory;
  });
  const vcpu = vm.createVcpu(0);
  vcpu.setCpuid2(hv.getSupportedCpuid());
  const close = () => {
    vcpu.close();
    vm.close();
    for (const memory of memories) memory.close();
  };
  return { vm, vcpu, memories, [Symbol.dispose]: close };
}

const contentsOf = (snapshot: Snapshot) =>
  snapshot.memories.map((memory) => Buffer.from(memory.read(0, memory.pages)));

/** A snapshot of three memories, of which some pages are used, and the memories' contents. */
async function sample(path: string) {
  using guest = machine(3, 700, 9);
  guest.vcpu.setRegs({ rax: 0x1234n, rip: 0x1000n, rflags: 2n });
  const next = random(7);
  for (const memory of guest.memories) {
    for (let page = 0; page < memory.size / PAGE; page++) {
      if (next(3) === 0) memory.bytes.fill(1 + next(255), page * PAGE + next(4000), (page + 1) * PAGE);
    }
  }
  guest.memories[1]!.bytes.fill(0xaa, 300 * PAGE, 600 * PAGE);
  const capture = captureState(hv, guest.vm, [guest.vcpu]);
  const written = await writeSnapshot(path, capture);
  return { written, state: capture.state, contents: guest.memories.map(({ bytes }) => Buffer.from(bytes)) };
}

/** The message of the VmexitError with this code that the call throws. */
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

/** Opens, reads everything and closes: what a user of the file sees of it. */
function readAll(path: string): { state: MachineState; contents: Buffer[] } {
  using snapshot = openSnapshot(path);
  return { state: snapshot.state, contents: contentsOf(snapshot) };
}

describe('a snapshot file', () => {
  it('gives the state and each page as they were', async () => {
    const { written, state, contents } = await sample(file('whole'));
    using snapshot = openSnapshot(file('whole'));
    expect(snapshot.state).toEqual(state);
    expect(contentsOf(snapshot).map((bytes, i) => bytes.equals(contents[i]!))).toEqual([true, true, true]);
    expect(written.size).toBe(statSync(file('whole')).size);
    expect(written.pages).toBe(712);
    expect(snapshot.memories.reduce((sum, { stored }) => sum + stored, 0)).toBe(written.stored);
    expect(readdirSync(folder).filter((name) => name.endsWith('.tmp'))).toEqual([]);
  });

  it('gives any range of pages', async () => {
    const { contents } = await sample(file('ranges'));
    using snapshot = openSnapshot(file('ranges'));
    const next = random(3);
    for (let i = 0; i < 500; i++) {
      const memory = next(3);
      const { pages } = snapshot.memories[memory]!;
      const first = next(pages);
      const count = next(pages - first + 1);
      const bytes = contents[memory]!.subarray(first * PAGE, (first + count) * PAGE);
      expect(
        bytes.equals(snapshot.memories[memory]!.read(first, count)),
        `${memory}: ${first}, ${count}`,
      ).toBe(true);
      const isZero = !contents[memory]!.subarray(first * PAGE, (first + 1) * PAGE).some((byte) => byte !== 0);
      expect(snapshot.memories[memory]!.isStored(first)).toBe(!isZero);
    }
  });

  it('restores a machine with these registers and this memory', async () => {
    const { contents, state } = await sample(file('restored'));
    using snapshot = openSnapshot(file('restored'));
    using restored = restoreSnapshot(hv, snapshot);
    expect(restored.memories.map(({ bytes }, i) => contents[i]!.equals(bytes))).toEqual([true, true, true]);
    expect(restored.vcpus[0]!.getRegs()).toMatchObject({ rax: 0x1234n, rip: 0x1000n });
    const again = captureState(hv, restored.vm, restored.vcpus);
    // The time-stamp counter is the one thing that could go on; the guest has not run.
    expect(again.state).toEqual(state);
  });

  it('of a guest with empty memory has the head and no page', async () => {
    using guest = machine(64);
    const { size, stored } = await writeSnapshot(file('empty'), captureState(hv, guest.vm, [guest.vcpu]));
    expect(stored).toBe(0);
    expect(size).toBeLessThan(64 * 1024);
    expect(readAll(file('empty')).contents[0]!.equals(Buffer.alloc(64 * PAGE))).toBe(true);
  });

  it('refuses ranges outside of the memory, and use after it was closed', async () => {
    await sample(file('closed'));
    const snapshot = openSnapshot(file('closed'));
    const [memory] = snapshot.memories;
    for (const [first, count] of [
      [-1, 1],
      [0, 4],
      [3, 1],
      [0.5, 1],
      [4, 0],
    ] as const)
      expect(() => memory!.read(first, count)).toThrow(RangeError);
    expect(() => memory!.isStored(3)).toThrow(RangeError);
    snapshot.close();
    snapshot.close();
    const stored = [0, 1, 2].find((page) => memory!.isStored(page)) ?? 0;
    expect(await refusal(() => snapshot.memories[1]!.read(300 + stored, 1), 'ERR_KVM_CLOSED')).toMatch(
      /closed/,
    );
  });
});

describe('writing a snapshot', () => {
  it('replaces an older one when it is whole, and leaves it when it is cancelled', async () => {
    await sample(file('older'));
    const before = readFileSync(file('older'));
    using guest = machine(2048);
    guest.memories[0]!.bytes.fill(1);
    const capture = captureState(hv, guest.vm, [guest.vcpu]);
    const abort = new AbortController();
    const seen: number[] = [];
    const onProgress = (done: number) => {
      seen.push(done);
      if (seen.length === 3) abort.abort();
    };
    await expect(
      writeSnapshot(file('older'), capture, { onProgress, signal: abort.signal }),
    ).rejects.toMatchObject({
      name: 'AbortError',
    });
    expect(seen.length).toBe(3);
    expect(readFileSync(file('older')).equals(before)).toBe(true);
    expect(readdirSync(folder).filter((name) => name.endsWith('.tmp'))).toEqual([]);
    const { stored } = await writeSnapshot(file('older'), capture);
    expect(stored).toBe(2048);
    expect(readFileSync(file('older')).equals(before)).toBe(false);
  });

  it('tells how far it is, up to all of guest memory', async () => {
    using guest = machine(1000, 24);
    const told: [number, number][] = [];
    await writeSnapshot(file('progress'), captureState(hv, guest.vm, [guest.vcpu]), {
      onProgress: (done, total) => told.push([done, total]),
    });
    expect(told.at(-1)).toEqual([1024 * PAGE, 1024 * PAGE]);
    expect(told.map(([done]) => done)).toEqual(told.map(([done]) => done).sort((a, b) => a - b));
  });

  it('names the folder that is not there, and one that is no file', async () => {
    using guest = machine(1);
    const capture = captureState(hv, guest.vm, [guest.vcpu]);
    const nowhere = join(folder, 'nowhere', 'snapshot');
    expect(await refusal(() => writeSnapshot(nowhere, capture))).toMatch(
      /nowhere.*ENOENT: there is no such folder/,
    );
    expect(await refusal(() => writeSnapshot(folder, capture))).toMatch(/cannot be written/);
    // A socket, for a device would be lost if this failed.
    const socket = createServer().listen(file('socket'));
    await once(socket, 'listening');
    expect(await refusal(() => writeSnapshot(file('socket'), capture))).toMatch(
      /there is something that is no file/,
    );
    socket.close();
    expect(existsSync(nowhere)).toBe(false);
  });
});

describe('a file that is no snapshot', () => {
  it('is named, with what is wrong', async () => {
    writeFileSync(file('text'), 'hello'.repeat(100));
    writeFileSync(file('short'), 'vmexit');
    writeFileSync(file('nothing'), '');
    expect(await refusal(() => openSnapshot(file('missing')))).toMatch(
      /missing: it cannot be opened \(ENOENT\)/,
    );
    expect(await refusal(() => openSnapshot(folder))).toMatch(/it is no file/);
    expect(await refusal(() => openSnapshot(file('text')))).toMatch(/text: it is no snapshot of vmexit/);
    expect(await refusal(() => openSnapshot(file('short')))).toMatch(/it has 6 bytes, and is no snapshot/);
    expect(await refusal(() => openSnapshot(file('nothing')))).toMatch(/it has 0 bytes/);
  });

  it('may be one of another version, whose number is told', async () => {
    await sample(file('version'));
    const bytes = readFileSync(file('version'));
    bytes.writeUInt32LE(3, 8);
    writeFileSync(file('version'), bytes);
    expect(await refusal(() => openSnapshot(file('version')))).toMatch(
      /it is of version 3, and this vmexit reads versions 1 and 2: use the vmexit that wrote it/,
    );
  });

  it('may be one that was cut off anywhere', async () => {
    const { written } = await sample(file('cut'));
    const bytes = readFileSync(file('cut'));
    const head = 64 + bytes.readUInt32LE(24);
    const crcs = written.size - written.stored * 4;
    const places = [
      0,
      1,
      7,
      8,
      63,
      64,
      65,
      head - 1,
      head,
      head + 1,
      head + 90,
      PAGE,
      crcs - PAGE - 1,
      crcs - 1,
    ];
    for (const size of [...places, crcs, crcs + 4, written.size - 1]) {
      writeFileSync(file('cut'), bytes);
      truncateSync(file('cut'), size);
      expect(await refusal(() => openSnapshot(file('cut'))), `${size} bytes`).toMatch(/cut: it/);
    }
    writeFileSync(file('cut'), Buffer.concat([bytes, Buffer.alloc(1)]));
    expect(await refusal(() => openSnapshot(file('cut')))).toMatch(
      /altered: it has \d+ bytes, and should have/,
    );
  });

  it('may be cut off while it is open', async () => {
    await sample(file('cutting'));
    using snapshot = openSnapshot(file('cutting'));
    truncateSync(file('cutting'), PAGE);
    expect(await refusal(() => snapshot.memories[1]!.read(300, 10))).toMatch(/truncated while it was in use/);
  });

  it.each([1, 2, 3, 4])('may have any bit flipped: it is never read as another (seed %i)', async (seed) => {
    const path = file(`flip${seed}`);
    const { written, state, contents } = await sample(path);
    const bytes = readFileSync(path);
    const pagesAt = written.size - written.stored * (PAGE + 4);
    const next = random(seed);
    for (let i = 0; i < 150; i++) {
      // One of the prefix, head and bitmaps, pages, checksums.
      const [from, to] = [
        [0, 64],
        [64, pagesAt],
        [pagesAt, pagesAt + written.stored * PAGE],
        [pagesAt + written.stored * PAGE, written.size],
      ][i % 4]!;
      const at = from! + next(to! - from!);
      const bit = 1 << next(8);
      bytes[at]! ^= bit;
      writeFileSync(path, bytes);
      bytes[at]! ^= bit;
      const message = await refusal(() => readAll(path));
      expect(message, `byte ${at}`).toMatch(/^snapshot /);
      if (at < pagesAt) continue;
      // What precedes the pages is whole: it opens, and only the page that was altered cannot be read.
      expect(message).toMatch(/page \d+ of memory \d was altered/);
      using snapshot = openSnapshot(path);
      expect(snapshot.state).toEqual(state);
      let unreadable = 0;
      for (const [m, memory] of snapshot.memories.entries()) {
        for (let page = 0; page < memory.pages; page++) {
          if (!memory.isStored(page)) continue;
          try {
            const good = contents[m]!.subarray(page * PAGE, (page + 1) * PAGE);
            expect(good.equals(memory.read(page, 1))).toBe(true);
          } catch (error) {
            expect((error as VmexitError).code).toBe('ERR_KVM_SNAPSHOT');
            unreadable++;
          }
        }
        if (i > 8) break; // one such round tells
      }
      if (i <= 8) expect(unreadable).toBe(1);
    }
  });

  it.each([5, 6])('may be noise behind the magic number (seed %i)', async (seed) => {
    await sample(file('noise'));
    const bytes = readFileSync(file('noise')).subarray(0, 3 * PAGE);
    const next = random(seed);
    for (let i = 0; i < 300; i++) {
      const noise = Buffer.from(bytes);
      for (let at = next(2) === 0 ? 12 : 24; at < noise.length; at += 1 + next(16)) noise[at] = next(256);
      if (next(2) === 0) noise.writeBigUInt64LE(BigInt(noise.length), 16);
      writeFileSync(file('noise'), noise);
      await refusal(() => readAll(file('noise')));
    }
  });

  it('of the first version is opened, and its guest goes on', () => {
    using snapshot = openSnapshot(fileURLToPath(new URL('fixtures/version-1.snapshot', import.meta.url)));
    expect(snapshot.state).toMatchObject({ version: 2, vm: { irqchip: null, pit: null } });
    using restored = restoreSnapshot(hv, snapshot);
    const [vcpu] = restored.vcpus;
    expect(exitName(vcpu!.run(DEADLINE_MS))).toBe('HLT');
    expect(vcpu!.getRegs().rax).toBe(42n);
  });

  it('leaves no machine behind when a page of it was altered', async () => {
    const { written } = await sample(file('half'));
    const bytes = readFileSync(file('half'));
    bytes[written.size - written.stored * 4 - 10]! ^= 1;
    writeFileSync(file('half'), bytes);
    using snapshot = openSnapshot(file('half'));
    expect(await refusal(() => restoreSnapshot(hv, snapshot))).toMatch(/page \d+ of memory 2 was altered/);
  });
});

describe("a machine's state", () => {
  const good = (): MachineState => {
    using guest = machine(4);
    return JSON.parse(JSON.stringify(captureState(hv, guest.vm, [guest.vcpu]).state));
  };

  it('is refused when anything in it is something else, and the place is named', async () => {
    const state = good();
    expect(parseState(state)).toEqual(state);
    const { irqchip: _, ...withoutIrqchip } = state.vm;
    const wrong: [RegExp, unknown][] = [
      [/it must be an object of version/, null],
      [/it must be an object of version/, 'state'],
      [/it must be an object of version/, { ...state, more: 1 }],
      [/is of version 3, and this vmexit knows versions 1 to 2/, { ...state, version: 3 }],
      [/is of version 0/, { ...state, version: 0 }],
      [/backend must be 'kvm' or 'sim'/, { ...state, backend: 'xen' }],
      [/vm\.memories\[0\] must be a whole number/, { ...state, vm: { ...state.vm, memories: [5] } }],
      [/vm\.slots\[0\] must be within its memory/, { ...state, vm: { ...state.vm, memories: [PAGE] } }],
      [
        /vcpus\[0\]\.regs must be bytes of struct kvm_regs/,
        { ...state, vcpus: [{ ...state.vcpus[0], regs: '00' }] },
      ],
      [/vcpus\[0\]\.msrs must be bytes/, { ...state, vcpus: [{ ...state.vcpus[0], msrs: 'zz' }] }],
      [/vcpus must be of different ids/, { ...state, vcpus: [state.vcpus[0], state.vcpus[0]] }],
      [/vcpus\[0\]\.lapic must be bytes/, { ...state, vcpus: [{ ...state.vcpus[0], lapic: '00' }] }],
      [/vm\.pit must be an object of flags/, { ...state, vm: { ...state.vm, pit: {} } }],
      [
        /vm\.gsiRouting must be routes of types that there are/,
        { ...state, vm: { ...state.vm, gsiRouting: { flags: 0, routes: '00'.repeat(48) } } },
      ],
      [/vm must be an object of/, { ...state, vm: withoutIrqchip }],
      [/either sregs or sregs2/, { ...state, vcpus: [{ ...state.vcpus[0], sregs2: null }] }],
      [/devices\.serial must be bytes/, { ...state, devices: { serial: 1 } }],
    ];
    for (const [message, value] of wrong) expect(await refusal(() => parseState(value))).toMatch(message);
  });

  it.each([8, 9])('of any other types is refused before anything is made of it (seed %i)', (seed) => {
    const next = random(seed);
    const values = [null, undefined, -1, 0.5, 1e300, '', 'x', '00', [], {}, true, [[]], Number.NaN];
    for (let i = 0; i < 500; i++) {
      let node = good() as unknown as Record<string, unknown>;
      const top = node;
      for (;;) {
        const keys = Object.keys(node);
        const key = keys[next(keys.length)]!;
        const child = node[key];
        if (typeof child === 'object' && child !== null && Object.keys(child).length > 0 && next(4) !== 0) {
          node = child as Record<string, unknown>;
          continue;
        }
        node[key] = values[next(values.length)];
        break;
      }
      try {
        parseState(top);
      } catch (error) {
        expect((error as VmexitError).code).toBe('ERR_KVM_SNAPSHOT');
      }
    }
  });

  it('with interrupt controllers in the kernel is refused by the simulator, by their names', async () => {
    const state = good();
    const controllers = { master: '00'.repeat(16), slave: '00'.repeat(16), ioapic: '00'.repeat(216) };
    const pit = { flags: 0, reinject: true, state: '00'.repeat(112) };
    const split = { cap: Cap.SPLIT_IRQCHIP, flags: 0, args: ['24', '0', '0', '0'] };
    const wrong: [RegExp, object][] = [
      [
        /the machine has interrupt controllers in the kernel, which the simulator lacks/,
        { irqchip: controllers },
      ],
      [/has interrupt controllers, a timer in the kernel/, { irqchip: controllers, pit }],
      [/has local APICs in the kernel/, { caps: [split] }],
      [/has a boot processor of its choice in the kernel/, { bootCpuId: 1 }],
    ];
    for (const [message, more] of wrong) {
      const kvms = parseState({ ...state, backend: 'kvm', vm: { ...state.vm, ...more } });
      expect(await refusal(() => new RestoredMachine(hv, kvms))).toMatch(message);
    }
  });

  it('with a private page is not saved, and the range is named', async () => {
    using vm = hv.createVm({ type: VmType.SW_PROTECTED });
    using memory = vm.allocate(16 * PAGE);
    using secret = vm.createGuestMemfd(16 * PAGE);
    vm.setUserMemoryRegion2({ slot: 0, guestPhysAddr: 0x10_0000, memory, guestMemfd: secret });
    using vcpu = vm.createVcpu(0);
    vm.setMemoryAttributes({ address: 0x10_2000, size: 2 * PAGE, attributes: MemoryAttribute.PRIVATE });
    expect(await refusal(() => captureState(hv, vm, [vcpu]), 'ERR_KVM_NOT_SAVABLE')).toMatch(
      /guest memory from 0x102000 to 0x103fff is private/,
    );
    vm.setMemoryAttributes({ address: 0x10_2000, size: 2 * PAGE, attributes: 0 });
    expect(captureState(hv, vm, [vcpu]).state.vm.guestMemfds).toEqual([16 * PAGE]);
  });
});

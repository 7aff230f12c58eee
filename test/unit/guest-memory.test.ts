/** Guest memory as the VMM reads and writes it: by copies, and by the view that is made when it is first used. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect } from 'vitest';
import { captureState, Exit, enterRealMode, Hypervisor, Machine, writeSnapshot } from '../../src/index.ts';
import { kvmBackend } from '../../src/kvm/backend.ts';
import { onKvm } from '../support/host.ts';

const SIZE = 0x4000;
const DEADLINE_MS = 5000;
const bytes = (...values: number[]) => Uint8Array.from(values);

onKvm('what is written is in the view, and what is in the view is read', (hv) => {
  using vm = hv.createVm();
  using ram = vm.allocate(SIZE);
  ram.write(0x1ffe, bytes(1, 2, 3, 4));
  expect(ram.read(0x1ffd, 6)).toEqual(bytes(0, 1, 2, 3, 4, 0));
  expect(ram.bytes.subarray(0x1ffd, 0x2003)).toEqual(bytes(0, 1, 2, 3, 4, 0));
  ram.bytes[0x2000] = 9;
  expect(ram.read(0x2000, 2)).toEqual(bytes(9, 4));
});

onKvm('what is read is a copy', (hv) => {
  using vm = hv.createVm();
  using ram = vm.allocate(SIZE);
  const copy = ram.read(0, 2);
  ram.write(0, bytes(7, 7));
  expect(copy).toEqual(bytes(0, 0));
  copy[0] = 5;
  expect(ram.read(0, 2)).toEqual(bytes(7, 7));
});

onKvm(
  'every byte up to the last can be written and read, none beyond, and a refused write writes none',
  (hv) => {
    using vm = hv.createVm();
    using ram = vm.allocate(SIZE);
    const whole = new Uint8Array(SIZE).map((_, i) => i);
    ram.write(0, whole);
    expect(Buffer.compare(ram.read(0, SIZE), whole)).toBe(0);
    ram.write(SIZE, bytes());
    expect(ram.read(SIZE, 0)).toEqual(bytes());
    expect(() => ram.write(SIZE - 1, bytes(1, 2))).toThrow(RangeError);
    expect(() => ram.write(1, whole)).toThrow(RangeError);
    expect(Buffer.compare(ram.read(0, SIZE), whole)).toBe(0);
  },
);

onKvm('the bytes to write may be shared, a part of another buffer, or of the same memory', (hv) => {
  using vm = hv.createVm();
  using ram = vm.allocate(SIZE);
  ram.write(0, new Uint8Array(new SharedArrayBuffer(4)).fill(1));
  ram.write(4, bytes(0, 2, 2, 0).subarray(1, 3));
  expect(ram.read(0, 8)).toEqual(bytes(1, 1, 1, 1, 2, 2, 0, 0));
  ram.write(2, ram.bytes.subarray(0, 6));
  expect(ram.read(0, 8)).toEqual(bytes(1, 1, 1, 1, 1, 1, 2, 2));
});

onKvm('a guest runs what was written, and what it writes is read, without a view of its memory', () => {
  const backend = kvmBackend();
  const viewed: unknown[] = [];
  using hv = new Hypervisor({
    ...backend,
    bytes: (handle) => {
      viewed.push(handle);
      return backend.bytes(handle);
    },
  });
  expect(hv.backend).toBe('kvm');
  using vm = hv.createVm();
  using ram = vm.allocate(SIZE);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
  ram.write(0x1000, bytes(0xc6, 0x06, 0x00, 0x20, 0x5a, 0xf4)); // mov byte ptr [0x2000], 0x5a; hlt
  using vcpu = vm.createVcpu();
  enterRealMode(vcpu);
  vcpu.setRegs({ rip: 0x1000, rflags: 2 });
  expect(vcpu.run(DEADLINE_MS)).toBe(Exit.HLT);
  expect(ram.read(0x2000, 1)).toEqual(bytes(0x5a));
  expect(viewed).not.toContain(ram.handle);
  expect(ram.bytes[0x2000]).toBe(0x5a);
  expect(ram.bytes).toBe(ram.bytes);
  expect(viewed.filter((handle) => handle === ram.handle)).toHaveLength(1);
});

onKvm('memory whose view was never made is closed as any other', (hv) => {
  using vm = hv.createVm();
  const ram = vm.allocate(SIZE);
  ram.close();
  for (const use of [() => ram.bytes, () => ram.read(0, 1), () => ram.write(0, bytes(1))]) {
    expect(use).toThrow(expect.objectContaining({ code: 'ERR_KVM_CLOSED' }));
  }
  expect(ram.size).toBe(SIZE);
});

/** kB of guest RAM that this process has mapped, and so of memory that the host has given for it. */
const residentKb = () => Number(/^RssShmem:\s+(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))![1]);

onKvm('what nobody has written is read as zeroes without becoming resident', (hv) => {
  const size = 2 ** 26;
  using vm = hv.createVm();
  using ram = vm.allocate(size);
  const written = [0, 0x5000, 0x6000, size / 2 - 1, size - 1];
  for (const at of written) ram.write(at, bytes(7));
  const before = residentKb();
  const whole = ram.readSparse(0, size);
  expect(residentKb() - before).toBeLessThan(64);
  expect(written.every((at) => whole[at] === 7)).toBe(true);
  expect(whole.reduce((sum, byte) => sum + byte, 0)).toBe(7 * written.length);
  expect(ram.readSparse(0x4fff, 0x1002)).toEqual(ram.read(0x4fff, 0x1002));
  expect(ram.readSparse(0x7001, 0)).toEqual(bytes());
  expect(() => ram.readSparse(size - 1, 2)).toThrow(RangeError);
});

onKvm('a snapshot of memory that is mostly untouched leaves it so', async (hv) => {
  using machine = new Machine(hv, { memory: 2 ** 30 });
  machine.memory.write(0x1234_5000, bytes(1, 2, 3));
  const folder = mkdtempSync(join(tmpdir(), 'vmexit-test-'));
  try {
    const before = residentKb();
    const capture = captureState(hv, machine.vm, [machine.vcpu]);
    const { stored, pages } = await writeSnapshot(join(folder, 'snapshot'), capture);
    expect({ stored, pages }).toEqual({ stored: 1, pages: 2 ** 18 });
    expect(residentKb() - before).toBeLessThan(64);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

/** A simulated VM in several threads: its vCPUs run in workers, and the main thread owns it. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Backend, type Handle, type SharedVcpu, VCPU_RUNNING } from '../../src/hypervisor/backend.ts';
import { simulator } from '../../src/open.ts';
import {
  Errno,
  Exit,
  ioctls,
  kvm_create_guest_memfd,
  kvm_memory_attributes,
  kvm_regs,
  kvm_userspace_memory_region2,
  MemFlag,
} from '../../src/uapi/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { getRegs, getSregs, made, setRegs, WaistVm } from '../support/waist.ts';
import { bundledWaist, WaistWorker } from '../support/waist-worker.ts';

const COUNTER = 0x8000;
const PROTECTED = 1;

const counting = guest(
  16,
  `
66 f0 ff 06 00 80 | again: lock inc dword ptr [0x8000]
66 49             |        dec ecx
75 f6             |        jnz again
f4                |        hlt
`,
);
const telling = guest(
  16,
  `
66 ff 06 00 80 | again: inc dword ptr [0x8000]
e6 10          |        out 0x10, al
66 49          |        dec ecx
75 f5          |        jnz again
f4             |        hlt
`,
);
const spinning = guest(
  16,
  `
66 ff 06 00 80 | again: inc dword ptr [0x8000]
eb f9          |        jmp again
`,
);
/** Touches 32 pages, from DS:0 on. */
const walking = guest(
  16,
  `
b9 20 00       |        mov cx, 32
8e d8          | again: mov ds, ax
66 ff 06 00 00 |        inc dword ptr [0]
05 00 01       |        add ax, 0x100
49             |        dec cx
75 f3          |        jnz again
f4             |        hlt
`,
);

let waist: Awaited<ReturnType<typeof bundledWaist>>;
beforeAll(async () => {
  waist = await bundledWaist();
});
afterAll(() => waist.dispose());

const shared = (backend: Backend, vcpu: Handle): SharedVcpu => {
  const token = backend.shareVcpu(vcpu);
  if (typeof token === 'number') throw new Error(`shareVcpu() gave ${token}`);
  return token;
};
const opened = (backend: Backend, vcpu: Handle) => WaistWorker.open(waist.url, shared(backend, vcpu));
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));
const until = async (condition: () => boolean): Promise<void> => {
  const deadline = performance.now() + DEADLINE_MS;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error('what is waited for has not come');
    await turn();
  }
};
const regsOf = (backend: Backend, vcpu: Handle): number =>
  backend.ioctl(vcpu, ioctls.KVM_GET_REGS.request, new Uint8Array(kvm_regs.size));

describe('a vCPU that a worker has opened', () => {
  it('runs there over the same memory, and what it was is here afterwards', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    const vcpu = vm.vcpu(telling.code, 0x1000, { rcx: 1000n });
    await using worker = await opened(backend, vcpu);
    expect(await worker.does('run')).toEqual({ end: Exit.HLT, exits: 1000 });
    expect(vm.u32(COUNTER)).toBe(1000);
    expect(getRegs(backend, vcpu)).toMatchObject({ rcx: 0n, rip: BigInt(0x1000 + telling.code.length) });
    expect(backend.completed!(vcpu)).toBe(4001n);
    // And the other way round.
    setRegs(backend, vcpu, { rip: 0x1000n, rcx: 5n });
    expect(await worker.does('run')).toEqual({ end: Exit.HLT, exits: 5 });
    setRegs(backend, vcpu, { rip: 0x1000n, rcx: 1n });
    const run = backend.runner(vcpu);
    expect([run(DEADLINE_MS), run(DEADLINE_MS)]).toEqual([Exit.IO, Exit.HLT]);
    expect(await worker.does('regs')).toEqual(getRegs(backend, vcpu));
  });

  it('has all of its processor in each thread: segments, tables, control registers, events', async () => {
    const entering = guest(
      16,
      `
      0f 01 16 80 10    |        lgdt [0x1080]
      0f 20 c0          |        mov eax, cr0
      0c 01             |        or al, 1
      0f 22 c0          |        mov cr0, eax
      b8 08 00          |        mov ax, 8
      8e d8             |        mov ds, ax
      66 b8 00 50 34 12 |        mov eax, 0x12345000
      0f 22 d8          |        mov cr3, eax
      0f 23 c0          |        mov dr0, eax
      f4                |        hlt
      `,
    );
    const table = [0x17, 0, 0x00, 0x11, 0, 0];
    const descriptor = [0xff, 0xff, 0, 0, 0, 0x92, 0xcf, 0];
    const place = (vm: WaistVm) => {
      vm.bytes.set(table, 0x1080);
      vm.bytes.set(descriptor, 0x1108);
      return vm.vcpu(entering.code, 0x1000);
    };
    const backend = simulator();
    using alone = new WaistVm(backend);
    const expected = place(alone);
    expect(backend.runner(expected)(DEADLINE_MS)).toBe(Exit.HLT);
    using vm = new WaistVm(backend);
    const vcpu = place(vm);
    await using worker = await opened(backend, vcpu);
    expect(await worker.does('once')).toBe(Exit.HLT);
    expect(getSregs(backend, vcpu)).toEqual(getSregs(backend, expected));
    expect(getSregs(backend, vcpu)).toMatchObject({
      cr3: 0x1234_5000n,
      ds: { limit: 0xffff_ffff, selector: 8 },
    });
    for (const row of [ioctls.KVM_GET_DEBUGREGS, ioctls.KVM_GET_VCPU_EVENTS, ioctls.KVM_GET_FPU] as const) {
      const [mine, theirs] = [expected, vcpu].map((one) => {
        const bytes = new Uint8Array(row.struct.size);
        expect(backend.ioctl(one, row.request, bytes)).toBe(0);
        return bytes;
      });
      expect(theirs).toEqual(mine);
    }
    expect(backend.ioctl(vcpu, ioctls.KVM_INTERRUPT.request, new Uint8Array([0x21, 0, 0, 0]))).toBe(0);
    const { request, struct } = ioctls.KVM_GET_VCPU_EVENTS;
    const [result, events] = await worker.does<[number, Uint8Array]>('ioctl', {
      request,
      bytes: new Uint8Array(struct.size),
    });
    expect(result).toBe(0);
    expect(struct.decode(events).interrupt).toMatchObject({ injected: 1, nr: 0x21 });
  });

  it('answers no call of another thread while it runs there', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    const vcpu = vm.vcpu(spinning.code, 0x1000);
    await using worker = await opened(backend, vcpu);
    for (const how of ['run', 'starts']) {
      const before = vm.u32(COUNTER);
      const end = worker.does(how);
      await until(() => vm.u32(COUNTER) !== before);
      expect(regsOf(backend, vcpu)).toBe(VCPU_RUNNING);
      expect(backend.runner(vcpu)(DEADLINE_MS)).toBe(VCPU_RUNNING);
      expect(backend.starter(vcpu, () => {}).start()).toBe(VCPU_RUNNING);
      expect(backend.kick(backend.kickId(vcpu))).toBe(true);
      const ended = await end;
      expect(how === 'run' ? (ended as { end: number }).end : ended).toBe(-Errno.EINTR);
      expect(regsOf(backend, vcpu)).toBe(0);
    }
  });

  it('is not run by another while its exit waits for an answer here', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    const vcpu = vm.vcpu(telling.code, 0x1000, { rcx: 1n });
    await using worker = await opened(backend, vcpu);
    expect(await worker.does('once')).toBe(Exit.IO);
    expect(backend.runner(vcpu)(DEADLINE_MS)).toBe(-Errno.EBUSY);
    expect(regsOf(backend, vcpu)).toBe(0);
    expect(() => setRegs(backend, vcpu, {})).toThrow('-16');
    expect(await worker.does('once')).toBe(Exit.HLT);
    setRegs(backend, vcpu, { rcx: 3n });
    expect(await worker.does('regs')).toMatchObject({ rcx: 3n });
  });

  it('leaves slots, attributes and the rest to who has made the VM', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    const vcpu = vm.vcpu(telling.code, 0x1000);
    await using worker = await opened(backend, vcpu);
    const token = backend.shareVm(vm.vm);
    const ask = (row: { request: number }, argument: unknown) =>
      worker.does('vm', { request: row.request, argument, vm: token });
    const attributes = kvm_memory_attributes.encode({ address: 0, size: 4096 });
    expect(await ask(ioctls.KVM_SET_MEMORY_ATTRIBUTES, attributes)).toBe(-Errno.EPERM);
    expect(await ask(ioctls.KVM_GET_TSC_KHZ, undefined)).toBe(1_000_000);
  });
});

describe('two threads that run vCPUs of one VM', () => {
  it('lose no update that is made with LOCK', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    const rounds = 3_000_000n;
    const vcpus = [0x1000, 0x2000].map((at) => vm.vcpu(counting.code, at, { rcx: rounds }));
    await using one = await opened(backend, vcpus[0]!);
    await using two = await opened(backend, vcpus[1]!);
    const ends = await Promise.all([one.does('run'), two.does('starts')]);
    expect(ends).toEqual([{ end: Exit.HLT, exits: 0 }, Exit.HLT]);
    expect(vm.u32(COUNTER)).toBe(Number(rounds) * 2);
  });

  it('get their memory faults answered by the main thread', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend, PROTECTED);
    const set = (address: number, size: number, attributes: bigint) => {
      const argument = kvm_memory_attributes.encode({ address, size, attributes });
      const { request } = ioctls.KVM_SET_MEMORY_ATTRIBUTES;
      expect(backend.ioctl(vm.vm, request, argument)).toBe(0);
    };
    const starts = [0x2_0000, 0x6_0000];
    const vcpus = starts.map((start, i) =>
      vm.vcpu(walking.code, 0x1000 * (i + 1), { rax: BigInt(start >> 4) }),
    );
    for (const start of starts) set(start, 32 * 4096, 8n); // private, and no guest_memfd is behind it
    await using one = await opened(backend, vcpus[0]!);
    await using two = await opened(backend, vcpus[1]!);
    const faults: number[] = [];
    for (const worker of [one, two])
      worker.onFault = (gpa) => {
        faults.push(gpa);
        set(gpa, 4096, 0n);
        worker.answer();
      };
    const ends = await Promise.all([one.does('faulting'), two.does('faulting')]);
    expect(ends).toEqual([
      { end: Exit.HLT, faults: 32 },
      { end: Exit.HLT, faults: 32 },
    ]);
    const pages = starts.flatMap((start) => Array.from({ length: 32 }, (_, i) => start + i * 4096));
    expect(faults.sort((a, b) => a - b)).toEqual(pages);
    for (const page of pages) expect(vm.u32(page)).toBe(1);
  });

  it('log the pages that they write, as often as the log is cleared', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    vm.place(0, 0, 0);
    vm.place(0, 0, 1 << 20, MemFlag.LOG_DIRTY_PAGES);
    const starts = [0x2_0000, 0x6_0000];
    const vcpus = starts.map((start, i) =>
      vm.vcpu(walking.code, 0x1000 * (i + 1), { rax: BigInt(start >> 4) }),
    );
    await using one = await opened(backend, vcpus[0]!);
    await using two = await opened(backend, vcpus[1]!);
    const { request, struct } = ioctls.KVM_GET_DIRTY_LOG;
    const dirty = () => {
      const bits = new Uint8Array(32);
      expect(backend.ioctl(vm.vm, request, struct.encode({ slot: 0 }), [bits])).toBe(0);
      // The pages below are the code's: a page that is first mapped counts as written.
      return Array.from({ length: 256 }, (_, i) => i).filter(
        (i) => i >= 32 && bits[i >> 3]! & (1 << (i & 7)),
      );
    };
    dirty();
    const pages = starts.flatMap((start) => Array.from({ length: 32 }, (_, i) => (start >> 12) + i));
    for (let round = 0; round < 3; round++) {
      for (const [i, vcpu] of vcpus.entries())
        setRegs(backend, vcpu, { rip: BigInt(0x1000 * (i + 1)), rax: BigInt(starts[i]! >> 4) });
      const ends = await Promise.all([one.does('once'), two.does('once')]);
      expect(ends).toEqual([Exit.HLT, Exit.HLT]);
      expect(dirty()).toEqual(pages);
      expect(dirty()).toEqual([]);
    }
  });

  it('have the same private memory, whoever touches a page first, and lose it when it is punched', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend, PROTECTED);
    const size = 0x10_0000;
    const file = kvm_create_guest_memfd.encode({ size: 4 * size });
    const secret = made(backend.create(vm.vm, ioctls.KVM_CREATE_GUEST_MEMFD.request, file));
    const region = kvm_userspace_memory_region2.encode({
      slot: 1,
      flags: MemFlag.GUEST_MEMFD,
      guestPhysAddr: size,
      memorySize: 4 * size,
      guestMemfdOffset: 0,
    });
    const { request } = ioctls.KVM_SET_USER_MEMORY_REGION2;
    const shared = made(backend.allocate(4 * size));
    expect(backend.ioctl(vm.vm, request, region, [{ memory: shared, offset: 0 }, secret])).toBe(0);
    const attributes = kvm_memory_attributes.encode({ address: size, size: 4 * size, attributes: 8n });
    expect(backend.ioctl(vm.vm, ioctls.KVM_SET_MEMORY_ATTRIBUTES.request, attributes)).toBe(0);
    const adding = guest(
      16,
      `
      b8 ff ff       | mov ax, 0xffff
      8e d8          | mov ds, ax
      66 ff 06 10 00 | inc dword ptr [0x10] # at 0x100000
      66 a1 10 00    | mov eax, [0x10]
      f4             | hlt
      `,
    );
    const vcpus = [0x1000, 0x2000].map((at) => vm.vcpu(adding.code, at));
    await using one = await opened(backend, vcpus[0]!);
    const run = backend.runner(vcpus[1]!);
    for (let count = 1n; count < 4n; count++) {
      for (const [i, vcpu] of vcpus.entries()) setRegs(backend, vcpu, { rip: BigInt(0x1000 * (i + 1)) });
      expect(await one.does('once')).toBe(Exit.HLT);
      expect(getRegs(backend, vcpus[0]!).rax).toBe(2n * count - 1n);
      expect(run(DEADLINE_MS)).toBe(Exit.HLT);
      expect(getRegs(backend, vcpus[1]!).rax).toBe(2n * count);
    }
    expect(backend.bytes(shared)[0]).toBe(0);
    expect(backend.fallocate(secret, 3, 0, 4 * size)).toBe(0);
    for (const [i, vcpu] of vcpus.entries()) setRegs(backend, vcpu, { rip: BigInt(0x1000 * (i + 1)) });
    expect(await one.does('once')).toBe(Exit.HLT);
    expect(getRegs(backend, vcpus[0]!).rax).toBe(1n);
    for (const handle of [secret, shared]) backend.close(handle);
  });

  it('find a slot gone that the main thread deletes while they run', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    const vcpus = [0x1000, 0x2000].map((at) => vm.vcpu(spinning.code, at));
    await using one = await opened(backend, vcpus[0]!);
    await using two = await opened(backend, vcpus[1]!);
    const ends = [one, two].map((worker) => worker.does('once'));
    await until(() => vm.u32(COUNTER) > 1_000_000);
    vm.place(0, 0, 0);
    for (const end of await Promise.all(ends)) expect([Exit.INTERNAL_ERROR, Exit.MMIO]).toContain(end);
  });
});

describe('the main thread', () => {
  it('pauses a vCPU in a worker at any moment, and resumes it: none is lost', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    const vcpus = [spinning, telling].map(({ code }, i) => vm.vcpu(code, 0x1000 * (i + 1), { rcx: 0n }));
    await using one = await opened(backend, vcpus[0]!);
    await using two = await opened(backend, vcpus[1]!);
    const ends = [one.does('run'), two.does('run')];
    await until(() => vm.u32(COUNTER) > 100_000 && Atomics.load(two.words, 0) > 100);
    const acks = vcpus.map(() => made(backend.eventFds.create(0, false)));
    for (let round = 0; round < 300; round++) {
      const chosen = [vcpus[round % 2]!, ...(round % 3 === 0 ? [vcpus[(round + 1) % 2]!] : [])];
      for (let spins = (round * 7919) % 20_000; spins > 0; spins--); // another moment each time
      const waits = chosen.filter((vcpu) => {
        const now = backend.pause(backend.kickId(vcpu), acks[vcpus.indexOf(vcpu)]!);
        expect([0, 1]).toContain(now);
        return now === 1;
      });
      for (const vcpu of waits) await until(() => backend.eventFds.drain(acks[vcpus.indexOf(vcpu)]!) > 0);
      for (const vcpu of chosen) expect(regsOf(backend, vcpu)).toBe(0);
      if (chosen.length === 2) {
        const before = vm.u32(COUNTER);
        for (const vcpu of chosen) setRegs(backend, vcpu, { rbx: BigInt(round) });
        expect(vm.u32(COUNTER)).toBe(before);
      }
      for (const vcpu of chosen) expect(backend.resume(backend.kickId(vcpu))).toBe(0);
    }
    for (const vcpu of vcpus) backend.stop(backend.kickId(vcpu));
    for (const end of await Promise.all(ends)) expect(end).toMatchObject({ end: -Errno.ECANCELED });
    for (const vcpu of vcpus) expect(getRegs(backend, vcpu).rbx).toBe(297n);
  });

  it('can close all of a VM that a worker goes on with', async () => {
    const backend = simulator();
    const vm = new WaistVm(backend);
    const vcpu = vm.vcpu(telling.code, 0x1000, { rcx: 5000n });
    const tokens = { vm: backend.shareVm(vm.vm), vcpu: shared(backend, vcpu) };
    await using worker = await WaistWorker.open(waist.url, tokens.vcpu);
    const end = worker.does('run');
    await until(() => Atomics.load(worker.words, 0) > 10);
    const { memory } = vm;
    vm.close();
    expect(() => backend.fallocate(memory, 0, 0, 4096)).toThrow();
    using other = new WaistVm(backend); // it takes no place that is in use
    expect(other.bytes.every((byte) => byte === 0)).toBe(true);
    expect(await end).toEqual({ end: Exit.HLT, exits: 5000 });
    expect(await worker.does('regs')).toMatchObject({ rcx: 0n });
    const again = backend.openVcpu(tokens.vcpu);
    expect(regsOf(backend, made(again))).toBe(0);
    backend.close(made(again));
    await worker.does('close');
    if (typeof tokens.vm === 'number') throw new Error('no token');
    expect(backend.openVcpu(tokens.vcpu)).toBe(-Errno.ESTALE);
    expect(backend.openVm(tokens.vm)).toBe(-Errno.ESTALE);
  });

  it('has the vCPU again when its worker was terminated while it ran', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    const vcpus = [0x1000, 0x2000].map((at) => vm.vcpu(spinning.code, at));
    vm.bytes[0x3000] = 0xf4; // hlt
    const worker = await opened(backend, vcpus[0]!);
    void worker.does('run').catch(() => {});
    await until(() => vm.u32(COUNTER) > 1_000_000);
    await worker.worker.terminate();
    // Another vCPU waits at most for the lock, which nobody gives back.
    const run = backend.runner(vcpus[1]!);
    expect(run(1)).toBe(-Errno.ETIME);
    await until(() => regsOf(backend, vcpus[0]!) === 0);
    setRegs(backend, vcpus[0]!, { rip: 0x3000n });
    expect(backend.runner(vcpus[0]!)(DEADLINE_MS)).toBe(Exit.HLT);
  });

  it('refuses what is no token', () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    const vcpu = vm.vcpu(spinning.code, 0x1000);
    const token = shared(backend, vcpu) as unknown as Record<string, unknown>;
    for (const change of [
      { words: undefined },
      { run: new Uint8Array(5) },
      { vm: {} },
      { kickId: 'one' },
      {},
    ]) {
      const wrong = { ...token, kickId: 5, ...change } as unknown as SharedVcpu;
      expect([-Errno.EBADF, -Errno.ESTALE]).toContain(backend.openVcpu(wrong));
    }
    const whole = backend.shareVm(vm.vm) as unknown as Record<string, unknown>;
    for (const change of [{ arena: {} }, { words: new SharedArrayBuffer(8) }, { host: null }, { table: 7 }]) {
      const wrong = { ...whole, ...change } as never;
      expect(backend.openVm(wrong)).toBe(-Errno.EBADF);
    }
  });
});

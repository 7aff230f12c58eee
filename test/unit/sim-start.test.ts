/** Runs of simulated vCPUs that are started and go on from the event loop: who is next, and what is asked meanwhile. */
import { describe, expect, it } from 'vitest';
import { type Backend, type Handle, VCPU_RUNNING } from '../../src/hypervisor/backend.ts';
import { simulator } from '../../src/open.ts';
import { Errno, Exit, ioctls } from '../../src/uapi/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { getRegs, made, setRegs, WaistVm } from '../support/waist.ts';

const COUNTER = 0x8000;
const ROUNDS = 40_000n;

/** Adds to a counter, by three instructions. */
const racing = guest(
  16,
  `
66 a1 00 80 | again: mov eax, [0x8000]
66 40       |        inc eax
66 a3 00 80 |        mov [0x8000], eax
66 49       |        dec ecx
75 f2       |        jnz again
f4          |        hlt
`,
);
/** Adds to it by one. */
const locked = guest(
  16,
  `
66 f0 ff 06 00 80 | again: lock inc dword ptr [0x8000]
66 49             |        dec ecx
75 f6             |        jnz again
f4                |        hlt
`,
);
const spinning = guest(
  16,
  `
eb fe | again: jmp again
`,
);
const telling = guest(
  16,
  `
e6 10 | again: out 0x10, al
fe c0 |        inc al
eb fa |        jmp again
`,
);
const reading = guest(
  16,
  `
e4 10 | in al, 0x10
f4    | hlt
`,
);

const turn = () => new Promise<void>((resolve) => setImmediate(resolve));
const until = async (condition: () => boolean): Promise<void> => {
  const deadline = performance.now() + DEADLINE_MS;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error('what is waited for has not come');
    await turn();
  }
};

/** The run as a promise. */
const started = (backend: Backend, vcpu: Handle, timeoutMs = DEADLINE_MS): Promise<number> =>
  new Promise((resolve) => {
    expect(backend.starter(vcpu, resolve).start(timeoutMs)).toBe(0);
  });

/** What two vCPUs that run the code to its HLT leave in the counter, with the end of each. */
async function race(code: Uint8Array, seed?: number) {
  const backend = simulator(seed === undefined ? {} : { seed });
  using vm = new WaistVm(backend);
  const vcpus = [0x1000, 0x2000].map((at) => vm.vcpu(code, at, { rcx: ROUNDS }));
  const order: number[] = [];
  const ends = await Promise.all(
    vcpus.map((vcpu, i) => started(backend, vcpu).then((end) => [order.push(i), end][1])),
  );
  expect(ends).toEqual([Exit.HLT, Exit.HLT]);
  const trace = vcpus.map((vcpu) => [backend.completed!(vcpu), getRegs(backend, vcpu).rax]);
  return { counter: vm.u32(COUNTER), trace, order };
}

describe('two started vCPUs of a VM', () => {
  it('lose updates of a counter where they race, the same with the same seed, and others with another', async () => {
    const one = await race(racing.code);
    expect(one.counter).toBeLessThan(Number(ROUNDS) * 2);
    expect(one.counter).toBeGreaterThanOrEqual(Number(ROUNDS));
    expect(await race(racing.code, 1)).toEqual(one);
    const others = [await race(racing.code, 2), await race(racing.code, 2 ** 40)];
    for (const other of others) expect(other).not.toEqual(one);
    expect(await race(racing.code, 2)).toEqual(others[0]);
  });

  it('lose none with a LOCK prefix', async () => {
    for (const seed of [1, 2, 3]) expect((await race(locked.code, seed)).counter).toBe(Number(ROUNDS) * 2);
  });

  it('whose handlers answer by promises that are settled are interleaved in the same way, whatever the clock does', async () => {
    const traceOf = async (disturb: () => void): Promise<unknown[]> => {
      const backend = simulator({ seed: 7 });
      using vm = new WaistVm(backend);
      const trace: unknown[] = [];
      const loop = async (vcpu: Handle, i: number) => {
        for (let n = 0; n < 200; n++) {
          expect(await started(backend, vcpu)).toBe(Exit.IO);
          await null;
          trace.push([i, getRegs(backend, vcpu), backend.completed!(vcpu), vm.u32(COUNTER)]);
        }
      };
      const busy = guest(
        16,
        `
        b9 f4 01       | again: mov cx, 500
        66 ff 06 00 80 | next:  inc dword ptr [0x8000]
        49             |        dec cx
        75 f8          |        jnz next
        e6 10          |        out 0x10, al
        eb f1          |        jmp again
        `,
      );
      const vcpus = [0x1000, 0x2000].map((at) => vm.vcpu(busy.code, at));
      const timer = setInterval(disturb, 1);
      await Promise.all(vcpus.map(loop));
      clearInterval(timer);
      return trace;
    };
    const quiet = await traceOf(() => {});
    let turns = 0;
    const disturbed = await traceOf(() => {
      const end = performance.now() + (turns++ % 7);
      while (performance.now() < end);
    });
    expect(disturbed).toEqual(quiet);
  });

  it('see what the other has written to their code', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    // Spins until the other has made the jump another instruction.
    const patched = guest(
      16,
      `
      66 41 | again: inc ecx
      eb fc |        jmp again
      f4    |        hlt
      `,
    );
    const patcher = guest(
      16,
      `
      66 b9 40 0d 03 00 |        mov ecx, 200000
      66 49             | again: dec ecx
      75 fc             |        jnz again
      c7 06 02 10 90 90 |        mov word ptr [0x1002], 0x9090
      f4                |        hlt
      `,
    );
    const first = vm.vcpu(patched.code, 0x1000);
    const second = vm.vcpu(patcher.code, 0x2000);
    expect(await Promise.all([started(backend, first), started(backend, second)])).toEqual([
      Exit.HLT,
      Exit.HLT,
    ]);
    expect(getRegs(backend, first).rcx).toBeGreaterThan(1000n);
  });

  it('find a slot gone that is deleted while they run', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    const touching = guest(
      16,
      `
      66 ff 06 00 80 | again: inc dword ptr [0x8000]
      eb f9          |        jmp again
      `,
    );
    const vcpus = [0x1000, 0x2000].map((at) => vm.vcpu(touching.code, at));
    const ends = vcpus.map((vcpu) => started(backend, vcpu));
    await until(() => vm.u32(COUNTER) > 100_000);
    vm.place(0, 0, 0);
    for (const end of await Promise.all(ends)) expect([Exit.INTERNAL_ERROR, Exit.MMIO]).toContain(end);
  });
});

describe('a started vCPU', () => {
  it('is begun again by what it tells, without a turn of the event loop', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    const vcpu = vm.vcpu(telling.code, 0x1000);
    let exits = 0;
    let turns = 0;
    await new Promise<void>((resolve) => {
      const { start } = backend.starter(vcpu, (end) => {
        expect(end).toBe(Exit.IO);
        if (++exits === 1000) resolve();
        else start();
      });
      start(DEADLINE_MS);
      const count = () => {
        turns++;
        if (exits < 1000) setImmediate(count);
      };
      setImmediate(count);
    });
    expect(getRegs(backend, vcpu).rax & 0xffn).toBe(BigInt(999 & 0xff));
    expect(turns).toBeLessThan(500);
  });

  it('lets the event loop turn after some exits, however long it takes to serve one', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    const vcpu = vm.vcpu(telling.code, 0x1000);
    const serve = () => {
      const end = performance.now() + 1;
      while (performance.now() < end);
    };
    let exits = 0;
    let turns = 0;
    await new Promise<void>((resolve) => {
      const { start } = backend.starter(vcpu, () => {
        serve();
        if (++exits === 300) resolve();
        else start();
      });
      start(DEADLINE_MS);
      const count = () => {
        if (++turns === 4) resolve();
        else setImmediate(count);
      };
      setImmediate(count);
    });
    expect(turns).toBe(4);
    expect(exits).toBeGreaterThan(0);
  });

  it('answers no call while it runs', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    const vcpu = vm.vcpu(spinning.code, 0x1000);
    const run = backend.runner(vcpu);
    const end = started(backend, vcpu);
    const { request, struct } = ioctls.KVM_GET_REGS;
    expect(backend.ioctl(vcpu, request, new Uint8Array(struct.size))).toBe(VCPU_RUNNING);
    expect(run(DEADLINE_MS)).toBe(VCPU_RUNNING);
    expect(backend.starter(vcpu, () => {}).start()).toBe(VCPU_RUNNING);
    expect(backend.kick(backend.kickId(vcpu))).toBe(true);
    expect(await end).toBe(-Errno.EINTR);
    expect(backend.ioctl(vcpu, request, new Uint8Array(struct.size))).toBe(0);
  });

  it('ends at its deadline, by stop(), and when it is closed', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    const vcpu = vm.vcpu(spinning.code, 0x1000);
    const id = backend.kickId(vcpu);
    expect(await started(backend, vcpu, 5)).toBe(-Errno.ETIME);
    const stopped = started(backend, vcpu);
    await turn();
    expect(backend.stop(id)).toBe(true);
    expect(await stopped).toBe(-Errno.ECANCELED);
    const closed = started(backend, vcpu);
    await turn();
    backend.close(vcpu);
    expect(await closed).toBe(-Errno.EBADF);
    expect(backend.stop(id)).toBe(false);
    expect(backend.pause(id, made(backend.eventFds.create(0, false)))).toBe(-Errno.ESRCH);
  });

  it('goes on when what is told of its end throws', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    const vcpus = [0x1000, 0x2000].map((at) => vm.vcpu(telling.code, at));
    const thrown: unknown[] = [];
    const listeners = process.listeners('uncaughtException');
    process.removeAllListeners('uncaughtException');
    process.once('uncaughtException', (error) => thrown.push(error));
    try {
      const { start } = backend.starter(vcpus[0]!, () => {
        throw new Error('from a handler');
      });
      start(DEADLINE_MS);
      expect(await started(backend, vcpus[1]!)).toBe(Exit.IO);
      await until(() => thrown.length > 0);
    } finally {
      for (const listener of listeners) process.on('uncaughtException', listener);
    }
    expect(await started(backend, vcpus[0]!)).toBe(Exit.IO);
  });

  it('leaves the event loop alive while it runs flat out', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    const vcpus = [0x1000, 0x2000].map((at) => vm.vcpu(spinning.code, at));
    const ends = vcpus.map((vcpu) => started(backend, vcpu, 200));
    let turns = 0;
    const timer = setInterval(() => turns++, 1);
    expect(await Promise.all(ends)).toEqual([-Errno.ETIME, -Errno.ETIME]);
    clearInterval(timer);
    expect(turns).toBeGreaterThan(5);
  });
});

describe('pause()', () => {
  const paused = (backend: Backend, vcpu: Handle) => {
    const ack = made(backend.eventFds.create(0, false));
    return { ack, now: backend.pause(backend.kickId(vcpu), ack) };
  };

  it('of a started vCPU is acknowledged, counted, and undone by resume()', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    const vcpu = vm.vcpu(
      guest(
        16,
        `
        66 ff 06 00 80 | again: inc dword ptr [0x8000]
        eb f9          |        jmp again
        `,
      ).code,
      0x1000,
    );
    const id = backend.kickId(vcpu);
    const end = started(backend, vcpu);
    await until(() => vm.u32(COUNTER) > 1000);
    let waited = 0;
    for (let round = 0; round < 300; round++) {
      const { ack, now } = paused(backend, vcpu);
      // It has not noticed yet that it was resumed, or it has to be waited for.
      expect([0, 1]).toContain(now);
      waited += now!;
      if (round % 3 === 0) await turn();
      if (now === 1) await until(() => backend.eventFds.drain(ack) === 1);
      const before = vm.u32(COUNTER);
      expect(getRegs(backend, vcpu).rip & 0xfff0n).toBe(0x1000n);
      await turn();
      expect(vm.u32(COUNTER)).toBe(before);
      if (round % 2 === 0) {
        expect(backend.pause(id, ack)).toBe(0);
        expect(backend.resume(id)).toBe(0);
        await turn();
        expect(vm.u32(COUNTER)).toBe(before);
      }
      expect(backend.resume(id)).toBe(0);
      if (round % 5 !== 0) await until(() => vm.u32(COUNTER) !== before);
      backend.close(ack);
    }
    expect(waited).toBeGreaterThan(100);
    expect(backend.resume(id)).toBe(-Errno.EINVAL);
    backend.stop(id);
    expect(await end).toBe(-Errno.ECANCELED);
  });

  it('waits for the answer to an exit, and the access is complete then', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    const vcpu = vm.vcpu(reading.code, 0x1000);
    const id = backend.kickId(vcpu);
    expect(await started(backend, vcpu)).toBe(Exit.IO);
    const { ack, now } = paused(backend, vcpu);
    expect(now).toBe(1);
    backend.bytes(vcpu)[4096] = 42; // the page of port data
    const end = started(backend, vcpu);
    await until(() => backend.eventFds.drain(ack) === 1);
    expect(getRegs(backend, vcpu)).toMatchObject({ rax: 42n, rip: 0x1002n });
    backend.resume(id);
    expect(await end).toBe(Exit.HLT);
  });

  it('before a run keeps it from the guest until resume(), and what is set meanwhile holds', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    const vcpu = vm.vcpu(spinning.code, 0x1000);
    vm.bytes[0x3000] = 0xf4; // hlt
    const id = backend.kickId(vcpu);
    expect(paused(backend, vcpu).now).toBe(0);
    const end = started(backend, vcpu);
    await turn();
    await turn();
    setRegs(backend, vcpu, { rip: 0x3000n });
    backend.resume(id);
    expect(await end).toBe(Exit.HLT);
    expect(getRegs(backend, vcpu).rip).toBe(0x3001n);
  });

  it('gives a kick after resume(), a stop at once, and EINTR where the user has asked for it', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    const vcpu = vm.vcpu(spinning.code, 0x1000);
    const run = backend.runner(vcpu);
    const id = backend.kickId(vcpu);
    const { ack } = paused(backend, vcpu);
    expect(run(1)).toBe(-Errno.ETIME);
    backend.kick(id);
    expect(run(1)).toBe(-Errno.ETIME);
    const kicked = started(backend, vcpu);
    await turn();
    backend.resume(id);
    expect(await kicked).toBe(-Errno.EINTR);

    expect(backend.pause(id, ack)).toBe(0);
    const stopped = started(backend, vcpu);
    await turn();
    backend.stop(id);
    expect(await stopped).toBe(-Errno.ECANCELED);
    backend.stop(id);
    expect(run(DEADLINE_MS)).toBe(-Errno.ECANCELED);

    const page = backend.bytes(vcpu);
    page[1] = 1; // immediate_exit
    expect(run(DEADLINE_MS)).toBe(-Errno.EINTR);
    expect(page[1]).toBe(1);
  });

  it('has no place for more than those that wait already, and says so', async () => {
    const backend = simulator();
    using vm = new WaistVm(backend);
    const vcpu = vm.vcpu(spinning.code, 0x1000);
    const id = backend.kickId(vcpu);
    const end = started(backend, vcpu);
    const results = Array.from({ length: 30 }, () => paused(backend, vcpu));
    expect(results.filter(({ now }) => now === 1).length).toBe(24);
    expect(results.at(-1)!.now).toBe(-Errno.EAGAIN);
    await until(() => results.slice(0, 24).every(({ ack }) => backend.eventFds.drain(ack) === 1));
    for (let i = 0; i < 24; i++) expect(backend.resume(id)).toBe(0);
    expect(backend.resume(id)).toBe(-Errno.EINVAL);
    backend.stop(id);
    expect(await end).toBe(-Errno.ECANCELED);
  });
});

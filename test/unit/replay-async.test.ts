/** Runs that end in the event loop: a replay ends them in the order in which they ended, whatever its VMM's timing. */
import { describe, expect, it } from 'vitest';
import type { Backend, Handle } from '../../src/hypervisor/backend.ts';
import { Bus, Exit, flatImage, guest, Hypervisor, Machine, Replay, RunLoops } from '../../src/index.ts';
import { simulator } from '../../src/open.ts';
import { recordingBackend } from '../../src/replay/record.ts';
import { Memo } from '../../src/replay/records.ts';
import { Replayer } from '../../src/replay/replay.ts';
import { ioctls } from '../../src/uapi/ioctls.ts';
import { failureOf } from '../support/recording.ts';

/** Counts at a port, and halts at 0. */
const counts = guest(
  16,
  `
  e6 10 | next: out 0x10, al
  fe c8 |       dec al
  75 fa |       jnz next
  f4    |       hlt
  `,
);

/** The simulator with runs that end in the event loop, each after as many milliseconds as the test says. */
function asynchronous(delays: readonly number[]): Backend {
  const inner = simulator();
  let runs = 0;
  return {
    ...tapped(inner).backend,
    starter: (vcpu, done) => {
      const run = inner.runner(vcpu);
      const start = () => {
        setTimeout(() => done(run()), delays[runs++ % delays.length]);
        return 0;
      };
      return { start, end() {} };
    },
  };
}

/** A backend, and the vCPUs that it makes. */
function tapped(inner: Backend): { readonly backend: Backend; readonly vcpus: Handle[] } {
  const vcpus: Handle[] = [];
  const members = Object.fromEntries(
    (
      [
        'open',
        'ioctl',
        'allocate',
        'reserve',
        'mapGuestMemfd',
        'mapDirtyRing',
        'share',
        'openMemory',
        'bytes',
        'write',
        'read',
        'fallocate',
        'seek',
        'madvise',
        'shareVm',
        'openVm',
        'shareVcpu',
        'openVcpu',
        'runner',
        'starter',
        'kickId',
        'kick',
        'pause',
        'resume',
        'stop',
        'completed',
        'observe',
        'ownAccesses',
        'mark',
        'input',
        'close',
        'name',
        'dialect',
        'eventFds',
      ] as const
    )
      .map((name) => [name, inner[name]])
      .filter(([, member]) => member !== undefined),
  ) as unknown as Backend;
  return {
    vcpus,
    backend: {
      ...members,
      create: (...args) => {
        const made = inner.create(...args);
        if (args[1] === ioctls.KVM_CREATE_VCPU.request) vcpus.push(made as Handle);
        return made;
      },
    },
  };
}

/** Runs two vCPUs at once until both have halted, and tells what ended when. */
async function vmm(inner: Backend, between: () => Promise<void> = async () => {}): Promise<unknown[]> {
  const { backend, vcpus: handles } = tapped(inner);
  using hv = new Hypervisor(backend);
  using vm = hv.createVm();
  using memory = vm.allocate(0x1_0000);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory });
  memory.write(0x1000, counts.code);
  const seen: unknown[] = [];
  const vcpus = [0, 1].map((id) => {
    const vcpu = vm.createVcpu(id);
    const { cs } = vcpu.getSregs();
    vcpu.changeSregs({ cs: { ...cs, base: 0n, selector: 0 } });
    vcpu.setRegs({ rip: 0x1000, rflags: 2, rax: 4 + 0x10 * id });
    return vcpu;
  });
  await Promise.all(
    vcpus.map(
      (vcpu, i) =>
        new Promise<void>((resolve) => {
          const { start } = backend.starter(handles[i]!, async (exit) => {
            seen.push([i, exit, exit === Exit.IO ? vcpu.io.value : undefined]);
            if (exit !== Exit.IO || seen.length > 30) return resolve();
            await between();
            start();
          });
          seen.push(start());
        }),
    ),
  );
  for (const vcpu of vcpus) vcpu.close();
  return seen;
}

async function recorded(delays: readonly number[]): Promise<{ memo: Memo; result: unknown[] }> {
  const memo = new Memo();
  return { memo, result: await vmm(recordingBackend(asynchronous(delays), memo)) };
}

describe('runs of several vCPUs that end in the event loop', () => {
  it.each([
    ['one vCPU is slow', [8, 0]],
    ['both take turns', [0, 3, 5, 0, 0, 4]],
  ])('end in a replay in the order in which they ended: %s', async (_, delays) => {
    const { memo, result } = await recorded(delays);
    const replayer = new Replayer(memo);
    expect(await vmm(replayer.backend())).toEqual(result);
    expect([replayer.ended, replayer.error]).toEqual([true, undefined]);
    expect(result.length).toBeGreaterThan(12);
  });

  it('do so where the VMM serves them slower than the recorded one did', async () => {
    const { memo, result } = await recorded([4, 0, 0]);
    const slow = () => new Promise<void>((done) => setTimeout(done, 2));
    expect(await vmm(new Replayer(memo).backend(), slow)).toEqual(result);
  });

  it('end behind a stop that another one’s end has brought', async () => {
    const session = async (hv: Hypervisor) => {
      using machine = new Machine(hv, { memory: 0x10_0000, cpus: 2 });
      machine.load(flatImage(counts.code, 'real'), { rax: 3 });
      const seen: unknown[] = [];
      const bell = {
        name: 'bell',
        read() {},
        write: (_: number, data: Uint8Array) => void seen.push(data[0]),
      };
      const loops = new RunLoops(machine.vcpus, { ports: new Bus().attach(0x10, 1, bell) });
      machine.vcpus[0]!.stop();
      seen.push(await loops.run());
      hv.close();
      return seen;
    };
    const memo = new Memo();
    const result = await session(new Hypervisor(recordingBackend(simulator(), memo)));
    expect(result.at(-1)).toEqual({ reason: 'stop', value: 0 });
    const replay = new Replay(memo);
    expect(await session(replay.hypervisor)).toEqual(result);
    expect([replay.ended, replay.error]).toEqual([true, undefined]);
  });

  it('stand still where they were paused, go on where they were resumed, and end where they were stopped', async () => {
    const session = async (hv: Hypervisor) => {
      using machine = new Machine(hv, { memory: 0x10_0000 });
      machine.load(flatImage(Uint8Array.of(0xfe, 0xc0, 0xeb, 0xfc), 'real')); // again: inc al; jmp again
      const { vcpu } = machine;
      const end = vcpu.start([]);
      await vcpu.pause();
      const seen: unknown[] = [vcpu.getRegs().rax, vcpu.getRegs().rip];
      vcpu.resume();
      await vcpu.pause();
      seen.push(vcpu.getRegs().rax);
      vcpu.resume();
      vcpu.stop();
      seen.push(await end);
      hv.close();
      return seen;
    };
    const memo = new Memo();
    const result = await session(new Hypervisor(recordingBackend(simulator(), memo)));
    expect(result.at(-1)).toBe(Exit.STOPPED);
    const replay = new Replay(memo);
    expect(await session(replay.hypervisor)).toEqual(result);
    expect([replay.ended, replay.error]).toEqual([true, undefined]);
  });

  it('fail where the VMM does not make the call that comes next', async () => {
    const { memo } = await recorded([1]);
    const replayer = new Replayer(memo, 20);
    const { backend, vcpus } = tapped(replayer.backend());
    const hv = new Hypervisor(backend);
    const vm = hv.createVm();
    const memory = vm.allocate(0x1_0000);
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory });
    memory.write(0x1000, counts.code);
    for (const id of [0, 1]) {
      const vcpu = vm.createVcpu(id);
      const { cs } = vcpu.getSregs();
      vcpu.changeSregs({ cs: { ...cs, base: 0n, selector: 0 } });
      vcpu.setRegs({ rip: 0x1000, rflags: 2, rax: 4 + 0x10 * id });
    }
    const ended = new Promise((resolve) => {
      expect(backend.starter(vcpus[0]!, resolve).start()).toBe(0);
    });
    // The recorded VMM has begun a run of the other vCPU too.
    expect(await ended).toBe(-5);
    expect(replayer.error).toMatchObject({ failure: 'stalled' });
    expect(replayer.error?.message).toMatch(
      /starter of vCPU 1 is recorded, and the VMM has made no call for 0.02 s/,
    );
    expect(failureOf(() => hv.getApiVersion())).toBe(replayer.error);
  });
});

it('a Replay takes a time limit for its VMM that is one', () => {
  expect(() => new Replay(new Memo(), { stallMs: 0 })).toThrow(RangeError);
});

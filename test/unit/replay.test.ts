/** A session that was recorded, and is replayed without the backend that it ran on. */
import { describe, expect, it } from 'vitest';
import {
  Cap,
  DirtyPages,
  Exit,
  flatImage,
  type GuestMemory,
  guest,
  Hypervisor,
  Machine,
  MemFlag,
  Replay,
  type Vcpu,
  VmType,
} from '../../src/index.ts';
import { simulator } from '../../src/open.ts';
import { Errno } from '../../src/uapi/errno.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { failureOf, recorded } from '../support/recording.ts';

/** Reads a port five times, tells what it read, and puts it and the time into memory. */
const reads = guest(
  16,
  `
  ba 60 00    |       mov dx, 0x60
  b9 05 00    |       mov cx, 5
  ec          | next: in al, dx
  a2 00 90    |       mov [0x9000], al
  e6 10       |       out 0x10, al
  0f 31       |       rdtsc
  66 a3 00 a0 |       mov [0xa000], eax
  e2 f2       |       loop next
  f4          |       hlt
  `,
);
const spins = guest(16, 'eb fe | here: jmp here');
/** mov [0x9000], al; hlt; and again */
const writes = guest(
  16,
  `
  a2 00 90 | next: mov [0x9000], al
  f4       |       hlt
  eb fa    |       jmp next
  `,
);

function machineWith(hv: Hypervisor, code: Uint8Array, regs: { readonly rax?: number } = {}): Machine {
  const machine = new Machine(hv, { memory: 0x10_0000 });
  machine.load(flatImage(code, 'real'), regs);
  return machine;
}

/** Answers the port with these, and tells all that it sees. */
const reading =
  (answers: readonly number[], view = true) =>
  (hv: Hypervisor): unknown[] => {
    const machine = machineWith(hv, reads.code);
    const { vcpu, memory } = machine;
    const bytes = view ? memory.bytes : new Uint8Array(0);
    const seen: unknown[] = [hv.backend, hv.checkExtension(Cap.NR_VCPUS)];
    let reads_ = 0;
    for (;;) {
      const exit = vcpu.run(DEADLINE_MS);
      seen.push(exit, bytes[0x9000], bytes.slice(0xa000, 0xa004), vcpu.getRegs(), vcpu.completed);
      if (exit !== Exit.IO) break;
      if (vcpu.io.direction === 0) vcpu.io.value = answers[reads_++ % answers.length]!;
      else seen.push(vcpu.io.value);
    }
    seen.push(memory.read(0x8ff0, 32), memory.read(0xa000, 4));
    machine.close();
    return seen;
  };

const both = <T>(vmm: (hv: Hypervisor) => T): readonly [recorded: T, replayed: T, replay: Replay] => {
  const { memo, result } = recorded(vmm);
  const replay = new Replay(memo);
  const again = vmm(replay.hypervisor);
  return [result, again, replay];
};

describe('a replay', () => {
  it.each([
    ['with a view of the memory', true],
    ['with copies of it', false],
  ])('gives the VMM what the recorded one was given: exits, registers, time and memory, %s', (_, view) => {
    const [result, again, replay] = both(reading([7, 8, 9, 0, 9], view));
    expect(again).toEqual(result);
    expect(new Set(result.filter((value) => value === Exit.IO)).size).toBe(1);
    expect([replay.complete, replay.ended, replay.error]).toEqual([true, true, undefined]);
    expect(replay.position).toBeGreaterThan(20);
  });

  it('puts back what a guest has written over what the VMM wrote by its view', () => {
    const [result, again] = both((hv) => {
      const machine = machineWith(hv, writes.code, { rax: 5 });
      const { bytes } = machine.memory;
      const seen: unknown[] = [];
      for (let round = 0; round < 3; round++) {
        seen.push(machine.vcpu.run(DEADLINE_MS), bytes[0x9000]);
        bytes[0x9000] = 77; // the guest writes its 5 again, which a recorder finds as it was
      }
      machine.close();
      return seen;
    });
    expect(result).toEqual([Exit.HLT, 5, Exit.HLT, 5, Exit.HLT, 5]);
    expect(again).toEqual(result);
  });

  it('ends runs where a kick and a deadline ended them', () => {
    const [result, again] = both((hv) => {
      const machine = machineWith(hv, spins.code);
      const { vcpu } = machine;
      vcpu.kick();
      const seen = [vcpu.run(DEADLINE_MS), hv.kick(vcpu.kickId), vcpu.run(), vcpu.run(1), vcpu.getRegs()];
      machine.close();
      return seen;
    });
    expect(result.slice(0, 4)).toEqual([Exit.INTERRUPTED, true, Exit.INTERRUPTED, Exit.DEADLINE]);
    expect(again).toEqual(result);
  });

  it('wants no kick where there was one: what it did is in the run', () => {
    const vmm = (kicks: boolean) => (hv: Hypervisor) => {
      const machine = machineWith(hv, spins.code);
      if (kicks) machine.vcpu.kick();
      const exit = machine.vcpu.run(DEADLINE_MS);
      machine.close();
      return exit;
    };
    const { memo } = recorded(vmm(true));
    expect(vmm(false)(new Replay(memo).hypervisor)).toBe(Exit.INTERRUPTED);
  });

  it('runs several vCPUs in the order in which they ran', () => {
    const [result, again] = both((hv) => {
      using vm = hv.createVm();
      using memory = vm.allocate(0x1_0000);
      vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory });
      memory.write(0x1000, writes.code);
      const vcpus = [0, 1, 2].map((id) => {
        const vcpu = vm.createVcpu(id);
        const { cs } = vcpu.getSregs();
        vcpu.changeSregs({ cs: { ...cs, base: 0n, selector: 0 } });
        vcpu.setRegs({ rip: 0x1000, rflags: 2, rax: id + 1 });
        return vcpu;
      });
      const bytes = memory.bytes;
      const seen = [2, 0, 1, 1, 2].map((id) => [vcpus[id]!.run(DEADLINE_MS), bytes[0x9000]]);
      for (const vcpu of vcpus) vcpu.close();
      return seen;
    });
    expect(result).toEqual([3, 1, 2, 2, 3].map((byte) => [Exit.HLT, byte]));
    expect(again).toEqual(result);
  });

  it('gives what was taken from elsewhere, and does not take it again', () => {
    const { memo, result } = recorded((hv) =>
      hv.input('what', () => ({ list: [1, -2.5, 3n, 'x'], bytes: Uint8Array.of(1) })),
    );
    const again = new Replay(memo).hypervisor.input('what', () => {
      throw new Error('it was taken again');
    });
    expect(again).toEqual(result);
  });

  it('throws where the recorded call has thrown, and gives the errors that it had', () => {
    const [result, again] = both((hv) => {
      const codes: unknown[] = [];
      const note = (call: () => unknown) => {
        try {
          call();
        } catch (error) {
          codes.push((error as { code: string }).code, (error as Error).message);
        }
      };
      using vm = hv.createVm();
      note(() => vm.createVcpu(100_000));
      note(() => vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 1, memory: vm.allocate(4096) }));
      note(() => hv.input('failing', () => JSON.parse('{') as never));
      return codes;
    });
    expect(result.slice(0, 4).filter((_, i) => i % 2 === 0)).toEqual(['EINVAL', 'EINVAL']);
    expect(again).toEqual(result);
  });

  it('tells observers what they were told, where they were told it', () => {
    const [result, again] = both((hv) => {
      // ud2, whose handler is at 0 and halts
      const machine = machineWith(hv, Uint8Array.of(0x0f, 0x0b));
      machine.memory.write(0, Uint8Array.of(0xf4, 0, 0, 0));
      machine.memory.write(24, new Uint8Array(4));
      const told: unknown[] = [];
      machine.vcpu.observe({
        exception: (vector, code, rip) => told.push([vector, code, rip, machine.vcpu.completed]),
        instruction: (rip, bytes) => told.push([rip, bytes.slice()]),
      });
      told.push(machine.vcpu.run(DEADLINE_MS));
      machine.close();
      return told;
    });
    expect(result).toContainEqual([6, undefined, 0x1000n, 0n]);
    expect(again).toEqual(result);
  });

  it('has what another thread wrote from the place on where it was marked', () => {
    const vmm = (write: (memory: GuestMemory) => void) => (hv: Hypervisor) => {
      using vm = hv.createVm();
      using memory = vm.allocate(0x4000);
      const { bytes } = memory;
      const before = bytes[0x2000];
      write(memory);
      memory.markDirty(0x2000, 4096);
      return [before, bytes[0x2000]];
    };
    const { memo, result } = recorded(vmm((memory) => memory.bytes.fill(42, 0x2000, 0x3000)));
    // In a replay nobody else is there.
    expect(vmm(() => {})(new Replay(memo).hypervisor)).toEqual(result);
    expect(result).toEqual([0, 42]);
  });

  it('has what another thread wrote to memory that was shared, unmarked, after the next run', () => {
    const vmm = (write: (memory: GuestMemory) => void) => (hv: Hypervisor) => {
      const machine = machineWith(hv, writes.code);
      machine.memory.share();
      const { bytes } = machine.memory;
      write(machine.memory);
      const seen = [machine.vcpu.run(DEADLINE_MS), bytes[0x5_0000]];
      machine.close();
      return seen;
    };
    const { memo, result } = recorded(vmm((memory) => memory.bytes.fill(42, 0x5_0000, 0x5_0001)));
    expect(vmm(() => {})(new Replay(memo).hypervisor)).toEqual(result);
    expect(result).toEqual([Exit.HLT, 42]);
  });

  it('leaves a VMM its own log of dirty pages', () => {
    const vmm = (hv: Hypervisor) => {
      const machine = machineWith(hv, writes.code);
      const { vm, vcpu, memory } = machine;
      memory.bytes[0x9000] = 1;
      const seen: unknown[] = [failureOf(() => vm.getDirtyLog(0)).code];
      const dirty = DirtyPages.start(vm, { vcpus: [vcpu] });
      for (const runs of [1, 0, 2]) {
        for (let i = 0; i < runs; i++) vcpu.run(DEADLINE_MS);
        seen.push(dirty.take().map(({ offset }) => offset));
      }
      seen.push(vm.memoryMap.slots[0]!.flags === MemFlag.LOG_DIRTY_PAGES);
      dirty.close();
      machine.close();
      return seen;
    };
    const [result, again] = both(vmm);
    expect(result).toEqual(vmm(new Hypervisor(simulator())));
    expect(result.slice(2)).toEqual([[], [0x9000], true]);
    expect(again).toEqual(result);
  });

  it('has eventfds by what was drained, and calls back where they called back', async () => {
    const vmm = async (hv: Hypervisor) => {
      const bell = hv.createEventFd();
      bell.signal(3);
      const seen: unknown[] = [bell.drain(), bell.drain()];
      setTimeout(() => bell.signal(2), 1);
      seen.push(await bell.wait());
      bell.close();
      hv.close();
      return seen;
    };
    const { memo, result } = recorded(vmm);
    expect(await result).toEqual([3, undefined, 2]);
    expect(await vmm(new Replay(memo).hypervisor)).toEqual([3, undefined, 2]);
  });
});

describe('a replay that diverges', () => {
  it('names the first answer of the VMM’s that is another one, and its place', () => {
    const { memo } = recorded(reading([7, 8, 9]));
    const replay = new Replay(memo);
    const error = failureOf(() => reading([7, 5, 9])(replay.hypervisor));
    expect(error).toMatchObject({ code: 'ERR_KVM_REPLAY', failure: 'diverged' });
    expect(error.message).toMatch(
      /^the replay diverges at record \d+: run of vCPU 0 with byte 0 of the port's data 0x8 is recorded, and with .* 0x5 it came$/,
    );
    expect(replay.error).toBe(error);
    // The answer was to the third run; what came before it was replayed.
    expect(replay.position).toBe(error.sequence - 1);
    expect(failureOf(() => replay.hypervisor.getApiVersion())).toBe(error);
  });

  it.each<[string, (vcpu: Vcpu, memory: GuestMemory) => void, RegExp]>([
    [
      'a register',
      (vcpu) => vcpu.setRegs({ rip: 0x1000, rflags: 2, rbx: 6 }),
      /KVM_SET_REGS of vCPU 0 with rbx 0x5 .* rbx 0x6/,
    ],
    [
      'another call',
      (vcpu) => vcpu.getSregs(),
      /the recording has KVM_SET_REGS of vCPU 0, and KVM_GET_SREGS of vCPU 0 came/,
    ],
    [
      'other bytes',
      (_, memory) => memory.write(0x100, Uint8Array.of(1)),
      /the recording has KVM_SET_REGS .* write of guest memory came/,
    ],
  ])('names %s that is another one', (_, other, message) => {
    const vmm = (step: (vcpu: Vcpu, memory: GuestMemory) => void) => (hv: Hypervisor) => {
      const machine = machineWith(hv, writes.code);
      step(machine.vcpu, machine.memory);
      machine.close();
    };
    const { memo } = recorded(vmm((vcpu) => vcpu.setRegs({ rip: 0x1000, rflags: 2, rbx: 5 })));
    expect(failureOf(() => vmm(other)(new Replay(memo).hypervisor)).message).toMatch(message);
  });

  it('says that the recording ends where the VMM goes on', () => {
    const { memo } = recorded((hv) => hv.getApiVersion());
    const { hypervisor } = new Replay(memo);
    hypervisor.getApiVersion();
    const error = failureOf(() => hypervisor.getMsrIndexList());
    expect(error.failure).toBe('ended');
    expect(error.message).toMatch(
      /ends after record \d+: the recorded VMM ended there, and KVM_GET_MSR_INDEX_LIST/,
    );
  });
});

describe('a recording', () => {
  it.each<[string, (hv: Hypervisor) => unknown, RegExp]>([
    [
      'private memory',
      (hv) => hv.createVm({ type: VmType.SW_PROTECTED }).createGuestMemfd(4096),
      /private memory \(KVM_CREATE_GUEST_MEMFD\)/,
    ],
    ['a userfaultfd', (hv) => hv.createVm().allocate(4096).userfaultfd(), /a userfaultfd/],
    [
      'memory of another thread',
      (hv) => hv.openMemory({ backend: 'sim', fd: 1, inode: 1 }),
      /another thread/,
    ],
  ])('refuses %s by name', (_, refused, message) => {
    const { memo, result } = recorded((hv) => failureOf(() => refused(hv)));
    expect(result.code).toBe('ERR_KVM_UNRECORDABLE');
    expect(result.message).toMatch(message);
    expect(memo.records).toBeGreaterThan(0);
  });

  it('writes a page once that does not change', () => {
    const sizeOf = (rounds: number) => {
      const { memo } = recorded((hv) => {
        const machine = machineWith(hv, writes.code, { rax: 5 });
        machine.memory.bytes[0] = 1;
        for (let i = 0; i < rounds; i++) machine.vcpu.run(DEADLINE_MS);
        machine.close();
      });
      let size = 0;
      for (let entry = memo.next(); entry; entry = memo.next()) size += entry.got.length;
      return size;
    };
    expect(sizeOf(50) - sizeOf(10)).toBeLessThan(40 * 200);
  });

  it('leaves errors of the kernel as they are', () => {
    const { result } = recorded((hv) => failureOf(() => hv.createVm({ type: 77 })));
    expect(result).toMatchObject({ code: 'EINVAL', errno: -Errno.EINVAL });
  });
});

/** A session that was recorded, and is replayed without the backend that it ran on. */
import { describe, expect, it } from 'vitest';
import type { Backend } from '../../src/hypervisor/backend.ts';
import { Exit, flatImage, guest, Hypervisor, Machine, Replay, type ReplayError } from '../../src/index.ts';
import { simulator } from '../../src/open.ts';
import { recordingBackend } from '../../src/replay/record.ts';
import { Memo } from '../../src/replay/records.ts';

/** Runs a VMM on the simulator, and keeps what went over the waist. */
function recorded<T>(vmm: (hv: Hypervisor) => T, inner: Backend = simulator()): { memo: Memo; result: T } {
  const memo = new Memo();
  const hv = new Hypervisor(recordingBackend(inner, memo));
  const result = vmm(hv);
  hv.close();
  return { memo, result };
}

const reads = guest(
  16,
  `
  0f 31       |       rdtsc
  ba 60 00    |       mov dx, 0x60
  b9 05 00    |       mov cx, 5
  ec          | next: in al, dx
  a2 00 90    |       mov [0x9000], al
  e6 10       |       out 0x10, al
  e2 f8       |       loop next
  f4          |       hlt
  `,
);

/** Answers port 0x60 with numbers that change, and tells all that it sees. */
function vmmWith(answers: readonly number[]) {
  return (hv: Hypervisor) => {
    const seen: unknown[] = [hv.backend, hv.checkExtension(0)];
    const machine = new Machine(hv, { memory: 0x10_0000 });
    machine.load(flatImage(reads.code, 'real'));
    const view = machine.memory.bytes;
    const { vcpu } = machine;
    let n = 0;
    for (;;) {
      const exit = vcpu.run(5000);
      seen.push(exit, view[0x9000], vcpu.getRegs());
      if (exit !== Exit.IO) break;
      if (vcpu.io.direction === 0) vcpu.io.value = answers[n++ % answers.length]!;
      else seen.push(vcpu.io.value);
    }
    seen.push(machine.memory.read(0x8ff0, 32), vcpu.completed);
    machine.close();
    return seen;
  };
}

const failure = (run: () => unknown): ReplayError => {
  try {
    run();
  } catch (error) {
    return error as ReplayError;
  }
  throw new Error('it has not failed');
};

describe('a replay', () => {
  it('gives the VMM what the recorded one was given: exits, registers, time stamps and memory', () => {
    const vmm = vmmWith([7, 8, 9, 0, 9]);
    const { memo, result } = recorded(vmm);
    expect(memo.complete).toBe(true);
    const replay = new Replay(memo);
    expect(vmm(replay.hypervisor)).toEqual(result);
    expect([replay.ended, replay.error, replay.position]).toEqual([true, undefined, memo.records]);
  });

  it('names the first answer of the VMM’s that is another one, and where it is', () => {
    const { memo } = recorded(vmmWith([7, 8, 9]));
    const replay = new Replay(memo);
    const error = failure(() => vmmWith([7, 5, 9])(replay.hypervisor));
    expect(error).toMatchObject({ code: 'ERR_KVM_REPLAY', failure: 'diverged' });
    expect(error.message).toMatch(
      /record \d+: run of vCPU 0 with byte 0 of the port's data 0x8 is recorded, .* 0x5 it came/,
    );
  });
});

/** The file of a recording: what is damaged is found, and what was cut off is replayed as far as it goes. */
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { Exit, guest, type Hypervisor, openHypervisor, openReplay } from '../../src/index.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { failureOf } from '../support/recording.ts';
import { root, scratchFolder } from './cli-vmexit.ts';

const scratch = scratchFolder();

const reads = guest(
  16,
  `
  0f 31       |       rdtsc
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

/** Reads a port whose answers change, by a view of the memory. Its calls are fixed: a recording in the fixtures has them. */
function vmm(hv: Hypervisor): string[] {
  const vm = hv.createVm();
  const memory = vm.allocate(0x10_0000);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory });
  const vcpu = vm.createVcpu();
  vcpu.setCpuid2(hv.getSupportedCpuid());
  const { bytes } = memory;
  bytes.set(reads.code, 0x1000);
  const { cs } = vcpu.getSregs();
  vcpu.changeSregs({ cs: { ...cs, base: 0n, selector: 0 } });
  vcpu.setRegs({ rip: 0x1000, rflags: 2 });
  const seen: string[] = [hv.backend];
  for (let answer = 7; ; ) {
    const exit = vcpu.run(DEADLINE_MS);
    const { rax, rip } = vcpu.getRegs();
    seen.push(`${exit} ${rax} ${rip} ${bytes.slice(0xa000, 0xa004)}`);
    if (exit !== Exit.IO) break;
    if (vcpu.io.direction === 0) vcpu.io.value = answer += 3;
    else seen.push(`${vcpu.io.value}`);
  }
  seen.push(`${memory.read(0x8ff0, 32)}`);
  for (const opened of [vcpu, memory, vm, hv]) opened.close();
  return seen;
}

const path = join(scratch.path, 'whole');
const result = vmm(openHypervisor({ backend: 'sim', record: path }));
const whole = readFileSync(path);
const fileOf = (bytes: Uint8Array): string => scratch.file('other', bytes);

describe('a recording in a file', () => {
  it('is replayed without the simulator and without KVM', () => {
    using replay = openReplay(path);
    expect(vmm(replay.hypervisor)).toEqual(result);
    expect([replay.complete, replay.ended, replay.position]).toEqual([true, true, replay.records]);
  });

  it('takes bytes for what has happened, and none for what has not', () => {
    expect(statSync(path).size).toBeLessThan(8192);
  });

  it('is refused with a byte of it flipped, wherever that is, before anything runs', () => {
    // Each byte of the heads, and some of the records.
    for (let at = 0; at < whole.length; at += at < 160 || at > whole.length - 24 ? 1 : 17) {
      const altered = Uint8Array.from(whole);
      altered[at]! ^= 0x10;
      const error = failureOf(() => openReplay(fileOf(altered)));
      expect(error, `byte ${at}`).toMatchObject({ code: 'ERR_KVM_REPLAY', failure: 'damaged' });
    }
  });

  it('is replayed up to where it was cut off, and says so', () => {
    using replay = openReplay(fileOf(whole.subarray(0, whole.length - 20)));
    expect(replay.complete).toBe(false);
    // All of it is there but its end.
    expect(vmm(replay.hypervisor)).toEqual(result);
    const error = failureOf(() => replay.hypervisor.input('more', () => 1));
    expect(error.message).toMatch(
      /ends after record \d+: the recording was cut off there, and input\('more'\) comes next/,
    );
  });

  it.each([
    ['nothing', new Uint8Array(0), /is no recording of vmexit/],
    ['something else', new Uint8Array(4096).fill(0x7f), /is no recording of vmexit/],
    ['more behind its end', Buffer.concat([whole, Buffer.of(1)]), /has 1 bytes behind its end/],
  ])('is refused where it is %s', (_, bytes, message) => {
    const error = failureOf(() => openReplay(fileOf(bytes)));
    expect(error).toMatchObject({ code: 'ERR_KVM_REPLAY', failure: 'damaged', sequence: 0 });
    expect(error.message).toMatch(message);
  });

  it('is refused where it is not there, and where it cannot be made', () => {
    expect(failureOf(() => openReplay(join(scratch.path, 'none'))).message).toMatch(
      /cannot be opened \(ENOENT\)/,
    );
    const error = failureOf(() =>
      openHypervisor({ backend: 'sim', record: join(scratch.path, 'no', 'folder') }),
    );
    expect(error).toMatchObject({ code: 'ERR_KVM_RECORDING' });
    expect(() => openHypervisor({ record: '' })).toThrow(TypeError);
  });
});

it('replays anywhere what a KVM has done', () => {
  // Of Linux 6.12 on an emulated AMD processor: its time-stamp counter, its port exits, its log of dirty pages.
  using replay = openReplay(join(root, 'test/unit/fixtures/kvm.recording'));
  const seen = vmm(replay.hypervisor);
  expect([replay.ended, seen[0], seen.length]).toEqual([true, 'kvm', 18]);
  const times = seen.flatMap((line) => line.match(/^2 (\d+) 4104/)?.[1] ?? []);
  expect(times).toHaveLength(5);
});

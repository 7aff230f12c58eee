/**
 * Several processors with the interrupt controllers in the kernel, each on a thread of its own: the guest starts them, and they
 * interrupt each other (SDM volume 3, 9.4 and 11.6, "Issuing Interprocessor Interrupts"; arch/x86/kvm/lapic.c).
 */
import { expect } from 'vitest';
import { Bus, Exit, exitName, RunLoops, type Vcpu } from '../../src/index.ts';
import { MpState } from '../../src/uapi/index.ts';
import { type Guest, guest } from '../../src/vmm/guest.ts';
import { DEADLINE_MS, inLab } from '../support/limits.ts';
import { Processors } from '../support/processors.ts';
import { conformance } from '../support/suite.ts';

const COUNT = 4;
/** What the guest tells of itself by OUT. */
const PORT = 0xf4;

/** Sends INIT and SIPI to the processors 1 to 3, each with a page of its own from 0x11 on, by the registers of the local APIC. */
const startsByXapic = guest(
  32,
  `
 bf 00 00 e0 fe                |        mov edi, 0xfee00000
 c7 87 f0 00 00 00 ff 01 00 00 |        mov dword ptr [edi + 0xf0], 0x1ff
 b9 01 00 00 00                |        mov ecx, 1
 89 c8                         | again: mov eax, ecx
 c1 e0 18                      |        shl eax, 24
 89 87 10 03 00 00             |        mov [edi + 0x310], eax
 c7 87 00 03 00 00 00 45 00 00 |        mov dword ptr [edi + 0x300], 0x4500
 8d 91 10 46 00 00             |        lea edx, [ecx + 0x4610]
 89 87 10 03 00 00             |        mov [edi + 0x310], eax
 89 97 00 03 00 00             |        mov [edi + 0x300], edx
 41                            |        inc ecx
 83 f9 04                      |        cmp ecx, 4
 72 d3                         |        jb again
 e7 f4                         |        out 0xf4, eax
 f4                            |        hlt
`,
);
/** The same by the model-specific registers, which have the destination in EDX. */
const startsByX2apic = guest(
  32,
  `
 b9 1b 00 00 00    |        mov ecx, 0x1b
 0f 32             |        rdmsr
 0d 00 0c 00 00    |        or eax, 0xc00
 0f 30             |        wrmsr
 b9 0f 08 00 00    |        mov ecx, 0x80f
 b8 ff 01 00 00    |        mov eax, 0x1ff
 31 d2             |        xor edx, edx
 0f 30             |        wrmsr
 b9 30 08 00 00    |        mov ecx, 0x830
 bf 01 00 00 00    |        mov edi, 1
 89 fa             | again: mov edx, edi
 b8 00 45 00 00    |        mov eax, 0x4500
 0f 30             |        wrmsr
 8d 87 10 46 00 00 |        lea eax, [edi + 0x4610]
 0f 30             |        wrmsr
 47                |        inc edi
 83 ff 04          |        cmp edi, 4
 72 e9             |        jb again
 e7 f4             |        out 0xf4, eax
 f4                |        hlt
`,
);
/** A processor that SIPI has started says its code segment. */
const saysSegment = guest(
  16,
  `
 8c c8 | mov ax, cs
 e7 f4 | out 0xf4, ax
 fa    | cli
 f4    | hlt
`,
);

/** Words of the guest's, by their offset in Place.words; from ROUND on there is one for each processor. */
const Word = {
  UP: 0,
  ROUNDS: 4,
  COUNT: 8,
  DONE: 0xc,
  REQUESTS: 0x20,
  ANSWERS: 0x40,
  BROADCASTS: 0x60,
  ASKED: 0x80,
  REPLIED: 0xa0,
  TWICE: 0xc0,
} as const;
const Vector = { ANSWER: 0x40, REQUEST: 0x41, BROADCAST: 0x42 } as const;

/**
 * Each sends its interrupts to the next one, one after the other, and waits in HLT for the answer to each. Who is done last
 * tells all others at once; then each says its number. The first processor starts the others. Before an interrupt is sent, that
 * is counted in its receiver's word: by which that tells one that comes twice.
 */
const ring = guest(
  32,
  `
 66 b8 10 00                   |        mov ax, 0x10
 8e d8                         |        mov ds, ax
 8e d0                         |        mov ss, ax
 bf 00 00 e0 fe                |        mov edi, 0xfee00000
 8b 4f 20                      |        mov ecx, [edi + 0x20]
 c1 e9 18                      |        shr ecx, 24
 89 cc                         |        mov esp, ecx
 c1 e4 0a                      |        shl esp, 10
 81 c4 00 90 00 00             |        add esp, 0x9000
 0f 01 1d 08 06 00 00          |        lidt [0x608]
 c7 87 f0 00 00 00 ff 01 00 00 |        mov dword ptr [edi + 0xf0], 0x1ff
 85 c9                         |        test ecx, ecx
 75 14                         |        jnz up
 c7 87 00 03 00 00 00 45 0c 00 |        mov dword ptr [edi + 0x300], 0xc4500 # INIT to all others
 c7 87 00 03 00 00 07 46 0c 00 |        mov dword ptr [edi + 0x300], 0xc4607 # and SIPI
 f0 ff 05 00 50 00 00          | up:    lock inc dword ptr [0x5000]
 f3 90                         | wait:  pause
 a1 08 50 00 00                |        mov eax, [0x5008]
 3b 05 00 50 00 00             |        cmp eax, [0x5000]
 75 f1                         |        jne wait
 31 f6                         |        xor esi, esi
 3b 35 04 50 00 00             | next:  cmp esi, [0x5004]
 74 36                         |        je sent
 46                            |        inc esi
 8d 41 01                      |        lea eax, [ecx + 1]
 3b 05 08 50 00 00             |        cmp eax, [0x5008]
 72 02                         |        jb to
 31 c0                         |        xor eax, eax
 ff 04 85 80 50 00 00          | to:    inc dword ptr [0x5080 + eax * 4]
 c1 e0 18                      |        shl eax, 24
 89 87 10 03 00 00             |        mov [edi + 0x310], eax
 c7 87 00 03 00 00 41 40 00 00 |        mov dword ptr [edi + 0x300], 0x4041
 fa                            | check: cli
 3b 34 8d 40 50 00 00          |        cmp esi, [0x5040 + ecx * 4]
 74 c6                         |        je next
 fb                            |        sti
 f4                            |        hlt
 eb f2                         |        jmp check
 b8 01 00 00 00                | sent:  mov eax, 1
 f0 0f c1 05 0c 50 00 00       |        lock xadd [0x500c], eax
 40                            |        inc eax
 3b 05 08 50 00 00             |        cmp eax, [0x5008]
 75 0c                         |        jne rest
 c7 87 00 03 00 00 42 40 0c 00 |        mov dword ptr [edi + 0x300], 0xc4042
 eb 0f                         |        jmp tell
 fa                            | rest:  cli
 83 3c 8d 60 50 00 00 00       |        cmp dword ptr [0x5060 + ecx * 4], 0
 75 04                         |        jne tell
 fb                            |        sti
 f4                            |        hlt
 eb f1                         |        jmp rest
 89 c8                         | tell:  mov eax, ecx
 e7 f4                         |        out 0xf4, eax
 fa                            |        cli
 f4                            |        hlt
`,
);
/** Counts, answers who has asked, and ends its interrupt. */
const onRequest = guest(
  32,
  `
 60                            | pusha
 bf 00 00 e0 fe                | mov edi, 0xfee00000
 8b 4f 20                      | mov ecx, [edi + 0x20]
 c1 e9 18                      | shr ecx, 24
 8b 04 8d 80 50 00 00          | mov eax, [0x5080 + ecx * 4]
 3b 04 8d 20 50 00 00          | cmp eax, [0x5020 + ecx * 4]
 74 2f                         | je twice
 ff 04 8d 20 50 00 00          | inc dword ptr [0x5020 + ecx * 4]
 89 c8                         | mov eax, ecx
 85 c0                         | test eax, eax
 75 05                         | jnz by
 a1 08 50 00 00                | mov eax, [0x5008]
 48                            | by: dec eax
 ff 04 85 a0 50 00 00          | inc dword ptr [0x50a0 + eax * 4]
 c1 e0 18                      | shl eax, 24
 89 87 10 03 00 00             | mov [edi + 0x310], eax
 c7 87 00 03 00 00 40 40 00 00 | mov dword ptr [edi + 0x300], 0x4040
 eb 07                         | jmp end
 ff 04 8d c0 50 00 00          | twice: inc dword ptr [0x50c0 + ecx * 4]
 89 87 b0 00 00 00             | end: mov [edi + 0xb0], eax
 61                            | popa
`,
);
/** Counts, and ends its interrupt. */
const onAnswer = guest(
  32,
  `
 60                   | pusha
 bf 00 00 e0 fe       | mov edi, 0xfee00000
 8b 4f 20             | mov ecx, [edi + 0x20]
 c1 e9 18             | shr ecx, 24
 8b 04 8d a0 50 00 00 | mov eax, [0x50a0 + ecx * 4]
 3b 04 8d 40 50 00 00 | cmp eax, [0x5040 + ecx * 4]
 74 09                | je twice
 ff 04 8d 40 50 00 00 | inc dword ptr [0x5040 + ecx * 4]
 eb 07                | jmp end
 ff 04 8d c0 50 00 00 | twice: inc dword ptr [0x50c0 + ecx * 4]
 89 87 b0 00 00 00    | end: mov [edi + 0xb0], eax
 61                   | popa
`,
);
const onBroadcast = guest(
  32,
  `
 60                      | pusha
 bf 00 00 e0 fe          | mov edi, 0xfee00000
 8b 4f 20                | mov ecx, [edi + 0x20]
 c1 e9 18                | shr ecx, 24
 83 3c 8d 60 50 00 00 00 | cmp dword ptr [0x5060 + ecx * 4], 0
 75 09                   | jne twice
 ff 04 8d 60 50 00 00    | inc dword ptr [0x5060 + ecx * 4]
 eb 07                   | jmp end
 ff 04 8d c0 50 00 00    | twice: inc dword ptr [0x50c0 + ecx * 4]
 89 87 b0 00 00 00       | end: mov [edi + 0xb0], eax
 61                      | popa
`,
);
const routines = { [Vector.REQUEST]: onRequest, [Vector.ANSWER]: onAnswer, [Vector.BROADCAST]: onBroadcast };

/** Starts all, and gives what each has said once all have; then none runs any more. */
async function said(vcpus: readonly Vcpu[]): Promise<[id: number, value: number][]> {
  const heard: [number, number][] = [];
  const ends = vcpus.map((vcpu) => {
    const handle = (_: Vcpu, exit: number): boolean => {
      if (exit !== Exit.IO || vcpu.io.port !== PORT) return false;
      if (heard.push([vcpu.id, vcpu.io.value]) === vcpus.length) for (const each of vcpus) each.stop();
      return true;
    };
    return vcpu.start([{ handle }], { timeoutMs: DEADLINE_MS });
  });
  expect((await Promise.all(ends)).map(exitName)).toEqual(vcpus.map(() => 'STOPPED'));
  return heard.toSorted(([a], [b]) => a - b);
}

/** How many interrupts each sends: an emulated processor is slow. */
const ROUNDS = inLab ? 100 : 1000;
const all = (value: number): number[] => Array(COUNT).fill(value);

function expectCounted(machine: Processors): void {
  expect(machine.words(Word.UP, 1)).toEqual([COUNT]);
  expect(machine.words(Word.REQUESTS, COUNT)).toEqual(all(ROUNDS));
  expect(machine.words(Word.ANSWERS, COUNT)).toEqual(all(ROUNDS));
  // All but the one that has sent it.
  expect(machine.words(Word.BROADCASTS, COUNT).toSorted()).toEqual([0, ...all(1).slice(1)]);
  // QEMU's VMRUN leaves the vector that it has injected where it looks for exceptions (exception_index, helper_vmrun() of
  // target/i386/tcg): where it is interrupted before the next one, it delivers that again.
  if (!inLab) expect(machine.words(Word.TWICE, COUNT)).toEqual(all(0));
}

function ringOf(hv: ConstructorParameters<typeof Processors>[0]): Processors {
  const machine = new Processors(hv, COUNT, ring, routines);
  machine.setWord(Word.ROUNDS, ROUNDS);
  machine.setWord(Word.COUNT, COUNT);
  return machine;
}

conformance('several processors with interrupt controllers in the kernel', ({ needs }) => {
  const it = needs('irqchip');

  const ways: readonly (readonly [string, Guest])[] = [
    ['the registers of its local APIC', startsByXapic],
    ['the model-specific registers of its x2APIC', startsByX2apic],
  ];
  for (const [by, program] of ways) {
    it(`are started by the first one’s INIT and SIPI, sent by ${by}, each at the page that its SIPI says`, async (hv) => {
      using machine = new Processors(hv, COUNT, program);
      const [boot, ...others] = machine.vcpus;
      for (const { id } of others) machine.ram.write(0x1_0000 + 0x1000 * id, saysSegment.code);
      expect(others.map((vcpu) => vcpu.getMpState())).toEqual(others.map(() => MpState.UNINITIALIZED));
      const [first, ...rest] = await said(machine.vcpus);
      expect(first![0]).toBe(boot!.id);
      expect(rest).toEqual(others.map(({ id }) => [id, 0x1000 + 0x100 * id]));
      expect(others.map((vcpu) => vcpu.getMpState())).not.toContain(MpState.UNINITIALIZED);
    });
  }

  it('lose no interrupt that they send each other, and none comes twice: start()ed, and woken in HLT', async (hv) => {
    using machine = ringOf(hv);
    expect(await said(machine.vcpus)).toEqual(machine.vcpus.map(({ id }) => [id, id]));
    expectCounted(machine);
  });

  it('lose none in RunLoops either, and are stopped by a device while they wait in HLT', async (hv) => {
    using machine = ringOf(hv);
    const heard: number[] = [];
    const ears = {
      name: 'ears',
      read() {},
      write(_: number, data: Uint8Array) {
        if (heard.push(data[0]!) === COUNT) loops.stop(7);
      },
    };
    const loops = new RunLoops(machine.vcpus, { ports: new Bus().attach(PORT, 4, ears) });
    expect(await loops.run({ timeoutMs: DEADLINE_MS })).toEqual({ reason: 'stop', value: 7 });
    expect(heard.toSorted()).toEqual(machine.vcpus.map(({ id }) => id));
    expectCounted(machine);
  });
});

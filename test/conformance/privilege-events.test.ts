/**
 * What interrupts level 3 again and again, often enough to be translated for good, and the stacks that it comes to: of the TSS and
 * of IST, across two pages, in a page of code, in a page that is not mapped (SDM volume 3, 6.14; APM volume 2, 8.9).
 */
import { expect } from 'vitest';
import {
  descriptor,
  Exit,
  enterUserMode,
  FLAT_ADDRESS,
  flatImage,
  type Hypervisor,
  Machine,
  PageTables,
  placeGdt,
  placeIdt,
  placeTss,
  type Vcpu,
} from '../../src/index.ts';
import { type Guest, guest } from '../../src/vmm/guest.ts';
import { inLab } from '../support/limits.ts';
import { runTo, wordAt } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

const MIB = 2 ** 20;
const ROUNDS = inLab ? 300 : 5000;
const At = { handler: 0x4000, gdt: 0x500, idt: 0x2000, tss: 0x3000, user: FLAT_ADDRESS } as const;
/** A HLT for each vector that nobody expects. */
const HALTS = 0x5000;
const FAULTS = 0xa000;
const TABLES = 0x8_0000;
/** A linear page that is not mapped. */
const AWAY = 0x4000_0000;
const INT = 0x40;
const [DF, GP, PF] = [8, 13, 14];
const RF = 0x1_0000n;

const interrupts = guest(
  64,
  `
 cd 40 | again: int 0x40
 ff cb |        dec ebx
 75 fa |        jnz again
 f4    |        hlt
`,
);
const touches = guest(
  64,
  `
 8b 06 | again: mov eax, [rsi]
 ff cb |        dec ebx
 75 fa |        jnz again
 f4    |        hlt
`,
);
/** R8 gets the flags that were pushed, R9 all frames. */
const returns = guest(
  64,
  `
 4c 8b 44 24 10 | mov r8, [rsp + 16]
 4c 03 0c 24    | add r9, [rsp]
 4c 03 4c 24 20 | add r9, [rsp + 32]
 48 cf          | iretq
`,
);
/** Of #PF: behind the instruction of two bytes, with the RF that was pushed. */
const skips = guest(
  64,
  `
 58             | pop rax
 4c 8b 44 24 10 | mov r8, [rsp + 16]
 48 83 04 24 02 | add qword ptr [rsp], 2
 4c 03 0c 24    | add r9, [rsp]
 48 cf          | iretq
`,
);

interface Play {
  readonly program: Guest;
  readonly handler: Guest;
  readonly stack: number;
  readonly ist?: boolean;
}

function play(
  hv: Hypervisor,
  { program, handler, stack, ist = false }: Play,
  check: (end: End) => void,
): void {
  using machine = new Machine(hv, { memory: MIB });
  machine.load(flatImage(Uint8Array.of(0xf4), 'long'));
  const { memory, vcpu } = machine;
  const tables = new PageTables(memory, { at: TABLES });
  tables.map({ linear: 0, size: 0x10000, user: true });
  const { table, segments } = placeGdt(
    { memory, address: At.gdt },
    {
      code: descriptor.code({ bits: 64 }),
      data: descriptor.data(),
      userCode: descriptor.code({ bits: 64, dpl: 3 }),
      userData: descriptor.data({ dpl: 3 }),
      tss: placeTss({ memory, address: At.tss }, { stack: ist ? 0 : stack, ist: [FAULTS, ist ? stack : 0] }),
    },
  );
  const { selector } = segments.code;
  const gates = Array.from({ length: 32 }, (_, vector) => [
    vector,
    { offset: HALTS + vector, selector, ist: 1 },
  ]);
  const own = { offset: At.handler, selector, dpl: 3, ist: ist ? 2 : 0 };
  const idt = placeIdt({ memory, address: At.idt }, 64, {
    ...Object.fromEntries(gates),
    [program === interrupts ? INT : PF]: own,
  });
  memory.write(HALTS, new Uint8Array(32).fill(0xf4));
  memory.write(At.handler, handler.code);
  memory.write(At.user, program.code);
  enterUserMode(vcpu, { code: segments.userCode, data: segments.userData });
  vcpu.changeSregs({ gdt: table, idt, tr: segments.tss, cr3: tables.root });
  vcpu.setRegs({ rip: BigInt(At.user), rsp: 0xf000n, rflags: 2n, rbx: BigInt(ROUNDS), rsi: BigInt(AWAY) });
  runTo(vcpu, Exit.HLT);
  const { rip, rsp } = vcpu.getRegs();
  const words = memory.read(Number(rsp), 48);
  const frame = Array.from({ length: 6 }, (_, i) => wordAt(words, 8 * i));
  check({ vcpu, vector: Number(rip) - 1 - HALTS, frame });
}
interface End {
  readonly vcpu: Vcpu;
  readonly vector: number;
  /** From the error code on. */
  readonly frame: readonly bigint[];
}

const STACKS: readonly (readonly [is: string, at: number])[] = [
  ['in a page', 0x8800],
  ['across two pages', 0x8010],
  ['in a page of code, below it', At.user],
  ['behind the code that is executing', At.user + 0x100],
];

conformance('what interrupts level 3', ({ needs }) => {
  const it = needs('hardware-virtualization');
  for (const ist of [false, true]) {
    const whose = ist ? 'of IST' : 'of the TSS';
    for (const [is, stack] of STACKS) {
      it(`INT comes to a stack ${whose} ${is}, and IRETQ back`, (hv) =>
        play(hv, { program: interrupts, handler: returns, stack, ist }, ({ vcpu, vector, frame }) => {
          // HLT at level 3, when all rounds are done.
          expect([vector, frame[0], frame[1]]).toEqual([GP, 0n, BigInt(At.user + 6)]);
          const { r8, r9, rbx } = vcpu.getRegs();
          expect([r8 & RF, rbx, r9]).toEqual([0n, 0n, BigInt(ROUNDS * (At.user + 2 + 0x1b + 8))]);
        }));

      it(`a page fault comes to a stack ${whose} ${is}, with RF`, (hv) =>
        play(hv, { program: touches, handler: skips, stack, ist }, ({ vcpu, vector, frame }) => {
          expect([vector, frame[0], frame[1]]).toEqual([GP, 0n, BigInt(At.user + 6)]);
          const { r8, r9, rbx, rflags } = vcpu.getRegs();
          expect([r8 & RF, rflags & RF, rbx]).toEqual([RF, 0n, 0n]);
          expect(r9).toBe(BigInt(ROUNDS * (At.user + 2)));
        }));
    }

    it(`a double fault is what comes where the stack ${whose} is not mapped, wholly or from a page on`, (hv) => {
      for (const stack of [AWAY + 0x800, 0x1_0000 + 0x1000, 0x1_0000 + 16])
        play(hv, { program: touches, handler: skips, stack, ist }, ({ vector, frame }) =>
          expect([vector, frame[0], frame[1]]).toEqual([DF, 0n, BigInt(At.user)]),
        );
    });
  }
});

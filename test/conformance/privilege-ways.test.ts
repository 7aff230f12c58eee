/**
 * SYSCALL, SYSRET and IRET in loops that are long enough to be translated for good; and then something that they depend on is
 * another: it counts at once (SDM volume 2, SYSCALL, SYSRET, IRET; volume 3, 6.14).
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
/** Its descriptors of privilege level 3 lie in the next page. */
const GDT = 0x4fd0;
const OTHER_GDT = 0x6fd0;
const At = {
  entry: 0x1100,
  other: 0x1180,
  change: 0x1200,
  user: 0x1300,
  table: 0x1400,
  idt: 0x2000,
  tss: 0x3000,
} as const;
/** A HLT for each vector: where it has halted says why. */
const HANDLERS = 0x8000;
const STACK = 0x9000;
const IST = 0xa000;
const USER_STACK = 0xb000;
const TABLES = 0x8_0000;
const Vector = { DB: 1, UD: 6, NP: 11, GP: 13, PF: 14, AC: 17 } as const;
const [IF, TF, RF, AC, IOPL3] = [0x200n, 0x100n, 0x1_0000n, 0x4_0000n, 0x3000n];
const SCE = 1n;
const AM = 1n << 18n;
const Msr = { EFER: 0xc000_0080, STAR: 0xc000_0081, LSTAR: 0xc000_0082, FMASK: 0xc000_0084 } as const;
const Selector = { CODE0: 0x08, DATA0: 0x10, TSS: 0x18, DATA3: 0x33, CODE3: 0x3b } as const;

/** To R13 with R8:R9 as its stack, R10 as its flags and R12 as its code segment. */
const iret = guest(
  64,
  `
 41 50 | push r8
 41 51 | push r9
 41 52 | push r10
 41 54 | push r12
 41 55 | push r13
 48 cf | iretq
`,
);
const sysret = guest(
  64,
  `
 4c 89 e9 | mov rcx, r13
 4d 89 d3 | mov r11, r10
 4c 89 cc | mov rsp, r9
 48 0f 07 | sysretq
`,
);
/** LSTAR: RBX rounds from RSI on; then what R15 leads to, and one round more; then it halts. */
const entry = guest(
  64,
  `
 49 89 e6 |       mov r14, rsp
 48 89 ec |       mov rsp, rbp
 48 ff cb |       dec rbx
 74 02    |       jz over
 ff e6    |       jmp rsi
 85 ff    | over: test edi, edi
 74 05    |       jz halts
 ff cf    |       dec edi
 41 ff e7 |       jmp r15
 f4       | halts: hlt
`,
);
const halts = guest(64, 'f4 | hlt');
const user = guest(
  64,
  `
 8c c8 | mov eax, cs
 0f 05 | syscall
`,
);

/** What level 3 does instead: it needs IOPL for that. */
const turnsOff = guest(
  64,
  `
 fa    | cli
 8c c8 | mov eax, cs
 0f 05 | syscall
`,
);

const misaligned = guest(
  64,
  `
 8b 45 01 | mov eax, [rbp + 1]
 0f 05    | syscall
`,
);

/** Changes, with RDX for what is particular; and on. */
const change = (code: Guest): Uint8Array => Uint8Array.of(...code.code, 0x48, 0xff, 0xc3, 0xff, 0xe6); // inc rbx; jmp rsi
const wrmsr = guest(
  64,
  `
 89 d0       | mov eax, edx
 48 c1 ea 20 | shr rdx, 32
 4c 89 d9    | mov rcx, r11
 0f 30       | wrmsr
`,
);
const setMsr = (index: number) =>
  Uint8Array.of(0x41, 0xbb, index & 0xff, (index >> 8) & 0xff, (index >> 16) & 0xff, index >>> 24); // mov r11d
const notPresent = guest(64, 'c6 02 7b | mov byte ptr [rdx], 0x7b');
const noCode = guest(64, 'c6 02 f3 | mov byte ptr [rdx], 0xf3');
const innerStack = guest(64, 'c6 02 93 | mov byte ptr [rdx], 0x93');
const otherTable = guest(64, '0f 01 12 | lgdt [rdx]');
const innerData = guest(
  64,
  `
 b8 10 00 00 00 | mov eax, 0x10
 8e d8          | mov ds, eax
 8e c0          | mov es, eax
`,
);
const nested = guest(
  64,
  `
 9c                      | pushfq
 48 81 0c 24 00 40 00 00 | or qword ptr [rsp], 0x4000
 9d                      | popfq
`,
);
const unmapped = guest(
  64,
  `
 80 22 fe                | and byte ptr [rdx], 0xfe
 0f 01 3c 25 00 50 00 00 | invlpg [0x5000]
`,
);
const otherStack = guest(64, '49 89 d1 | mov r9, rdx');
const otherFlags = guest(64, '49 89 d2 | mov r10, rdx');
const otherPlace = guest(64, '49 89 d5 | mov r13, rdx');

interface Play {
  readonly way: Guest;
  /** What level 3 does. */
  readonly program?: Guest;
  readonly flags?: bigint;
  readonly change: Uint8Array;
  readonly rdx?: bigint | ((tables: PageTables) => bigint);
  readonly alignment?: boolean;
  /** To level 0. */
  readonly inner?: boolean;
}

function place({ memory, vcpu }: Machine, play: Play): void {
  const { way, program = user, flags = 2n, rdx = 0n, alignment = false, inner = false } = play;
  const tables = new PageTables(memory, { at: TABLES });
  tables.map({ linear: 0, size: 0x10000, user: true });
  tables.map({ linear: TABLES, size: 0x10000 });
  const kinds = (present: boolean) => ({
    code: descriptor.code({ bits: 64 }),
    data: descriptor.data(),
    tss: placeTss({ memory, address: At.tss }, { stack: STACK, ist: [IST] }),
    spare: descriptor.data({ dpl: 3 }),
    userData: descriptor.data({ dpl: 3 }),
    userCode: { ...descriptor.code({ bits: 64, dpl: 3 }), present: present ? 1 : 0 },
  });
  const { table, segments } = placeGdt({ memory, address: GDT }, kinds(true));
  const other = placeGdt({ memory, address: OTHER_GDT }, kinds(false)).table;
  const pointer = new DataView(new ArrayBuffer(10));
  pointer.setUint16(0, other.limit, true);
  pointer.setBigUint64(2, other.base, true);
  memory.write(At.table, new Uint8Array(pointer.buffer));
  const gates = Object.fromEntries(
    Array.from({ length: 32 }, (_, vector) => [
      vector,
      { offset: HANDLERS + vector, selector: Selector.CODE0, ist: 1 },
    ]),
  );
  const idt = placeIdt({ memory, address: At.idt }, 64, gates);
  memory.write(HANDLERS, new Uint8Array(32).fill(0xf4));
  memory.write(FLAT_ADDRESS, way.code);
  memory.write(At.entry, entry.code);
  memory.write(At.other, halts.code);
  memory.write(At.change, play.change);
  memory.write(At.user, program.code);
  enterUserMode(vcpu, { code: segments.userCode, data: segments.userData });
  const { cr0, efer } = vcpu.getSregs();
  vcpu.changeSregs({
    ...{ gdt: table, idt, tr: segments.tss, cr3: tables.root },
    ...{ cs: segments.code, ss: segments.data, efer: efer | SCE, cr0: alignment ? cr0 | AM : cr0 },
  });
  vcpu.setMsrs([
    { index: Msr.STAR, data: (0x2bn << 48n) | (BigInt(Selector.CODE0) << 32n) },
    { index: Msr.LSTAR, data: BigInt(At.entry) },
    { index: Msr.FMASK, data: IF | AC | TF },
  ]);
  const target = inner
    ? { r8: BigInt(Selector.DATA0), r12: BigInt(Selector.CODE0), r13: BigInt(At.entry) }
    : { r8: BigInt(Selector.DATA3), r12: BigInt(Selector.CODE3), r13: BigInt(At.user) };
  vcpu.setRegs({
    ...{ rip: BigInt(FLAT_ADDRESS), rflags: 2n, rsp: BigInt(STACK), rbp: BigInt(STACK) },
    ...{ rbx: BigInt(ROUNDS), rsi: BigInt(FLAT_ADDRESS), rdi: 1n, r15: BigInt(At.change) },
    ...{ ...target, r9: BigInt(USER_STACK), r10: flags },
    rdx: typeof rdx === 'bigint' ? rdx : rdx(tables),
  });
}

/** Where it has halted: the vector, and the frame from the error code on; or nothing, where it came to its end. */
function ended(vcpu: Vcpu, machine: Machine) {
  runTo(vcpu, Exit.HLT);
  const { rip, rsp, rdi, rflags } = vcpu.getRegs();
  const vector = Number(rip) - 1 - HANDLERS;
  const words = machine.memory.read(Number(rsp), 48);
  const frame = Array.from({ length: 6 }, (_, i) => wordAt(words, 8 * i));
  // The change was made.
  expect([rdi, rflags & RF]).toEqual([0n, 0n]);
  return { vector: vector >= 0 && vector < 32 ? vector : undefined, frame };
}

function played(hv: Hypervisor, play: Play, check: (ended: End) => void): void {
  using machine = new Machine(hv, { memory: MIB });
  machine.load(flatImage(halts.code, 'long'));
  place(machine, play);
  const { vcpu } = machine;
  check({ ...ended(vcpu, machine), vcpu, memory: machine.memory });
}
interface End extends ReturnType<typeof ended> {
  readonly vcpu: Vcpu;
  readonly memory: Machine['memory'];
}
const msr = (index: number) => Uint8Array.of(...setMsr(index), ...change(wrmsr));
const ways = { IRETQ: iret, SYSRETQ: sysret } as const;
/** Offsets of the instructions themselves. */
const RETURNS = { IRETQ: 10, SYSRETQ: 9 } as const;
const CODE3_ACCESS = BigInt(GDT + (Selector.CODE3 & ~7) + 5);
const DATA3_ACCESS = BigInt(GDT + (Selector.DATA3 & ~7) + 5);
const FIRST_RETURN = BigInt(FLAT_ADDRESS + RETURNS.IRETQ);

conformance('ways between privilege levels', ({ needs }) => {
  const it = needs('hardware-virtualization');
  for (const name of ['IRETQ', 'SYSRETQ'] as const) {
    const way = ways[name];
    it(`SYSCALL behind ${name} goes where LSTAR says now`, (hv) =>
      played(hv, { way, change: msr(Msr.LSTAR), rdx: BigInt(At.other) }, ({ vcpu }) =>
        expect(vcpu.getRegs().rip).toBe(BigInt(At.other + 1)),
      ));

    it(`SYSCALL behind ${name} clears what FMASK says now`, (hv) =>
      played(hv, { way, flags: IF | 2n, change: msr(Msr.FMASK) }, ({ vcpu }) => {
        const { rflags, r11 } = vcpu.getRegs();
        expect([rflags & IF, r11 & IF]).toEqual([IF, IF]);
      }));

    it(`SYSCALL and ${name} take the selectors that STAR has now`, (hv) => {
      const rdx = (0x4bn << 48n) | (0x18n << 32n);
      played(hv, { way, change: msr(Msr.STAR), rdx }, ({ vcpu }) => {
        const { cs, ss } = vcpu.getSregs();
        expect([cs.selector, ss.selector]).toEqual([0x18, 0x20]);
        expect(vcpu.getRegs().rax).toBe(name === 'SYSRETQ' ? 0x5bn : BigInt(Selector.CODE3));
      });
    });

    it(`there is no SYSCALL and no SYSRET without EFER.SCE (${name})`, (hv) => {
      const rdx = 0xd00n & ~SCE; // LME, LMA, NXE
      played(hv, { way, change: msr(Msr.EFER), rdx }, ({ vector }) => expect(vector).toBe(Vector.UD));
    });

    it(`${name} takes RSP as it is now`, (hv) =>
      played(hv, { way, change: change(otherStack), rdx: BigInt(USER_STACK - 8) }, ({ vcpu }) =>
        expect(vcpu.getRegs().r14).toBe(BigInt(USER_STACK - 8)),
      ));

    // AMD's SYSRET goes there, and faults at its first fetch; so does QEMU's IRET.
    it(`${name} to an address that is not canonical faults`, (hv) =>
      played(hv, { way, change: change(otherPlace), rdx: 1n << 47n }, ({ vector, frame }) => {
        expect([vector, frame[0]]).toEqual([Vector.GP, 0n]);
        const places = [
          BigInt(FLAT_ADDRESS + RETURNS[name]),
          ...(name === 'IRETQ' && !inLab ? [] : [1n << 47n]),
        ];
        expect(places).toContain(frame[1]);
      }));

    // The trap of SYSRET's own TF comes at once; IRET's lets an instruction through.
    it(`${name} with TF is one step`, (hv) =>
      played(hv, { way, change: change(otherFlags), rdx: TF | 2n }, ({ vector, frame }) => {
        const from = name === 'SYSRETQ' ? At.user : At.user + 2;
        expect([vector, frame[0]]).toEqual([Vector.DB, BigInt(from)]);
        expect(frame[2]! & (TF | RF)).toBe(TF);
      }));

    needs('hardware-virtualization', 'alignment-checks')(`${name} with AC has alignment checked`, (hv) => {
      const rounds = { way, program: misaligned, change: change(otherFlags), rdx: AC | 2n, alignment: true };
      played(hv, rounds, ({ vector, frame }) => {
        expect([vector, frame[0], frame[1]]).toEqual([Vector.AC, 0n, BigInt(At.user)]);
        expect(frame[3]! & (AC | RF)).toBe(AC | RF);
      });
    });
  }

  it('IRETQ takes IOPL as it is now', (hv) =>
    played(
      hv,
      { way: iret, program: turnsOff, flags: IOPL3 | 2n, change: change(otherFlags), rdx: 2n },
      (end) => expect([end.vector, end.frame[0], end.frame[1]]).toEqual([Vector.GP, 0n, BigInt(At.user)]),
    ));

  const faults: readonly [is: string, change: Guest, Pick<Play, 'rdx'>, vector: number, error: number][] = [
    ['another table has no such code', otherTable, { rdx: BigInt(At.table) }, Vector.NP, Selector.CODE3],
    ['the code is not present any more', notPresent, { rdx: CODE3_ACCESS }, Vector.NP, Selector.CODE3],
    ['the code is data now', noCode, { rdx: CODE3_ACCESS }, Vector.GP, Selector.CODE3],
    ["the stack is level 0's now", innerStack, { rdx: DATA3_ACCESS }, Vector.GP, Selector.DATA3],
    ['a task is nested', nested, {}, Vector.GP, 0],
    ['the table is not mapped', unmapped, { rdx: (tables) => BigInt(tables.entryOf(0x5000)!) }, Vector.PF, 0],
  ];
  for (const [is, code, { rdx }, vector, error] of faults) {
    it(`IRETQ faults where ${is}`, (hv) =>
      played(hv, { way: iret, change: change(code), ...(rdx === undefined ? {} : { rdx }) }, (end) => {
        expect([end.vector, end.frame[0]]).toEqual([vector, BigInt(error & ~3)]);
        expect([end.frame[1], end.frame[2]]).toEqual([FIRST_RETURN, BigInt(Selector.CODE0)]);
        expect(end.frame[3]! & RF).toBe(RF);
      }));
  }

  it('IRETQ to level 3 takes data segments of level 0 away', (hv) =>
    played(hv, { way: iret, change: change(innerData) }, ({ vcpu, vector }) => {
      expect(vector).toBeUndefined();
      const { ds, es } = vcpu.getSregs();
      expect([ds.selector, es.selector]).toEqual([0, 0]);
    }));

  it('IRETQ to the same level takes flags and stack as they are now', (hv) => {
    played(hv, { way: iret, inner: true, change: change(otherFlags), rdx: IF | 2n }, ({ vcpu }) =>
      expect([vcpu.getRegs().rflags & IF, vcpu.getSregs().cs.selector & 3]).toEqual([IF, 0]),
    );
    played(hv, { way: iret, inner: true, change: change(otherStack), rdx: 0x8888n }, ({ vcpu }) =>
      expect(vcpu.getRegs().r14).toBe(0x8888n),
    );
  });
});

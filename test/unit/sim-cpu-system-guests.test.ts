import { describe, expect, it } from 'vitest';
import { Seg } from '../../src/sim/cpu/processor/descriptors.ts';
import { Vector } from '../../src/sim/cpu/processor/fault.ts';
import type { Stop } from '../../src/sim/cpu/processor/stage.ts';
import { Flag } from '../../src/sim/cpu/processor/state.ts';
import { guest } from '../../src/vmm/guest.ts';
import { At, Gdt, gate, Machine } from './sim-cpu-system.ts';

const Place = {
  real: 0xa000,
  protected: 0xb000,
  kernel: 0xc000,
  user: 0xd000,
  handlers: 0xe000,
  log: 0x2_0000,
} as const;
/** Runs until something other than the end of its slice stops the guest, which must not take long. */
function run({ cpu }: Machine): Stop {
  for (let slices = 0; slices < 100; slices++) {
    const stop = cpu.run(1000);
    if (stop.kind !== 'slice') return stop;
  }
  throw new Error(`the guest does not end; it is at ${cpu.state.rip.toString(16)}`);
}

const real = guest(
  16,
  `
                               fa             | cli
                               0f 01 16 00 06 | lgdt [0x600]
                               0f 20 c0       | mov eax, cr0
                               0c 01          | or al, 1
                               0f 22 c0       | mov cr0, eax
                               ea 00 b0 08 00 | jmp 0x08:0xb000
`,
);

/** To 64-bit mode, the way an operating system goes. */
const protect = guest(
  32,
  `
                               66 b8 10 00          | mov ax, 0x10
                               8e d8                | mov ds, ax
                               8e c0                | mov es, ax
                               8e d0                | mov ss, ax
                               bc 00 80 03 00       | mov esp, 0x38000
                               0f 20 e0             | mov eax, cr4
                               83 c8 20             | or eax, 0x20
                               0f 22 e0             | mov cr4, eax
                               b8 00 10 00 00       | mov eax, 0x1000
                               0f 22 d8             | mov cr3, eax
                               b9 80 00 00 c0       | mov ecx, 0xc0000080
                               0f 32                | rdmsr
                               0d 01 09 00 00       | or eax, 0x901
                               0f 30                | wrmsr
                               0f 20 c0             | mov eax, cr0
                               0d 00 00 01 80       | or eax, 0x80010000
                               0f 22 c0             | mov cr0, eax
                               ea 00 c0 00 00 30 00 | jmp 0x30:0xc000
`,
);

/** Tables, SYSCALL's registers, and down to the user. */
const kernel = guest(
  64,
  `
                               0f 01 1c 25 10 06 00 00 | lidt [0x610]
                               66 b8 40 00             | mov ax, 0x40
                               0f 00 d8                | ltr ax
                               b9 81 00 00 c0          | mov ecx, 0xc0000081
                               31 c0                   | xor eax, eax
                               ba 30 00 18 00          | mov edx, 0x00180030
                               0f 30                   | wrmsr
                               b9 82 00 00 c0          | mov ecx, 0xc0000082
                               b8 00 e0 00 00          | mov eax, 0xe000
                               31 d2                   | xor edx, edx
                               0f 30                   | wrmsr
                               b9 84 00 00 c0          | mov ecx, 0xc0000084
                               b8 00 07 00 00          | mov eax, 0x700
                               0f 30                   | wrmsr
                               41 bf 00 00 02 00       | mov r15d, 0x20000
                               41 c6 07 4b             | mov byte ptr [r15], 0x4b
                               49 ff c7                | inc r15
                               6a 23                   | push 0x23
                               68 f0 7f 03 00          | push 0x37ff0
                               68 02 02 00 00          | push 0x202
                               6a 2b                   | push 0x2b
                               68 00 d0 00 00          | push 0xd000
                               48 cf                   | iretq
`,
);

const user = guest(
  64,
  `
                               b8 01 00 00 00 | mov eax, 1
                               0f 05          | syscall
                               41 c6 07 55    | mov byte ptr [r15], 0x55
                               49 ff c7       | inc r15
                               cd 80          | int 0x80
                               0f 0b          | ud2
                               bb 00 00 00 40 | mov ebx, 0x40000000
                               8a 03          | mov al, [rbx]
                               f4             | hlt
                               90             | nop
                               31 c0          | xor eax, eax
                               0f 05          | syscall
`,
);

/** At 0: SYSCALL, which halts for 0. From 0x40 on, 0x40 bytes each: INT 80h, #UD, #PF, #GP, #DB. */
const syscallHandler = guest(
  64,
  `
                               41 c6 07 53 | mov byte ptr [r15], 0x53
                               49 ff c7    | inc r15
                               85 c0       | test eax, eax
                               74 03       | jz 1f
                               48 0f 07    | sysretq
                               f4          | 1: hlt
`,
);
const handler80 = guest(
  64,
  `
                               41 c6 07 80 | mov byte ptr [r15], 0x80
                               49 ff c7    | inc r15
                               48 cf       | iretq
`,
);
const handlerUd = guest(
  64,
  `
                               41 c6 07 06    | mov byte ptr [r15], 6
                               49 ff c7       | inc r15
                               48 83 04 24 02 | add qword ptr [rsp], 2
                               48 cf          | iretq
`,
);
const handlerPf = guest(
  64,
  `
                               41 c6 07 0e    | mov byte ptr [r15], 14
                               0f 20 d0       | mov rax, cr2
                               41 89 47 01    | mov [r15 + 1], eax
                               58             | pop rax
                               41 88 47 05    | mov [r15 + 5], al
                               49 83 c7 06    | add r15, 6
                               48 83 04 24 02 | add qword ptr [rsp], 2
                               48 cf          | iretq
`,
);
const handlerGp = guest(
  64,
  `
                               41 c6 07 0d | mov byte ptr [r15], 13
                               49 ff c7    | inc r15
                               48 83 c4 08 | add rsp, 8
                               48 ff 04 24 | inc qword ptr [rsp]
                               48 cf       | iretq
`,
);
const handlerDb = guest(
  64,
  `
                               49 ff c6 | inc r14
                               48 cf    | iretq
`,
);

/** A machine in real mode, with everything in memory that a guest needs to get to 64-bit mode and to its user. */
function bootable(): Machine {
  const m = new Machine().long().tables();
  const { cpu } = m;
  m.set64(At.tss + 4, BigInt(At.inner));
  // As after a reset, but for CS: the tables in memory stay.
  cpu.cr0 = 0x6000_0010;
  cpu.cr3 = 0n;
  cpu.cr4 = 0;
  cpu.efer = 0;
  cpu.flushTlb();
  const flat = new Machine().real().cpu.segments;
  cpu.segments.splice(0, 6, ...flat);
  cpu.state.rip = BigInt(Place.real);
  m.rsp = 0x3000;
  m.set16(0x600, 0xbf);
  m.set32(0x602, At.gdt);
  m.set16(0x610, 0xfff);
  m.set64(0x612, BigInt(At.idt));
  m.place(Place.real, real)
    .place(Place.protected, protect)
    .place(Place.kernel, kernel)
    .place(Place.user, user);
  m.place(Place.handlers, syscallHandler);
  [
    [0x80, handler80],
    [Vector.UD, handlerUd],
    [Vector.PF, handlerPf],
    [Vector.GP, handlerGp],
    [Vector.DB, handlerDb],
  ].forEach(([vector, code], index) => {
    const at = Place.handlers + 0x40 * (index + 1);
    m.place(at, code as typeof handlerDb);
    const access = vector === 0x80 ? 0xee : 0x8e;
    m.set64(At.idt + 16 * (vector as number), gate(Gdt.CODE64, at, access));
  });
  cpu.changed();
  return m;
}

const logged = (m: Machine) =>
  Array.from({ length: Number(m.gpr(15)) - Place.log }, (_, i) => m.u8(Place.log + i));

/** Kernel, SYSCALL, user, INT 80h, #UD, #PF at 4000_0000h with its error code, #GP of the user's HLT, SYSCALL. */
const STORY = [0x4b, 0x53, 0x55, 0x80, 6, 14, 0, 0, 0, 0x40, 4, 13, 0x53];

describe('a guest that boots itself from real mode to the user of 64-bit mode', () => {
  it('sees all its system calls, interrupts and exceptions', () => {
    const m = bootable();
    expect(run(m)).toEqual({ kind: 'halt' });
    expect(logged(m)).toEqual(STORY);
    expect([m.cpu.user, m.segment(Seg.CS).selector, m.cpu.state.flags & Flag.IF]).toEqual([false, 0x30, 0]);
    expect([...m.cpu.unimplemented]).toEqual([]);
    expect(m.cpu.tr).toMatchObject({ selector: Gdt.TSS, type: 11 });
  });

  it('does the same with each executor', () => {
    for (const tier of ['closures', 'templates', 'wasm', 'both'] as const) {
      const m = bootable();
      m.cpu.code.tier = tier;
      expect(run(m)).toEqual({ kind: 'halt' });
      expect(logged(m), tier).toEqual(STORY);
    }
  });

  it("does the same while it is single-stepped, with a #DB for each of the user's instructions", () => {
    const m = bootable();
    // The flags that IRETQ takes to the user: 0x302 instead of 0x202.
    const at = kernel.code.findIndex(
      (byte, i) => byte === 0x68 && kernel.code[i + 1] === 2 && kernel.code[i + 2] === 2,
    );
    m.arena.views.u8[m.ram + Place.kernel + at + 2] = 3;
    expect(run(m)).toEqual({ kind: 'halt' });
    expect(logged(m)).toEqual(STORY);
    // Of the user's 12 instructions, SYSCALL (TF is masked), INT 80h and the three that fault step none by themselves;
    // the kernel's SYSRET, which loads TF, does.
    expect(m.gpr(14)).toBe(7n);
  });

  it('is stopped by userspace at each instruction, and does not notice', () => {
    const m = bootable();
    m.cpu.debugging = { singleStep: true, softwareBreakpoints: false, hardware: undefined };
    m.cpu.changed();
    const places: bigint[] = [];
    for (let stop = run(m); stop.kind !== 'halt'; stop = run(m)) {
      expect(stop.kind).toBe('debug');
      if (stop.kind === 'debug') places.push(stop.pc);
      expect(places.length).toBeLessThan(200);
    }
    expect(logged(m)).toEqual(STORY);
    expect(places.slice(0, 2)).toEqual([BigInt(Place.real + 1), BigInt(Place.real + 6)]);
  });

  it('shuts down when it has no descriptor for its double fault', () => {
    const m = bootable();
    for (const vector of [Vector.UD, Vector.GP, Vector.NP]) m.set64(At.idt + 16 * vector, 0n);
    expect(run(m)).toEqual({ kind: 'shutdown' });
    expect(logged(m)).toEqual(STORY.slice(0, 4));
  });
});

const waiting = guest(
  16,
  `
                               c7 06 84 00 00 e0 | mov word ptr [0x84], 0xe000
                               c7 06 86 00 00 00 | mov word ptr [0x86], 0
                               fb                | sti
                               f4                | hlt
                               b3 02             | mov bl, 2
                               fa                | cli
                               f4                | hlt
`,
);
const tick = guest(
  16,
  `
                               b7 01 | mov bh, 1
                               cf    | iret
`,
);

describe('a guest that waits', () => {
  it('is woken by an interrupt, and goes on behind its HLT', () => {
    const m = new Machine().real().place(Place.real, waiting).place(Place.handlers, tick);
    m.cpu.state.rip = BigInt(Place.real);
    expect(run(m)).toEqual({ kind: 'halt' });
    m.cpu.interrupt = { vector: 0x21, soft: false };
    expect(run(m)).toEqual({ kind: 'halt' });
    expect([m.gpr(3), m.cpu.state.flags & Flag.IF]).toEqual([0x102n, 0]);
  });

  it('takes no interrupt in the shadow of STI', () => {
    const m = new Machine().real().place(Place.real, waiting);
    m.cpu.state.rip = BigInt(Place.real);
    m.cpu.windowRequested = true;
    // HLT is the shadow's instruction, and is told before the window.
    for (const kind of ['halt', 'interrupt-window']) {
      expect(run(m)).toEqual({ kind });
      expect(m.cpu.state.rip).toBe(BigInt(Place.real + 14));
    }
  });
});

const faulting = guest(
  64,
  `
                               68 78 56 34 12             | push 0x12345678
                               48 c7 44 24 f8 11 00 00 00 | mov qword ptr [rsp - 8], 0x11
                               48 89 e3                   | mov rbx, rsp
                               48 8b 07                   | mov rax, [rdi]
                               f4                         | hlt
`,
);

const halting = guest(
  64,
  `
 f4 | hlt
`,
);

describe('paging under a guest', () => {
  it('an access that faults has not happened, and happens after the page is there', () => {
    const m = new Machine().long();
    m.place(Place.kernel, faulting);
    m.cpu.state.rip = BigInt(Place.kernel);
    m.setGpr(7, 0x40_0123);
    const resume = Number(Place.handlers);
    m.place(resume, halting);
    m.set64(At.idt + 16 * Vector.PF, gate(Gdt.CODE64, resume, 0x8e));
    expect(run(m)).toEqual({ kind: 'halt' });
    expect([m.cpu.cr2, m.u64(Number(m.rsp))]).toEqual([0x40_0123n, 0n]);
    // Map the page as a kernel would, and return.
    m.set64(At.pd + 16, 0x83n);
    m.cpu.halted = false;
    m.rsp = m.rsp + 8n;
    expect(m.execute('48 cf')).toBeUndefined();
    m.set64(0x123, 0xfeed_f00dn);
    expect(run(m)).toEqual({ kind: 'halt' });
    expect(m.gpr(0)).toBe(0xfeed_f00dn);
    expect(m.u64(At.pd + 16)).toBe(0xa3n);
  });
});

/** Guests at privilege 3 and their handlers at privilege 0, set up by descriptors, page tables, an IDT and a TSS. */
import { expect } from 'vitest';
import {
  descriptor,
  Exit,
  enterProtectedMode,
  enterUserMode,
  exitName,
  FLAT_ADDRESS,
  flatImage,
  type Gate,
  type GuestMemory,
  type Hypervisor,
  Machine,
  type Mapping,
  PageTables,
  placeGdt,
  placeIdt,
  placeTss,
  type Vcpu,
} from '../../src/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { conformance } from '../support/suite.ts';

const MIB = 2 ** 20;
const GDT = 0x500;
const TSS = 0x600;
const LDT = 0x700;
const IDT = 0x2000;
const HANDLER = 0x3000;
const USER = 0x4000;
const STACK = 0x9000;
const IST = 0xa000;
const TABLES = 0x8_0000;
/** Linear addresses of pages that only some may use. */
const AREA = 0x4000_0000;

/** Vectors. */
const GP = 13;
const PF = 14;

/** Halts with what the processor has pushed: an error code, where it came from, and the stack there. */
const handler64 = guest(
  64,
  `
 58       | pop rax
 5b       | pop rbx
 59       | pop rcx
 0f 20 d2 | mov rdx, cr2
 48 89 e7 | mov rdi, rsp
 f4       | hlt
`,
);
const handler32 = guest(
  32,
  `
 58 | pop eax
 5b | pop ebx
 59 | pop ecx
 f4 | hlt
`,
);

/** rbx: an address. What privilege 3 does to it, at FLAT_ADDRESS. */
const reads = guest(64, '8b 03 | mov eax, [rbx]');
const writes = guest(64, '89 03 | mov [rbx], eax');
const jumps = guest(64, 'ff e3 | jmp rbx');

/**
 * To privilege 3. The TSS is loaded here and not by the VMM: QEMU 7.2 ends itself where a TSS that VMRUN has loaded, and is
 * busy therefore, names the stack of a 32-bit handler ("invalid tss type").
 */
const throughLtr = guest(
  32,
  `
 0f 00 d8 | ltr ax
 cf       | iretd
`,
);
const readsByLdt = guest(
  32,
  `
 b8 07 00 00 00    | mov eax, 7
 8e e0             | mov fs, eax
 64 a1 fc 00 00 00 | mov eax, fs:[0xfc]
 b8 0f 00 00 00    | mov eax, 15
 8e e0             | mov fs, eax
`,
);

/** Error codes of a page fault (SDM volume 3, 4.7). */
const Fault = { PRESENT: 1, WRITE: 2, USER: 4, FETCH: 16 } as const;

/** A guest in long mode at privilege 3, with its code at FLAT_ADDRESS; #GP and #PF come to the handler. */
function userGuest({ memory, vcpu }: Machine, { code }: { code: Uint8Array }, gate: Partial<Gate> = {}) {
  const tables = new PageTables(memory, { at: TABLES });
  tables.map({ linear: 0, size: 0x10000, user: true });
  const kinds = {
    code: descriptor.code({ bits: 64 }),
    data: descriptor.data(),
    userCode: descriptor.code({ bits: 64, dpl: 3 }),
    userData: descriptor.data({ dpl: 3 }),
    tss: placeTss({ memory, address: TSS }, { stack: STACK, ist: [IST] }),
  };
  const { table, segments } = placeGdt({ memory, address: GDT }, kinds);
  memory.write(HANDLER, handler64.code);
  const handler: Gate = { offset: HANDLER, selector: segments.code.selector, ...gate };
  const idt = placeIdt({ memory, address: IDT }, 64, { [GP]: handler, [PF]: handler });
  vcpu.changeSregs({ gdt: table, idt, tr: segments.tss, cr3: tables.root });
  enterUserMode(vcpu, { code: segments.userCode, data: segments.userData });
  memory.write(FLAT_ADDRESS, code);
  vcpu.setRegs({ rip: FLAT_ADDRESS, rsp: 0x8000, rflags: 2, rbx: AREA });
  return { tables, segments };
}

function withMachine(hv: Hypervisor, use: (machine: Machine) => void): void {
  using machine = new Machine(hv, { memory: MIB });
  machine.load(flatImage(Uint8Array.of(0xf4), 'long'));
  use(machine);
}

/** The handler has run: where the guest was, and why it came. */
function handled(vcpu: Vcpu) {
  expect(exitName(vcpu.run(DEADLINE_MS))).toBe(exitName(Exit.HLT));
  const { rax, rbx, rcx, rdx, rdi } = vcpu.getRegs();
  expect(vcpu.getSregs().cs.selector & 3).toBe(0);
  return { error: Number(rax), from: Number(rbx), cs: Number(rcx), address: Number(rdx), stack: Number(rdi) };
}

conformance('privilege levels', ({ it, needs }) => {
  it('privilege 3 may not halt: #GP comes to privilege 0, on the stack that the TSS names', (hv) => {
    withMachine(hv, (machine) => {
      const { segments } = userGuest(machine, { code: Uint8Array.of(0xf4) });
      expect(handled(machine.vcpu)).toMatchObject({
        error: 0,
        from: FLAT_ADDRESS,
        cs: segments.userCode.selector,
        stack: STACK - 24,
      });
    });
  });

  it("a gate's IST is a stack of its own", (hv) => {
    withMachine(hv, (machine) => {
      userGuest(machine, { code: Uint8Array.of(0xf4) }, { ist: 1 });
      expect(handled(machine.vcpu).stack).toBe(IST - 24);
    });
  });

  const P = Fault.PRESENT | Fault.USER;
  const faults: readonly [
    does: string,
    code: { code: Uint8Array },
    page: Partial<Mapping> | undefined,
    error: number,
  ][] = [
    ['reads what is not mapped', reads, undefined, Fault.USER],
    ["reads privilege 0's page", reads, {}, P],
    ['writes a page that is read-only', writes, { user: true, writable: false }, P | Fault.WRITE],
    ['executes a page without code', jumps, { user: true, noExecute: true }, P | Fault.FETCH],
  ];
  for (const [does, code, page, error] of faults) {
    it(`privilege 3 ${does}: #PF tells which access, and where`, (hv) => {
      withMachine(hv, (machine) => {
        const { tables } = userGuest(machine, code);
        if (page) tables.map({ linear: AREA, physical: 0x7000, ...page });
        expect(handled(machine.vcpu)).toMatchObject({ error, address: AREA });
      });
    });
  }

  it('privilege 3 may do what its pages allow, in the upper half too, and a page can be mapped otherwise', (hv) => {
    withMachine(hv, ({ memory, vcpu, ...machine }) => {
      const all = guest(
        64,
        `
 8b 03    | mov eax, [rbx]
 89 43 04 | mov [rbx + 4], eax
 f4       | hlt
`,
      );
      const { tables } = userGuest({ memory, vcpu, ...machine } as Machine, all);
      const high = -0x4000_0000n;
      memory.write(0x7000, Uint8Array.of(1, 2, 3, 4));
      tables.map({ linear: high, physical: 0x6000, writable: false });
      tables.map({ linear: high, physical: 0x7000, user: true });
      expect(tables.entryOf(high)).toBeGreaterThan(TABLES);
      vcpu.setRegs({ ...vcpu.getRegs(), rbx: high });
      expect(handled(vcpu).from).toBe(FLAT_ADDRESS + 5);
      expect([...memory.read(0x7004, 4)]).toEqual([1, 2, 3, 4]);
    });
  });

  // KVM's emulator, which is what executes privilege 0 without it, has no IRETD in protected mode.
  needs('hardware-virtualization')(
    '32-bit code at privilege 3 may load a segment of the LDT, and none beyond its limit',
    (hv) => {
      withMachine(hv, ({ memory, vcpu }) => {
        enterProtectedMode(vcpu, memory, { tables: TABLES });
        const { table, segments } = placeGdt(
          { memory, address: GDT },
          {
            code: descriptor.code({ bits: 32 }),
            data: descriptor.data(),
            userCode: descriptor.code({ bits: 32, dpl: 3 }),
            userData: descriptor.data({ dpl: 3 }),
            tss: placeTss({ memory, address: TSS }, { bits: 32, stack: STACK, stackSegment: 0x10 }),
            ldt: descriptor.ldt({ base: LDT, limit: 8 - 1 }),
          },
        );
        placeLdt(memory);
        memory.write(HANDLER, handler32.code);
        const gate = { offset: HANDLER, selector: segments.code.selector };
        const idt = placeIdt({ memory, address: IDT }, 32, { [GP]: gate });
        vcpu.changeSregs({ gdt: table, idt, ldt: segments.ldt });
        memory.write(FLAT_ADDRESS, throughLtr.code);
        memory.write(USER, readsByLdt.code);
        const frame = [USER, segments.userCode.selector, 2, 0x8000, segments.userData.selector];
        memory.write(0x8000, new Uint8Array(Uint32Array.from(frame).buffer));
        vcpu.setRegs({ rip: FLAT_ADDRESS, rsp: 0x8000, rflags: 2, rax: segments.tss.selector });
        expect(handled(vcpu)).toMatchObject({ error: 0xc, from: USER + 18, cs: segments.userCode.selector });
      });
    },
  );

  it('the segments that registers have are those that the table has: loading them again changes nothing', (hv) => {
    withMachine(hv, ({ memory, vcpu }) => {
      const kinds = {
        code: descriptor.code({ bits: 64 }),
        data: descriptor.data(),
        narrow: descriptor.data({ base: 0x1234_5678, limit: 0xfffff, bits: 16 }),
        wide: descriptor.data({ base: 0x8765_4321, limit: 0x1234_5fff, writable: false }),
      };
      const { table, segments } = placeGdt({ memory, address: GDT }, kinds);
      const loads = guest(
        64,
        `
 b8 18 00 00 00 | mov eax, 0x18
 8e c0          | mov es, eax
 b8 20 00 00 00 | mov eax, 0x20
 8e d8          | mov ds, eax
 f4             | hlt
`,
      );
      memory.write(FLAT_ADDRESS, loads.code);
      vcpu.changeSregs({ gdt: table, cs: segments.code, ss: segments.data });
      expect(exitName(vcpu.run(DEADLINE_MS))).toBe(exitName(Exit.HLT));
      const { ds, es } = vcpu.getSregs();
      expect(es).toMatchObject(segments.narrow);
      expect(ds).toMatchObject(segments.wide);
    });
  });
});

/** Its one segment, at 0x7000, has 256 bytes: selector 7 at privilege 3. There is no null descriptor in an LDT. */
function placeLdt(memory: GuestMemory): void {
  const data = descriptor.data({ dpl: 3, base: 0x7000, limit: 0xff });
  placeGdt({ memory, address: LDT - 8 }, { data });
}

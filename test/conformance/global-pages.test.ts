/**
 * Global pages (SDM volume 3, 4.10.2.4): MOV to CR3 may keep what is known of them, and of them alone; INVLPG and a change of
 * CR4.PGE forget that too (4.10.4.1). Code and data, often enough to be translated for good.
 */
import { expect } from 'vitest';
import { Exit, type Hypervisor, type Vcpu } from '../../src/index.ts';
import { type Guest, guest } from '../../src/vmm/guest.ts';
import { enterLongMode } from '../../src/vmm/modes.ts';
import { inLab } from '../support/limits.ts';
import { runTo } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

const ROUNDS = inLab ? 300 : 5000;
const RAM = 0x20_0000;
/** Guest-physical, and mapped one to one but for the pages of CALLED and DATA. */
const At = { program: 0x1000, stack: 0xa000, first: [0x6000, 0x8000], second: [0x7000, 0x9000] } as const;
/** Linear pages that lead to `first` or to `second`. */
const [CALLED, DATA] = [0x4000, 0x5000];
const ROOTS = [0x10_0000, 0x11_0000] as const;
const [P, W, G] = [1n, 2n, 0x100n];
const PGE = 1n << 7n;

/** Each adds the word that the data's page has for it. */
const called = [
  guest(
    64,
    `
 03 04 25 00 50 00 00 | add eax, [0x5000]
 c3                   | ret
`,
  ),
  guest(
    64,
    `
 03 04 25 04 50 00 00 | add eax, [0x5004]
 c3                   | ret
`,
  ),
] as const;
const WRONG = 0x77_0000;
const loadsCr3 = guest(
  64,
  `
 0f 22 db | again: mov cr3, rbx
 ff d7    |        call rdi
 0f 22 da |        mov cr3, rdx
 ff d7    |        call rdi
 ff c9    |        dec ecx
 75 f2    |        jnz again
 e7 10    |        out 0x10, eax
`,
);
/** R8, R9: the entries of CALLED and DATA; RBX, RBP and RDX, RSI what they get by turns. */
const invalidates = guest(
  64,
  `
 49 89 18                | again: mov [r8], rbx
 49 89 29                |        mov [r9], rbp
 0f 01 3f                |        invlpg [rdi]
 0f 01 3c 25 00 50 00 00 |        invlpg [0x5000]
 ff d7                   |        call rdi
 49 89 10                |        mov [r8], rdx
 49 89 31                |        mov [r9], rsi
 0f 01 3f                |        invlpg [rdi]
 0f 01 3c 25 00 50 00 00 |        invlpg [0x5000]
 ff d7                   |        call rdi
 ff c9                   |        dec ecx
 75 d6                   |        jnz again
 e7 10                   |        out 0x10, eax
`,
);
/** The same by CR4: R10 without PGE, and R11 with it. */
const turnsOff = guest(
  64,
  `
 49 89 18    | again: mov [r8], rbx
 49 89 29    |        mov [r9], rbp
 41 0f 22 e2 |        mov cr4, r10
 41 0f 22 e3 |        mov cr4, r11
 ff d7       |        call rdi
 49 89 10    |        mov [r8], rdx
 49 89 31    |        mov [r9], rsi
 41 0f 22 e2 |        mov cr4, r10
 41 0f 22 e3 |        mov cr4, r11
 ff d7       |        call rdi
 ff c9       |        dec ecx
 75 dc       |        jnz again
 e7 10       |        out 0x10, eax
`,
);

const entryAt = (root: number, page: number) => root + 0x3000 + (page / 0x1000) * 8;

/** Two address spaces in which all pages are global but CALLED and DATA, which are as `flags` say; the sum that it comes to. */
function sum(hv: Hypervisor, program: Guest, flags: bigint, registers: (vcpu: Vcpu) => object): number {
  using vm = hv.createVm();
  using ram = vm.allocate(RAM);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
  using vcpu = vm.createVcpu(0);
  vcpu.setCpuid2(hv.getSupportedCpuid());
  enterLongMode(vcpu, ram, { tables: 0x18_0000 });
  const set = (at: number, value: bigint) => ram.write(at, new Uint8Array(BigUint64Array.of(value).buffer));
  for (const [i, root] of ROOTS.entries()) {
    for (const level of [0, 0x1000, 0x2000]) set(root + level, BigInt(root + level + 0x1000) | P | W);
    for (let page = 0; page < RAM; page += 0x1000) set(entryAt(root, page), BigInt(page) | P | W | G);
    const [code, data] = i === 0 ? At.first : At.second;
    set(entryAt(root, CALLED), BigInt(code) | P | W | flags);
    set(entryAt(root, DATA), BigInt(data) | P | W | flags);
  }
  ram.write(At.program, program.code);
  for (const [i, [code, data]] of [At.first, At.second].entries()) {
    ram.write(code, called[i]!.code);
    const words = i === 0 ? [1, WRONG] : [WRONG, 0x1_0000];
    ram.write(data, new Uint8Array(Uint32Array.from(words).buffer));
  }
  const sregs = vcpu.getSregs();
  vcpu.setSregs({ ...sregs, cr3: BigInt(ROOTS[0]), cr4: sregs.cr4 | PGE });
  const own = registers(vcpu);
  vcpu.setRegs({ rip: At.program, rsp: At.stack, rcx: ROUNDS, rdi: CALLED, rflags: 2, ...own });
  runTo(vcpu, Exit.IO);
  expect(vcpu.io.port).toBe(0x10);
  return vcpu.io.value;
}

conformance('global pages', ({ it }) => {
  const expected = ROUNDS * 0x1_0001;

  it('are kept where CR3 is loaded, and the others are not, of code and of data', (hv) => {
    const [rbx, rdx] = ROOTS;
    expect(sum(hv, loadsCr3, 0n, () => ({ rbx, rdx }))).toBe(expected);
  });

  const byTurns = (vcpu: Vcpu) => {
    const entry = (page: number) => BigInt(page) | P | W | G;
    const [[rbx, rbp], [rdx, rsi]] = [At.first.map(entry), At.second.map(entry)];
    const { cr4 } = vcpu.getSregs();
    const [r8, r9] = [CALLED, DATA].map((page) => entryAt(ROOTS[0], page));
    return { rbx, rbp, rdx, rsi, r8, r9, r10: cr4 & ~PGE, r11: cr4 };
  };
  it('are forgotten by INVLPG', (hv) => {
    expect(sum(hv, invalidates, G, byTurns)).toBe(expected);
  });
  it('are forgotten where CR4.PGE changes', (hv) => {
    expect(sum(hv, turnsOff, G, byTurns)).toBe(expected);
  });
});

/**
 * Pieces of code for Agent.beginCode(), which ends them with its answer: rax. By convention rsi (or, where the
 * instruction says so, rdi) holds an address, dx a port.
 */
import { guest } from '../../src/vmm/guest.ts';

export const out8 = guest(
  64,
  `
 ee c3 | out dx, al; ret
`,
);
export const out16 = guest(
  64,
  `
 66 ef c3 | out dx, ax; ret
`,
);
export const out32 = guest(
  64,
  `
 ef c3 | out dx, eax; ret
`,
);
export const in8 = guest(
  64,
  `
 ec c3 | in al, dx; ret
`,
);
export const in16 = guest(
  64,
  `
 66 ed c3 | in ax, dx; ret
`,
);
export const in32 = guest(
  64,
  `
 ed c3 | in eax, dx; ret
`,
);
export const insb = guest(
  64,
  `
 f3 6c 48 89 c8 c3 | rep insb; mov rax, rcx; ret
`,
);
export const outsb = guest(
  64,
  `
 f3 6e 48 89 c8 c3 | rep outsb; mov rax, rcx; ret
`,
);
export const outsd = guest(
  64,
  `
 f3 6f 48 89 c8 c3 | rep outsd; mov rax, rcx; ret
`,
);
export const load8 = guest(
  64,
  `
 8a 06 c3 | mov al, [rsi]; ret
`,
);
export const load16 = guest(
  64,
  `
 66 8b 06 c3 | mov ax, [rsi]; ret
`,
);
export const load32 = guest(
  64,
  `
 8b 06 c3 | mov eax, [rsi]; ret
`,
);
export const load64 = guest(
  64,
  `
 48 8b 06 c3 | mov rax, [rsi]; ret
`,
);
export const store8 = guest(
  64,
  `
 88 06 c3 | mov [rsi], al; ret
`,
);
export const store16 = guest(
  64,
  `
 66 89 06 c3 | mov [rsi], ax; ret
`,
);
export const store32 = guest(
  64,
  `
 89 06 c3 | mov [rsi], eax; ret
`,
);
export const store64 = guest(
  64,
  `
 48 89 06 c3 | mov [rsi], rax; ret
`,
);
export const load128 = guest(
  64,
  `
 f3 0f 6f 06 f3 0f 7f 07 c3 | movdqu xmm0, [rsi]; movdqu [rdi], xmm0; ret
`,
);
export const increment = guest(
  64,
  `
 48 ff 06 c3 | inc qword ptr [rsi]; ret
`,
);
export const copy = guest(
  64,
  `
 48 a5 c3 | movsq; ret
`,
);
export const push = guest(
  64,
  `
 ff 36 58 c3 | push qword ptr [rsi]; pop rax; ret
`,
);
export const jump = guest(
  64,
  `
 ff e6 | jmp rsi
`,
);
export const spin = guest(
  64,
  `
 48 ff c0 eb fb | again: inc rax; jmp again
`,
);
export const invalid = guest(
  64,
  `
 0f 0b | ud2
`,
);
/** Waits with interrupts on until a handler has set al. */
export const interruptible = guest(
  64,
  `
 b0 00 fb 84 c0 74 fc fa c3 | mov al, 0; sti; again: test al, al; jz again; cli; ret
`,
);
/** No emulator of KVM's has this; on memory-mapped I/O it would need one. */
export const unemulated = guest(
  64,
  `
 d9 26 c3 | fldenv [rsi]; ret
`,
);
/** Counts in rbx for ever, with an OUT for each. */
export const count = guest(
  64,
  `
 ee 48 ff c3 eb fa | again: out dx, al; inc rbx; jmp again
`,
);
/** Two task priorities, one after the other. */
export const priorities = guest(
  64,
  `
 44 0f 22 c7 44 0f 22 c6 44 0f 20 c0 c3 | mov cr8, rdi; mov cr8, rsi; mov rax, cr8; ret
`,
);
export const nops = guest(
  64,
  `
 90 90 90 f4 | nop; nop; nop; hlt
`,
);
/** rax: what CPUID gave in ebx. */
export const cpuid = guest(
  64,
  `
 0f a2 89 d8 c3 | cpuid; mov eax, ebx; ret
`,
);
export const compareExchange16 = guest(
  64,
  `
 f0 48 0f c7 0e c3 | lock cmpxchg16b [rsi]; ret
`,
);
/** No emulator of KVM's has this. */
export const loadsOne = guest(
  64,
  `
 d9 e8 dd d8 c3 | fld1; fstp st(0); ret
`,
);
export const halt = guest(
  64,
  `
 fb f4 90 c3 | sti; hlt; nop; ret
`,
);
export const answer42 = guest(
  64,
  `
 b8 2a 00 00 00 c3 | mov eax, 42; ret
`,
);
export const leadingZeros = guest(
  64,
  `
 f3 48 0f bd 06 c3 | lzcnt rax, [rsi]; ret
`,
);
export const trailingZeros = guest(
  64,
  `
 f3 48 0f bc 06 c3 | tzcnt rax, [rsi]; ret
`,
);
export const farJump = guest(
  64,
  `
 48 ff 2e | rex.w jmp fword ptr [rsi]
`,
);
export const nearJump16 = guest(
  64,
  `
 66 ff 26 | data16 jmp [rsi]
`,
);
export const loadFs = guest(
  64,
  `
 48 0f b4 06 c3 | rex.w lfs eax, [rsi]; ret
`,
);

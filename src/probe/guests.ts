/** The guests of a few instructions by which features are tried. */
import { guest } from '../vmm/guest.ts';

export const halts16 = guest(
  16,
  `
     f4 | hlt
`,
);
export const halts64 = guest(
  64,
  `
     b8 01 00 00 80 | mov eax, 0x80000001     # in 32-bit mode the prefix of the next is a DEC
     48 c1 e0 20    | shl rax, 32
     f4             | hlt
`,
);
export const spins = guest(
  16,
  `
     fb    | sti
     eb fe | jmp .
`,
);
export const steps = guest(
  16,
  `
     90 | nop
     f4 | hlt
`,
);
export const writesBelow = guest(
  16,
  `
     c6 06 00 80 5a | mov byte ptr [0x8000], 0x5a
     f4             | hlt
`,
);
export const writesAbove = guest(
  16,
  `
     b8 ff ff       | mov ax, 0xffff
     8e d8          | mov ds, ax
     c6 06 10 00 5a | mov byte ptr [0x10], 0x5a      # 0xffff0 + 0x10
     f4             | hlt
`,
);
// KVM_HC_MAP_GPA_RANGE of the first page, to shared: changes nothing. CPUID tells which of the two instructions the
// processor has, for KVM would have to patch the other one in place.
export const hypercall = guest(
  64,
  `
     31 c0             |         xor eax, eax
     0f a2             |         cpuid
     89 ce             |         mov esi, ecx
     b8 0c 00 00 00    |         mov eax, 12
     31 db             |         xor ebx, ebx
     b9 01 00 00 00    |         mov ecx, 1
     31 d2             |         xor edx, edx
     81 fe 63 41 4d 44 |         cmp esi, 0x444d4163    # "Authenti" "cAMD"
     74 04             |         je amd
     0f 01 c1          |         vmcall
     f4                |         hlt
     0f 01 d9          | amd:    vmmcall
     f4                |         hlt
`,
);

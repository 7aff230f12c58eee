/**
 * A guest that does what the test tells it: it asks for a command with OUT, the test puts one in its registers, and
 * it answers with the next OUT. So a test is a conversation instead of machine code of its own.
 */
import { Exit, type Hypervisor, type Vcpu, type Vm } from '../../src/index.ts';
import type { GuestMemory } from '../../src/hypervisor/guest-memory.ts';
import { guest } from '../../src/vmm/guest.ts';
import { enterLongMode, tablesSize } from '../../src/vmm/long-mode.ts';

const code = guest(
  64,
  `
              e6 f0    | next:  out 0xf0, al             # rax: the last answer
              80 fb 01 |        cmp bl, 1
              74 17    |        je read
              80 fb 02 |        cmp bl, 2
              74 17    |        je write
              80 fb 03 |        cmp bl, 3
              74 17    |        je fill
              80 fb 04 |        cmp bl, 4
              74 18    |        je check
              80 fb 05 |        cmp bl, 5
              74 27    |        je call
              f4       |        hlt
              eb e2    |        jmp next
              48 8b 07 | read:  mov rax, [rdi]
              eb dd    |        jmp next
              48 89 37 | write: mov [rdi], rsi
              eb d8    |        jmp next
              89 f0    | fill:  mov eax, esi             # rcx bytes of sil at rdi
              f3 aa    |        rep stosb
              eb d2    |        jmp next
              89 f0    | check: mov eax, esi             # rax: how many of the rcx bytes at rdi were sil before one was not
              48 89 ca |        mov rdx, rcx
              f3 ae    |        repe scasb
              74 03    |        je all
              48 ff c1 |        inc rcx
              48 29 ca | all:   sub rdx, rcx
              48 89 d0 |        mov rax, rdx
              eb be    |        jmp next
              4c 89 c0 | call:  mov rax, r8              # a hypercall: number, then four arguments
              4c 89 cb |        mov rbx, r9
              4c 89 d1 |        mov rcx, r10
              4c 89 da |        mov rdx, r11
              4c 89 e6 |        mov rsi, r12
              0f 01 d9 |        vmmcall
              eb aa    |        jmp next
`,
);

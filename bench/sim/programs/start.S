// What the benchmarks' programs begin with, in 64 and in 32 bits: a multiboot header (Multiboot 0.6.96, 3.1), by which
// every machine loads them and starts them in 32-bit protected mode; memory mapped one to one, for all privileges, by
// pages of 2 or 4 MiB; SSE and the FPU on; then start() in runtime.c. SDM volume 3, 10.8.5, "Initializing IA-32e Mode".
#include "layout.h"

  .set MAGIC, 0x1badb002
  .set CR0, 0x80010023  // PG, WP, NE, MP, PE
#ifdef __x86_64__
  .set CR4, 0x620       // OSXMMEXCPT, OSFXSR, PAE
#else
  .set CR4, 0x610       // OSXMMEXCPT, OSFXSR, PSE
#endif
  .set EFER, 0xc0000080
  .set LARGE, 0x87      // present, writable, user, large

  .section .multiboot, "a"
  .balign 4
  .long MAGIC, 0, -MAGIC

  .section .bss.tables, "aw", @nobits
  .globl root
  .balign 4096
root: .skip 4096
#ifdef __x86_64__
directories: .skip 4096 // the table of directory pointers
leaves: .skip 4 * 4096
#endif
stack: .skip 65536
stack_top:

  .section .text
  .globl _start
  .code32
_start:
  cli
  cld
  mov $stack_top, %esp
  lgdt gdt_pointer
  mov $CR4, %eax
  mov %eax, %cr4
#ifdef __x86_64__
  movl $directories + 7, root
  mov $leaves + 7, %eax
  xor %ecx, %ecx
1:
  mov %eax, directories(, %ecx, 8)
  add $4096, %eax
  inc %ecx
  cmp $4, %ecx
  jne 1b
  xor %ecx, %ecx
  mov $LARGE, %eax
1:
  mov %eax, leaves(, %ecx, 8)
  add $0x200000, %eax
  inc %ecx
  cmp $2048, %ecx
  jne 1b
  mov $EFER, %ecx
  rdmsr
  or $0x901, %eax       // SCE, LME, NXE
  wrmsr
#else
  xor %ecx, %ecx
  mov $LARGE, %eax
1:
  mov %eax, root(, %ecx, 4)
  add $0x400000, %eax
  inc %ecx
  cmp $1024, %ecx
  jne 1b
#endif
  mov $root, %eax
  mov %eax, %cr3
  mov $CR0, %eax
  mov %eax, %cr0
  ljmp $KERNEL_CODE, $1f
#ifdef __x86_64__
  .code64
#endif
1:
  mov $KERNEL_DATA, %eax
  mov %eax, %ds
  mov %eax, %es
  mov %eax, %ss
  xor %eax, %eax
  mov %eax, %fs
  mov %eax, %gs
  mov $stack_top, %esp
  fninit
  call start

// Vectors that no program has taken: the vector is told, and the instruction. An error code stands where the instruction's
// address is otherwise (SDM volume 3, 6.13); both words are told.
  .globl stubs
  .balign 16
stubs:
  .set vector, 0
  .rept 32
  .balign 16
  push $vector
  jmp 1f
  .set vector, vector + 1
  .endr
1:
#ifdef __x86_64__
  pop %rdi
  pop %rsi
  pop %rdx
  and $-16, %rsp
#endif
  call unexpected

  .data
  .balign 16
  .globl gdt
gdt:
  .quad 0
#ifdef __x86_64__
  .quad 0x00af9b000000ffff // KERNEL_CODE
  .quad 0x00cf93000000ffff // KERNEL_DATA
  .quad 0x00cff3000000ffff // USER_DATA: below its code, as SYSRET wants it
  .quad 0x00affb000000ffff // USER_CODE
#else
  .quad 0x00cf9b000000ffff // KERNEL_CODE
  .quad 0x00cf93000000ffff // KERNEL_DATA
  .quad 0x00cffb000000ffff // USER_CODE: below its data, as SYSEXIT wants it
  .quad 0x00cff3000000ffff // USER_DATA
#endif
  .quad 0, 0               // TSS, which runtime.c fills in
gdt_pointer:
  .word . - gdt - 1
  .long gdt
  .long 0

  .section .note.GNU-stack, "", @progbits

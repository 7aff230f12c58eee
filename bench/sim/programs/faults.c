// Page faults: a page that is not there is touched, the handler maps it and returns by IRET, and it is taken
// away again.
#include "machine.h"

enum { TIMES = 2400, PAGES = 64 };

static word tables;
static u32 faults;

void handler(void);
void fault(word address);
#ifdef __x86_64__
__asm__(
    "handler: push %rax; push %rcx; push %rdx; push %rsi; push %rdi; push %r8; push %r9; push %r10; push "
    "%r11\n"
    "mov %cr2, %rdi; sub $8, %rsp; call fault; add $8, %rsp\n"
    "pop %r11; pop %r10; pop %r9; pop %r8; pop %rdi; pop %rsi; pop %rdx; pop %rcx; pop %rax\n"
    "add $8, %rsp; iretq");
#else
__asm__(
    "handler: push %eax; push %ecx; push %edx; mov %cr2, %eax; push %eax; call fault; pop %eax\n"
    "pop %edx; pop %ecx; pop %eax; add $4, %esp; iret");
#endif

void fault(word address) {
  faults++;
  map_page(tables, address & ~0xffful, address & ~0xffful);
}

u32 program(void) {
  u32 sum = 0;
  tables = new_tables();
  set_gate(14, handler);
  write_cr3(tables);
  for (u32 time = 0; time < TIMES; time++) {
    for (u32 i = 0; i < PAGES; i++) {
      word page = ARENA + i * 4096;
      unmap_page(tables, page);
      invlpg(page);
    }
    for (u32 i = 0; i < PAGES; i++) {
      volatile u32 *at = (u32 *)(ARENA + i * 4096 + time % 1024 * 4);
      sum = mix(sum, *at);
      *at = sum + time;
    }
  }
  return mix(sum, faults);
}

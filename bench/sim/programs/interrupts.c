// INT from privilege 3 by a gate, to the stack in the TSS, and IRET back.
#include "machine.h"

enum { CALLS = 500000 };

static u32 sum;
u32 served;
void entry(void);
#ifdef __x86_64__
__asm__("entry: incl served; lea 5(%rax, %rax, 2), %eax; iretq");
#else
__asm__("entry: incl served; lea 5(%eax, %eax, 2), %eax; iret");
#endif

static void user(void) {
  for (u32 i = 0; i < CALLS; i++) {
    u32 value = i;
    __asm__ volatile("int $0x80" : "+a"(value) : : "memory");
    sum = mix(sum, value);
  }
  leave_user();
}

u32 program(void) {
  set_gate(0x80, entry);
  enter_user(user);
  return mix(sum, served);
}

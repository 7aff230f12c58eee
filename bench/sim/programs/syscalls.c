// System calls from privilege 3: SYSCALL and SYSRET in 64 bits, SYSENTER and SYSEXIT in 32.
#include "machine.h"

enum {
  CALLS = 800000,
  STAR = 0xc0000081,
  LSTAR,
  SFMASK = 0xc0000084,
  SYSENTER_CS = 0x174,
  SYSENTER_ESP,
  SYSENTER_EIP
};

void entry(void);
u32 serve(u32 number);

static u32 served, sum;
static u8 stack[8192] __attribute__((aligned(16)));
word entry_stack, saved_stack;

#ifdef __x86_64__
// What SYSCALL overwrites is RCX and R11; the handler may use what C's functions may.
__asm__(
    "entry: mov %rsp, saved_stack; mov entry_stack, %rsp; push %rcx; push %r11\n"
    "call serve\n"
    "pop %r11; pop %rcx; mov saved_stack, %rsp; sysretq");
static inline u32 system_call(u32 number) {
  u32 result;
  __asm__ volatile("syscall"
                   : "=a"(result), "+D"(number)
                   :
                   : "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "memory");
  return result;
}
#else
__asm__("entry: push %ecx; push %edx; push %eax; call serve; add $4, %esp; pop %edx; pop %ecx; sysexit");
static inline u32 system_call(u32 number) {
  __asm__ volatile("mov %%esp, %%ecx; mov $1f, %%edx; sysenter; 1:"
                   : "+a"(number)
                   :
                   : "ecx", "edx", "memory");
  return number;
}
#endif

u32 serve(u32 number) {
  served++;
  return number * 3 + served;
}

static void user(void) {
  for (u32 i = 0; i < CALLS; i++) sum = mix(sum, system_call(i));
  leave_user();
}

u32 program(void) {
  entry_stack = (word)(stack + sizeof stack);
#ifdef __x86_64__
  write_msr(STAR, (word)(KERNEL_DATA | 3) << 48 | (word)KERNEL_CODE << 32);
  write_msr(LSTAR, (word)entry);
  write_msr(SFMASK, 0x700);
#else
  write_msr(SYSENTER_CS, KERNEL_CODE);
  write_msr(SYSENTER_ESP, entry_stack);
  write_msr(SYSENTER_EIP, (word)entry);
#endif
  enter_user(user);
  return mix(sum, served);
}

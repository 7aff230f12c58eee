// What a kernel does all the time: CLI and STI, PUSHF and POPF, RDMSR and WRMSR, segment registers, CR0,
// RDTSC.
#include "machine.h"

enum { TURNS = 1000000, FS_BASE = 0xc0000100, SYSENTER_ESP = 0x175, EVERY = 8 };

u32 program(void) {
  u32 sum = 0;
  for (u32 i = 0; i < TURNS; i++) {
    word flags, cr0;
    __asm__ volatile("pushf; pop %0; cli" : "=r"(flags) : : "memory");
    sum = mix(sum, i);
    __asm__ volatile("push %0; popf" : : "r"(flags) : "cc", "memory");
    __asm__ volatile("mov %0, %%es; mov %1, %%fs" : : "r"(KERNEL_DATA), "r"(i & 1 ? USER_DATA : 0));
    if (i % EVERY == 0) {
      u32 low, high;
      write_msr(SYSENTER_ESP, i);
      __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(SYSENTER_ESP));
      sum = mix(sum, low + high);
      __asm__ volatile("mov %%cr0, %0; clts" : "=r"(cr0));
      __asm__ volatile("mov %0, %%cr0" : : "r"(cr0) : "memory");
      __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
      sum = mix(sum, (u32)cr0 & 0xffff);
    }
  }
  return sum;
}

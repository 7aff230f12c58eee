// AVX's registers: CR4.OSXSAVE and XCR0, which the machine's start leaves as they are after a reset.
#ifndef AVX_H
#define AVX_H
#include "machine.h"

#define WIDE(features) __attribute__((target(features), noinline))

static inline void enable_avx(void) {
  word cr4;
  __asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
  __asm__ volatile("mov %0, %%cr4" : : "r"(cr4 | 0x40000) : "memory");
  __asm__ volatile("xsetbv" : : "c"(0), "a"(7), "d"(0));
}

#endif

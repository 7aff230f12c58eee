// Writes to pages that have code: data beside it, and now and then an instruction whose immediate changes.
#include "machine.h"

enum { TURNS = 150000, EVERY = 16 };

u32 program(void) {
  // mov ecx, 8; 1: rol eax, 5; xor eax, imm32; loop 1b; ret: the same bytes in both widths.
  static const u8 bytes[] = {0xb9, 8, 0, 0, 0, 0xc1, 0xc0, 5, 0x35, 1, 0, 0, 0, 0xe2, 0xf6, 0xc3};
  u8 *page = (u8 *)ARENA;
  u32 *beside = (u32 *)(page + 2048), sum = 0;
  for (u32 i = 0; i < sizeof bytes; i++) page[i] = bytes[i];
  for (u32 i = 0; i < TURNS; i++) {
    u32 value = sum + i, c;
    if (i % EVERY == 0) *(volatile u32 *)(page + 9) = i;
    __asm__ volatile("call *%2" : "+a"(value), "=&c"(c) : "b"(page) : "cc", "memory");
    beside[i % 256] = value;
    sum = mix(sum, value ^ beside[(i * 7 + 1) % 256]);
  }
  return sum;
}

// Code that is new each time: a page of functions of a few dozen instructions is written, each is called four
// times, and the next page follows; once a megabyte is full, others are written over them. The instructions
// are the same bytes in 64 and in 32 bits.
#include "machine.h"

enum { SIZE = 1 << 20, PAGES = 160, PAGE = 4096, MOST = 512, CALLS = 4 };

static u8 *at;
static void byte(u8 value) { *at++ = value; }
static void dword(u32 value) {
  *(u32 *)at = value;
  at += 4;
}

// Of EAX, ECX and EDX, with memory by RSI.
static u8 registers(u32 random) { return 0xc0 | (random % 3) << 3 | (random >> 2) % 3; }
static void operation(u32 random, u32 immediate) {
  static const u8 alu[] = {0x01, 0x29, 0x31, 0x09, 0x21,
                           0x11, 0x19, 0x89, 0x85};  // ADD SUB XOR OR AND ADC SBB MOV TEST
  switch (random % 8) {
    case 0:
      byte(0x81), byte(0xc0 | (random >> 8) % 7 << 3 | (random >> 4) % 3), dword(immediate);
      break;
    case 1:  // mov reg, [rsi + disp32], or its opposite
      byte(random & 0x100 ? 0x8b : 0x89), byte(0x86 | ((random >> 4) % 3) << 3), dword(immediate % 1024 * 4);
      break;
    case 2:  // rol or shr reg, imm8
      byte(0xc1), byte((random & 0x100 ? 0xc0 : 0xe8) | (random >> 4) % 3), byte(immediate % 31 + 1);
      break;
    case 3:  // imul reg, reg
      byte(0x0f), byte(0xaf), byte(registers(random >> 4));
      break;
    case 4:  // lea eax, [rax + rcx * 4 + disp8], 32-bit result
      byte(0x8d), byte(0x44 | ((random >> 4) % 3) << 3), byte(0x88), byte(immediate & 0x7f);
      break;
    case 5:  // test reg, reg, which leaves no flag undefined that a jump looks at, and a jump over what
             // follows it
      byte(0x85), byte(registers(random >> 4));
      byte(0x70 | (random >> 8 & 15)), byte(2), byte(0x31), byte(registers(random >> 12));
      break;
    default:
      byte(alu[(random >> 8) % 9]), byte(registers(random >> 4));
  }
}

static u32 call(const u8 *code, u32 value, u32 *memory) {
  u32 c = value >> 3, d = ~value;
  __asm__ volatile("call *%3" : "+a"(value), "+c"(c), "+d"(d) : "b"(code), "S"(memory) : "cc", "memory");
  return value ^ c ^ d;
}

u32 program(void) {
  static u32 memory[1024];
  u32 seed = 71, sum = 0;
  for (u32 i = 0; i < PAGES; i++) {
    const u8 *functions[PAGE / 16];
    u32 count = 0;
    u8 *page = at = (u8 *)ARENA + i * PAGE % SIZE;
    while (at < page + PAGE - MOST) {
      functions[count++] = at;
      for (u32 left = 20 + next(&seed) % 30; left; left--) {
        u32 random = next(&seed) >> 3;
        operation(random, next(&seed));
      }
      byte(0xc3);
      at = (u8 *)(((word)at + 15) & ~15ul);
    }
    for (u32 j = 0; j < count; j++)
      for (u32 k = 0; k < CALLS; k++) sum = mix(sum, call(functions[j], sum + k, memory));
  }
  return sum;
}

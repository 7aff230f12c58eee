// A hot loop of integers, with a load and a store in each turn.
#include "machine.h"

enum { TURNS = 40000000 };

u32 program(void) {
  static volatile u32 slots[256];
  u32 a = 1, b = 2;
  for (u32 i = 0; i < TURNS; i++) {
    a += b ^ i;
    b = (b << 7 | b >> 25) + slots[a & 255];
    slots[i & 255] = a;
  }
  return a ^ b;
}

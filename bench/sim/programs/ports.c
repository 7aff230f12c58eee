// A million OUTs, to the port that PCs use for delays.
#include "machine.h"

enum { TURNS = 1000000 };

u32 program(void) {
  u32 sum = 1;
  for (u32 i = 0; i < TURNS; i++) {
    out8(0x80, i);
    sum = mix(sum, i);
  }
  return sum;
}

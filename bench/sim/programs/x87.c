// The x87: long doubles, with doubles and integers that go in and out.
#include "machine.h"

enum { TURNS = 300000 };

u32 program(void) {
  static double kept[64];
  u32 seed = 61, sum = 0;
  long double x = 1.5L, y = 0.25L;
  for (u32 i = 0; i < TURNS; i++) {
    long double in = (int)(next(&seed) >> 8), root;
    x = x * 0.75L + in / 65536;
    y = (y + kept[i & 63]) / (x * x + 1) - in * 0.001L;
    __asm__("fsqrt" : "=t"(root) : "0"(x * x + 2));
    __asm__("fabs" : "=t"(y) : "0"(y));
    if (root > y) y += root;
    kept[i & 63] = (double)(y * 0.5L);
    sum += (u32)(int)(x + root);
  }
  union {
    long double l;
    u32 u[3];
  } bits = {y};
  return mix(mix(mix(sum, bits.u[0]), bits.u[1]), bits.u[2] & 0xffff);
}

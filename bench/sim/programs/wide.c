// Eight floats, four doubles and vectors of integers at a time: AVX and AVX2.
#include "avx.h"

enum { COUNT = 4096, TIMES = 250 };

typedef float floats __attribute__((vector_size(32)));
typedef double doubles __attribute__((vector_size(32)));
typedef int ints __attribute__((vector_size(32)));

static floats a[COUNT], b[COUNT];
static doubles c[COUNT];
static ints d[COUNT];

WIDE("avx2") static void integers(void) {
  for (u32 time = 0; time < TIMES; time++)
    for (u32 i = 0; i < COUNT; i++) {
      ints v = d[i] + (d[(i + 1) % COUNT] ^ d[i] << 3);
      v = __builtin_shuffle(v, (ints){2, 0, 3, 1, 6, 4, 7, 5}) & ~(v > d[i]);
      d[i] ^= v * 3;
    }
}
WIDE("avx2") static void arithmetic(void) {
  for (u32 time = 0; time < TIMES; time++)
    for (u32 i = 0; i < COUNT; i++) {
      floats x = a[i] * b[i] + a[i], y;
      __asm__("vsqrtps %1, %0" : "=x"(y) : "x"(x));
      a[i] = x / (y + b[i]) + y * 0.5f;
      c[i] = c[i] * 0.999 + (doubles){0.5, 0.25, 0.125, 1};
    }
}

u32 program(void) {
  u32 seed = 51, sum = 0;
  enable_avx();
  for (u32 i = 0; i < COUNT; i++)
    for (u32 j = 0; j < 8; j++) {
      ((float *)&a[i])[j] = (int)(next(&seed) % 1000) * 0.25f + 1;
      ((float *)&b[i])[j] = (int)(next(&seed) % 1000) * 0.125f + 2;
      ((double *)&c[i])[j / 2] = (int)(next(&seed) % 1000) * 0.5;
      ((u32 *)&d[i])[j] = next(&seed);
    }
  integers();
  arithmetic();
  for (u32 i = 0; i < COUNT; i += 7)
    for (u32 j = 0; j < 8; j++) sum = mix(sum, ((u32 *)&a[i])[j] ^ ((u32 *)&c[i])[j] ^ ((u32 *)&d[i])[j]);
  return sum;
}

// A product and a sum with one rounding, four doubles and eight floats at a time: FMA.
#include "avx.h"

enum { COUNT = 4096, TIMES = 20 };

typedef float floats __attribute__((vector_size(32)));
typedef double doubles __attribute__((vector_size(32)));

static floats a[COUNT], b[COUNT];
static doubles c[COUNT];

WIDE("avx2,fma") static void fused(void) {
  for (u32 time = 0; time < TIMES; time++)
    for (u32 i = 0; i < COUNT; i++) {
      const doubles k = {0.499, 0.498, 0.497, 0.496};
      doubles x = c[i], next = c[(i + 1) % COUNT] * 0.5;
      __asm__("vfmadd213pd %2, %1, %0" : "+x"(x) : "x"(k), "x"(next));
      c[i] = x;
      floats y = a[i], above = a[(i + 1) % COUNT] * 0.5f;
      __asm__("vfmadd213ps %2, %1, %0" : "+x"(y) : "x"(b[i]), "x"(above));
      a[i] = y;
    }
}

u32 program(void) {
  u32 seed = 51, sum = 0;
  enable_avx();
  for (u32 i = 0; i < COUNT; i++)
    for (u32 j = 0; j < 8; j++) {
      ((float *)&a[i])[j] = (int)(next(&seed) % 1000) * 0.25f + 1;
      ((float *)&b[i])[j] = (int)(next(&seed) % 1000) * 0.0004f + 0.01f;
      ((double *)&c[i])[j / 2] = (int)(next(&seed) % 1000) * 0.5 + 1;
    }
  fused();
  for (u32 i = 0; i < COUNT; i += 7)
    for (u32 j = 0; j < 8; j++) sum = mix(sum, ((u32 *)&a[i])[j] ^ ((u32 *)&c[i])[j]);
  return sum;
}
